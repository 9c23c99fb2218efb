"""Operating-system processes: how the root starts one, how it ends with its parent, and what runs in it.

A child ignores terminal signals (Ctrl-C reaches the whole group) and ends when told by the root, or with it (`actors.child`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from sgl_actors.actors.child import command
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.control import KERNEL, Hello, Table
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.logs import DEFAULT_SIZE, actor_logger
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.wire import VERSION
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport

T = TypeVar("T")

KERNEL_CRASHED = 70
"""Exit code of a process whose kernel actor has crashed."""
OTHER_VERSION = 71
"""Exit code of a process that speaks otherwise than its root, whose files were replaced meanwhile."""


class Boot(msgspec.Struct, frozen=True):
    """What a child process is told on its standard input."""

    process: str
    endpoint: str
    root: Address
    log_dir: str
    config: dict[str, Any]
    log_level: str = "info"
    log_size: int = DEFAULT_SIZE
    force_codec: bool = False
    wire: int = VERSION

    def logger(self, address: Address) -> structlog.stdlib.BoundLogger:
        """The log of one of its actors."""
        return actor_logger(
            self.log_dir, address.name, address.epoch, level=self.log_level, max_bytes=self.log_size
        )


class Launched(Protocol):
    """A process as the root sees it; `Process` is one, a simulated one another."""

    pid: int
    ended: asyncio.Event

    def kill(self) -> None:
        """End it now; `on_exit` follows."""

    def sign(self) -> Sign:
        """What the operating system says of the thread that its event loop runs in."""


class Sign(NamedTuple):
    """How a thread is doing.

    Attributes:
        state: letter of proc(5): R runs or wants to, S and D wait, T is stopped; "" if there is none any more.
        cpu: seconds it has used so far.
    """

    state: str = ""
    cpu: float = 0.0


class Process:
    """A child process and its end. `on_exit(returncode)` is called once, from the loop."""

    def __init__(self, boot: Boot, on_exit: Callable[[int], None]) -> None:
        self.endpoint = boot.endpoint
        self.ended = asyncio.Event()
        self._on_exit = on_exit
        self._popen = subprocess.Popen(command(__name__), stdin=subprocess.PIPE)  # noqa: S603 - our own module
        assert self._popen.stdin is not None
        self._popen.stdin.write(msgspec.json.encode(boot))
        self._popen.stdin.close()
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()
        if self.endpoint.startswith("ipc://"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        self.ended.set()
        self._on_exit(code)

    def sign(self) -> Sign:
        """See `Launched.sign`. The event loop runs in the first thread."""
        try:
            fields = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return Sign()
        return Sign(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))

    def kill(self) -> None:
        """End it now."""
        if self._popen.poll() is None:
            self._popen.kill()


def resident_bytes(pid: int) -> int:
    """Resident set size of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def runs(pid: int) -> bool:
    """Whether a process of this machine is there, even if it is stopped; a zombie runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


async def live(boot: Boot) -> None:
    """A child's whole life: say hello to the root, run what it says, end when it says so."""
    terminated = asyncio.Event()
    system = System(
        boot.process,
        ZmqTransport(boot.endpoint),
        config=boot.config,
        logger=boot.logger,
        force_codec=boot.force_codec,
    )
    await system.open()
    kernel = system.spawn(
        KernelActor,
        KERNEL,
        {"system": system, "root": boot.root, "terminated": terminated},
        on_exit=lambda *_: None if terminated.is_set() else os._exit(KERNEL_CRASHED),
    )
    await kernel.ready.wait()
    hello = Hello(boot.process, boot.endpoint, os.getpid())
    table = await kernel.context.call(boot.root, hello, Table, timeout=10.0, control=True)
    for address in table.names:
        system.name_up(address)
    await terminated.wait()
    await system.close()


def main() -> None:
    """Entry of a child process; its `Boot` is on its standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    boot = msgspec.json.decode(sys.stdin.buffer.read(), type=Boot)
    if boot.wire != VERSION:
        sys.exit(OTHER_VERSION)
    sys.stdin.close()
    run_loop(live(boot))


def run_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it exists."""
    if sys.platform == "win32":
        return asyncio.run(coroutine)
    import uvloop

    return uvloop.run(coroutine)
