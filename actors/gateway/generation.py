"""All generations of one HTTP request: which requests to the node they are, and running them side by side.

Choices of one prompt share it: with n > 1 a long prompt is computed first by a request of its own (max_tokens 0), so
that its siblings find it in the cache; prompt log probabilities are computed once, too.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import msgspec

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.gateway.constraints import FREE, Asked
from sgl_actors.actors.gateway.errors import first_of
from sgl_actors.actors.gateway.retry import LAST, Place
from sgl_actors.actors.gateway.upstream import Upstream
from sgl_actors.actors.node.client import merge
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate, SamplingOptions
from sgl_actors.errors import InvalidRequest, error_class
from sgl_actors.lang.sampling import derive_seed

LONG_TEXT = 512
LONG_IDS = 128
"""Prompts from that many characters or ids on are computed once before their choices start."""

PARALLEL = 128
"""Generations of one HTTP request that run at the same time."""

Emit = Callable[[int, Chunk], Awaitable[None]]
"""Takes the index of a choice and its next chunk; waiting in it holds that choice back."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, in exactly one of three forms; `tools` belong to messages (see `Generate`)."""

    text: str | None = None
    input_ids: list[int] | None = None
    messages: list[ChatMessage] | None = None
    continue_final: bool = False
    tools: str = ""

    @property
    def length(self) -> int:
        """Characters of the text or the messages, or number of ids."""
        if self.input_ids is not None:
            return len(self.input_ids)
        if self.text is not None:
            return len(self.text)
        return len(self.tools) + sum(len(turn.content) + len(turn.tool_calls) for turn in self.messages or ())

    @property
    def is_long(self) -> bool:
        """Whether sharing it pays for a request more."""
        return self.length >= (LONG_IDS if self.input_ids is not None else LONG_TEXT)

    @property
    def digest(self) -> str:
        """Short hash for the log, which never holds the prompt."""
        parts = (self.text, self.input_ids, self.messages or [], self.tools)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, how many answers to it, and what to report; in which namespace of the tenant, and how urgent; `asked`: where its constraint is from."""

    prompt: Prompt
    sampling: SamplingOptions
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs_start: int = -1
    salt: str = ""
    priority: int = 0
    asked: Asked = FREE

    @property
    def needs_head(self) -> bool:
        """Whether the prompt is computed by a request of its own first."""
        return self.n > 1 and (self.prompt.is_long or self.prompt_logprobs_start >= 0)

    def request(self, request_id: str, choice: int = 0, tenant: str = DEFAULT, known: int = -1) -> Generate:
        """What to ask the node for answer number `choice`, of whose tokens the client has `known` (see `Generate`)."""
        seed = self.sampling.seed
        sampling = self.sampling
        if seed is not None:
            sampling = msgspec.structs.replace(sampling, seed=choice_seed(seed, choice))
        return Generate(
            request_id,
            text=self.prompt.text,
            input_ids=self.prompt.input_ids,
            messages=self.prompt.messages,
            continue_final=self.prompt.continue_final,
            sampling=sampling,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            prompt_logprobs_start=-1 if self.needs_head else self.prompt_logprobs_start,
            tenant=tenant,
            salt=self.salt,
            priority=self.priority,
            tools=self.prompt.tools,
            known=known,
        )

    def head(self, request_id: str, tenant: str = DEFAULT, known: int = -1) -> Generate:
        """The request that only computes the prompt."""
        return msgspec.structs.replace(
            self.request(request_id, tenant=tenant, known=known),
            sampling=SamplingOptions(max_tokens=0, temperature=0.0, seed=0),
            prompt_logprobs_start=self.prompt_logprobs_start,
        )


def choice_seed(seed: int, choice: int) -> int:
    """Seed of answer number `choice`, below 2**63; answer 0 has the request's own, so n does not change it.

    They are those of a program's gen with `n`, so that programs draw the same texts through an API as natively.
    """
    own = seed & (2**63 - 1)
    return derive_seed(own, "completion", choice) if choice else own


class Generation:
    """Runs the asks of one HTTP request.

    Attributes:
        asks: in the order of the request.
        ids: the node's request ids of everything that may run, for aborting.
        heads: what the prompt-only requests answered, by number of the ask.
    """

    def __init__(
        self,
        node: Upstream,
        asks: list[Ask],
        *,
        stem: str,
        timeout: float,
        trace: str,
        tenant: str = DEFAULT,
        since: Sequence[Place] | None = None,
    ) -> None:
        """`since`: where the client is in each choice, if it may ask again."""
        self.asks = asks
        self.heads: dict[int, Chunk] = {}
        self._node, self._id, self._timeout, self._trace = node, stem, timeout, trace
        self._tenant, self._since = tenant, since
        self._slots = asyncio.Semaphore(PARALLEL)
        self.ids = [f"{stem}-{number}" for number in range(self.choices)]
        self.ids += [self._head_id(number) for number, ask in enumerate(asks) if ask.needs_head]

    @property
    def choices(self) -> int:
        """Answers over all asks; their indices count through the asks in order."""
        return sum(ask.n for ask in self.asks)

    def ids_by(self, names: list[str]) -> dict[str, list[str]]:
        """The node's request ids of each ask, by its name in `names`."""
        found: dict[str, list[str]] = {}
        index = 0
        for number, (name, ask) in enumerate(zip(names, self.asks, strict=True)):
            found[name] = [*self.ids[index : index + ask.n], self._head_id(number)]
            index += ask.n
        return found

    async def run(self, emit: Emit, *, raise_abort: bool = True) -> None:
        """Run everything to its end, calling `emit` for each chunk; per choice the calls come in order, and bring tokens or the end.

        The first chunk of a choice that its client has a part of is exactly that part.

        Args:
            emit: receives the chunks.
            raise_abort: a request that somebody aborted raises its error; otherwise it just ends with that reason
                (a missed deadline raises in any case).

        Raises:
            SglActorsError: the first failure; all other generations of the request have been cancelled by then.
        """
        try:
            async with asyncio.TaskGroup() as group:
                index = 0
                for number, ask in enumerate(self.asks):
                    group.create_task(self._ask(number, ask, index, emit, raise_abort=raise_abort))
                    index += ask.n
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None

    def _head_id(self, number: int) -> str:
        return f"{self._id}-p{number}"

    async def _ask(self, number: int, ask: Ask, index: int, emit: Emit, *, raise_abort: bool) -> None:
        head: Chunk | None = None
        if ask.needs_head:
            async with self._slots:
                head = await self._node.complete(
                    ask.head(self._head_id(number), self._tenant, -1 if self._since is None else 0),
                    timeout=self._timeout,
                    trace=self._trace,
                )
            _raise_aborted(head, all_reasons=True)
            self.heads[number] = head
        async with asyncio.TaskGroup() as group:
            for choice in range(ask.n):
                known = -1 if self._since is None else self._since[index + choice].tokens
                request = ask.request(self.ids[index + choice], choice, self._tenant, known)
                group.create_task(
                    self._one(ask, request, index + choice, head, emit, raise_abort=raise_abort)
                )

    async def _one(
        self,
        ask: Ask,
        request: Generate,
        index: int,
        head: Chunk | None,
        emit: Emit,
        *,
        raise_abort: bool,
    ) -> None:
        try:
            await self._stream(request, index, head, emit, raise_abort=raise_abort)
        except InvalidRequest as error:
            raise ask.asked.named(error) from None

    async def _stream(
        self, request: Generate, index: int, head: Chunk | None, emit: Emit, *, raise_abort: bool
    ) -> None:
        chunks = self._node.generate(request, timeout=self._timeout, trace=self._trace)
        since: Place | None = Place() if self._since is None else self._since[index]
        held: Chunk | None = None
        async with self._slots, aclosing(cast("AsyncGenerator[Chunk, None]", chunks)) as stream:
            async for chunk in stream:
                _raise_aborted(chunk, all_reasons=raise_abort)
                if head is not None:
                    chunk = msgspec.structs.replace(  # noqa: PLW2901 - the same chunk, completed
                        chunk, prompt_logprobs=head.prompt_logprobs, prompt_ids=head.prompt_ids
                    )
                    head = None
                whole = chunk if held is None else merge(held, chunk)
                held = whole if since is not None and _is_short(whole, since) else None
                if held is None:
                    since = None
                    await emit(index, whole)


def _is_short(chunk: Chunk, since: Place) -> bool:
    """Whether the first chunk of a choice is less than its client has, or nothing at all.

    Raises:
        InvalidRequest: there is less of that choice.
    """
    tokens = chunk.first_index + len(chunk.token_ids)
    if chunk.finish is None:
        return tokens < max(1, since.tokens) or since.ended
    if tokens < since.tokens or (since.ended and tokens != since.tokens):
        raise InvalidRequest(
            f"{LAST}: {since} is no place of a choice that has {tokens} output tokens", param=LAST
        )
    return False


def _raise_aborted(chunk: Chunk, *, all_reasons: bool) -> None:
    finish = chunk.finish
    if finish is None or finish.reason != "abort":
        return
    if all_reasons or finish.code == "deadline_exceeded":
        raise error_class(finish.code or "cancelled")(finish.message or "the request was aborted")
