"""The kernel's own actor, ``@``, in every process: answers pings, starts and stops actors for the root.

Messages in (news of the registry, sent to the same name, are the `System`'s): `Ping`, `Record`, `StartActor`, `StopActor`, `SwapClass`, `Terminate`. Out: `Pong`, `ActorReady`,
`ActorExit`, `ClassSwapped`.
It is answered by the process's own loop: a hung loop does not answer. If it crashes, so does its process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from sgl_actors.actors.microkernel.actor import Actor, Context, MailboxSpec, Request
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.cell import Cell, Exit
from sgl_actors.actors.microkernel.control import (
    KERNEL,
    ActorExit,
    ActorReady,
    ClassSwapped,
    Ping,
    Pong,
    StartActor,
    StopActor,
    SwapClass,
    Terminate,
)
from sgl_actors.actors.microkernel.plugins import load_class
from sgl_actors.actors.microkernel.record import Record, Recorded, Recorder
from sgl_actors.actors.microkernel.swap import swappable
from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.errors import ActorDown, ConfigError, SglActorsError

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.system import System


class KernelActor(Actor):
    """See the module. The process that hosts it sets `system` in its config."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=16384)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.system: System = context.config["system"]
        self.root: Address | None = context.config.get("root")
        self.terminated: asyncio.Event = context.config["terminated"]
        self._loading: dict[tuple[str, int], bool] = {}

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Handle what the root says."""
        match message:
            case Ping():
                return self._pong()
            case Record():
                self.ctx.task(self._record(message.seconds, request), name="record")
            case StartActor():
                self.ctx.task(self._start(message))
            case StopActor():
                self._stop_actor(message)
            case SwapClass():
                self.ctx.task(self._swap(message, request), name=f"swap {message.name}")
            case Terminate():
                self.log.debug("terminating", reason=message.reason)
                self.terminated.set()
        return None

    def _pong(self) -> Pong:
        pulses = [
            cell.pulse()
            for cell in self.system.cells.values()
            if cell.address.name != KERNEL and cell.parent is None
        ]
        counters = {**self.system.counters, "tasks": len(asyncio.all_tasks())}
        return Pong(pulses, {name: float(count) for name, count in counters.items()})

    async def _record(self, seconds: float, request: Request) -> None:
        recorder = Recorder()
        self.system.recorders += (recorder,)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.system.recorders = tuple(one for one in self.system.recorders if one is not recorder)
        request.reply(Recorded([recorder.finish(self.system.process)]))

    def _cell(self, name: str, epoch: int) -> Cell:
        cell = self.system.cells.get(name)
        if cell is None or cell.address.epoch != epoch:
            raise ActorDown(f"{name}#{epoch} is not running here")
        return cell

    def _stop_actor(self, message: StopActor) -> None:
        if (message.name, message.epoch) in self._loading:
            self._loading[message.name, message.epoch] = False
        cell = self.system.cells.get(message.name)
        if cell is not None and cell.address.epoch == message.epoch:
            cell.stop(message.reason)

    async def _start(self, message: StartActor) -> None:
        address = Address(message.name, message.epoch, self.system.endpoint)
        self._loading[message.name, message.epoch] = True
        try:
            actor = await asyncio.to_thread(load_class, message.path)
        except (SglActorsError, Exception) as error:
            self.log.exception("cannot load", path=message.path)
            self._exited(address, Exit(str(error), fatal=isinstance(error, ConfigError)))
            return
        finally:
            wanted = self._loading.pop((message.name, message.epoch))
        if not wanted:
            self._exited(address, Exit("stopped while it was loaded", normal=True))
            return
        self.system.spawn(
            actor,
            message.name,
            self._config(message.settings),
            epoch=message.epoch,
            start_timeout=message.timeout,
            on_ready=lambda ready: self._tell(ActorReady(ready)),
            on_exit=self._exited,
        )

    def _config(self, settings: str) -> Mapping[str, Any]:
        """The process's configuration, with the sections that are the actor's own in place of its."""
        own: dict[str, Any] = msgspec.json.decode(settings) if settings else {}
        return {**self.system.config, **own}

    async def _swap(self, message: SwapClass, request: Request) -> None:
        """Have an actor of another class take over; whatever goes wrong is the asker's to hear."""
        try:
            new = await asyncio.to_thread(load_class, message.path)
            cell = self._cell(message.name, message.epoch)
            if not swappable(cell.actor_class, new, Actor):
                request.reply(ClassSwapped(in_place=False))
                return
            held = await cell.swap(new, self._config(message.settings), message.timeout)
        except Exception as error:  # noqa: BLE001 - a plugin's import may raise anything
            request.fail(error)
        else:
            request.reply(ClassSwapped(in_place=True, held=held))

    def _exited(self, address: Address, exit_: Exit) -> None:
        self._tell(ActorExit(address, exit_.reason, exit_.normal, exit_.fatal))

    def _tell(self, message: Message) -> None:
        if self.root is not None:
            self.ctx.cast(self.root, message, control=True)
