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
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from sgl_actors.actors.child import command
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.control import KERNEL, Hello, Table
from sgl_actors.actors.microkernel.curve import check_public, read_public, read_secret
from sgl_actors.actors.microkernel.ipc import PREFIX as IPC
from sgl_actors.actors.microkernel.ipc import check_peer, socket_path
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.link import LinkTransport
from sgl_actors.actors.microkernel.logs import actor_logger
from sgl_actors.actors.microkernel.root import ROOT
from sgl_actors.actors.microkernel.system import LoggerFactory, Outside, System
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.actors.node.record import read_record
from sgl_actors.errors import ActorDown, ConfigError, DeadlineExceeded, NotReady, SglActorsError, error_class

JOIN_TIMEOUT = 10.0
"""Seconds to reach a node that should be running."""

LOOK_INTERVAL = 0.5
"""Seconds between two looks whether a root that was lost is dead, and until it has to answer."""

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
        if self._system.endpoint.startswith(IPC) and isinstance(self._system.transport, ZmqTransport):
            socket_path(self._system.endpoint).unlink(
                missing_ok=True
            )  # by that the root knows that it leaves
        await self._system.close()
        if self._child is not None:
            await asyncio.to_thread(self._child.wait)
        if self._folder is not None:
            self._folder.cleanup()


async def join(
    endpoint: str, *, key: str | os.PathLike[str] = "", server_key: str | os.PathLike[str] = ""
) -> NodeHandle:
    """Connect to a running node: to its root (``ipc://…/root.ipc``), or over tcp to where it listens (``tcp://host:port``).

    Args:
        endpoint: of the node.
        key: file with the secret key of this client, for tcp; "" for a node that has `insecure_tcp`.
        server_key: the node's public key, or a file with it, or with the two that are good while it is being replaced.

    Raises:
        NotReady: nothing answers there.
        Unauthorized: the node does not know the key.
        ConfigError: a key cannot be used.
    """
    if endpoint.startswith(IPC):
        return await _join_ipc(endpoint)
    pair = read_secret(Path(key)) if key else None
    servers = [] if pair is None else _server_keys(server_key)
    transport = await LinkTransport.connect(endpoint, pair, servers, JOIN_TIMEOUT)
    label = f"client-{os.getpid()}-{secrets.token_hex(3)}"
    system = System(label, transport, logger=lambda _: structlog.get_logger("sgl_actors.client"))
    await _say_hello(system, transport.root)
    loop = asyncio.get_running_loop()

    def lost(_: str) -> None:
        """What was on its way is lost: whoever waits may ask again, which goes out when the link is back."""
        system.interrupt(ActorDown("the connection to the node broke off"))

    def back() -> None:
        """Who is up may have changed meanwhile."""
        waiting.add(task := loop.create_task(_refresh(system, transport.root)))
        task.add_done_callback(waiting.discard)

    waiting: set[asyncio.Task[None]] = set()
    system.on_lost, transport.on_back = lost, back
    transport.on_gone = lambda _: system.node_down()
    return NodeHandle(system)


def _server_keys(given: str | os.PathLike[str]) -> list[str]:
    """The public keys of which the node has one; `ConfigError` without any."""
    if not given:
        raise ConfigError("connect: key is given, but not server_key: which node is it to be?")
    try:
        return [check_public(os.fspath(given))]
    except ConfigError:
        return read_public(Path(given))


async def _join_ipc(endpoint: str) -> NodeHandle:
    folder = socket_path(endpoint).parent
    label = f"client-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        check_peer(endpoint, folder)
    except ActorDown:
        raise NotReady(f"no node at {endpoint}") from None
    system = System(label, ZmqTransport(f"{IPC}{folder / label}.ipc"), logger=_client_logger(folder))
    try:
        await _say_hello(system, Address(ROOT, 0, endpoint))
    except (ActorDown, DeadlineExceeded) as error:
        raise NotReady(f"no node answers at {endpoint}") from error
    busy = False

    async def look() -> None:
        """A connection may break off and come back, as when this process or the root was stopped; what tells is whether the root's process runs.

        When it is back, what was on its way is lost: whoever waits asks again.
        """
        nonlocal busy
        while (record := read_record(folder)) is not None and record.alive:
            try:
                await _learn_names(system, Address(ROOT, 0, endpoint), LOOK_INTERVAL)
            except SglActorsError:
                await asyncio.sleep(LOOK_INTERVAL)
            else:
                busy = False
                system.interrupt(ActorDown("the connection to the node broke off"))
                return
        system.node_down()

    def lost(_: str) -> None:
        nonlocal busy
        if not busy:
            busy = True
            system.cells[KERNEL].context.task(look(), name="look for the node")

    system.on_lost = lost
    system.transport.watch(endpoint)
    return NodeHandle(system)


async def _say_hello(system: System, root: Address) -> None:
    """Open the kernel of a client and learn who is there; it is closed again if that fails."""
    await system.open()
    try:
        system.spawn(KernelActor, KERNEL, {"system": system, "terminated": asyncio.Event()})
        await _learn_names(system, root)
    except BaseException:
        await system.close()
        raise


async def _learn_names(system: System, root: Address, timeout: float = JOIN_TIMEOUT) -> None:
    """Ask the root who is up, and take the others for ended."""
    hello = Hello(system.process, system.endpoint, os.getpid(), client=True)
    context = system.cells[KERNEL].context
    before = list(system.names.values())  # what comes up meanwhile is newer than the table may be
    table = await context.call(root, hello, Table, timeout=timeout, control=True)
    held = {address.name: address for address in table.names}
    for address in before:
        if held.get(address.name) != address:
            system.name_down(address, "ended while there was no connection")
    for address in table.names:
        system.name_up(address)


async def _refresh(system: System, root: Address) -> None:
    """`_learn_names`; the link may break again meanwhile, and is refreshed again then."""
    with suppress(SglActorsError, KeyError):
        await _learn_names(system, root)


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
    child = subprocess.Popen(  # noqa: ASYNC220, S603 - our own module
        command("sgl_actors.actors.node.main", "embedded"),
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
