"""A node as a durable program asks it: what was answered before is answered from the journal, what was answered in part goes on from there.

An API model cannot go on from a part of its answer, which has no tokens: its answers are recorded when they are complete, and asked for anew until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from hashlib import blake2b
from typing import Any, Final, TypeVar, cast

import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.node.client import joined
from sgl_actors.actors.programs.journal_entry import Entry
from sgl_actors.actors.programs.journal_history import Answer, asked, key_of
from sgl_actors.actors.scheduler.messages import Decoding
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.errors import (
    ActorDown,
    BrokenAnswer,
    DeadlineExceeded,
    InvalidRequest,
    NodeGone,
    NotReady,
    ProtocolError,
    Quarantined,
    SglActorsError,
)
from sgl_actors.lang.protocols import ApiModel, Call, Client

PATIENCE: Final = 30.0
"""Seconds in which a node may come back, or have room again, before the program hears of it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0

T = TypeVar("T")


class JournalClient:
    """Wraps another client; see `lang.protocols.Client`. `limited`: the program has a budget of tokens."""

    def __init__(self, client: Client, entry: Entry, *, limited: bool) -> None:
        self._client, self._entry, self._limited = client, entry, limited
        self.takes = client.takes

    @property
    def api(self) -> ApiModel | None:
        """See `Client.api`."""
        return self._client.api

    def __repr__(self) -> str:
        return f"<JournalClient {self._entry.id} of {self._client!r}>"

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`.

        Raises:
            ProgramChanged: another request was recorded in this place.
        """
        assert call is not None, "a durable program's requests say what they are for"
        key, entry = key_of(call), self._entry
        answer = entry.take(call, asked(request, call, limited=self._limited))
        if answer is not None and answer.rank is not None:
            async with aclosing(cast("Any", self._again(answer, call.stream))) as again:
                async for chunk in again:
                    yield chunk
            return
        if answer is not None:
            assert answer.ask is not None
            for chunk in answer.chunks:
                yield chunk
            sampling = msgspec.structs.replace(request.sampling, max_tokens=answer.ask.max_tokens)
            request = msgspec.structs.replace(request, sampling=sampling)
        chunks = _Live(self._client, entry, key, request, timeout=timeout, trace=trace, call=call)
        async with aclosing(cast("Any", chunks.run(answer))) as live:
            async for chunk in live:
                yield chunk

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """See `Client.complete`."""
        return await joined(self.generate(request, timeout=timeout, trace=trace, call=call))

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`. The same text has the same ids: nothing is recorded."""
        return await patiently(lambda: self._client.tokenize(request))

    async def flush(self) -> Any:
        """See `Client.flush`."""
        return await self._client.flush()

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
        """See `Client.pin`. It is pinned again by a resume, and under the same name."""
        ids = b" ".join(str(token).encode() for token in token_ids)
        named = name or f"pin-{blake2b(self._entry.program.encode() + ids, digest_size=12).hexdigest()}"
        return await self._client.pin(token_ids, ttl=ttl, name=named, salt=salt, timeout=timeout, trace=trace)

    async def _again(self, answer: Answer, stream: str) -> AsyncIterator[Chunk]:
        """An answer that is complete. Its last part waits for its turn."""
        try:
            for chunk in answer.chunks[:-1]:
                yield chunk
            if answer.fault is not None:
                for chunk in answer.chunks[-1:]:
                    yield chunk
            await self._entry.turn(answer, stream)
        finally:
            self._entry.give_up(answer)
        if answer.fault is not None:
            raise answer.fault.error()
        yield answer.chunks[-1]


class _Live:
    """A request that is made, and made again while the node is away, with what has come so far."""

    def __init__(
        self,
        client: Client,
        entry: Entry,
        key: str,
        request: Generate,
        *,
        timeout: float,
        trace: str,
        call: Call,
    ) -> None:
        self._client, self._entry, self._key = client, entry, key
        self._request, self._trace, self._call = request, trace, call
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._known = Known()
        self._told = None if client.api is None else Told()

    async def run(self, answer: Answer | None) -> AsyncIterator[Chunk]:
        for chunk in [] if answer is None else answer.chunks:
            self._known.add(chunk)
        pauses = Pauses()
        while True:
            before = self._known.copy() if self._told is None else self._told.begin()
            try:
                async with aclosing(cast("Any", self._ask())) as chunks:
                    async for chunk in chunks:
                        fitted = before.fit(chunk)
                        if self._told is None or fitted.text:
                            pauses.begin()
                        self._known.add(fitted)
                        await self._keep(fitted)
                        yield fitted
                        if chunk.finish is not None:
                            return
                raise ProtocolError(f"{self._request.id}: the answer ended without a finish reason")
            except SglActorsError as error:
                fits = self._told is None or self._told.fits
                if fits and await pauses.another(error):
                    continue
                if not isinstance(error, ActorDown | NotReady | DeadlineExceeded):
                    await self._entry.fail(self._key, error, lasting=lasts(error))
                raise

    def _ask(self) -> AsyncIterator[Chunk]:
        request = self._request
        if self._known.output:
            request = msgspec.structs.replace(request, output=list(self._known.output))
        left = max(0.001, self._deadline - asyncio.get_running_loop().time())
        return self._client.generate(request, timeout=left, trace=self._trace, call=self._call)

    async def _keep(self, chunk: Chunk) -> None:
        kept = msgspec.structs.replace(chunk, prompt_ids=[]) if chunk.prompt_ids else chunk
        if self._told is not None:
            if chunk.finish is not None and chunk.finish.reason != "abort":
                await self._entry.complete(self._key, msgspec.structs.replace(kept, text=self._told.text))
            return
        if chunk.finish is None:
            self._entry.part(self._key, kept)
        elif chunk.finish.reason != "abort":
            await self._entry.complete(self._key, kept)
        elif chunk.token_ids:  # it was cancelled: asked again, it goes on
            self._entry.part(self._key, msgspec.structs.replace(kept, finish=None))


class Told:
    """What has come of an answer without tokens, which comes from its beginning when its request is made anew.

    Attributes:
        text: it, as it was handed out.
        fits: the new answer begins with it so far.
    """

    def __init__(self) -> None:
        self.text = self._again = ""
        self.fits = True

    def begin(self) -> Told:
        """The answer comes, maybe anew."""
        self._again = ""
        return self

    def fit(self, chunk: Chunk) -> Chunk:
        """A chunk without what was handed out already; `BrokenAnswer` if the answer is another one."""
        self._again += chunk.text
        known = self._again[: len(self.text)]
        self.fits = known == self.text or (chunk.finish is None and self.text.startswith(known))
        if not self.fits:
            raise BrokenAnswer("the text was asked for again, and is not the one that was handed out already")
        new = self._again[len(self.text) :]
        self.text += new
        return msgspec.structs.replace(chunk, text=new) if new != chunk.text else chunk


class Pauses:
    """How long one waits for a node that is away."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """It has answered."""
        self._pause = FIRST_PAUSE
        self._until = asyncio.get_running_loop().time() + PATIENCE

    async def another(self, error: SglActorsError) -> bool:
        """Wait, if this error may pass and there is patience left; else False at once."""
        passes = error.retryable and not isinstance(error, NodeGone | DeadlineExceeded)
        if not passes or asyncio.get_running_loop().time() + self._pause > self._until:
            return False
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return True


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask, and ask again while the node is away."""
    pauses = Pauses()
    while True:
        try:
            return await ask()
        except SglActorsError as error:
            if not await pauses.another(error):
                raise


def lasts(error: SglActorsError) -> bool:
    """Whether it is the request's own fault, so that asking again is of no use."""
    in_use = isinstance(error, InvalidRequest) and error.param == "id"
    return isinstance(error, InvalidRequest | Quarantined) and not in_use


class Known:
    """What has come of an answer, when its request is made anew.

    Attributes:
        output: tokens.
        last: chunk.
    """

    def __init__(self) -> None:
        self.output: list[int] = []
        self.last: Chunk | None = None
        self._characters = self._repeated = 0

    def add(self, chunk: Chunk) -> None:
        """More has come."""
        self.output += chunk.token_ids
        self.last = chunk
        self._characters += len(chunk.text)

    def copy(self) -> Known:
        """As it is now."""
        copy = Known()
        copy.output, copy.last, copy._characters = list(self.output), self.last, self._characters
        return copy

    def fit(self, chunk: Chunk) -> Chunk:
        """A chunk of the new answer as it would be if the old one had gone on, whether the node begins behind `output` or tells it again."""
        if self.last is None:
            return chunk
        drop = max(0, len(self.output) - chunk.first_index)
        text = chunk.text
        if drop:
            self._repeated += len(text)
            text = text[len(text) - max(0, min(len(text), self._repeated - self._characters)) :]
        return msgspec.structs.replace(
            chunk,
            first_index=chunk.first_index + drop,
            token_ids=chunk.token_ids[drop:],
            text=text,
            logprobs=chunk.logprobs[drop:],
            cached_tokens=self.last.cached_tokens,
            prompt_logprobs=[],
            prompt_ids=[],
            decoding=add(self.last.decoding, chunk, len(self.output)),
        )


def add(before: Decoding, chunk: Chunk, known: int) -> Decoding:
    """How the whole was made: a request made anew counts from 0, one that went on meanwhile counts all."""
    now = chunk.decoding
    if now.sampled + now.forced > chunk.completion_tokens - known + 1:
        return now
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(now), strict=True)
    return Decoding(*(one + two for one, two in pairs))
