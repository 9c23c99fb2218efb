"""A node over HTTP, with the interface of `NodeClient`: what programs use after `connect("http://…")`.

A request survives the death of the gateway, a broken connection and a node that is not ready for a moment: it is sent again with the same `rid` and
goes on behind the last event that came (`Last-Event-ID`). Since a node keeps such a request when its connection breaks, one that nobody waits for any more is
aborted by its `rid`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import httpx2
import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.node.client import joined
from sgl_actors.actors.programs.attempts import FIRST_PATIENCE, PATIENCE, Attempts, refusal
from sgl_actors.actors.scheduler.messages import Flushed
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.errors import DeadlineExceeded, InvalidRequest, NotReady, ProtocolError, SglActorsError
from sgl_actors.lang.backends.native import (
    Events,
    Pin,
    Plain,
    Tokens,
    generate_body,
    pin_body,
    tokenize_body,
)
from sgl_actors.lang.protocols import ApiModel

CONNECTIONS = 1024
CONNECT_TIMEOUT = 10.0
TOKENIZE_TIMEOUT = 30.0
ABORT_TIMEOUT = 2.0

A = TypeVar("A")


class HttpClient:
    """Asks the node at `url`, with `key` if it wants one. Close it.

    `patience`: seconds that a node which has answered may be away before a request fails; one that never has gets `FIRST_PATIENCE`.
    """

    takes: frozenset[str] = frozenset()
    api: ApiModel | None = None

    def __init__(
        self,
        url: str,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        key: str = "",
        patience: float = PATIENCE,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience = patience
        self._answered = False
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            transport=transport,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_connections=CONNECTIONS),
        )

    def __repr__(self) -> str:
        return f"<HttpClient {self.url}>"

    async def generate(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,
        trace: str = "",
        call: object = None,  # noqa: ARG002
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`.

        Raises:
            SglActorsError: the class that the node answered with.
            NotReady: nothing answers at the URL, or nothing that is ready, for too long.
            DeadlineExceeded: after `timeout` seconds.
        """
        had = _Had()
        attempts = self._attempts(timeout)
        body = msgspec.json.encode(generate_body(request))
        headers = {"content-type": "application/json"} | ({"x-request-id": trace} if trace else {})
        try:
            async with asyncio.timeout_at(attempts.deadline):
                while True:
                    since = {"last-event-id": had.mark} if had.mark else {}
                    try:
                        async with aclosing(self._chunks(request.id, body, headers | since, had)) as chunks:
                            async for chunk in chunks:
                                attempts.progressed()
                                yield chunk
                                if had.end:
                                    return
                    except _Refused as refused:
                        await attempts.again(refused.error, refused.after)
                    except httpx2.TransportError as error:
                        await attempts.again(_unreachable(self.url, error))
                    except NotReady as error:
                        await attempts.again(error)
                    else:
                        if had.events.done:
                            raise ProtocolError(f"{self.url}: the stream ended without a finish reason")
                        await attempts.again(NotReady(f"{self.url}: the stream broke off"))
        except TimeoutError:
            raise DeadlineExceeded(f"{self.url}: no answer within {timeout:g} s") from None

    def _attempts(self, timeout: float) -> Attempts:
        patience = self._patience if self._answered else min(self._patience, FIRST_PATIENCE)
        return Attempts(asyncio.get_running_loop().time() + timeout, patience)

    async def _chunks(
        self, rid: str, body: bytes, headers: dict[str, str], had: _Had
    ) -> AsyncGenerator[Chunk, None]:
        """What comes over one connection. Who stops reading before the end aborts the request."""
        response = await self._send(rid, body, headers)
        try:
            if response.status_code != httpx2.codes.OK:
                raise _Refused(*refusal(response.status_code, await response.aread(), response.headers))
            mark, data = "", ""
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    mark = line.removeprefix("id:").strip()
                elif line.startswith("data:"):
                    data = line
                elif not line and data:
                    for chunk in had.events.line(data):
                        had.end = chunk.finish is not None
                        yield chunk
                    had.mark, data = mark or had.mark, ""
        except (asyncio.CancelledError, GeneratorExit):
            if not had.end:
                await self._abort(rid)
            raise
        finally:
            await response.aclose()

    async def _send(self, rid: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        """Ask. Who is cancelled meanwhile aborts the request while the node still knows it by its connection."""
        asking = self._http.build_request("POST", "/generate", content=body, headers=headers)
        sending = asyncio.ensure_future(self._http.send(asking, stream=True))
        try:
            response = await asyncio.shield(sending)
        except asyncio.CancelledError:
            if not sending.done():
                await self._abort(rid)
            sending.cancel()
            (late,) = await asyncio.gather(sending, return_exceptions=True)
            if isinstance(late, httpx2.Response):
                await late.aclose()
            raise
        self._answered = True
        return response

    async def _abort(self, rid: str) -> None:
        """Tell the node that nobody comes back; if it does not hear it, it finds that out by itself."""
        with suppress(httpx2.HTTPError):
            await self._http.post("/abort_request", json={"rid": rid}, timeout=ABORT_TIMEOUT)

    async def complete(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,
        trace: str = "",
        call: object = None,  # noqa: ARG002
    ) -> Chunk:
        """See `Client.complete`."""
        return await joined(self.generate(request, timeout=timeout, trace=trace))

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`. A chat's text is that of its ids."""
        ids = (await self._ask("/tokenize", tokenize_body(request), Tokens)).tokens
        if request.messages is None:
            return TokenIds(ids, request.text or "")
        plain = await self._ask("/detokenize", {"tokens": ids, "skip_special_tokens": False}, Plain)
        return TokenIds(ids, plain.prompt)

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = "",
        salt: str = "",
        timeout: float = 600.0,
        trace: str = "",
    ) -> Pinned:
        """See `Client.pin`."""
        answer = await self._ask("/cache/pin", pin_body(token_ids, ttl, name, salt), Pin, timeout, trace)
        return Pinned(answer.name, "", answer.tokens, answer.held, answer.expires_in)

    async def flush(self) -> Flushed:
        """See `Client.flush`."""
        try:
            await self._ask("/flush_cache", {}, dict[str, Any])
        except InvalidRequest:
            return Flushed(done=False)
        return Flushed(done=True)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _ask(
        self,
        path: str,
        body: dict[str, Any],
        expect: type[A],
        timeout: float = TOKENIZE_TIMEOUT,
        trace: str = "",
    ) -> A:
        headers = {"x-request-id": trace} if trace else {}
        attempts = self._attempts(timeout)
        while True:
            left = max(0.001, attempts.deadline - asyncio.get_running_loop().time())
            try:
                response = await self._http.post(path, json=body, timeout=left, headers=headers)
            except httpx2.ConnectTimeout as error:
                await attempts.again(_unreachable(self.url, error))
            except httpx2.TimeoutException as error:
                raise DeadlineExceeded(f"{self.url}{path}: no answer within {timeout:g} s") from error
            except httpx2.TransportError as error:
                await attempts.again(_unreachable(self.url, error))
            else:
                self._answered = True
                if response.status_code == httpx2.codes.OK:
                    break
                await attempts.again(*refusal(response.status_code, response.content, response.headers))
        try:
            return msgspec.json.decode(response.content, type=expect)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"{self.url}{path}: {error}") from None


class _Had:
    """What has come of one request, over however many connections: also the id of the last event, and whether it was the end."""

    def __init__(self) -> None:
        self.events = Events()
        self.mark = ""
        self.end = False


class _Refused(Exception):
    """The node answered with an error; `after` that many seconds it wants to be asked again."""

    def __init__(self, error: SglActorsError, after: float) -> None:
        self.error, self.after = error, after


def _unreachable(url: str, error: httpx2.TransportError) -> NotReady:
    """What a program is told; a request that could not be written is not quoted, for it carries the key."""
    why = "" if isinstance(error, httpx2.LocalProtocolError) else f": {error}"
    return NotReady(f"{url}: {type(error).__name__}{why}")
