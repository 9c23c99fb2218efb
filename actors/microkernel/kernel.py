"""The kernel's own actor, ``@``, in every process: keeps the registry's copy, answers pings, starts and stops actors for the root.

Messages in: `NameUp`, `NameDown`, `PeerDown`, `Ping`, `Record`, `StartActor`, `StopActor`, `Terminate`. Out: `Pong`, `ActorReady`, `ActorExit`.
It is answered by the process's own loop: a hung loop does not answer. If it crashes, so does its process.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, ClassVar

from sgl_actors.actors.microkernel.actor import Actor, Context, MailboxSpec, Request
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.cell import Exit
from sgl_actors.actors.microkernel.control import (
    KERNEL,
    ActorExit,
    ActorReady,
    NameDown,
    NameUp,
    PeerDown,
    Ping,
    Pong,
    StartActor,
    StopActor,
    Terminate,
)
from sgl_actors.actors.microkernel.record import Record, Recorded, Recorder
from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.errors import ConfigError, SglActorsError

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.system import System


def load_class(path: str) -> type[Actor]:
    """Import ``"module:Class"``; `ConfigError` if it is no actor."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(f"class {path!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Actor)):
        raise ConfigError(f"class {path!r} is no Actor")
    return found


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
        """Handle what the root and other kernels say."""
        match message:
            case NameUp():
                self.system.name_up(message.address)
            case NameDown():
                self.system.name_down(message.address, message.reason)
            case PeerDown():
                self.system.peer_down(message.endpoint)
            case Ping():
                return self._pong()
            case Record():
                self.ctx.task(self._record(message.seconds, request), name="record")
            case StartActor():
                self.ctx.task(self._start(message))
            case StopActor():
                self._stop_actor(message)
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
        return Pong(pulses, {name: float(count) for name, count in self.system.counters.items()})

    async def _record(self, seconds: float, request: Request) -> None:
        recorder = Recorder()
        self.system.recorders += (recorder,)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.system.recorders = tuple(one for one in self.system.recorders if one is not recorder)
        request.reply(Recorded([recorder.finish(self.system.process)]))

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
            self.system.config,
            epoch=message.epoch,
            start_timeout=message.timeout,
            on_ready=lambda ready: self._tell(ActorReady(ready)),
            on_exit=self._exited,
        )

    def _exited(self, address: Address, exit_: Exit) -> None:
        self._tell(ActorExit(address, exit_.reason, exit_.normal, exit_.fatal))

    def _tell(self, message: Message) -> None:
        if self.root is not None:
            self.ctx.cast(self.root, message, control=True)
