"""Scheduler and cache as they are, on a virtual clock, with a worker that only takes time.

Messages take none. The worker runs one step after the other; how long each takes follows from `Costs`, and what it samples is
written in the `Call`. So a run depends on nothing but its arguments, and takes seconds for what would take a machine hours.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import Commit, Grant, Granted, Match, Matched, Pool
from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.core import SchedulerCore
from sgl_actors.actors.scheduler.effects import Effect, Note, Report, ToCache, ToWorker
from sgl_actors.actors.scheduler.messages import Logprobs, ModelInfo, Options, Sampling, Update
from sgl_actors.actors.scheduler.messages import Sequence as Request
from sgl_actors.actors.worker.messages import Describe, NewSequence, ResetDone, SequenceResult, Step, StepDone
from sgl_actors.actors.worker.messages import Reset as ResetWorker

END = 2
"""The token that ends an output shorter than asked for."""
ASKER = Address("tokenizer", 1)
INFINITE = 1 << 40


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds that a step takes. The defaults were measured on two cores with the default model (135M parameters, 4 bits).

    Attributes:
        step: any step.
        row: and for each sequence that decodes.
        token: and for each prompt token.
        attention: and for each prompt token and each token before it.
    """

    step: float = 0.035
    row: float = 0.00095
    token: float = 0.00125
    attention: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a workload.

    Attributes:
        prompt: token ids.
        output: what the worker samples; it ends there, by length or, with `asked`, by `END`.
        kind: class of requests that it is counted under.
        at: seconds from the start to its arrival, or from the end of the last of `after`.
        after: places in the workload of calls that have to end before.
        asked: output tokens it asks for, if more than it gets.
        scored: prompt tokens from that one on have their log probabilities reported; -1 for none.
        program: whose call it is, if a program's.
    """

    prompt: list[int]
    output: list[int] = field(default_factory=list)
    kind: str = ""
    at: float = 0.0
    after: tuple[int, ...] = ()
    asked: int = 0
    scored: int = -1
    program: str = ""
    tenant: str = "default"
    priority: int = 0

    @property
    def max_tokens(self) -> int:
        """Most output tokens, as the scheduler is told."""
        return max(len(self.output), self.asked)

    @property
    def computed(self) -> list[int]:
        """The tokens that have KV when it has ended: all but the last one sampled."""
        return self.prompt + (self.output if self.max_tokens > len(self.output) else self.output[:-1])

    @property
    def usable(self) -> int:
        """Cached prompt tokens that are of use: one is always computed, and so is the one before the first that is scored."""
        limit = len(self.prompt) - 1
        return limit if self.scored < 0 else min(limit, max(0, self.scored - 1))

    @property
    def sequence_length(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.prompt) + self.max_tokens


@dataclass(slots=True)
class Outcome:
    """What became of a call; times in seconds of virtual time, NaN for what did not happen.

    Attributes:
        place: tokens that had been computed when it arrived.
        cached: prompt tokens that came from the cache.
        overtaken: uncached tokens of later arrivals that were admitted while it waited; those by less than `overtake` computed tokens later
            do not count.
    """

    call: Call
    place: int = 0
    submitted: float = math.nan
    admitted: float = math.nan
    first: float = math.nan
    ended: float = math.nan
    cached: int = 0
    overtaken: int = 0

    @property
    def ttft(self) -> float:
        """From its arrival to its first token, or to its end without one."""
        return self.first - self.submitted

    @property
    def waited(self) -> float:
        """From its arrival to its admission."""
        return self.admitted - self.submitted


@dataclass(frozen=True, slots=True)
class Result:
    """A run. `outcomes` are in the order of the calls; those that had not arrived or not ended when it stopped say so by NaN."""

    outcomes: list[Outcome]
    seconds: float
    steps: int
    retracted: int
    evicted: int

    def of(self, kind: str = "") -> Iterator[Outcome]:
        """Outcomes of calls of that kind, or of all, that have arrived."""
        return (one for one in self.outcomes if kind in ("", one.call.kind) and not math.isnan(one.submitted))

    def hit_rate(self, kind: str = "") -> float:
        """Cached of all prompt tokens, over the calls that have got a first token."""
        begun = [one for one in self.of(kind) if not math.isnan(one.first)]
        return sum(one.cached for one in begun) / max(1, sum(len(one.call.prompt) for one in begun))

    def ttft(self, quantile: float, kind: str = "") -> float:
        """That quantile of the times to first token, of the calls that have got one."""
        times = sorted(one.ttft for one in self.of(kind) if not math.isnan(one.first))
        return times[min(len(times) - 1, int(quantile * len(times)))] if times else math.nan

    def waiting(self, quantile: float, kind: str = "") -> float:
        """That quantile of the times from arrival to admission; who waits when the run stops has waited till then."""
        times = sorted(self._waited(one) for one in self.of(kind))
        return times[min(len(times) - 1, int(quantile * len(times)))] if times else math.nan

    def unserved(self, kind: str = "") -> int:
        """Calls that have arrived and got no first token."""
        return sum(math.isnan(one.first) for one in self.of(kind))

    @property
    def overtaken(self) -> int:
        """Most uncached tokens of later arrivals that were admitted before one that waited."""
        return max((one.overtaken for one in self.outcomes), default=0)

    def _waited(self, one: Outcome) -> float:
        return self.seconds - one.submitted if math.isnan(one.admitted) else one.waited


@dataclass(slots=True)
class Held:
    """A sequence as the worker sees it: `known` tokens were there when it entered, `position` have KV, `sampled` is its output."""

    call: Call
    known: int
    position: int
    sampled: int


class Worker:
    """Says what a step samples and how long it takes. A sequence's seed is the place of its call in the workload."""

    def __init__(self, calls: Sequence[Call], costs: Costs) -> None:
        self._calls = calls
        self._costs = costs
        self._held: dict[int, Held] = {}

    def run(self, step: Step) -> StepDone:
        """Run it."""
        for number in step.end:
            self._held.pop(number, None)
        for new in step.start:
            self._held[new.seq] = self._enter(new)
        costs, seconds, results = self._costs, self._costs.step, list[SequenceResult]()
        for work in step.work:
            held = self._held[work.seq]
            if held.position + work.count <= held.known:
                before = held.position + work.count / 2
                seconds += work.count * (costs.token + costs.attention * before)
            else:
                seconds += costs.row
            held.position += work.count
            results.append(SequenceResult(work.seq, self._sample(held) if work.sample else -1))
        return StepDone(step.epoch, step.number, results, seconds)

    def _enter(self, new: NewSequence) -> Held:
        length = len(new.token_ids)
        return Held(self._calls[new.sampling.seed], length, new.cached, length - new.prompt_length)

    def _sample(self, held: Held) -> int:
        output, index = held.call.output, held.sampled
        held.sampled += 1
        return output[index] if index < len(output) else END


class Cache:
    """Answers the scheduler as the cache actor does."""

    def __init__(self) -> None:
        self.core = RadixCache(0, 1)
        self._epoch = 0

    def reset(self, message: ResetCache) -> Pool:
        """Begin with an empty pool."""
        self._epoch, core = message.epoch, RadixCache(message.pages, message.page_size)
        self.core = core
        return Pool(message.epoch, core.total, core.page_size, core.free, 0, 0)

    def match(self, message: Match) -> Matched:
        """How much of each key is there."""
        return Matched(self.core.match(message.probes, touch=message.touch))

    def grant(self, message: Grant) -> Granted:
        """Pages for what grows, then for new leases, up to the first that does not fit."""
        leases, more = self.core.serve(message.wants, message.more)
        return Granted(self._epoch, leases, more)

    def commit(self, message: Commit) -> None:
        """Insert and release."""
        for entry in message.entries:
            accepted = self.core.commit(entry)
            assert accepted, f"lease {entry.lease}: commit refused"


class Replay:
    """One workload on one scheduler and cache.

    Args:
        calls: the workload.
        options: of the scheduler; nobody is refused and nothing times out whatever they say.
        pages: size of the pool.
        page_size: tokens per page.
        costs: of a step.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        options: Options,
        *,
        pages: int,
        page_size: int = 1,
        costs: Costs | None = None,
    ) -> None:
        info = ModelInfo(
            "fake", "fake", "Fake", INFINITE, INFINITE, (END,), pages, page_size, 1, "float32", "cpu", 1
        )
        options = msgspec.structs.replace(options, queue=len(calls) + 1, timeout=0.0)
        self.now = 0.0
        self.outcomes = [Outcome(call) for call in calls]
        self.core = SchedulerCore(options)
        self.cache = Cache()
        self._info = info
        self._worker = Worker(calls, costs or Costs())
        self._steps: deque[tuple[float, StepDone]] = deque()
        self._arrivals = [(call.at, index) for index, call in enumerate(calls) if not call.after]
        heapq.heapify(self._arrivals)
        self._calls = calls
        self._grace = options.overtake
        self._missing = [len(call.after) for call in calls]
        self._followers: list[list[int]] = [[] for _ in calls]
        for index, call in enumerate(calls):
            for before in call.after:
                self._followers[before].append(index)
        self._waiting: dict[int, Outcome] = {}
        self._perform(self.core.worker_up())
        self._perform(self.core.cache_up())

    def run(self, until: float = math.inf) -> Result:
        """Let time pass up to `until`, or until nothing is left to happen.

        Raises:
            AssertionError: the scheduler has come to a halt although requests wait.
        """
        while (due := self._next()) <= until and due < math.inf:
            self.now = due
            self._perform(self._happen())
        if until == math.inf:
            assert self.core.settled, f"nothing is left to happen, but {self.core!r} waits"
            assert not any(self._missing), "calls wait for each other"
        else:
            self.now = until
        counters = self.core.counters
        evicted = self.cache.core.counters.evicted_pages
        return Result(self.outcomes, self.now, counters["steps"], counters["retracted"], evicted)

    def _next(self) -> float:
        """When something happens."""
        due = [self._arrivals[0][0]] if self._arrivals else []
        due += [self._steps[0][0]] if self._steps else []
        wakeup = self.core.wakeup()
        return max(self.now, min([*due, *([] if wakeup is None else [wakeup])], default=math.inf))

    def _happen(self) -> list[Effect]:
        """What is due now: first a step's end, then all arrivals together."""
        if self._steps and self._steps[0][0] <= self.now:
            return self.core.step_done(self._steps.popleft()[1])
        arrived: list[Request] = []
        while self._arrivals and self._arrivals[0][0] <= self.now:
            arrived.append(self._submit(heapq.heappop(self._arrivals)[1]))
        return self.core.submit(arrived, ASKER, self.now) if arrived else self.core.tick(self.now)

    def _submit(self, index: int) -> Request:
        outcome = self.outcomes[index]
        outcome.submitted = self.now
        outcome.place = self.core.counters["computed_tokens"]
        self._waiting[index] = outcome
        call = outcome.call
        return Request(
            str(index),
            call.prompt,
            call.max_tokens,
            Sampling(index, end_ids=(END,)),
            Logprobs(prompt_start=call.scored),
            tenant=call.tenant,
            program=self._program(index),
            priority=call.priority,
        )

    def _program(self, index: int) -> str:
        """The call that it began with."""
        while after := self._calls[index].after:
            index = after[0]
        return str(index)

    def _perform(self, effects: Iterable[Effect]) -> None:
        queue = deque(effects)
        while queue:
            match queue.popleft():
                case ToWorker(Step() as step):
                    done = self._worker.run(step)
                    begins = self._steps[-1][0] if self._steps else self.now
                    self._steps.append((begins + done.seconds, done))
                case ToWorker(Describe()):
                    queue += self.core.described(self._info)
                case ToWorker(ResetWorker(epoch)):
                    queue += self.core.quieted(ResetDone(epoch))
                case ToCache(ResetCache() as reset):
                    queue += self.core.emptied(self.cache.reset(reset))
                case ToCache(Match() as match_):
                    queue += self.core.matched(self.core.links.epoch, self.cache.match(match_))
                case ToCache(Grant() as grant):
                    queue += self.core.granted(grant.epoch, self.cache.grant(grant))
                case ToCache(Commit() as commit):
                    self.cache.commit(commit)
                case Report(_, progress):
                    for update in progress.updates:
                        self._update(int(update.id), update)
                case Note("admitted", request, fields=fields):
                    self._admitted(int(request), int(fields["cached"]))

    def _admitted(self, index: int, cached: int) -> None:
        """The first time, count what it overtakes: everybody who waits, came before it, and is of its class."""
        outcome = self._waiting.pop(index, None)
        if outcome is None:
            return
        outcome.admitted = self.now
        uncached = len(outcome.call.prompt) - cached
        for other in self._waiting.values():
            if other.place + self._grace >= outcome.place:
                break
            if other.call.priority == outcome.call.priority:
                other.overtaken += uncached

    def _update(self, index: int, update: Update) -> None:
        outcome = self.outcomes[index]
        if math.isnan(outcome.first) and (update.token_ids or update.finish):
            outcome.first = self.now
            outcome.cached = update.cached
        if update.finish is None:
            return
        assert update.finish.reason in ("stop", "length"), update.finish
        outcome.ended = self.now
        for follower in self._followers[index]:
            self._missing[follower] -= 1
            if not self._missing[follower]:
                heapq.heappush(self._arrivals, (self.now + self.outcomes[follower].call.at, follower))
