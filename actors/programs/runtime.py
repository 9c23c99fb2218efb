"""Where programs run: a kernel context that streams are spawned in, and a client that asks a node.

A `Node` is an embedded node (or one that is open already); `connect` joins a running node over ZMQ or speaks HTTP to one.
The one opened last is where programs run by default; without any, an embedded node is opened on first use. What is not closed
before is closed when its event loop ends.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, cast

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.programs.journal_client import JournalClient
from sgl_actors.actors.programs.journal_entry import Entry, begin, recall
from sgl_actors.actors.programs.messages import ProgramEnded, ProgramStarted
from sgl_actors.actors.programs.program import LiveRun
from sgl_actors.actors.programs.setup import Frames, Setup
from sgl_actors.errors import ConfigError
from sgl_actors.lang.budget import Books
from sgl_actors.lang.durable import Past
from sgl_actors.lang.protocols import Client, RunOptions, check_backend

PROGRAMS = "programs"
KEY_VARIABLE = "SGL_ACTORS_API_KEY"
CLOSE_TIMEOUT = 15.0
API_MARK = "#api/"
"""Between a node's address and the name of an API model that it hosts, where a durable program's backend is recorded."""
NODE = "node"
"""Address of an embedded node with defaults."""


class NodeHandle(Protocol):
    """A node this process takes part in (`actors.node.embedded`)."""

    @property
    def gone(self) -> bool:
        """Whether the node has ended: nothing that is asked there will be answered."""

    def context(self, name: str) -> Context:
        """A client's context there, by a name of its own."""

    async def close(self) -> None:
        """Leave the node; an embedded one stops."""


Open = Callable[[], Coroutine[Any, Any, tuple[NodeHandle, Callable[[Context], Client], bool]]]
"""Opens a handle; how to make a client of a context; whether the node has a `programs` actor to tell."""


@dataclass(slots=True)
class Opened:
    """What an open backend holds.

    Attributes:
        tells: the node has a `programs` actor that wants to know.
        runs: programs that run there.
    """

    handle: NodeHandle
    context: Context
    client: Client
    frames: Frames
    tells: bool
    runs: int = 0

    async def close(self) -> None:
        """Leave the node."""
        closing = getattr(self.client, "close", None)
        if closing is not None:
            await closing()
        await self.handle.close()


@dataclass(slots=True)
class _Held:
    """What a backend holds on one event loop. `keeper` closes it when the loop ends."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: Opened | None = None
    lost: list[Opened] = field(default_factory=list)
    keeper: AsyncGenerator[None, None] | None = None


class Backend:
    """A place where programs run; see `lang.protocols.Runtime`. Opened on first use, or with `async with`.

    A node that has ended is left, and opened anew for the next program. Event loops in several threads may use it at the same time: each opens it
    for itself.

    Attributes:
        address: what opens it again in another process: a node's address or node.toml; "" if nothing does.
    """

    def __init__(self, opens: Open, title: str, address: str = "") -> None:
        self.address = address
        self._opens, self._title = opens, title
        self._held: dict[asyncio.AbstractEventLoop, _Held] = {}

    def __repr__(self) -> str:
        return f"<{self._title} {'open' if self._opened else 'not open'}>"

    @property
    def _opened(self) -> Opened | None:
        """What it holds on this event loop, without one on any."""
        try:
            here = self._held.get(asyncio.get_running_loop())
        except RuntimeError:  # no loop runs
            here = next((one for one in list(self._held.values()) if one.opened is not None), None)
        return None if here is None else here.opened

    async def __aenter__(self) -> Self:
        await self.open()
        _stack.append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> Opened:
        """Get ready; nothing happens if it is. It is closed when this event loop ends, at the latest."""
        for ended in [loop for loop in list(self._held) if loop.is_closed()]:
            self._held.pop(ended, None)
        held = self._held.setdefault(asyncio.get_running_loop(), _Held())
        async with held.lock:
            if held.opened is not None and held.opened.handle.gone:
                held.lost.append(held.opened)
                held.opened = None
            for lost in [one for one in held.lost if not one.runs]:
                held.lost.remove(lost)
                await lost.close()
            if held.opened is None:
                handle, make_client, tells = await self._opens()
                context = handle.context("client")
                await asyncio.sleep(0)  # the context's cell takes its first step
                client = make_client(context)
                held.opened = Opened(handle, context, client, Frames(client), tells)
                _open.add(self)
                if held.keeper is None:
                    held.keeper = _keep(self)
                    await anext(held.keeper)
            return held.opened

    async def close(self) -> None:
        """Close it; programs that still run there end with `ActorDown`, and it is no default any more."""
        while self in _stack:
            _stack.remove(self)
        await self._leave()

    async def _leave(self) -> None:
        """Close what is open on this event loop. It stays the default: the next loop opens it anew."""
        held = self._held.pop(asyncio.get_running_loop(), None)
        if not self._held:
            _open.discard(self)
        if held is None:
            return
        for one in [*held.lost, held.opened]:
            if one is not None:
                await one.close()
        if held.keeper is not None:
            await held.keeper.aclose()

    async def start(self, name: str, options: RunOptions) -> LiveRun:
        """See `Runtime.start`."""
        if options.durable is None:
            return await self._start(name, options, None)
        entry = await begin(name, options, self.address)
        try:
            return await self._start(name, options, entry)
        except BaseException:
            await entry.close()
            raise

    async def recall(self, name: str, options: RunOptions) -> Past | None:
        """See `Runtime.recall`."""
        return await recall(name, options)

    async def _start(self, name: str, options: RunOptions, entry: Entry | None) -> LiveRun:
        opened = await self.open()
        context, client = opened.context, opened.client
        if options.budget.cost is not None and client.api is not None and not client.api.priced:
            raise ConfigError(
                f"budget: cost={options.budget.cost:g} needs prices, and nobody knows those of {client.api.title}; say prices=, or write them into prices.toml",
                param="budget",
            )
        if entry is not None:
            client = JournalClient(client, entry, limited=options.budget.tokens is not None)
        drawn = secrets.randbits(63) if options.seed is None else options.seed
        fresh = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{secrets.token_hex(5)}"
        seconds = options.budget.seconds
        setup = Setup(
            program=fresh if entry is None else entry.program,
            name=name,
            client=client,
            frames=opened.frames if entry is None else opened.frames.through(client),
            seed=drawn if entry is None else entry.seed,
            deadline=context.now() + min(options.timeout, math.inf if seconds is None else seconds),
            sampling=options.sampling,
            priority=options.priority,
            cache_salt=options.cache_salt,
            fork_hint=options.fork_hint,
            books=Books(options.budget),
            started=context.now(),
            entry=entry,
            speculation=options.speculation,
            live=options.live,
        )

        def tell_end(code: str) -> None:
            opened.runs -= 1
            if opened.tells and not opened.handle.gone and self._opened is opened:
                context.cast(PROGRAMS, ProgramEnded(setup.program, code))

        if opened.tells:
            context.cast(PROGRAMS, ProgramStarted(setup.program, name))
        run = LiveRun(context, setup, tell_end)
        opened.runs += 1
        return run


class Node(Backend):
    """An embedded node: the same actors as a started one, described by a node.toml (defaults without one).

    Example:
        >>> async def main():
        ...     async with Node("node.toml"):
        ...         await judge.run(essay="…")
        >>> Node("node.toml")
        <Node node.toml not open>
    """

    def __init__(self, config: str | os.PathLike[str] | None = None) -> None:
        path = None if config is None else os.fspath(config)

        async def opens() -> tuple[NodeHandle, Callable[[Context], Client], bool]:
            from sgl_actors.actors.node.client import NodeClient
            from sgl_actors.actors.node.embedded import open_node

            return await open_node(path), NodeClient, True

        again = NODE if path is None else str(Path(path).absolute())
        super().__init__(opens, f"Node {path or 'with defaults'}", again)


class Connection(Backend):
    """A node that runs elsewhere. Made by `connect`.

    Example:
        >>> connection = connect("http://127.0.0.1:30000")
        >>> connection.endpoint
        'http://127.0.0.1:30000'
    """

    def __init__(
        self, endpoint: str, key: str = "", curve: tuple[str, str] = ("", ""), api: str = ""
    ) -> None:
        self.endpoint, self.key, self.curve, self.api = endpoint, key, curve, api
        if api:
            opens = partial(_open_api, endpoint, api, curve)
            title, again = f"Connection to api/{api} at {endpoint}", f"{endpoint}{API_MARK}{api}"
        else:
            opens = partial(_open_endpoint, endpoint, key, curve)
            title, again = f"Connection to {endpoint}", endpoint
        super().__init__(opens, title, again)


def connect(
    endpoint: str,
    *,
    api_key: str | None = None,
    key: str | os.PathLike[str] = "",
    server_key: str | os.PathLike[str] = "",
    api: str = "",
) -> Connection:
    """Have programs run against a node that is running: ``http://host:port``, or its ZMQ address ``ipc://…``, ``tcp://…``.

    It is the default from here on, and is opened on first use; `async with connect(…)` opens it now and closes it at the end.

    Args:
        endpoint: the node's address.
        api_key: for a node with tenants, over HTTP; without it $SGL_ACTORS_API_KEY.
        key: for ``tcp://``, the file with this client's secret key (``sgl-actors keys new``).
        server_key: for ``tcp://``, the node's public key, or a file with it.
        api: run on the API model that the node hosts as ``[actors."api/NAME"]`` instead of its own; its limits and budget are then shared by all who do so.

    Raises:
        ConfigError: no such kind of address, a key that no request could carry, or `api` over HTTP. What is wrong with key files is said when it is opened.

    Example:
        >>> connect("http://127.0.0.1:30000")
        <Connection to http://127.0.0.1:30000 not open>
    """
    if not endpoint.startswith(("http://", "https://", "ipc://", "tcp://")):
        raise ConfigError(
            f"connect: {endpoint!r} is no address of a node: http://host:port, ipc://path or tcp://host:port"
        )
    if api and endpoint.startswith("http"):
        raise ConfigError(
            "connect: api= needs the node's ipc:// or tcp:// address; over HTTP a node serves its own models only. "
            "sgl.OpenAI(MODEL, base_url=…) asks an API from this process",
            param="api",
        )
    connection = Connection(
        endpoint,
        check_key(os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key),
        (os.fspath(key), os.fspath(server_key)),
        api,
    )
    _stack.append(connection)
    return connection


def check_key(key: object) -> str:
    """The key as requests carry it, without one newline at its end; `ConfigError`, which does not show it, for what is none."""
    text = key.removesuffix("\n").removesuffix("\r") if isinstance(key, str) else None
    if text is None or not all("!" <= character <= "~" for character in text):
        raise ConfigError(f"api_key / ${KEY_VARIABLE}: expected visible ASCII without spaces")
    return text


async def _open_endpoint(
    endpoint: str, key: str, curve: tuple[str, str]
) -> tuple[NodeHandle, Callable[[Context], Client], bool]:
    if endpoint.startswith("http"):
        from sgl_actors.actors.programs.http_client import HttpClient
        from sgl_actors.actors.programs.local_kernel import open_kernel

        return await open_kernel(), lambda _context: HttpClient(endpoint, key=key), False
    from sgl_actors.actors.node.client import NodeClient
    from sgl_actors.actors.node.embedded import join

    return await join(endpoint, key=curve[0], server_key=curve[1]), NodeClient, True


async def _open_api(
    endpoint: str, api: str, curve: tuple[str, str]
) -> tuple[NodeHandle, Callable[[Context], Client], bool]:
    from sgl_actors.actors.node.embedded import join
    from sgl_actors.actors.programs.api_client import ApiClient
    from sgl_actors.actors.programs.api_hosts import find_api

    handle = await join(endpoint, key=curve[0], server_key=curve[1])
    try:
        info = await find_api(handle.context("opener"), api)
    except BaseException:
        await handle.close()
        raise
    return handle, lambda context: ApiClient(context, f"api/{api}", info), True


class Default:
    """The runtime of programs that are told nothing: what was opened last, else an embedded node per event loop."""

    def __init__(self, make: Callable[[], Backend] = Node) -> None:
        self.embedded = make()

    async def start(self, name: str, options: RunOptions) -> LiveRun:
        """See `Runtime.start`."""
        return await (_stack[-1] if _stack else self.embedded).start(name, options)

    async def recall(self, name: str, options: RunOptions) -> Past | None:
        """See `Runtime.recall`."""
        return await recall(name, options)

    async def shutdown(self) -> None:
        """Close the embedded node now instead of at the end of the event loop."""
        await self.embedded.close()


async def _keep(backend: Backend) -> AsyncGenerator[None, None]:
    """Closes the backend when the event loop shuts its generators down, which is the last thing `asyncio.run` does."""
    try:
        yield
    finally:
        held = backend._held.get(asyncio.get_running_loop())  # noqa: SLF001 - the same module
        if held is not None:
            held.keeper = None  # it is this generator, which is ending
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await backend._leave()  # noqa: SLF001


_open: set[Backend] = set()
"""Keeps what is open: its kernel has tasks, whoever holds the backend."""
_stack: list[Backend] = []
default = Default()
"""Where programs run when they are told nothing."""


def set_default_backend(backend: Backend | None) -> None:
    """Have programs run there unless `run` says otherwise; None goes back to an embedded node.

    Example:
        >>> set_default_backend(Mock(["Paris"]))
    """
    _stack[:] = [] if backend is None else [cast("Backend", check_backend(backend))]


async def flush_cache(backend: Backend | None = None) -> bool:
    """Empty a backend's cache, by default that of the one programs run on; False if something was running, and nothing was done.

    Example:
        >>> await flush_cache()
        True
    """
    opened = await (backend or (_stack[-1] if _stack else default.embedded)).open()
    return bool((await opened.client.flush()).done)


async def shutdown() -> None:
    """Close the embedded node that was opened on first use, if any.

    Example:
        >>> await shutdown()
    """
    await default.shutdown()
