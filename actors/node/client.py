"""The client's side of a node: what programs, the gateway and the CLI use to talk to it.

A `generate` survives the restart of every actor it depends on: it is submitted again with the same id, the same seed and
the tokens received so far, so the asker sees each token once. Refusals for want of room or of a model count as part of the restart then: it had its place.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, cast, get_args, get_type_hints

import msgspec

from sgl_actors.actors.cache.messages import (
    DEFAULT,
    Pin,
    Pinned,
    Unpin,
    pack,
)
from sgl_actors.actors.node.ask import PATIENCE, RETRY_DELAY, UNREACHABLE, Stream
from sgl_actors.actors.node.cache_client import (
    CacheClient,
    CachedEdge,
    describe_edge,
    namespace_of,
    prompt_counts,
    split_namespace,
)
from sgl_actors.actors.node.graph_client import GraphClient
from sgl_actors.actors.node.options import LEAST_STALL
from sgl_actors.actors.node.profile import NodeProfile, ProcessRow, Row, trace
from sgl_actors.actors.node.profile_client import ProfileClient
from sgl_actors.actors.scheduler.messages import (
    Configuration,
    Configure,
    DescribeModel,
    FlushCache,
    Flushed,
    Options,
)
from sgl_actors.actors.tokenizer.messages import (
    Chunk,
    DescribeTokenizer,
    Detokenize,
    Generate,
    SamplingOptions,
    Text,
    Texts,
    TokenIds,
    Tokenize,
    TokenizerInfo,
)
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import (
    ActorDown,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    SglActorsError,
    error_class,
)
from sgl_actors.lang.protocols import ApiModel

POLICIES = get_args(get_type_hints(Options)["policy"])
"""Orders of admission that there are."""


def draw_seed() -> int:
    """A fresh sampling seed, below 2**63."""
    return secrets.randbits(63)


class NodeClient(CacheClient, GraphClient, ProfileClient):
    """Asks a node on behalf of `context`'s owner."""

    takes: frozenset[str] = frozenset()
    api: ApiModel | None = None

    async def generate(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,
        trace: str = "",
        call: object = None,  # noqa: ARG002
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
        until = -math.inf  # how long refusals are put down to a restart
        deadline = self.ctx.now() + timeout
        await self.ready()
        tokenizer = self.at("tokenizer")
        while True:
            left = deadline - self.ctx.now()
            if left <= 0:
                raise DeadlineExceeded(f"request {request.id}: no answer within {timeout:g} s")
            attempt = msgspec.structs.replace(request, output=list(received))
            failure: SglActorsError | None = None
            try:
                stream = cast("Stream", self.ctx.stream(tokenizer, attempt, timeout=left, trace=trace))
                async with aclosing(stream):
                    async for message in stream:
                        chunk = _without_known(cast("Chunk", message), len(received), first=first)
                        if chunk.finish is not None and chunk.finish.reason == "error":
                            failure = error_class(chunk.finish.code)(chunk.finish.message)
                            break
                        received += chunk.token_ids
                        first = False
                        until = -math.inf
                        yield chunk
                        if chunk.finish is not None:
                            return
            except ActorDown as error:
                until = max(until, self.ctx.now() + PATIENCE)
                await self.wait_for("tokenizer", error, deadline)
            except (NotReady, Overloaded) as error:
                await self._refused(error, tokenizer, until)
            else:
                assert failure is not None, "a stream ended without a finish"
                await self._refused(failure, tokenizer, until)
            if received and self.at("tokenizer") != tokenizer:
                raise ModelNotFound(f"request {request.id}: its model was unloaded")
            tokenizer = self.at("tokenizer")

    async def _refused(self, error: SglActorsError, tokenizer: str, until: float) -> None:
        """Return when another attempt may do better than the one that ended so; until that time a restart may be why it was refused."""
        if isinstance(error, NotReady) and await self._moved(tokenizer):
            return
        if not isinstance(error, NotReady | Overloaded) or self.ctx.now() >= until:
            raise error
        await asyncio.sleep(RETRY_DELAY)

    async def _moved(self, tokenizer: str) -> bool:
        """Whether another model is the default now, and the one that was takes nothing new."""
        with suppress(*UNREACHABLE):
            await self.find_model()
        return self.at("tokenizer") != tokenizer

    async def complete(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,
        trace: str = "",
        call: object = None,  # noqa: ARG002
    ) -> Chunk:
        """Run `generate` to its end and return everything as one chunk."""
        return await joined(self.generate(request, timeout=timeout, trace=trace))

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
        await self.ready()
        return await self.ctx.call(self.at("scheduler"), DescribeModel(), ModelInfo, timeout=5.0)

    async def tokenizer(self) -> TokenizerInfo:
        """Special tokens and the chat template."""
        return await self.ask("tokenizer", DescribeTokenizer(), TokenizerInfo)

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = "",
        tenant: str = DEFAULT,
        salt: str = "",
        timeout: float = 600.0,
        trace: str = "",
    ) -> Pinned:
        """Keep a prefix from eviction for `ttl` seconds, and compute it first unless it is cached.

        It is pinned before under a name of its own, so that what cannot be held is not computed and what is computed is not
        evicted. If computing it fails, or nobody waits for it any more, a pin of that name is what it was.

        Args:
            token_ids: the prefix, at least one token; whole pages of it are held.
            ttl: seconds from when it has been computed.
            name: pinning a live name of the same tenant and salt again replaces it; "" has the cache draw one.
            tenant: whose requests find it.
            salt: the `cache_salt` of those requests.
            timeout: seconds that computing it may take.
            trace: for the logs.

        Raises:
            SglActorsError: what the node said to computing or to holding it.
        """
        own = f"pin-{secrets.token_hex(12)}"
        pin = Pin(pack(token_ids), ttl, namespace_of(tenant, salt), own)
        try:
            held = await self.ask("cache", pin, Pinned)
            if held.held < held.tokens:
                await self._compute(token_ids, tenant, salt, timeout=timeout, trace=trace)
            pinned = await self.ask("cache", msgspec.structs.replace(pin, name=name or own), Pinned)
        except BaseException:  # also when the asker has gone
            self.ctx.cast(self.at("cache"), Unpin([own], pin.namespace))
            raise
        if pinned.name != own:
            self.ctx.cast(self.at("cache"), Unpin([own], pin.namespace))
        return pinned

    async def _compute(
        self, token_ids: Sequence[int], tenant: str, salt: str, *, timeout: float, trace: str
    ) -> None:
        """Have a prefix in the cache."""
        request = Generate(
            f"pin-{secrets.token_hex(12)}",
            input_ids=list(token_ids),
            sampling=SamplingOptions(max_tokens=0, temperature=0.0),
            tenant=tenant,
            salt=salt,
        )
        finish = (await self.complete(request, timeout=timeout, trace=trace)).finish
        if finish is not None and finish.reason == "abort":
            raise error_class(finish.code)(finish.message)

    async def flush(self) -> Flushed:
        """Empty the cache unless requests run or wait."""
        return await self.ask("scheduler", FlushCache(), Flushed)

    async def configure(
        self,
        *,
        policy: str | None = None,
        overtake: int | None = None,
        sharing: bool | None = None,
        reuse: bool | None = None,
        stall: float | None = None,
        speculation: bool | None = None,
    ) -> Configuration:
        """Change how the scheduler orders requests, from its next round on, and tell what is in force; None leaves a value as it is.

        Raises:
            InvalidRequest: a policy that there is not, or a number out of its range.
        """
        changes = Configure(cast("Any", policy), overtake, sharing, reuse, stall, speculation)
        check_changes(changes)
        return await self.ask("scheduler", changes, Configuration, control=True)


def check_changes(changes: Configure) -> None:
    """Raise `InvalidRequest` for a value that the scheduler cannot have."""
    if changes.policy is not None and changes.policy not in POLICIES:
        raise InvalidRequest(
            f"policy: there is no {changes.policy!r}; there are {', '.join(POLICIES)}", param="policy"
        )
    if changes.overtake is not None and not 0 <= changes.overtake < 1 << 31:
        raise InvalidRequest(
            f"overtake: expected 0 (no limit) to {(1 << 31) - 1}, got {changes.overtake}", param="overtake"
        )
    if changes.stall is not None and not (changes.stall == 0 or LEAST_STALL <= changes.stall < math.inf):
        raise InvalidRequest(
            f"stall: expected 0 (no limit) or a number >= {LEAST_STALL}, got {changes.stall}", param="stall"
        )


def _without_known(chunk: Chunk, known: int, *, first: bool) -> Chunk:
    """Drop what a re-submission reports again: tokens below `known`, and prompt data after the first chunk.

    Raises:
        ActorDown: a chunk between what is known and this one was lost on its way; who asks again with what is known gets it.
    """
    if chunk.first_index > known:
        raise ActorDown("a part of the answer was lost on its way")
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


async def joined(chunks: AsyncIterator[Chunk]) -> Chunk:
    """All chunks of one request as one."""
    whole = await anext(chunks)
    async for chunk in chunks:
        whole = merge(whole, chunk)
    return whole


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
        tokens=one.tokens + two.tokens,
    )


__all__ = [
    "POLICIES",
    "CachedEdge",
    "NodeClient",
    "NodeProfile",
    "ProcessRow",
    "Row",
    "check_changes",
    "describe_edge",
    "draw_seed",
    "joined",
    "merge",
    "namespace_of",
    "prompt_counts",
    "split_namespace",
    "trace",
]
