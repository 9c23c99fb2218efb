"""A stream as a body in another thread sees it: what the body says is numbered here and handed over in order, without waiting."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.errors import StreamEnded
from sgl_actors.lang.ir import AnyNode, Join
from sgl_actors.lang.protocols import Stream
from sgl_actors.lang.results import Failure, Outcome, Usage
from sgl_actors.lang.threaded.loop import LoopThread


class HandedStream:
    """A `protocols.Stream` in front of one that lives on the loop. Its coroutines are for the loop, everything else is for any thread.

    What its program hands over is handed over under one lock, so that it has the same numbers here and there.
    """

    def __init__(
        self, loop: LoopThread, path: str, inner: Stream | None = None, lock: threading.RLock | None = None
    ) -> None:
        self.path = path
        self.length = 0
        self._loop, self._inner = loop, inner
        self._lock = lock or threading.RLock()
        self._children: list[HandedStream] = []
        self._ended = ""
        self._lost: SglActorsError | None = None

    def __repr__(self) -> str:
        return f"<HandedStream {self.path}: {self.length} nodes>"

    def append(self, nodes: Sequence[AnyNode], line: str = "") -> int:
        """See `Stream.append`."""
        return self._hand(len(nodes), lambda inner: inner.append(nodes, line))

    def cancel(self, reason: str) -> None:
        """See `Stream.cancel`."""
        with self._lock:
            self._loop.post(self._do, lambda inner: inner.cancel(reason))
            self.end(f"branch {self.path} has been cancelled")

    def fork(self, count: int, line: str = "") -> tuple[int, Sequence[HandedStream]]:
        """See `Stream.fork`."""
        with self._lock:
            paths = [f"{self.path}.{len(self._children) + index}" for index in range(count)]
            children = [HandedStream(self._loop, path, lock=self._lock) for path in paths]

            def begin(inner: Stream) -> None:
                for mine, theirs in zip(children, inner.fork(count, line)[1], strict=True):
                    mine._inner = theirs  # noqa: SLF001 - the same class

            number = self._hand(1, begin)
            self._children += children
        return number, children

    def join(self, node: Join, children: Sequence[Any], line: str = "") -> int:
        """See `Stream.join`."""
        with self._lock:
            number = self._hand(1, lambda inner: inner.join(node, [one.reached() for one in children], line))
            for child in children:
                child.end(f"branch {child.path} has been joined")
        return number

    def end(self, why: str) -> None:
        """It and those forked from it take nothing more."""
        self._ended = self._ended or why
        for child in self._children:
            child.end(why)

    async def read(self, name: str, position: int) -> Any:
        """See `Stream.read`."""
        return await self.reached().read(name, position)

    async def meta(self, name: str, position: int) -> dict[str, Any]:
        """See `Stream.meta`."""
        return await self.reached().meta(name, position)

    async def result(self, number: int) -> Any:
        """See `Stream.result`."""
        return await self.reached().result(number)

    async def snapshot(self) -> Outcome:
        """See `Stream.snapshot`."""
        return await self.reached().snapshot()

    async def pin(self, text: str, ttl: float, name: str) -> Pinned:
        """See `Stream.pin`."""
        return await self.reached().pin(text, ttl, name)

    async def once(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """See `Stream.once`."""
        return await self.reached().once(name, make)

    async def tail(self) -> str:
        """See `Stream.tail`."""
        return "" if self._inner is None else await self._inner.tail()

    async def usage(self) -> Usage:
        """See `Stream.usage`."""
        return await self.reached().usage()

    async def failed(self) -> Failure | None:
        """See `Stream.failed`."""
        return await self.reached().failed()

    async def listen(self, name: str) -> AsyncIterator[str]:
        """See `Stream.listen`."""
        async with aclosing(cast("Any", self.reached().listen(name))) as pieces:
            async for piece in pieces:
                yield piece

    def reached(self) -> Stream:
        """The stream on the loop; for the loop, after all that was handed over. Raises why it did not take something."""
        if self._lost is not None:
            raise type(self._lost)(self._lost.message, param=self._lost.param)
        if self._inner is None:
            raise StreamEnded(f"branch {self.path} never began: {self._ended or 'its program is over'}")
        return self._inner

    def _hand(self, nodes: int, do: Callable[[Stream], object]) -> int:
        with self._lock:
            if self._ended:
                raise StreamEnded(f"{self._ended} and takes nothing more")
            if self._lost is not None:
                raise type(self._lost)(self._lost.message, param=self._lost.param)
            number, self.length = self.length, self.length + nodes
            self._loop.post(self._do, do)
        return number

    def _do(self, do: Callable[[Stream], object]) -> None:
        try:
            do(self.reached())
        except SglActorsError as error:
            self._lost = self._lost or error
