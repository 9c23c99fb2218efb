"""A whole node and its clients on a simulated loop: the real root, kernels, actors and client code; processes and network are simulated."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import structlog

from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.microkernel import Actor, Address, Context
from sgl_actors.actors.microkernel.cell import Cell, Exit
from sgl_actors.actors.microkernel.control import KERNEL
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.process import Boot
from sgl_actors.actors.microkernel.root import ROOT
from sgl_actors.actors.microkernel.simulated import SimulatedNetwork, SimulatedProcess, Weather
from sgl_actors.actors.microkernel.simulated_loop import Host, SimulatedLoop
from sgl_actors.actors.microkernel.supervisor import ChildSpec, Supervisor
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.node import embedded
from sgl_actors.actors.node.config import NodeConfig
from sgl_actors.actors.node.node_root import NodeRoot
from sgl_actors.actors.scheduler.actor import SchedulerActor
from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.actors.tokenizer.actor import TokenizerActor
from sgl_actors.actors.worker.fake import FakeWorker
from sgl_actors.errors import ActorDown, SglActorsError
from tests.lang.byte_vocabulary import byte_tokenizer

ROOT_ENDPOINT = "sim://root"
ROOT_ADDRESS = Address(ROOT, 0, ROOT_ENDPOINT)
VOCABULARY = 257
"""Ids of the fake model: the bytes, and one that stands for nothing, which poisons it in a prompt."""
POISON = 256
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CLASSES = {
    "worker/0": "sgl_actors.actors.worker.fake:FakeWorker",
    "cache": "sgl_actors.actors.cache.actor:CacheActor",
    "scheduler": "sgl_actors.actors.scheduler.actor:SchedulerActor",
    "tokenizer": "sgl_actors.actors.tokenizer.actor:TokenizerActor",
    "programs": "sgl_actors.actors.programs.actor:ProgramsActor",
}


@functools.cache
def byte_vocabulary() -> vocabulary.Vocabulary:
    """Each byte is a token."""
    tokenizer = byte_tokenizer()
    raw = [b""] * VOCABULARY
    for token, index in tokenizer.get_vocab().items():
        if index < POISON:
            raw[index] = vocabulary.byte_level(token)
    return vocabulary.Vocabulary(tokenizer, raw, frozenset({POISON}), {}, (), TEMPLATE)


class Line:
    """A logger that hands what it is told to the simulation."""

    def __init__(self, world: World, actor: str) -> None:
        self._world, self._actor = world, actor

    def bind(self, **_: Any) -> Line:
        return self

    def debug(self, event: str, **fields: Any) -> None: ...

    def info(self, event: str, **fields: Any) -> None:
        self._world.logged("info", self._actor, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._world.logged("warning", self._actor, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._world.logged("error", self._actor, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self._world.logged("error", self._actor, event, {"exc_info": sys.exc_info()[1], **fields})


class World:
    """One simulated node.

    Attributes:
        processes: those that the root has launched, by name of process, the last one each.
        violations: what must not have happened, and has.
        counts: faults and ways of recovery that this history went through.
        expected_crashes: types of exceptions that actors may crash of.
        horizon: nothing is injected after that.
    """

    def __init__(
        self, loop: SimulatedLoop, settings: dict[str, Any], *, trace: Callable[[str], None] | None = None
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.network = SimulatedNetwork(loop, settings["weather"])
        self.processes: dict[str, SimulatedProcess] = {}
        self.launched: list[SimulatedProcess] = []
        self.clients: list[SimulatedClient] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.expected_crashes: set[str] = set()
        self.on_up: list[Callable[[str], None]] = []
        self.deaths: list[tuple[float, str]] = []
        self.downs: list[tuple[float, str]] = []
        self.broken = asyncio.Event()
        self.done = asyncio.Event()
        self._digest = hashlib.blake2b(digest_size=8)
        self._trace = trace
        self.host = loop.host("root")
        self.supervisor = Supervisor(
            [
                ChildSpec(
                    name,
                    path,
                    settings["process"].get(name, name),
                    start_timeout=20.0,
                    shutdown=3.0,
                    settings=json.dumps({"options": settings["worker"]}) if name == "worker/0" else "",
                )
                for name, path in CLASSES.items()
            ],
            settings["strategy"],
            settings["intensity"],
            settings["period"],
        )
        self.system = System(
            ROOT,
            self.network.transport(ROOT_ENDPOINT, self.host),
            logger=self.logger,
            clock=loop.time,
            force_codec=settings["force_codec"],
        )

    # -- what happens is written down ---------------------------------------------------------------------

    def note(self, text: str) -> None:
        """One line of the history."""
        line = f"{self.loop.time() - 1000:10.6f} {text}"
        self._digest.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    @property
    def digest(self) -> str:
        """Hash of the history."""
        return self._digest.hexdigest()

    def violated(self, what: str) -> None:
        """An invariant does not hold."""
        self.note(f"VIOLATION {what}")
        self.violations.append(what)
        self.broken.set()

    def logger(self, address: Address) -> structlog.stdlib.BoundLogger:
        """Log of an actor."""
        return cast("structlog.stdlib.BoundLogger", Line(self, f"{address.name}#{address.epoch}"))

    def logged(self, level: str, actor: str, event: str, fields: dict[str, Any]) -> None:
        """A line of an actor's log."""
        if self.loop.is_closed():
            return
        cause = fields.get("exc_info")
        told = " ".join(f"{k}={v!r}"[:160] for k, v in fields.items() if k != "program")
        self.note(f"{level} {actor}: {event} {told}")
        self.counts[f"log: {event}"] += 1
        if event == "down" and actor == "root#1":
            self.downs.append((self.loop.time(), str(fields["name"])))
        if event == "up":
            for callback in list(self.on_up):
                callback(str(fields["name"]).partition("#")[0])
        unexpected = cause is not None and type(cause).__name__ not in self.expected_crashes
        if unexpected or event in ("accounts wrong", "commit refused", "control lane is full, event lost"):
            frames = traceback.format_exception(cause)[-6:] if isinstance(cause, BaseException) else ()
            self.violated(f"{actor} logged {event!r}: {told} {''.join(frames)}")

    # -- the node -----------------------------------------------------------------------------------------

    async def start(self) -> Cell:
        """Start the root, in its own process; its children come up by themselves."""
        return await self.host.task(self._start())

    async def _start(self) -> Cell:
        settings = self.settings
        await self.system.open()
        self.system.spawn(KernelActor, KERNEL, {"system": self.system, "terminated": asyncio.Event()})
        boot = Boot(
            "",
            "",
            Address(ROOT, 1, ROOT_ENDPOINT),
            "",
            settings["config"],
            force_codec=settings["force_codec"],
        )
        config = {
            "system": self.system,
            "supervisor": self.supervisor,
            "boot": boot,
            "socket_dir": Path("/sim"),
            "on_done": self.done.set,
            "drain": 0.0,
            "launch": self._launch,
            "node_config": NodeConfig(),
        }
        cell = self.system.spawn(NodeRoot, ROOT, config, epoch=1, on_exit=self._root_ended)
        await cell.ready.wait()
        return cell

    def _root_ended(self, _: Address, exit_: Exit) -> None:
        if not exit_.normal:
            self.violated(f"the root ended: {exit_.reason}")
        self.done.set()

    def _launch(self, boot: Boot, on_exit: Callable[[int], None]) -> SimulatedProcess:
        def ended(code: int) -> None:
            self.note(f"process {boot.process} ended with {code}")
            if code:
                self.deaths.append((self.loop.time(), boot.process))
            on_exit(code)

        process = SimulatedProcess(self.network, boot, ended, self.logger)
        self.processes[boot.process] = process
        self.launched.append(process)
        return process

    def actor(self, name: str) -> Actor | None:
        """The actor that holds `name`, if it runs."""
        address = self.system.names.get(name)
        for process in self.processes.values():
            cell = process.system.cells.get(name)
            if cell is not None and cell.address == address and not process.host.dead:
                return cell.actor
        return None

    @property
    def scheduler(self) -> SchedulerActor | None:
        actor = self.actor("scheduler")
        return actor if isinstance(actor, SchedulerActor) else None

    @property
    def cache(self) -> CacheActor | None:
        actor = self.actor("cache")
        return actor if isinstance(actor, CacheActor) else None

    @property
    def tokenizer(self) -> TokenizerActor | None:
        actor = self.actor("tokenizer")
        return actor if isinstance(actor, TokenizerActor) else None

    @property
    def worker(self) -> FakeWorker | None:
        actor = self.actor("worker/0")
        return actor if isinstance(actor, FakeWorker) else None

    async def stop(self, cell: Cell) -> None:
        """End the node in order."""

        async def shut() -> None:
            root = cast("NodeRoot", cell.actor)
            cell.context.task(root.shutdown(0.0))
            await self.done.wait()
            self.supervisor.closing = True
            await self.system.close()

        await self.host.task(shut())

    async def client(self, name: str) -> SimulatedClient:
        """A new client that has joined the node."""
        client = SimulatedClient(self, name)
        self.clients.append(client)
        await client.host.task(client.join())
        return client


class SimulatedClient:
    """A user's process: takes part in the node as an embedded client does. It is a `NodeHandle`.

    Attributes:
        excused: messages of it, or to it, may have been lost.
    """

    def __init__(self, world: World, name: str) -> None:
        self.name, self.world = name, world
        self.endpoint = f"sim://{name}"
        self.host: Host = world.loop.host(name)
        self.transport = world.network.transport(self.endpoint, self.host)
        self.system = System(
            name,
            self.transport,
            logger=world.logger,
            clock=world.loop.time,
            force_codec=world.settings["force_codec"],
        )
        self.excused = self._looking = False
        self._numbers = 0

    async def join(self) -> None:
        """As `embedded.join`."""
        await embedded._say_hello(self.system, ROOT_ADDRESS)
        self.system.on_lost = self._lost
        self.system.transport.watch(ROOT_ENDPOINT)

    def _lost(self, _: str) -> None:
        if not self._looking:
            self._looking = True
            self.task(self._look(), name=f"{self.name} looks for the node")

    async def _look(self) -> None:
        """As `embedded._join_ipc`'s: have the node know this client again, then have whoever waits ask again."""
        while not self.world.done.is_set():
            try:
                await embedded._learn_names(self.system, ROOT_ADDRESS, embedded.LOOK_INTERVAL)
            except SglActorsError:
                await asyncio.sleep(embedded.LOOK_INTERVAL)
            else:
                self._looking = False
                self.world.counts["clients back"] += 1
                self.system.interrupt(ActorDown("the connection to the node broke off"))
                return

    @property
    def gone(self) -> bool:
        """Whether the node has ended."""
        return self.system.registry.node_gone

    def context(self, name: str) -> Context:
        """A context to ask with."""
        self._numbers += 1
        return self.system.spawn(Outside, f"{name}/{self.name}.{self._numbers}").context

    async def close(self) -> None:
        """Leave."""
        await self.system.close()

    def crash(self) -> None:
        """Die without a word."""
        self.host.kill()
        self.world.network.leave(self.endpoint, orderly=False)

    def task(self, coroutine: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Run in this process."""
        return self.host.task(coroutine, name=name)


__all__ = ["CLASSES", "POISON", "VOCABULARY", "SimulatedClient", "Weather", "World", "byte_vocabulary"]
