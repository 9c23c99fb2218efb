"""A worker without a neural network: it writes on with a Markov chain over tokens, made of a text file.

It implements the worker's protocol (docs/components.md) with nothing but its messages. It keeps no KV, so pages mean nothing to it: what a
sequence's next token may be depends on its last few tokens alone. The tokenizer asks what the worker serves before it answers anybody, so the worker
is up at once and has the text tokenised then; steps that come meanwhile wait.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.microkernel import Actor, Address, Context, Message, Request, Snapshot
from sgl_actors.actors.tokenizer.messages import TokenIds, Tokenize
from sgl_actors.actors.worker.messages import (
    Describe,
    ModelInfo,
    NeedFull,
    NewSequence,
    Prepare,
    Profile,
    Reset,
    ResetDone,
    SequenceResult,
    Step,
    StepDone,
    TokenLogprob,
    Work,
)
from sgl_actors.errors import ConfigError, InvalidRequest, SglActorsError, SwapFailed

LAYOUT = "markov/1"
PIECE = 16_000
"""Characters that are tokenised at a time."""
RETRY = 0.1
"""Seconds between two questions to a tokenizer that is not up yet."""
PAGES = 1 << 16
"""Pages that the cache may give out: they hold nothing here."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[actors."worker/0".options]`` of node.toml.

    Attributes:
        text: file to learn from, UTF-8.
        order: tokens that the next one depends on at most.
        context: most tokens of a sequence.
        vocabulary, eos_ids: of the tokenizer of `[model] path`; by default those of the default model.
    """

    text: str
    order: int = 3
    context: int = 8192
    vocabulary: int = 49152
    eos_ids: tuple[int, ...] = (2,)


class Chain:
    """What follows the last 0 to `order` tokens, and how often."""

    def __init__(self, token_ids: Sequence[int], order: int) -> None:
        self.order = order
        self._follow: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for place, token in enumerate(token_ids):
            for length in range(min(order, place) + 1):
                self._follow[tuple(token_ids[place - length : place])][token] += 1

    def after(self, token_ids: Sequence[int]) -> Counter[int]:
        """Counts of what comes next, after the longest end of `token_ids` that was seen."""
        for length in range(min(self.order, len(token_ids)), 0, -1):
            found = self._follow.get(tuple(token_ids[-length:]))
            if found:
                return found
        return self._follow[()]

    def logprob(self, before: Sequence[int], token: int, top: int) -> TokenLogprob:
        """Of `token` after `before`, with the `top` most likely beside it."""
        counts = self.after(before)
        total = counts.total()
        best = tuple((other, math.log(count / total)) for other, count in counts.most_common(top))
        return TokenLogprob(token, math.log(max(counts[token], 1e-3) / total), best)


@dataclass
class Held:
    """A sequence of the batch: all its tokens, and how many of them have been run."""

    new: NewSequence
    tokens: list[int]
    computed: int

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - self.new.prompt_length


def choose(counts: Counter[int], held: Held) -> int:
    """The next token: a function of the counts, the seed and the position, so that a repetition gives the same."""
    sampling = held.new.sampling
    bias = dict(sampling.logit_bias)
    weights = {token: math.log(count) + bias.get(token, 0.0) for token, count in counts.items()}
    weights |= {token: value for token, value in bias.items() if token not in weights and value > 0}
    if held.generated < sampling.min_tokens:
        weights = {
            token: value for token, value in weights.items() if token not in sampling.end_ids
        } or weights
    ranked = sorted(weights, key=lambda token: (-weights[token], token))
    ranked = ranked[: sampling.top_k] if sampling.top_k > 0 else ranked
    if sampling.temperature <= 0:
        return ranked[0]
    best = weights[ranked[0]]
    shares = [math.exp((weights[token] - best) / sampling.temperature) for token in ranked]
    draw = random.Random(f"{sampling.seed} {len(held.tokens)}")
    return draw.choices(ranked, shares)[0]


class MarkovWorker(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        try:
            self.options = msgspec.convert(context.config.get("options", {}), Options, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f'[actors."{context.address.name}".options]: {error}') from None
        self.info = self._describe(msgspec.convert(context.config["cache"], CacheOptions))
        self.chain: Chain | None = None
        self.waiting: list[tuple[Step | Reset, Address]] = []
        self.epoch = self.number = 0
        self.held: dict[int, Held] = {}
        self.counts: Counter[str] = Counter()

    def _describe(self, cache: CacheOptions) -> ModelInfo:
        options = self.options
        return ModelInfo(
            served_name=str(self.ctx.config["model"]["served_name"]),
            path=options.text,
            architecture="Markov",
            context=options.context,
            vocabulary=options.vocabulary,
            eos_ids=options.eos_ids,
            pages=cache.pages or PAGES,
            page_size=cache.page_size,
            bytes_per_token=0,
            dtype="none",
            device="cpu",
            threads=1,
            deterministic=True,
        )

    async def start(self) -> None:
        """Read the text; it is learnt once the tokenizer is up."""
        try:
            text = await asyncio.to_thread(Path(self.options.text).read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f'[actors."{self.ctx.address.name}".options] text: {error}') from None
        self.ctx.task(self._learn(text), name="learn")

    async def _learn(self, text: str) -> None:
        token_ids: list[int] = []
        for begin in range(0, len(text), PIECE):
            token_ids += await self._tokenize(text[begin : begin + PIECE])
        if not token_ids or max(token_ids) >= self.options.vocabulary:
            raise ConfigError(f"{self.options.text}: expected some tokens below {self.options.vocabulary}")
        self.chain = await asyncio.to_thread(Chain, token_ids, self.options.order)
        self.log.info("text learnt", path=self.options.text, tokens=len(token_ids))
        waiting, self.waiting = self.waiting, []
        for message, sender in waiting:
            self._do(message, sender)

    async def _tokenize(self, text: str) -> list[int]:
        """Ask the tokenizer, which comes up when it has heard what we serve."""
        while True:
            try:
                answer = await self.ctx.call(self.ctx.peer("tokenizer"), Tokenize(text), TokenIds)
            except SglActorsError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(RETRY)
            else:
                return answer.token_ids

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Answers of steps and resets go to whoever sent them, on the control lane, in the order in which these came."""
        match message:
            case Describe():
                return self.info
            case Step() | Reset() if self.chain is None:
                self.waiting.append((message, request.sender))
            case Step() | Reset():
                self._do(message, request.sender)
            case _ if request.kind == "cast":
                self.log.warning("unexpected message", message=message.TAG)
            case Prepare():
                raise InvalidRequest("this model takes no constraints", param=message.constraint.kind)
            case Profile():
                raise InvalidRequest("this model has no profile")
            case _:
                return await super().receive(message, request)
        return None

    def _do(self, message: Step | Reset, sender: Address) -> None:
        if isinstance(message, Step):
            answer: Message = self._step(message)
        else:
            self.epoch, self.number = message.epoch, 0
            self.held.clear()
            answer = ResetDone(message.epoch)
        self.ctx.cast(sender, answer, control=True)

    def _step(self, step: Step) -> StepDone | NeedFull:
        """The next step of the batch it holds; any other is answered by `NeedFull`, and nothing is done."""
        if (step.epoch, step.number) != (self.epoch, self.number):
            return NeedFull(step.epoch)
        self.number += 1
        for seq in step.end:
            self.held.pop(seq, None)
        for new in step.start:
            self.held[new.seq] = Held(new, list(new.token_ids), new.cached)
        self.counts["steps"] += 1
        return StepDone(step.epoch, step.number, [self._run(work) for work in step.work])

    def _run(self, work: Work) -> SequenceResult:
        """One sequence's share. What is wrong with it ends it alone."""
        held = self.held.get(work.seq)
        if held is None:
            return SequenceResult(work.seq, error=f"sequence {work.seq} is not in the batch")
        start, stop = held.computed, held.computed + work.count
        problem = ""
        if held.new.sampling.constraint is not None:
            problem = "this model takes no constraints"
        elif work.count < 1 or stop > len(held.tokens) or (work.sample and stop < len(held.tokens)):
            problem = f"cannot run tokens {start} to {stop} of {len(held.tokens)}"
        if problem:
            del self.held[work.seq]
            return SequenceResult(work.seq, error=problem, code=InvalidRequest.code)
        held.computed = stop
        scores = self._score_prompt(held, start, stop)
        if not work.sample:
            return SequenceResult(work.seq, prompt_logprobs=scores)
        chain = self._known
        token = choose(chain.after(held.tokens), held)
        logprobs = held.new.logprobs
        score = chain.logprob(held.tokens, token, logprobs.top) if logprobs.output else None
        held.tokens.append(token)
        self.counts["sampled_tokens"] += 1
        return SequenceResult(work.seq, token, logprob=score, prompt_logprobs=scores)

    @property
    def _known(self) -> Chain:
        assert self.chain is not None
        return self.chain

    def _score_prompt(self, held: Held, start: int, stop: int) -> tuple[TokenLogprob, ...]:
        """Log probabilities of prompt tokens `start` + 1 to `stop`, those asked for; the first of all has none."""
        wanted = held.new.logprobs
        if wanted.prompt_start < 0:
            return ()
        places = range(
            max(wanted.prompt_start, start + 1 if start else 0), min(stop + 1, held.new.prompt_length)
        )
        return tuple(
            self._known.logprob(held.tokens[:place], held.tokens[place], wanted.top)
            if place
            else TokenLogprob(held.tokens[0], None)
            for place in places
        )

    def statistics(self) -> dict[str, float]:
        """Steps and tokens, and the batch."""
        return {
            "sequences": len(self.held),
            **{f"{name}_total": count for name, count in self.counts.items()},
        }

    def snapshot(self) -> Snapshot:
        """For a newer version of this class: the batch and the chain go over as they are."""
        if self.chain is None:
            raise SwapFailed("the text is being learnt; try again")
        state = MarkovState(self.info, self.epoch, self.number, dict(self.counts))
        return Snapshot.of(LAYOUT, state, held=self.held, chain=self.chain)

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on with the batch; another text or order needs a restart."""
        state = snapshot.read(LAYOUT, MarkovState)
        chain = snapshot.handle("chain", Chain)
        if (state.info.path, chain.order) != (self.options.text, self.options.order):
            raise SwapFailed("text, order: another chain has to be learnt; restart the worker")
        self.held, self.chain = snapshot.handle("held", dict), chain
        self.info, self.epoch, self.number = state.info, state.epoch, state.number
        self.counts.update(state.counts)


class MarkovState(msgspec.Struct, frozen=True):
    """Layout ``markov/1``; ``held`` and ``chain`` go beside it."""

    info: ModelInfo
    epoch: int
    number: int
    counts: dict[str, int]
