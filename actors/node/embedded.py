"""Being a client of a node from any event loop: join one that runs, or start one that ends with this process.

An embedded node is a whole node in child processes of this one: a user's blocked event loop delays nobody's heartbeat, and if this process dies in
any way the operating system ends the node.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import structlog

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.control import KERNEL, Hello, Table
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.logs import actor_logger
from sgl_actors.actors.microkernel.root import ROOT
from sgl_actors.actors.microkernel.system import LoggerFactory, Outside, System
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.actors.node.record import read_record
from sgl_actors.errors import ActorDown, DeadlineExceeded, NotReady, error_class

JOIN_TIMEOUT = 10.0
"""Seconds to reach a node that should be running."""

LOOKS, LOOK_INTERVAL = 20, 0.5
"""How often, and at what distance in seconds, is looked whether a root that was lost is dead."""

PREFIX = "sgl-actors-node-"
"""Begins the names of embedded nodes' folders."""

START_TIMEOUT = 120.0
"""Seconds an embedded node may take until it is ready."""


class NodeHandle:
    """A connection to a node; close it. Belongs to the event loop it was made in."""

    def __init__(self, system: System, child: subprocess.Popen[bytes] | None = None) -> None:
        self._system = system
        self._child = child
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._numbers = itertools.count(1)
        self._roots: list[Cell] = []

    @property
    def gone(self) -> bool:
        """Whether the node's root has ended, and with it all that could answer."""
        return self._system.registry.node_gone

    def context(self, name: str) -> Context:
        """A context of this process's own, to ask with and to spawn actors under; `name` shows in logs."""
        label = f"{name}/{self._system.process}.{next(self._numbers)}"
        cell = self._system.spawn(Outside, label)
        self._roots.append(cell)
        return cell.context

    async def close(self) -> None:
        """Leave, and end the node if it was started for this handle."""
        if self._child is not None:
            self._child.terminate()
        await self._system.close()
        Path(self._system.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        if self._child is not None:
            await asyncio.to_thread(self._child.wait)
        if self._folder is not None:
            self._folder.cleanup()


async def join(endpoint: str) -> NodeHandle:
    """Connect to the root of a running node (its `ipc://…/root.ipc`).

    Raises:
        NotReady: nothing answers there.
    """
    folder = Path(endpoint.removeprefix("ipc://")).parent
    label = f"client-{os.getpid()}-{secrets.token_hex(3)}"
    if endpoint.startswith("ipc://") and not folder.is_dir():
        raise NotReady(f"no node at {endpoint}")
    system = System(label, ZmqTransport(f"ipc://{folder / label}.ipc"), logger=_client_logger(folder))
    await system.open()
    kernel = system.spawn(KernelActor, KERNEL, {"system": system, "terminated": asyncio.Event()})
    root = Address(ROOT, 0, endpoint)
    try:
        hello = Hello(label, system.endpoint, os.getpid(), client=True)
        table = await kernel.context.call(root, hello, Table, timeout=JOIN_TIMEOUT, control=True)
    except BaseException as error:
        await system.close()
        if isinstance(error, ActorDown | DeadlineExceeded):
            raise NotReady(f"no node answers at {endpoint}") from error
        raise
    for address in table.names:
        system.name_up(address)

    loop = asyncio.get_running_loop()

    def lost(_: str, looks: int = LOOKS) -> None:
        """A connection may break off and come back; what tells is whether the root's process runs."""
        record = read_record(folder)
        if record is None or not record.alive:
            system.node_down()
        elif looks:
            loop.call_later(LOOK_INTERVAL, lost, endpoint, looks - 1)

    system.on_lost = lost
    system.transport.watch(endpoint)
    return NodeHandle(system)


def _client_logger(runtime_dir: Path) -> LoggerFactory:
    """All of a client's actors write to one file beside the node's logs; without a node's record nothing is written."""
    record = read_record(runtime_dir)
    log_dir = Path(os.devnull) if record is None else Path(record.log_dir)
    shared = actor_logger(log_dir, "clients", 0)

    def logger(address: Address) -> structlog.stdlib.BoundLogger:
        return shared.bind(actor=address.name, epoch=address.epoch)

    return logger


class EmbeddedRequest(msgspec.Struct, frozen=True):
    """What an embedded node's process is told on its standard input."""

    config: str | None
    flags: dict[str, str]


class Ready(msgspec.Struct, frozen=True):
    """What an embedded node's process prints when it serves, or why it does not."""

    endpoint: str = ""
    error: str = ""


async def open_node(config: str | None = None, *, flags: dict[str, str] | None = None) -> NodeHandle:
    """Start a node for this process alone (no gateway, sockets and logs in a folder of its own) and join it.

    Args:
        config: node.toml; None for the defaults.
        flags: values that override it, by key (``{"model.path": "…"}``).

    Raises:
        ConfigError, CheckpointError: what the node said.
        NotReady: it did not come up in time.
    """
    _sweep()
    folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    settings = {
        "node.runtime_dir": folder.name,
        "node.drain": "0",
        "actors.gateway.enabled": "false",
        **(flags or {}),
    }
    command = [sys.executable, "-m", "sgl_actors.actors.node.main", str(os.getpid())]
    child = subprocess.Popen(  # noqa: ASYNC220, S603 - our own module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for the program; it decides what becomes of its node
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(msgspec.json.encode(EmbeddedRequest(config, settings)))
    child.stdin.close()
    try:
        async with asyncio.timeout(START_TIMEOUT):
            line = await asyncio.to_thread(child.stdout.readline)
        handle = await join(_endpoint(line))
    except BaseException as error:
        child.kill()  # ends the read, too: nothing may wait for a node that nobody will use
        await asyncio.shield(asyncio.to_thread(child.wait))
        folder.cleanup()
        if isinstance(error, TimeoutError):
            raise NotReady(f"the embedded node was not ready in {START_TIMEOUT:g} s") from None
        raise
    finally:
        child.stdout.close()
    handle._child, handle._folder = child, folder  # noqa: SLF001 - made here
    return handle


def _sweep() -> None:
    """Remove the folders of embedded nodes whose process was killed before it could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        record = read_record(folder)
        if record is not None and not record.alive and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _endpoint(line: bytes) -> str:
    """Where the node that said `line` listens; raises what it said instead."""
    ready = msgspec.json.decode(line, type=Ready) if line else Ready(error="not_ready:its process ended")
    if ready.error:
        code, _, message = ready.error.partition(":")
        raise error_class(code)(message)
    return ready.endpoint
