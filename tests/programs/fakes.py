"""A node's client without a node, and a backend that runs programs against it in a kernel of its own."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.node.client import merge
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.scheduler.messages import Finish, Flushed
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.protocols import ApiModel, Call

Answer = str | SglActorsError | list[str]
TOKENS = re.compile(r"<\|\w+\|>|\s*\w+|\s*[^\w\s]|\s+")


def tokens_of(text: str) -> list[int]:
    """Words as tokens, equal ids for equal words."""
    return [sum(ord(c) * 257**i for i, c in enumerate(word)) % 1_000_003 for word in TOKENS.findall(text)]


def chatml(messages: list[Any], *, generation: bool) -> str:
    """The default model's template in Python, its default system turn included."""
    turns = [(m.role, m.content) for m in messages]
    if turns[0][0] != "system":
        turns.insert(0, ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"))
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + ("<|im_start|>assistant\n" if generation else "")


class FakeClient:
    """Answers with what `answer(prompt, request)` says: a text, a list of pieces, or an error to raise.

    `hold(piece)` makes every prompt that holds that text wait until `release(piece)`.
    """

    def __init__(self, answer: Callable[[str, Generate], Answer] | None = None) -> None:
        self.answer = answer or (lambda prompt, request: f" echo{len(prompt)}")
        self.requests: list[Generate] = []
        self.prompts: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.logprob: Callable[[str], float] = lambda word: -1.0
        self.cancelled = 0
        self.renderings = 0
        self.pinned: list[tuple[str, float, str]] = []
        self.running = 0
        self.most = 0
        self.takes: frozenset[str] = frozenset()
        self.api: ApiModel | None = None
        self.calls: list[Call] = []
        self.flushed = 0
        self._words: dict[int, str] = {}
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._held: set[str] = set()

    def hold(self, piece: str) -> None:
        self._held.add(piece)

    def release(self, piece: str) -> None:
        self._held.discard(piece)
        self._gates[piece].set()

    async def asked(self, count: int) -> None:
        """Until `count` sampling requests have arrived."""
        while sum(1 for r in self.requests if r.sampling.max_tokens) < count:
            await asyncio.sleep(0)

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        if call is not None:
            self.calls.append(call)
        prompt = request.text if request.text is not None else self._text(request.input_ids or [])
        ids = request.input_ids or self._ids(prompt)
        self.requests.append(request)
        self.prompts.append(prompt)
        self.events.append(("begin", prompt))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for piece in [p for p in self._held if p in prompt]:
                await self._gates[piece].wait()
            if request.sampling.max_tokens == 0:
                start = request.prompt_logprobs_start
                scores = [
                    TokenLogprob(i, self.logprob(self._words[i]) if n else None) for n, i in enumerate(ids)
                ]
                yield Chunk(
                    0,
                    [],
                    "",
                    prompt_tokens=len(ids),
                    prompt_logprobs=scores[start:] if start >= 0 else [],
                    finish=Finish("length"),
                )
                return
            answer = self.answer(prompt, request)
            if isinstance(answer, SglActorsError):
                raise answer
            pieces = [answer] if isinstance(answer, str) else answer
            for index, piece in enumerate(pieces):
                if index < len(request.output):
                    continue  # the asker has it
                last = index == len(pieces) - 1
                yield Chunk(
                    index, [index], piece, prompt_tokens=len(ids), completion_tokens=index + 1,
                    finish=Finish("stop") if last else None,
                )  # fmt: skip
                await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.events.append(("end", prompt))

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        whole: Chunk | None = None
        async for chunk in self.generate(request, timeout=timeout, trace=trace, call=call):
            whole = chunk if whole is None else merge(whole, chunk)
        assert whole is not None
        return whole

    async def tokenize(self, request: Tokenize) -> TokenIds:
        text = request.text
        if request.messages is not None:
            self.renderings += 1
            text = chatml(request.messages, generation=request.add_generation_prompt)
        assert text is not None
        return TokenIds(self._ids(text), text)

    async def flush(self) -> Flushed:
        self.flushed += 1
        return Flushed(done=True)

    async def pin(self, token_ids: Sequence[int], *, ttl: float, name: str = "", **more: Any) -> Pinned:
        self.pinned.append((self._text([*token_ids]), ttl, more["salt"]))
        return Pinned(name or "drawn", "default", len(token_ids), len(token_ids), ttl)

    def _ids(self, text: str) -> list[int]:
        ids = tokens_of(text)
        self._words.update(zip(ids, TOKENS.findall(text), strict=True))
        return ids

    def _text(self, ids: list[int]) -> str:
        return "".join(self._words[i] for i in ids)


def backend_of(client: FakeClient, *, force_codec: bool = True) -> Backend:
    """Runs programs against `client`; messages are encoded as between processes."""

    async def opens() -> Any:
        return await open_kernel(force_codec=force_codec), lambda context: client, False

    return Backend(opens, "fake")
