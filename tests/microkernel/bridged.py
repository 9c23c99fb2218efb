"""A kernel behind a bridge, and clients of it over tcp."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from sgl_actors.actors.microkernel import Address, Context, Message
from sgl_actors.actors.microkernel.bridge import Bridge
from sgl_actors.actors.microkernel.control import KERNEL
from sgl_actors.actors.microkernel.curve import KeyPair, draw
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.link import LinkTransport
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from tests.microkernel.kernel_actors import Echo


def free_port() -> int:
    """A tcp port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(check: Callable[[], object]) -> None:
    """Poll; bounded by the test's own timeout."""
    while not check():
        await asyncio.sleep(0.005)


class Anything:
    """Lets every message pass and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, peer: str, endpoint: str, to: str, kind: int, message: Message) -> Message:
        self.asked.append((peer, to, type(message).__name__))
        return message


class Wall:
    """The node's side: a kernel with an echo, the bridge, and the keys of who may come in."""

    def __init__(self, folder: Path) -> None:
        self.pair, self.laptop, self.desktop = draw(), draw(), draw()
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.system = System("there", ZmqTransport(f"ipc://{folder}/root.ipc"), force_codec=True)
        self.admit = Anything()
        self.clock: Callable[[], float] = time.monotonic
        self._folder = folder
        self.bridges = 0
        self.bridge = self.build()

    def now(self) -> float:
        """What `clock` says, which a test may change."""
        return self.clock()

    def build(self, *, keyed: bool = True) -> Bridge:
        """A bridge at the same address."""
        self.bridges += 1
        self.bridge = Bridge(
            self.address,
            ZmqTransport(f"ipc://{self._folder}/clients.{self.bridges}.ipc"),
            Address("root", 0, self.system.endpoint),
            pair=self.pair if keyed else None,
            peers={self.laptop.public: "laptop", self.desktop.public: "desktop"},
            admit=self.admit,
            clock=self.now,
            log=structlog.get_logger(),
        )
        return self.bridge

    async def client(self, pair: KeyPair | None = None, address: str = "") -> tuple[System, Context]:
        """A client's kernel, and a context in it. It knows where the echo is."""
        transport = await LinkTransport.connect(
            address or self.address, pair or self.laptop, [self.pair.public], 5.0
        )
        system = System("client", transport, force_codec=True)
        await system.open()
        system.spawn(KernelActor, KERNEL, {"system": system, "terminated": asyncio.Event()})
        system.name_up(self.system.cells["echo"].address)
        return system, system.spawn(Outside, "asker").context


@asynccontextmanager
async def wall() -> AsyncIterator[Wall]:
    """Build and tear down."""
    with tempfile.TemporaryDirectory() as folder:
        made = Wall(Path(folder))
        await made.system.open()
        made.system.spawn(KernelActor, KERNEL, {"system": made.system, "terminated": asyncio.Event()})
        cell = made.system.spawn(Echo, "echo")
        await cell.ready.wait()
        made.system.name_up(cell.address)
        try:
            yield made
        finally:
            made.bridge.close()
            await made.system.close()
