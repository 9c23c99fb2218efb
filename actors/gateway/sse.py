"""Server-sent events, and work that ends when its client goes away.

A stream's response starts with its first event: whatever fails before becomes an ordinary error answer with its own
status; whatever fails later becomes an error event, after which the stream ends. While nothing happens for
`PING_SECONDS` (a long prefill) a comment keeps proxies from closing the connection.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sgl_actors.actors.gateway.errors import ClientGone, describe, first_of
from sgl_actors.errors import NotReady

PING_SECONDS = 15.0

T = TypeVar("T")


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; when the client closes its connection, cancel it.

    The request's body has to be read already. Returns what `work` returns and raises what it raises.

    Raises:
        ClientGone: the client closed first; `work` has ended by then.
    """
    gone = False

    async def listen(task: asyncio.Task[T]) -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = not task.done()
        task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            listener = group.create_task(listen(task))
            task.add_done_callback(lambda _: listener.cancel())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    if gone and task.cancelled():
        raise ClientGone
    return task.result()


class EventWriter:
    """Writes the events of one stream."""

    MEDIA_TYPE = "text/event-stream"
    BEFORE, AFTER = b"data: ", b"\n\n"
    MARK = b"id: %s\n"

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = False
        self._send = send
        self._headers = headers
        self._lock = asyncio.Lock()
        self._last = asyncio.get_running_loop().time()

    async def data(self, event: msgspec.Struct, mark: str = "") -> None:
        """Send one event as JSON, with an id that a client may resume from; waits while the client is slow to read."""
        await self.write(self._marked(mark) + self.BEFORE + msgspec.json.encode(event) + self.AFTER)

    async def done(self, mark: str = "") -> None:
        """Send the end marker that OpenAI and SGLang clients wait for."""
        await self.write(self._marked(mark) + b"data: [DONE]\n\n")

    def _marked(self, mark: str) -> bytes:
        return self.MARK % mark.encode() if mark else b""

    async def write(self, raw: bytes) -> None:
        """Send bytes, the response's start before the first of them."""
        async with self._lock:
            if not self.started:
                self.started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self._send({"type": "http.response.body", "body": raw, "more_body": True})
            self._last = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def keep_alive(self, seconds: float) -> None:
        """Send a comment after every `seconds` of silence, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._last + seconds - loop.time())
            if loop.time() >= self._last + seconds:
                await self.write(b": ping\n\n")


class LineWriter(EventWriter):
    """Writes JSON lines; an error is the last of them."""

    MEDIA_TYPE = "application/x-ndjson"
    BEFORE, AFTER = b"", b"\n"


class EventStream(Response):
    """A response whose events, or lines, `produce` writes; without `ping` nothing is sent in between."""

    def __init__(
        self,
        produce: Callable[[EventWriter], Awaitable[None]],
        *,
        trace: str,
        on_error: Callable[[BaseException], None],
        ping: float | None = PING_SECONDS,
        writer: type[EventWriter] = EventWriter,
    ) -> None:
        self._produce, self._writer = produce, writer
        self.media_type = writer.MEDIA_TYPE
        self._trace = trace
        self._on_error = on_error
        self._ping = ping
        self.background = None
        self.status_code = 200
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Produce events until the end, an error, or the client's leaving.

        Only the server's own end cancels it, and then it says so in the stream.
        """
        writer = self._writer(send, self.raw_headers)
        try:
            await until_gone(receive, self._run(writer))
        except ClientGone:
            raise
        except asyncio.CancelledError:
            if not writer.started:
                raise
            await self._say(writer, NotReady("the gateway is stopping"))
        except Exception as error:
            if not writer.started:
                raise
            await self._say(writer, error)
        if not writer.started:
            await writer.write(b"")
        await writer.close()

    async def _say(self, writer: EventWriter, error: BaseException) -> None:
        self._on_error(error)
        await writer.data(describe(error, self._trace))

    async def _run(self, writer: EventWriter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                pings = [] if self._ping is None else [group.create_task(writer.keep_alive(self._ping))]
                await self._produce(writer)
                for ping in pings:
                    ping.cancel()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None
