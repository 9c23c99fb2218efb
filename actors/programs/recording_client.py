"""The clients of a recorder and of a replay: one hands on what it is asked and writes down what comes back, the other answers from what was written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.programs.tape import Tape
from sgl_actors.actors.scheduler.messages import Flushed
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.backends.recorded_request import (
    PIN,
    TOKENIZE,
    Asked,
    asked_of,
    pinning,
    tokenizing,
)
from sgl_actors.lang.backends.recording import Header, Line, answered, failed, joined, tokenized
from sgl_actors.lang.backends.replaying import Answers, Place, place_of
from sgl_actors.lang.protocols import ApiModel, Call, Client

TURNS: Final = 48
"""Turns of the event loop before an answer of a replay. A model takes its time, and what a program asks for at once is what it has said by then."""

T = TypeVar("T")


class RecordClient:
    """Wraps another client; see `lang.protocols.Client`. What it is asked goes on as it is, and so does what comes back."""

    def __init__(self, client: Client, tape: Tape) -> None:
        self._client, self._tape = client, tape
        self.takes = client.takes

    def __repr__(self) -> str:
        return f"<RecordClient of {self._client!r}>"

    @property
    def api(self) -> ApiModel | None:
        """See `Client.api`."""
        return self._client.api

    def began(self, program: str, *, alone: bool) -> None:
        """A run has begun, see `MockClient.began`."""
        began = getattr(self._client, "began", None)
        if began is not None:
            began(program, alone=alone)

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`. The answer is written down before its last chunk is handed on; of one that is cancelled, nothing is."""
        note, chunks = self._note(asked_of(request, call), place_of(call)), list[Chunk]()
        stream = self._client.generate(request, timeout=timeout, trace=trace, call=call)
        try:
            async with aclosing(cast("Any", stream)) as answer:
                async for chunk in answer:
                    chunks.append(chunk)
                    if chunk.finish is not None:
                        note(**answered(chunks, pieces=self._tape.pieces))
                    yield chunk
        except SglActorsError as error:
            if not (chunks and chunks[-1].finish):
                note(**answered(chunks, pieces=self._tape.pieces), error=failed(error))
            raise

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """See `Client.complete`."""
        note = self._note(asked_of(request, call), place_of(call))
        return await _noted(
            self._client.complete(request, timeout=timeout, trace=trace, call=call),
            lambda chunk: note(**answered([chunk], pieces=False)),
            note,
        )

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`."""
        note = self._note(tokenizing(request), Place(TOKENIZE))
        return await _noted(
            self._client.tokenize(request),
            lambda ids: note(text="" if ids.text == request.text else ids.text, token_ids=ids.token_ids),
            note,
        )

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
        note = self._note(pinning(token_ids, ttl), Place(PIN))
        answer = self._client.pin(token_ids, ttl=ttl, name=name, salt=salt, timeout=timeout, trace=trace)
        return await _noted(answer, lambda pinned: note(pinned=pinned), note)

    async def flush(self) -> Any:
        """See `Client.flush`. It is not written down."""
        return await self._client.flush()

    def _note(self, asked: Asked, place: Place) -> Callable[..., None]:
        """What writes a request down once its answer is known. Its number is the one that it begins with."""
        number = self._tape.next()

        def note(**answer: Any) -> None:
            line = Line(
                number=number, kind=place.kind, variable=place.variable, stream=place.stream, node=place.node,
                prompt=asked.prompt, options=asked.options, key=asked.key, **answer,
            )  # fmt: skip
            self._tape.add(line, self.api)

        return note


class ReplayClient:
    """Answers from a recording; see `lang.protocols.Client`."""

    def __init__(self, header: Header, answers: Answers, lock: threading.Lock) -> None:
        self._answers, self._lock = answers, lock
        self.takes = frozenset(header.takes)
        self.api = header.api

    def __repr__(self) -> str:
        return f"<ReplayClient of {self._answers!r}>"

    async def generate(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,  # noqa: ARG002
        trace: str = "",  # noqa: ARG002
        call: Call | None = None,
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`.

        Raises:
            NotRecorded: there is no answer to that request, or none any more.
        """
        line = self._take(asked_of(request, call), place_of(call))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for chunk in line.chunks(len(request.output)):
            yield chunk
            await asyncio.sleep(0)
        if line.error is not None:
            raise line.error.error()

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """See `Client.complete`."""
        return joined(
            [chunk async for chunk in self.generate(request, timeout=timeout, trace=trace, call=call)]
        )

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`."""
        return tokenized(self._whole(tokenizing(request), Place(TOKENIZE)))

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = "",
        salt: str = "",  # noqa: ARG002
        timeout: float = 600.0,  # noqa: ARG002
        trace: str = "",  # noqa: ARG002
    ) -> Pinned:
        """See `Client.pin`."""
        pinned = self._whole(pinning(token_ids, ttl), Place(PIN)).pinned
        assert pinned is not None
        return msgspec.structs.replace(pinned, name=name or pinned.name)

    async def flush(self) -> Flushed:
        """See `Client.flush`."""
        return Flushed(done=True)

    def _take(self, asked: Asked, place: Place) -> Line:
        with self._lock:
            line = self._answers.take(asked, place)
        if line.capabilities is not None and self.api is not None:
            self.api = msgspec.structs.replace(self.api, capabilities=line.capabilities)
        return line

    def _whole(self, asked: Asked, place: Place) -> Line:
        line = self._take(asked, place)
        if line.error is not None:
            raise line.error.error()
        return line


async def _noted(answer: Awaitable[T], keep: Callable[[T], None], note: Callable[..., None]) -> T:
    """Wait for an answer, and write it or its error down."""
    try:
        value = await answer
    except SglActorsError as error:
        note(error=failed(error))
        raise
    keep(value)
    return value
