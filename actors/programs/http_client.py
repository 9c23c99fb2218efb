"""A node over HTTP, with the interface of `NodeClient`: what programs use after `connect("http://…")`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import httpx2
import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.node.client import merge
from sgl_actors.actors.scheduler.messages import Flushed
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.errors import DeadlineExceeded, InvalidRequest, NotReady, ProtocolError
from sgl_actors.lang.backends.native import (
    Events,
    Pin,
    Plain,
    Tokens,
    failure,
    generate_body,
    pin_body,
    tokenize_body,
)

CONNECTIONS = 1024
CONNECT_TIMEOUT = 10.0
TOKENIZE_TIMEOUT = 30.0

A = TypeVar("A")


class HttpClient:
    """Asks the node at `url`, with `key` if it wants one. Close it."""

    takes: frozenset[str] = frozenset()

    def __init__(
        self, url: str, transport: httpx2.AsyncBaseTransport | None = None, *, key: str = ""
    ) -> None:
        self.url = url.rstrip("/")
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
            NotReady: nothing answers at the URL, or the connection broke off.
            DeadlineExceeded: after `timeout` seconds.
        """
        events = Events()
        headers = {"x-request-id": trace} if trace else {}
        body = msgspec.json.encode(generate_body(request))
        headers["content-type"] = "application/json"
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with (
                asyncio.timeout_at(deadline),
                self._http.stream("POST", "/generate", content=body, headers=headers) as response,
            ):
                if response.status_code != httpx2.codes.OK:
                    raise failure(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    for chunk in events.line(line):
                        yield chunk
                        if chunk.finish is not None:
                            return
        except TimeoutError:
            raise DeadlineExceeded(f"{self.url}: no answer within {timeout:g} s") from None
        except httpx2.TransportError as error:
            raise _unreachable(self.url, error) from None
        raise ProtocolError(f"{self.url}: the stream ended without a finish reason")

    async def complete(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,
        trace: str = "",
        call: object = None,  # noqa: ARG002
    ) -> Chunk:
        """See `Client.complete`."""
        whole: Chunk | None = None
        async for chunk in self.generate(request, timeout=timeout, trace=trace):
            whole = chunk if whole is None else merge(whole, chunk)
        assert whole is not None
        return whole

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
        try:
            response = await self._http.post(path, json=body, timeout=timeout, headers=headers)
        except httpx2.TimeoutException as error:
            raise DeadlineExceeded(f"{self.url}{path}: no answer within {timeout:g} s") from error
        except httpx2.TransportError as error:
            raise _unreachable(self.url, error) from None
        if response.status_code != httpx2.codes.OK:
            raise failure(response.status_code, response.content)
        try:
            return msgspec.json.decode(response.content, type=expect)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"{self.url}{path}: {error}") from None


def _unreachable(url: str, error: httpx2.TransportError) -> NotReady:
    """What a program is told; a request that could not be written is not quoted, for it carries the key."""
    why = "" if isinstance(error, httpx2.LocalProtocolError) else f": {error}"
    return NotReady(f"{url}: {type(error).__name__}{why}")
