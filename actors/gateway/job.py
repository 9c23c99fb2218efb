"""Running the generations of one HTTP request, and keeping the books about them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from sgl_actors.actors.gateway.answer import Answer
from sgl_actors.actors.gateway.exchange import Exchange
from sgl_actors.actors.gateway.generation import Ask, Emit, Generation
from sgl_actors.actors.gateway.openai_types import CompletionDetails, PromptDetails, StreamOptions, Usage
from sgl_actors.actors.gateway.retry import Retry, Trail
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.sse import until_gone
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.errors import InvalidRequest


class Job:
    """The generations of one request, with the books kept about them.

    Attributes:
        id: shown to the client, and the stem of the node's request ids.
        created: wall clock, seconds since the epoch.
        answers: what came so far, by choice.
        began: monotonic seconds when its request came in.
        retry: how its client may ask again.
        trail: what a stream's events are written through.
    """

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        asks: list[Ask],
        *,
        prefix: str,
        model: str,
        retry: Retry,
        rids: list[str] | None = None,
    ) -> None:
        self.retry, self.model = retry, model
        self.id = stem = retry.stem(prefix)
        asks = [_seeded(ask, retry.seed(number)) for number, ask in enumerate(asks)]
        self.trail = Trail(retry, sum(ask.n for ask in asks))
        self.created = int(service.clock())
        self.generation = Generation(
            service.node,
            asks,
            stem=stem,
            tenant=exchange.tenant.name,
            timeout=service.options.timeout,
            trace=exchange.trace,
            since=self.trail.since if retry.key else None,
        )
        self.answers = [Answer(index) for index in range(self.generation.choices)]
        self.began = exchange.began
        self._service, self._exchange = service, exchange
        self._names = {stem: self.generation.ids} if rids is None else self.generation.ids_by(rids)
        self._times = [0.0] * len(self.answers)
        exchange.request = stem
        exchange.prompts = len(asks)
        exchange.prompt_length = sum(ask.prompt.length for ask in asks)
        exchange.prompt_hash = asks[0].prompt.digest

    async def collect(self, request: Request, *, raise_abort: bool = True) -> list[Answer]:
        """Run everything to its end; it is aborted when the client leaves (`ClientGone`)."""

        async def nothing(index: int, chunk: Chunk) -> None:
            """Nobody listens before the end."""

        await until_gone(request.receive, self.run(nothing, raise_abort=raise_abort))
        return self.answers

    async def run(self, emit: Emit, *, raise_abort: bool = True) -> None:
        """Run everything; `emit` is called after each chunk has been added to its answer."""
        metrics, model = self._service.metrics, self.model

        async def take(index: int, chunk: Chunk) -> None:
            self.answers[index].add(chunk)
            self._observe(index, len(chunk.token_ids))
            await emit(index, chunk)

        metrics.requests.labels(model).inc()
        try:
            with self._service.abortable(self._exchange.tenant.name, self._names):
                await self.generation.run(take, raise_abort=raise_abort)
        except InvalidRequest as error:
            metrics.aborted.labels(model).inc()
            raise self.retry.named(error) from None
        except BaseException:
            metrics.aborted.labels(model).inc()
            raise
        finally:
            self._count()
        metrics.whole.labels(model).observe(self._service.now() - self._exchange.began)

    def usage(self) -> Usage:
        """Tokens so far; each prompt counts once."""
        prompt = cached = index = 0
        for number, ask in enumerate(self.generation.asks):
            first = self.answers[index]
            head = self.generation.heads.get(number)
            prompt += first.prompt_tokens
            cached += first.cached_tokens if head is None else head.cached_tokens
            index += ask.n
        completion = sum(answer.completion_tokens for answer in self.answers)
        made = [answer.decoding for answer in self.answers]
        details = CompletionDetails(
            sum(one.steps for one in made),
            sum(one.sampled for one in made),
            sum(one.forced for one in made),
            sum(one.held_back for one in made),
            sum(one.drafted for one in made),
            sum(one.accepted for one in made),
        )
        return Usage(prompt, completion, prompt + completion, PromptDetails(cached), details)

    def told_usage(self, options: StreamOptions) -> Usage | UnsetType | None:
        """What a chunk with a choice in it says of the usage."""
        if options.continuous_usage_stats:
            return self.usage()
        return None if options.include_usage else UNSET

    def _observe(self, index: int, tokens: int) -> None:
        if not tokens:
            return
        now, last = self._service.now(), self._times[index]
        metrics, model = self._service.metrics, self.model
        if not last:
            metrics.first_token.labels(model).observe(now - self._exchange.began)
        else:
            between = metrics.between_tokens.labels(model)
            for _ in range(tokens):
                between.observe((now - last) / tokens)
        self._times[index] = now

    def _count(self) -> None:
        usage = self.usage()
        metrics, model, exchange = self._service.metrics, self.model, self._exchange
        exchange.prompt_tokens, exchange.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        exchange.cached_tokens = usage.prompt_tokens_details.cached_tokens
        metrics.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.cached_tokens.labels(model).inc(exchange.cached_tokens)
        metrics.generated.labels(model).inc(usage.completion_tokens)


def _seeded(ask: Ask, seed: int | None) -> Ask:
    """With that seed, unless it has one."""
    if seed is None or ask.sampling.seed is not None:
        return ask
    return replace(ask, sampling=msgspec.structs.replace(ask.sampling, seed=seed))
