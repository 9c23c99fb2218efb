"""A worker without a model: every next token is a hash of all tokens before it. For tests of everything but the model.

In and out as the real worker: `Describe` and `Profile` (calls; a profile of steps without parts), `Step` and `Reset` (casts); `StepDone`, `NeedFull`, `ResetDone` on the control
lane. It owns a KV pool of made-up values: the slot of a token holds the hash of the prefix that ends with it. The next hash is
made from the slot of the token before, so a page that holds something else shows in the output. A crash forgets them.

``[actors."worker/0".options]`` of node.toml: ``delay`` seconds per step (default 0), ``context`` (8192), ``vocabulary`` (49152), ``poison``: a
token id that crashes the worker when it is computed as part of a prompt (-1: none).

A constraint changes no output: under one, some tokens count as forced by those before them, and are appended together with them. Without one, and with
``drafts`` (false), made-up drafts are run beside, some of them right.
"""

from __future__ import annotations

import asyncio
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.microkernel import Actor, Context, Message, Request, Snapshot
from sgl_actors.actors.worker.handover import LAYOUT, WorkerState
from sgl_actors.actors.worker.messages import (
    Describe,
    ModelInfo,
    NeedFull,
    NewSequence,
    Options,
    Prepare,
    Prepared,
    Profile,
    Profiled,
    Reset,
    ResetDone,
    Sampling,
    SequenceResult,
    Step,
    StepDone,
    StepTime,
    TokenLogprob,
    Work,
)
from sgl_actors.errors import ConfigError, NotReady, SwapFailed

EOS = 2
BYTES_PER_TOKEN = 1024
WANTED = 1.0
"""A logit bias above this makes its token the next one, one below its negative forbids it."""


class FakeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See the module."""

    delay: float = 0.0
    context: int = 8192
    vocabulary: int = 49152
    poison: int = -1
    drafts: bool = False


class Poisoned(Exception):
    """A step was to compute the poisoned token."""


def extend(state: int, token_id: int) -> int:
    """Hash of a prefix whose hash is `state` with one more token."""
    return zlib.crc32(struct.pack("<q", token_id), state)


def next_token(state: int, sampling: Sampling, generated: int, vocabulary: int) -> int:
    """The token after the prefix with hash `state`. Neither seed, temperature nor a constraint matter; bias, end ids and min_tokens do."""
    bias = dict(sampling.logit_bias)
    banned = set(sampling.end_ids) if generated < sampling.min_tokens else set()
    wanted = [(value, -token) for token, value in bias.items() if value > WANTED and token not in banned]
    if wanted:
        return -max(wanted)[1]
    banned |= {EOS} | {token for token, value in bias.items() if value < -WANTED}
    token = state % vocabulary
    while token in banned:
        token = (token + 1) % vocabulary
    return token


def forces(state: int) -> int:
    """How many tokens are forced after a token that made the prefix with hash `state`, under a constraint."""
    return (0, 0, 1, 0, 7, 2, 0, 23)[state % 8]


def drafts(state: int) -> tuple[int, int]:
    """How many drafts are run behind a prefix with hash `state`, and how many of them are right at most."""
    return state // 8 % 9, state // 72 % 7


def score(state: int, token_id: int, top: int, vocabulary: int) -> TokenLogprob:
    """Made-up log probabilities of `token_id` and `top` others after the prefix with hash `state`."""
    others = [((state + rank) % vocabulary, -0.5 * (rank + 1)) for rank in range(top)]
    return TokenLogprob(token_id, -math.log(2 + extend(state, token_id) % 1000), tuple(others))


def complete(
    prompt: Iterable[int], sampling: Sampling, max_tokens: int, vocabulary: int = 49152
) -> list[int]:
    """The whole output after `prompt`: what a request must get, however it was scheduled."""
    state, output = 0, list[int]()
    for token in prompt:
        state = extend(state, token)
    while len(output) < max_tokens:
        token = next_token(state, sampling, len(output), vocabulary)
        state = extend(state, token)
        output.append(token)
        if sampling.ended_by(token, len(output)):
            break
    return output


@dataclass(slots=True)
class _Held:
    """A sequence in the batch; `computed` leading tokens have their hash in the pool, `scored` have had their log probability reported."""

    new: NewSequence
    tokens: list[int]
    pages: list[int]
    computed: int
    scored: int


class FakeModel:
    """The fake worker without its mailbox: steps in, results out."""

    def __init__(self, info: ModelInfo, *, poison: int = -1, drafting: bool = False) -> None:
        self.info = info
        self.poison = poison
        self.drafting = drafting
        self.epoch = 0
        self.number = 0
        self.pool: dict[int, int] = {}
        self._held: dict[int, _Held] = {}

    def __repr__(self) -> str:
        return f"<FakeModel epoch={self.epoch} next={self.number} sequences={len(self._held)}>"

    def reset(self, epoch: int) -> ResetDone:
        """Forget all sequences and begin `epoch` at step 0. The pool keeps what is in it."""
        self.epoch, self.number = epoch, 0
        self._held.clear()
        return ResetDone(epoch)

    def step(self, step: Step) -> StepDone | NeedFull:
        """Run one step; `NeedFull` if it is not the next of this epoch. Raises `Poisoned`."""
        if step.epoch != self.epoch or step.number != self.number:
            return NeedFull(step.epoch)
        self.number += 1
        for seq in step.end:
            self._held.pop(seq, None)
        for new in step.start:
            self._held[new.seq] = _Held(
                new, list(new.token_ids), list(new.pages), new.cached, len(new.token_ids)
            )
        return StepDone(step.epoch, step.number, [self._run(work) for work in step.work])

    def holds(self, tokens: list[int], pages: list[int], count: int) -> bool:
        """Whether `pages` hold the KV of the first `count` of `tokens`."""
        state = 0
        for index in range(count):
            state = extend(state, tokens[index])
            if self.pool.get(self._slot(pages, index)) != state:
                return False
        return True

    def _slot(self, pages: list[int], index: int) -> int:
        size = self.info.page_size
        return pages[index // size] * size + index % size

    def _state(self, held: _Held, index: int) -> int:
        """Hash of the prefix before token `index`, as the pool has it."""
        return self.pool.get(self._slot(held.pages, index - 1), -1) if index else 0

    def _run(self, work: Work) -> SequenceResult:
        held = self._held.get(work.seq)
        if held is None:
            return SequenceResult(work.seq, error=f"sequence {work.seq} is not in the batch")
        held.pages += work.pages
        start, stop = held.computed, held.computed + work.count
        sampling = held.new.sampling
        if work.sample and sampling.constraint is not None:
            stop = max(stop, min(len(held.tokens), len(held.pages) * self.info.page_size))
        short = work.sample and stop < len(held.tokens)
        if stop > len(held.tokens) or (short and sampling.constraint is None):
            del self._held[work.seq]
            return SequenceResult(
                work.seq, error=f"cannot run tokens {start} to {stop} of {len(held.tokens)}"
            )
        if self.poison in held.tokens[start : min(stop, held.new.prompt_length)]:
            raise Poisoned(f"token {self.poison} of sequence {work.seq}")
        states = self._compute(held, start, stop)
        if not states:
            del self._held[work.seq]
            return SequenceResult(work.seq, error=f"no KV for token {start - 1}")
        ran = SequenceResult(
            work.seq,
            ran=stop - start,
            prompt_logprobs=self._score_prompt(held, start, stop, states),
            forced_logprobs=self._score_forced(held, start, stop, states),
        )
        return ran if short or not work.sample else self._sample(held, states[-1], ran)

    def _compute(self, held: _Held, start: int, stop: int) -> list[int]:
        """Hashes of the prefixes before each of these tokens and behind the last; none if the pool has not the one before them."""
        before = self._state(held, start)
        if before < 0:
            return []
        states = [before]
        for index in range(start, stop):
            states.append(extend(states[-1], held.tokens[index]))
            self.pool[self._slot(held.pages, index)] = states[-1]
        held.computed = stop
        return states

    def _sample(self, held: _Held, last: int, ran: SequenceResult) -> SequenceResult:
        """The next token, and what comes with it: drafts that are accepted, or forced tokens."""
        sampling = held.new.sampling
        new, vocabulary = held.new, self.info.vocabulary
        token = self._write(held, last)
        wanted = score(last, token, new.logprobs.top, vocabulary) if new.logprobs.output else None
        held.scored = len(held.tokens)
        if sampling.constraint is None or not sampling.jump_forward:
            accepted, drafted, more = self._draft(held, last)
            return msgspec.structs.replace(
                ran,
                token_id=token,
                accepted=accepted,
                drafted=drafted,
                ran=ran.ran + len(accepted),
                logprob=wanted,
                accepted_logprobs=more,
            )
        state = extend(last, token)
        forced: list[int] = []
        while len(forced) < forces(extend(last, token)) and held.tokens[-1] not in sampling.end_ids:
            forced.append(self._write(held, state))
            state = extend(state, forced[-1])
        return msgspec.structs.replace(ran, token_id=token, forced=tuple(forced), logprob=wanted)

    def _draft(self, held: _Held, state: int) -> tuple[tuple[int, ...], int, tuple[TokenLogprob, ...]]:
        """Run drafts behind the last token but one: what was accepted, how many there were, and log probabilities. The wrong ones stay in the pool."""
        new, stop = held.new, held.computed
        if not self.drafting or new.sampling.constraint is not None:
            return (), 0, ()
        many, right = drafts(state)
        room = min(new.most, len(held.pages) * self.info.page_size) - stop - 1
        count = max(0, min(new.drafts, many, room))
        accepted: list[int] = []
        scores: list[TokenLogprob] = []
        while len(accepted) < min(count, right) and held.tokens[-1] not in new.sampling.end_ids:
            state = extend(state, held.tokens[-1])
            self.pool[self._slot(held.pages, held.computed)] = state
            held.computed += 1
            accepted.append(self._write(held, state))
            if new.logprobs.output:
                scores.append(score(state, accepted[-1], new.logprobs.top, self.info.vocabulary))
        for place in range(held.computed, stop + count):
            self.pool[self._slot(held.pages, place)] = ~state
        held.scored = len(held.tokens)
        return tuple(accepted), count, tuple(scores)

    def _write(self, held: _Held, state: int) -> int:
        """Append the next token."""
        output = len(held.tokens) - held.new.prompt_length
        held.tokens.append(next_token(state, held.new.sampling, output, self.info.vocabulary))
        return held.tokens[-1]

    def _score_forced(
        self, held: _Held, start: int, stop: int, states: list[int]
    ) -> tuple[TokenLogprob, ...]:
        """Of the tokens that were appended as forced and have been run now; as `_score_prompt`."""
        logprobs = held.new.logprobs
        if not logprobs.output:
            return ()
        targets = range(held.scored, min(stop + 1, len(held.tokens)))
        held.scored = max(held.scored, targets.stop)
        return tuple(
            score(states[index - start], held.tokens[index], logprobs.top, self.info.vocabulary)
            for index in targets
        )

    def _score_prompt(
        self, held: _Held, start: int, stop: int, states: list[int]
    ) -> tuple[TokenLogprob, ...]:
        """Of prompt tokens `start + 1` to `stop` (and 0), those asked for; ``states[i]`` is before token ``start + i``."""
        logprobs, length = held.new.logprobs, held.new.prompt_length
        if logprobs.prompt_start < 0:
            return ()
        begin = max(logprobs.prompt_start, start + 1 if start else 0)
        return tuple(
            score(states[index - start], held.tokens[index], logprobs.top, self.info.vocabulary)
            if index
            else TokenLogprob(held.tokens[0], None)
            for index in range(begin, min(stop + 1, length))
        )


def fake_options(config: Mapping[str, Any]) -> FakeOptions:
    """A fake worker's own options; `ConfigError` for what it does not know. Text stands for the value it spells."""
    try:
        return msgspec.convert(config.get("options", {}), FakeOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of the fake worker: {error}") from None


def describe(config: Mapping[str, Any]) -> ModelInfo:
    """What a fake worker with that configuration says it serves."""
    fake = fake_options(config)
    cache = msgspec.convert(config.get("cache", {}), CacheOptions)
    model = msgspec.convert(config.get("model", {}), Options)
    return ModelInfo(
        served_name=model.served_name or Path(model.path).stem,
        path=model.path,
        architecture="Fake",
        context=model.context or fake.context,
        vocabulary=fake.vocabulary,
        eos_ids=(EOS,),
        pages=cache.pages or max(1, cache.memory // (BYTES_PER_TOKEN * cache.page_size)),
        page_size=cache.page_size,
        bytes_per_token=BYTES_PER_TOKEN,
        dtype="float32",
        device="cpu",
        threads=1,
    )


class FakeWorker(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        options = fake_options(context.config)
        self.delay = options.delay
        self.model = FakeModel(describe(context.config), poison=options.poison, drafting=options.drafts)
        self.steps = 0
        self.noted: list[StepTime] | None = None

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See the module."""
        match message:
            case Step():
                began = self.ctx.now()
                if self.delay:
                    await asyncio.sleep(self.delay)
                self.steps += 1
                answer = self.model.step(message)
                ended = self.ctx.now()
                self.ctx.cast(request.sender, answer, control=True)
                self._note(message, began, ended)
            case Reset():
                self.ctx.cast(request.sender, self.model.reset(message.epoch), control=True)
            case Describe():
                return self.model.info
            case Prepare():
                return Prepared()
            case Profile():
                self.ctx.task(self._profile(message.seconds, request), name="profile")
            case _ if request.kind == "cast":
                self.log.warning("unexpected message", message=message.TAG, sender=str(request.sender))
            case _:
                return await super().receive(message, request)
        return None

    async def _profile(self, seconds: float, request: Request) -> None:
        if self.noted is not None:
            request.fail(NotReady("a profile is being taken already"))
            return
        noted: list[StepTime] = []
        self.noted, began = noted, self.ctx.now()
        await asyncio.sleep(seconds)
        self.noted = None
        request.reply(Profiled(began, self.ctx.now(), 1, noted, [], []))

    def _note(self, step: Step, began: float, ended: float) -> None:
        """What a profile says of a step; without times of arrival, as nothing waits here."""
        if self.noted is None:
            return
        fresh = {new.seq for new in step.start}
        self.noted.append(
            StepTime(
                step.number,
                began,
                began,
                ended,
                self.ctx.now(),
                tokens=sum(work.count for work in step.work),
                sequences=len(step.work),
                sampled=sum(work.sample for work in step.work),
                started=tuple(len(new.token_ids) for new in step.start),
                goes_on=any(work.seq not in fresh for work in step.work),
            )
        )

    def statistics(self) -> dict[str, float]:
        """Steps run."""
        return {"steps": self.steps}

    def snapshot(self) -> Snapshot:
        """See `handover`; nothing is under way between two messages. A profile that is being taken ends with what it has seen."""
        model = self.model
        state = WorkerState(model.info, model.epoch, model.number, {"steps": float(self.steps)})
        return Snapshot.of(LAYOUT, state, model=model)

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on with the same batch and pool; `SwapFailed` if the configuration describes another model."""
        state = snapshot.read(LAYOUT, WorkerState)
        model: FakeModel = snapshot.handle("model", FakeModel)
        if describe(self.ctx.config) != state.info:
            raise SwapFailed(
                "options, [model] or [cache]: another model or pool needs a restart of the worker"
            )
        model.poison, model.drafting = self.model.poison, self.model.drafting
        self.model, self.steps = model, int(state.counters.get("steps", 0))
