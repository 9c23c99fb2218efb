"""An API model without an API: a function says what it writes, and its capabilities are whatever a test wants."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.mock import chatml
from sgl_actors.actors.programs.runtime import Backend, NodeHandle
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.errors import Unsupported
from sgl_actors.lang.ir import IMAGE
from sgl_actors.lang.protocols import ApiModel, Call, Client
from sgl_actors.lang.stops import find_stop

WORD = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
Writes = Callable[[Generate, Call], str]


class ApiMockClient:
    """Writes what `writes` says to a request, cut at its stops and `max_tokens` words, as an API would."""

    takes = frozenset({IMAGE})

    def __init__(self, writes: Writes, capabilities: Capabilities) -> None:
        self.writes = writes
        self.api: ApiModel | None = ApiModel("mock api", capabilities)
        self.asked: list[tuple[Generate, Call]] = []
        self.likely: Callable[[str], float] = len

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`."""
        assert call is not None
        self.asked.append((request, call))
        prompt = len(WORD.findall(request.text or "".join(m.content for m in request.messages or ())))
        if request.prompt_logprobs_start >= 0:
            tokens = WORD.findall(request.text or "")
            entries = [TokenLogprob(-1, -self.likely(token) if n else None) for n, token in enumerate(tokens)]
            yield Chunk(0, [], "", [], prompt, 0, entries, Finish("length"), 0, tokens=tokens)
            return
        text = self.writes(request, call)
        stop = find_stop(text, request.sampling)
        text = text if stop is None else text[: stop.keep]
        words, most = WORD.findall(text), request.sampling.max_tokens
        short = most is not None and len(words) > most
        words = words[:most] if short else words
        for number, word in enumerate(words[:-1]):
            yield Chunk(0, [], word, prompt_tokens=prompt, completion_tokens=number + 1)
        yield Chunk(
            0, [], "".join(words[-1:]), prompt_tokens=prompt, completion_tokens=len(words),
            finish=Finish("length" if short else "stop"),
        )  # fmt: skip

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """See `Client.complete`."""
        chunks = [chunk async for chunk in self.generate(request, timeout=timeout, trace=trace, call=call)]
        return msgspec.structs.replace(chunks[-1], text="".join(chunk.text for chunk in chunks))

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`: ChatML, and a word's id is its hash."""
        if request.messages is not None:
            return TokenIds(
                [], chatml(request.messages, generation=request.add_generation_prompt, open_=False)
            )
        return TokenIds(
            [hash(word) & 0xFFFF for word in WORD.findall(request.text or "")], request.text or ""
        )

    async def flush(self) -> Any:
        """See `Client.flush`."""

    async def pin(self, token_ids: Sequence[int], **_: Any) -> Pinned:
        """See `Client.pin`."""
        raise Unsupported("the mock of an API pins nothing")


class ApiMock(Backend):
    """A backend of an `ApiMockClient`."""

    def __init__(self, writes: Writes, **capabilities: Any) -> None:
        self.client = client = ApiMockClient(writes, Capabilities(**capabilities))

        async def opens() -> tuple[NodeHandle, Callable[[Context], Client], bool]:
            return await open_kernel(), lambda _context: client, False

        super().__init__(opens, "ApiMock")

    @property
    def requests(self) -> list[Generate]:
        """What was asked."""
        return [request for request, _ in self.client.asked]
