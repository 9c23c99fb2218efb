"""The client's side of a node: what programs, the gateway and the CLI use to talk to it.

A `generate` survives the restart of every actor it depends on: it is submitted again with the same id, the same seed and
the tokens received so far, so the asker sees each token once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeVar, cast

import msgspec

from sgl_actors.actors.microkernel import Context, Message
from sgl_actors.actors.scheduler.messages import DescribeModel
from sgl_actors.actors.tokenizer.messages import (
    Chunk,
    DescribeTokenizer,
    Detokenize,
    Generate,
    Text,
    Texts,
    TokenIds,
    Tokenize,
    TokenizerInfo,
)
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import ActorDown, DeadlineExceeded, NodeGone, SglActorsError, error_class

RETRY_DELAY = 0.05
"""Seconds between two looks while an actor is being restarted."""

PATIENCE = 60.0
"""Seconds that an actor may be away before who needs it gives up."""

M = TypeVar("M", bound=Message)


def draw_seed() -> int:
    """A fresh sampling seed, below 2**63."""
    return secrets.randbits(63)


class NodeClient:
    """Asks a node on behalf of `context`'s owner."""

    def __init__(self, context: Context) -> None:
        self.ctx = context

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = ""
    ) -> AsyncIterator[Chunk]:
        """Yield chunks up to and including the one with `finish`; no token is repeated or missing.

        Raises:
            SglActorsError: what the node answered instead; finish reason "error" is raised too, "abort" is yielded.
            DeadlineExceeded: after `timeout` seconds, restarts of actors included.
        """
        if request.sampling.seed is None:
            request = msgspec.structs.replace(
                request, sampling=msgspec.structs.replace(request.sampling, seed=draw_seed())
            )
        received = list(request.output)
        first = True
        deadline = self.ctx.now() + timeout
        while True:
            left = deadline - self.ctx.now()
            if left <= 0:
                raise DeadlineExceeded(f"request {request.id}: no answer within {timeout:g} s")
            attempt = msgspec.structs.replace(request, output=list(received))
            failure: SglActorsError | None = None
            try:
                stream = cast("_Stream", self.ctx.stream("tokenizer", attempt, timeout=left, trace=trace))
                async with aclosing(stream):
                    async for message in stream:
                        chunk = _without_known(cast("Chunk", message), len(received), first=first)
                        if chunk.finish is not None and chunk.finish.reason == "error":
                            failure = error_class(chunk.finish.code)(chunk.finish.message)
                            break
                        received += chunk.token_ids
                        first = False
                        yield chunk
                        if chunk.finish is not None:
                            return
            except ActorDown as error:
                await self._wait_for("tokenizer", error, deadline)
                continue
            assert failure is not None, "a stream ended without a finish"
            raise failure

    async def _wait_for(self, name: str, error: ActorDown, deadline: float) -> None:
        """Return when somebody holds `name` again; raise `error` if the node is gone, or after `PATIENCE` seconds."""
        until = min(deadline, self.ctx.now() + PATIENCE)
        while not isinstance(error, NodeGone) and self.ctx.now() + RETRY_DELAY < until:
            await asyncio.sleep(RETRY_DELAY)
            if self.ctx.is_up(name):
                return
        raise error

    async def complete(self, request: Generate, *, timeout: float = 600.0, trace: str = "") -> Chunk:
        """Run `generate` to its end and return everything as one chunk."""
        whole: Chunk | None = None
        async for chunk in self.generate(request, timeout=timeout, trace=trace):
            whole = chunk if whole is None else merge(whole, chunk)
        assert whole is not None
        return whole

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """Ids of a text or a rendered chat."""
        return await self.ask("tokenizer", request, TokenIds)

    async def detokenize(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids."""
        return (await self.ask("tokenizer", Detokenize(token_ids, skip_special_tokens), Text)).text

    async def pieces(self, token_ids: list[int]) -> Texts:
        """Text and bytes of each id by itself."""
        return await self.ask("tokenizer", Detokenize(token_ids, skip_special_tokens=False, each=True), Texts)

    async def model(self) -> ModelInfo:
        """What the node serves; `NotReady` while it loads."""
        return await self.ctx.call("scheduler", DescribeModel(), ModelInfo, timeout=5.0)

    async def tokenizer(self) -> TokenizerInfo:
        """Special tokens and the chat template."""
        return await self.ask("tokenizer", DescribeTokenizer(), TokenizerInfo)

    async def ask(self, to: str, message: Message, expect: type[M], *, timeout: float = 30.0) -> M:
        """A call without effects, repeated while its actor is being restarted."""
        deadline = self.ctx.now() + timeout
        while True:
            try:
                return await self.ctx.call(to, message, expect, timeout=max(0.001, deadline - self.ctx.now()))
            except ActorDown as error:
                await self._wait_for(to, error, deadline)


class _Stream(AsyncIterator[Message]):
    """What `Context.stream` returns: an async generator."""

    async def aclose(self) -> None: ...


def _without_known(chunk: Chunk, known: int, *, first: bool) -> Chunk:
    """Drop what a re-submission reports again: tokens below `known`, and prompt data after the first chunk."""
    drop = max(0, known - chunk.first_index)
    if drop:
        fresh = chunk.token_ids[drop:]
        text = chunk.text if fresh or not chunk.token_ids else ""
        chunk = msgspec.structs.replace(
            chunk, first_index=known, token_ids=fresh, text=text, logprobs=chunk.logprobs[drop:]
        )
    if not first and (chunk.prompt_logprobs or chunk.prompt_ids):
        chunk = msgspec.structs.replace(chunk, prompt_logprobs=[], prompt_ids=[])
    return chunk


def merge(one: Chunk, two: Chunk) -> Chunk:
    """Two consecutive chunks of one request as one."""
    return msgspec.structs.replace(
        two,
        first_index=one.first_index,
        token_ids=one.token_ids + two.token_ids,
        text=one.text + two.text,
        logprobs=one.logprobs + two.logprobs,
        prompt_logprobs=one.prompt_logprobs + two.prompt_logprobs,
        prompt_ids=one.prompt_ids or two.prompt_ids,
        prompt_tokens=two.prompt_tokens or one.prompt_tokens,
        cached_tokens=max(one.cached_tokens, two.cached_tokens),
    )
