"""Scheduler core, cache core and fake worker on a virtual clock, with seeded delays, arrivals, aborts, stops and crashes.

Every message takes a random time but keeps its place behind those sent before on the same way. What a dead incarnation sent,
and what was sent to one, is lost. Sequences fail at random, also after their request's end, and leave garbage behind; some
prompts hold a token that crashes the worker; some mail to the cache is refused; the order of admission changes while all that goes
on. Some requests go on where another ended, as a program's do. If it is asked for, scheduler and cache are put in another's place from plain data now and then, or mail to and from
the worker is lost. After every event the invariants hold, and at the end everybody has an answer.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.handover import Contents
from sgl_actors.actors.cache.messages import Commit, Grant, Granted, Match, Matched, Pool, unpack
from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.cache.naive import NaiveCache
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.core import SchedulerCore
from sgl_actors.actors.scheduler.effects import Effect, Note, Report, ToCache, ToWorker
from sgl_actors.actors.scheduler.handover import SchedulerState
from sgl_actors.actors.scheduler.links import Stage
from sgl_actors.actors.scheduler.messages import (
    Configure,
    Finish,
    Logprobs,
    ModelInfo,
    Options,
    Sampling,
    Sequence,
    Stop,
    TokenLogprob,
    Update,
)
from sgl_actors.actors.scheduler.orphans import ORPHAN
from sgl_actors.actors.worker.fake import FakeModel, Poisoned, complete, extend, score
from sgl_actors.actors.worker.messages import Describe, NeedFull, SequenceResult, Step, StepDone
from sgl_actors.actors.worker.messages import Reset as ResetWorker
from sgl_actors.lang.constraints.constraint import Constraint

VOCABULARY = 40
CONTEXT = 96
LAG = 0.004
POISON = 0
GARBAGE = -2
FAILURE = "made to fail"
JUMPING = Constraint("regex", "the fake model forces some of its tokens under any constraint")

Order = Literal["fcfs", "lpm", "dfs-weight", "hrrn"]


@dataclass
class Asked:
    """A request as its asker sees it, and what must come of it."""

    sequence: Sequence
    owner: Address
    expected: list[int]
    output: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None
    stop_at: int = 0
    stopped: int = -1
    gone: bool = False
    cached: int = 0
    poisoned: bool = False
    failed: bool = False
    scored: bool = False

    def take(self, update: Update) -> None:
        """Check one update against what is known and what is due."""
        assert self.finish is None, f"{update.id} ended twice"
        if self.stopped >= 0 and update.finish is not None and update.finish.matched == "stop string":
            assert (update.first_index, update.token_ids) == (self.stopped, [])
            del self.output[self.stopped :]
        assert update.first_index <= len(self.output), f"{update.id}: tokens are missing"
        self.output = self.output[: update.first_index] + update.token_ids
        assert self.output == self.expected[: len(self.output)], f"{update.id}: not what the model says"
        if self.sequence.logprobs.output:
            assert [entry.token_id for entry in update.logprobs] == update.token_ids
            due = due_logprobs(self.sequence, self.output)[update.first_index :]
            told = [
                (one, two) for one, two in zip(update.logprobs, due, strict=True) if one.logprob is not None
            ]
            assert all(one == two for one, two in told), f"{update.id}: not the model's log probabilities"
        if not self.scored:
            self.prompt_logprobs += update.prompt_logprobs
        self.cached = update.cached
        self.finish = update.finish
        if update.finish is not None:
            self._check_end(update.finish)

    def _check_end(self, finish: Finish) -> None:
        if finish.reason == "length":
            assert len(self.output) == self.sequence.max_tokens
        elif finish.reason == "stop" and finish.matched != "stop string":
            assert self.output == self.expected
            assert self.output[-1] == finish.matched
        if finish.reason in ("length", "stop"):
            assert self.prompt_logprobs == due_prompt_logprobs(self.sequence)


def due_prompt_logprobs(sequence: Sequence) -> list[TokenLogprob]:
    """What the fake model says about the prompt from `prompt_start` on."""
    state, due = 0, list[TokenLogprob]()
    for index, token in enumerate(sequence.prompt):
        if 0 <= sequence.logprobs.prompt_start <= index:
            top = sequence.logprobs.top
            due.append(score(state, token, top, VOCABULARY) if index else TokenLogprob(token, None))
        state = extend(state, token)
    return due


def due_logprobs(sequence: Sequence, output: list[int]) -> list[TokenLogprob]:
    """What the fake model says about the output."""
    state, due = 0, list[TokenLogprob]()
    for token in sequence.prompt:
        state = extend(state, token)
    for token in output:
        due.append(score(state, token, sequence.logprobs.top, VOCABULARY))
        state = extend(state, token)
    return due


def rounded(state: SchedulerState) -> SchedulerState:
    """With times as exact as sums of them can be."""
    requests = [
        msgspec.structs.replace(
            one,
            left=None if one.left is None else round(one.left, 6),
            kept=None if one.kept is None else round(one.kept, 6),
        )
        for one in state.requests
    ]
    return msgspec.structs.replace(state, requests=requests)


class Simulation:
    """One seeded history. `run` raises `AssertionError` for a broken invariant."""

    def __init__(
        self,
        seed: int,
        *,
        page_size: int,
        ahead: int,
        pages: int,
        requests: int = 24,
        crashes: bool = True,
        poisoned: int = 0,
        swaps: int = 0,
        losses: float = 0.0,
    ) -> None:
        self.rng = random.Random(seed)
        self.chance = random.Random(-seed)
        self.losses = losses
        self.lost = self.swapped = self.rolled_back = self.caches_swapped = 0
        self.settling = False
        self.ahead = ahead
        self.info = ModelInfo(
            "fake", "fake", "Fake", CONTEXT, VOCABULARY, (2,), pages, page_size, 1, "float32", "cpu", 1
        )
        rng = self.rng
        self.options = Options(
            policy=rng.choice(["fcfs", "lpm", "lpm", "dfs-weight", "hrrn"]),
            overtake=rng.choice([20, 60, 200]),
            sharing=rng.random() < 0.7,
            overlap=bool(ahead),
            max_batch=rng.randint(1, 8),
            chunk=rng.randint(1, 24),
            stall=rng.choice([0.0, 3.0]),
            queue=1000,
            timeout=0.0,
            speculation=seed % 4 > 0,
            speculation_tokens=1 + seed % 8,
        )
        self.estimate = (rng.choice([1, 1, 4, 256]), rng.choice([1, 1, 8]))
        self.line = (rng.choice([0, 10, 50]), rng.choice([0, 30, 1000]))
        self.eviction = rng.choice(["lru", "lfu", "priority"])
        self.switched = False
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.last: dict[str, float] = {}
        self.asked: dict[str, Asked] = {}
        self.owners = 2
        self.failing = self.rng.choice([0.0, 0.004])
        self.failed_after_end = 0
        self.dropped: set[tuple[int, int]] = set()
        self.poison_crashes = 0
        self.chance_crashes = 0
        self.orphaned_and_back = 0
        self.poisoned = set(self.rng.sample(range(requests), poisoned))
        self.scheduler_epoch = 0
        self.worker_epoch = 0
        self.cache_epoch = 0
        self.core = SchedulerCore(self.options)
        self.retractions = 0
        self.most_overtaken = 0
        self.model: FakeModel | None = None
        self.cache: RadixCache | None = None
        self.pool_epoch = 0
        self.ticking = -1.0
        self.steps = 0
        self.restarts = 0
        self.prefixes = [[self.token() for _ in range(self.rng.randint(1, 30))] for _ in range(3)]
        self.start_scheduler()
        self.at(0.0, self.start_worker)
        self.at(self.rng.random() * LAG, self.start_cache)
        self.at(self.rng.random() * 0.2, self.switch)
        for number in range(requests):
            self.at(self.rng.random() * 0.15, lambda number=number: self.arrive(number))  # type: ignore[misc]
        for _ in range(self.rng.randint(0, 4) if crashes else 0):
            crash = self.rng.choice(
                [
                    self.crash_worker,
                    self.crash_worker,
                    self.crash_cache,
                    self.crash_scheduler,
                    self.crash_owner,
                    self.lose_batch,
                ]
            )
            self.at(self.rng.random() * 0.25, crash)
        for _ in range(swaps):
            self.at(self.chance.random() * 0.3, self.chance.choice([self.swap_scheduler, self.swap_cache]))

    def token(self) -> int:
        return self.rng.randrange(3, VOCABULARY)

    # -- time and ways ------------------------------------------------------------------------------------

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + delay, self.order, event))

    def way(self, name: str, event: Callable[[], None]) -> None:
        """Deliver after a random time, but not before what went the same way earlier."""
        arrival = max(self.last.get(name, 0.0), self.now + self.rng.random() * LAG)
        self.last[name] = arrival
        self.at(arrival - self.now, event)

    def run(self) -> None:
        for _ in range(100_000):
            if not self.events:
                break
            self.now, _, event = heapq.heappop(self.events)
            event()
            self.check()
        self.check_end()

    # -- invariants ---------------------------------------------------------------------------------------

    def check(self) -> None:
        core = self.core
        assert len(core.batch.running) <= self.options.max_batch
        assert len(core.batch.in_flight) <= self.ahead + 1 + core.counters["overdue_answers"]
        arrivals = [generation.arrival for generation in core.waiting]
        assert arrivals == sorted(arrivals)
        held = core.batch.running + core.waiting
        assert sorted(generation.spec.id for generation in held) == sorted(core.requests.live)
        if not self.switched and not self.suspecting:
            assert all(generation.overtaken <= self.options.overtake for generation in held), (
                "waited too long"
            )
        assert all(one.computed <= one.planned <= one.capacity for one in core.batch.running)
        if self.cache is not None:
            assert self.cache.check(full=self.rng.random() < 0.1) == []

    def check_end(self) -> None:
        assert self.core.settled, f"nothing is left to happen, but {self.core!r} waits"
        for name, asked in self.asked.items():
            assert asked.finish is not None or asked.gone, f"{name} has no end"
            if asked.finish is not None:
                self.check_finish(asked, asked.finish)
        assert self.cache is not None
        assert self.cache.check() == []
        assert (self.cache.leases, self.cache.leased, self.cache.locked) == (0, 0, 0)

    def check_finish(self, asked: Asked, finish: Finish) -> None:
        """Errors are those of the requests that were made to fail, poison is found out, and nobody else is taken for it."""
        if finish.code == "quarantined":
            assert asked.poisoned, "an innocent request is condemned"
        elif finish.reason == "error":
            assert asked.failed, finish
        else:
            assert not asked.poisoned or finish.reason == "abort", "poison was computed"

    # -- askers -------------------------------------------------------------------------------------------

    def arrive(self, number: int) -> None:
        rng = self.rng
        prompt = list(rng.choice(self.prefixes)[: rng.randint(1, 30)])
        prompt += [self.token() for _ in range(rng.randint(0, 20))]
        if number in self.poisoned:
            prompt[rng.randrange(len(prompt))] = POISON
        max_tokens = rng.choice([0, 1, 2, 8, 20, 40])
        self.ask(f"r{number}", prompt, max_tokens, poisoned=number in self.poisoned)

    def ask(self, name: str, prompt: list[int], max_tokens: int, *, poisoned: bool = False) -> None:
        """A request, and whatever its asker does about it."""
        rng = self.rng
        end_ids = (5, 9) if rng.random() < 0.5 else ()
        sampling = Sampling(
            rng.getrandbits(30),
            end_ids=end_ids,
            min_tokens=rng.choice([0, 0, 6]),
            constraint=rng.choice([None, JUMPING]),
            jump_forward=rng.random() < 0.8,
        )
        start = rng.randrange(len(prompt)) if rng.random() < 0.3 else -1
        logprobs = Logprobs(rng.random() < 0.3, rng.choice([0, 2]), start)
        timeout = rng.choice([0.0, 0.0, 0.0, 0.0, 0.05])
        owner = Address("tokenizer", rng.randint(1, self.owners))
        sequence = Sequence(
            name,
            prompt,
            max_tokens,
            sampling,
            logprobs,
            timeout=timeout,
            tenant=rng.choice(["a", "b"]),
            priority=rng.choice([0, 0, 0, 1]),
            program="" if self.options.policy == "fcfs" else rng.choice(["", "", "p", "q"]),
        )
        expected = complete(prompt, sampling, max_tokens, VOCABULARY)
        asked = Asked(sequence, owner, expected, poisoned=poisoned)
        self.asked[sequence.id] = asked
        if rng.random() < 0.2:
            asked.stop_at = rng.randint(1, 8)
        if rng.random() < 0.1:
            self.submit(asked, rng.random() * 0.05)
        if rng.random() < 0.2:
            self.tell(lambda: self.core.abort([sequence.id]), rng.random() * 0.1)
        self.submit(asked)
        if rng.random() < 0.1:
            self.at(rng.random() * 0.1, lambda: self.resubmit(asked))

    def submit(self, asked: Asked, delay: float = 0.0) -> None:
        """Also twice: the second one re-attaches, or comes after the end and is not sent."""

        def event() -> list[Effect]:
            if asked.finish is not None or asked.gone:
                return []
            return self.core.submit([asked.sequence], asked.owner, self.now)

        self.tell(event, delay)

    def resubmit(self, asked: Asked) -> None:
        """Again with what has come so far, as after a lost message."""
        if (
            asked.finish is None
            and not asked.gone
            and asked.stopped < 0
            and asked.sequence.id in self.core.requests.live
        ):
            again = self.again(asked)
            self.perform(self.core.submit([again], asked.owner, self.now))

    def again(self, asked: Asked) -> Sequence:
        spec = asked.sequence
        asked.scored = bool(
            asked.output
        )  # its prompt's scores came with the first token; they may come again
        if not asked.output:
            asked.prompt_logprobs.clear()
        return Sequence(
            spec.id,
            spec.prompt,
            spec.max_tokens,
            spec.sampling,
            spec.logprobs,
            list(asked.output),
            0.0,
            spec.tenant,
        )

    def tell(self, event: Callable[[], list[Effect]], delay: float = 0.0) -> None:
        """Something reaches the scheduler incarnation of now."""
        incarnation = self.scheduler_epoch

        def arrive() -> None:
            if incarnation == self.scheduler_epoch:
                self.perform(event())

        self.at(delay, arrive)

    def report(self, report: Report) -> None:
        for update in report.progress.updates:
            asked = self.asked[update.id]
            if asked.gone:
                continue
            told = update.prompt_logprobs
            due = due_prompt_logprobs(asked.sequence)
            goes_on = told == due[len(asked.prompt_logprobs) :][: len(told)]
            if not asked.scored and not goes_on and told == due[: len(told)]:
                asked.prompt_logprobs.clear()  # told anew from the beginning
            assert report.owner == asked.owner
            asked.take(update)
            if asked.finish is not None and asked.finish.reason in ("stop", "length"):
                self.go_on(asked)
            if (
                asked.stop_at
                and asked.stopped < 0
                and len(asked.output) >= asked.stop_at
                and asked.finish is None
            ):
                asked.stopped = asked.stop_at
                stop = Stop(update.id, asked.stop_at, "stop string")
                self.tell(lambda stop=stop: self.core.stop(stop), self.rng.random() * LAG)  # type: ignore[misc]

    def go_on(self, asked: Asked) -> None:
        """The same program asks again, with a prompt that begins with all that has been said."""
        prompt = asked.sequence.prompt + asked.output
        if self.rng.random() < 0.4 and len(prompt) < CONTEXT // 2 and POISON not in prompt:
            prompt = prompt + [self.token() for _ in range(self.rng.randint(1, 8))]
            self.at(self.rng.random() * LAG, lambda: self.ask(f"{asked.sequence.id}'", prompt, 8))

    def switch(self) -> None:
        """An operator changes the order while requests run and wait."""
        if self.rng.random() < 0.3:
            self.switched = True
            policies: list[Order] = ["fcfs", "lpm", "dfs-weight", "hrrn"]
            policy = self.rng.choice(policies)
            sharing, reuse = self.rng.random() < 0.5, self.rng.random() < 0.7
            self.perform(self.core.configure(Configure(policy, 100, sharing, reuse)))

    # -- scheduler ----------------------------------------------------------------------------------------

    def start_scheduler(self) -> None:
        self.scheduler_epoch += 1
        self.suspecting = self.settling = False
        if self.scheduler_epoch > 1:
            self.retractions += self.core.counters["retracted"]
        self.core = self.new_core()
        self.ticking = -1.0

    def new_core(self) -> SchedulerCore:
        core = SchedulerCore(self.options, epoch=self.scheduler_epoch << 20)
        core.estimate.first, core.estimate.least = self.estimate
        core.queue.most_grace, core.queue.seniority = self.line
        return core

    def swap_scheduler(self) -> None:
        """It comes to rest, whenever that is."""
        if not self.core._paused:
            self.settling = True
            self.perform(self.core.pause())

    def finish_swap(self) -> list[Effect]:
        """Another takes over from plain data; or it comes to nothing. Meanwhile messages have come."""
        if self.chance.random() < 0.3:
            self.rolled_back += 1
            return self.core.proceed()
        links = self.core.links
        state = msgspec.structs.replace(
            self.core.state(self.now),
            worker=None if links.stage is Stage.ABSENT else Address("worker/0", self.worker_epoch),
            cache=Address("cache", self.cache_epoch) if links._cache else None,
        )
        plain = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=SchedulerState)
        twin = self.new_core()
        twin.pause()
        twin.take(plain, self.now)
        again = msgspec.structs.replace(
            twin.state(self.now), worker=state.worker, cache=state.cache, entries=state.entries
        )
        assert rounded(again) == rounded(state), "a successor knows something else"
        self.swapped += bool(state.requests)
        self.core = self.new_core()
        self.ticking = -1.0
        return self.core.take(plain, self.now)

    def perform(self, effects: list[Effect]) -> None:
        admitted: list[str] = []
        for effect in effects:
            match effect:
                case ToWorker(message):
                    self.to_worker(message)
                case ToCache(message):
                    self.to_cache(message)
                case Report():
                    self.report(effect)
                case Note(event, request):
                    if event == "admitted":
                        admitted.append(request)
        self.check_order(admitted)
        self.core.watch(self.now)
        due = self.core.wakeup()
        if due is not None and not 0 <= self.ticking <= due:
            self.ticking = due
            self.tell(self.tick, max(0.0, due - self.now))
        if self.settling and self.core.rested:
            self.settling = False
            self.perform(self.core.withdraw())
            self.tell(self.finish_swap, self.chance.random() * LAG)

    def tick(self) -> list[Effect]:
        self.ticking = -1.0
        return self.core.tick(self.now)

    def check_order(self, admitted: list[str]) -> None:
        """First come, first served, where that is the order: nobody is admitted while an earlier one waits, unless for a trial after a crash."""
        live = self.core.requests.live
        self.most_overtaken = max(self.most_overtaken, self.core.queue.most_overtaken)
        arrivals = [live[name].arrival for name in admitted if name in live and not live[name].priority]
        strict = self.options.policy == "fcfs" and not self.options.sharing and not self.switched
        if strict and arrivals and self.core.waiting and not self.suspecting:
            assert max(arrivals) < self.core.waiting[0].arrival

    def worker_up(self) -> list[Effect]:
        return self.core.worker_up()

    def cache_up(self) -> list[Effect]:
        return self.core.cache_up()

    def cache_down(self) -> list[Effect]:
        return self.core.cache_down()

    def back(self, way: str, event: Callable[[], list[Effect]], alive: Callable[[], bool]) -> None:
        """An answer on its way to the scheduler; lost if either side has ended meanwhile."""
        incarnation = self.scheduler_epoch

        def arrive() -> None:
            if incarnation == self.scheduler_epoch and alive():
                self.perform(event())

        self.way(way, arrive)

    # -- worker -------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        self.worker_epoch += 1
        self.model = FakeModel(self.info, poison=POISON, drafting=True)
        self.tell(self.worker_up)

    def to_worker(self, message: Step | Describe | ResetWorker) -> None:
        incarnation, scheduler = self.worker_epoch, self.scheduler_epoch

        def alive() -> bool:
            return incarnation == self.worker_epoch and self.model is not None

        def arrive() -> None:
            if not alive() or (not isinstance(message, Describe) and self.loses()):
                return
            assert self.model is not None
            if isinstance(message, Step):
                try:
                    answer = self.step(self.model, message)
                except Poisoned:
                    self.poison_crashes += 1
                    self.crash_worker(poison=True)
                    return
                if scheduler != self.scheduler_epoch or self.loses():
                    return
                if isinstance(answer, NeedFull):
                    self.back("worker", lambda: self.core.batch_lost(answer.epoch), alive)
                else:
                    self.back("worker", lambda: self.core.step_done(answer), alive)
            elif scheduler != self.scheduler_epoch:
                return
            elif isinstance(message, ResetWorker):
                done = self.model.reset(message.epoch)
                if self.loses():
                    return
                self.back("worker", lambda: self.core.quieted(done), alive)
            else:
                self.back("worker", lambda: self.core.described(self.info), alive)

        self.way(f"to worker {incarnation} of {scheduler}", arrive)

    def loses(self) -> bool:
        """Mail to or from the worker gets lost."""
        lost = self.losses > 0 and self.chance.random() < self.losses
        self.lost += lost
        return lost

    def step(self, model: FakeModel, message: Step) -> StepDone | NeedFull:
        answer = model.step(message)
        if isinstance(answer, StepDone):
            self.steps += 1
            assert message.work or self.losses
            for result in answer.results:
                assert not result.error or (message.epoch, result.seq) in self.dropped, answer.results
            answer.results[:] = [self.maybe_fail(model, result, message) for result in answer.results]
            if self.rng.random() < 0.3:
                for held in model._held.values():
                    assert model.holds(held.tokens, held.pages, held.computed), "KV was written over"
        return answer

    def maybe_fail(self, model: FakeModel, result: SequenceResult, message: Step) -> SequenceResult:
        """Now and then a sequence fails by itself: the worker forgets it, and what it computed in this step is garbage."""
        held = model._held.get(result.seq)
        named = [generation for sent in self.core.batch.in_flight for generation, _ in sent.work]
        generation = next((one for one in named if one.number == result.seq), None)
        if held is None or generation is None or message.epoch != self.core.links.epoch:
            return result
        ended = generation.finish is not None
        if self.rng.random() >= (50 if ended else 1) * self.failing:
            return result
        self.failed_after_end += ended
        self.asked[generation.spec.id].failed = True
        count = next(work.count for work in message.work if work.seq == result.seq)
        for index in range(held.computed - count, held.computed):
            model.pool[model._slot(held.pages, index)] = GARBAGE
        del model._held[result.seq]
        self.dropped.add((message.epoch, result.seq))
        return SequenceResult(result.seq, error=FAILURE)

    def crash_worker(self, *, poison: bool = False) -> None:
        """By poison, by chance (once: twice would make an innocent one suspicious), or by an operator."""
        if self.model is None:
            return
        self.restarts += 1
        self.model = None
        crashed = poison or not self.chance_crashes
        self.chance_crashes += not poison

        def down() -> list[Effect]:
            self.suspecting = self.suspecting or crashed
            return self.core.worker_down(crashed=crashed)

        self.tell(down)
        self.at(self.rng.random() * 0.02, self.start_worker)

    def lose_batch(self) -> None:
        """The worker forgets its batch but lives on: the next step is answered by NeedFull."""
        if self.model is not None:
            self.restarts += 1
            self.model.reset(-1)

    # -- cache --------------------------------------------------------------------------------------------

    def start_cache(self) -> None:
        self.cache_epoch += 1
        self.cache = RadixCache(0, 1)
        self.pool_epoch = 0
        self.tell(self.cache_up)

    def swap_cache(self) -> None:
        """Another takes over from plain data, now and then by way of one of another kind."""
        if self.cache is None:
            return
        self.caches_swapped += 1
        contents = self.cache.contents(self.now)
        if self.chance.random() < 0.3:
            contents = NaiveCache.taken(contents, self.now, self.eviction).contents(self.now)
        plain = msgspec.msgpack.decode(msgspec.msgpack.encode(contents), type=Contents)
        self.cache = RadixCache.taken(plain, self.now, self.eviction)

    def to_cache(self, message: Commit | Match | Grant | ResetCache) -> None:
        incarnation, scheduler, asked = self.cache_epoch, self.scheduler_epoch, self.core.links.epoch
        if isinstance(message, Commit) and self.rng.random() < 0.02:
            self.core.uncommitted(message, self.now)
            return

        def alive() -> bool:
            return incarnation == self.cache_epoch and self.cache is not None

        def arrive() -> None:
            if not alive() or scheduler != self.scheduler_epoch:
                return
            assert self.cache is not None
            if isinstance(message, ResetCache):
                self.cache = RadixCache(message.pages, message.page_size, self.eviction)
                self.pool_epoch = message.epoch
                pool = Pool(message.epoch, message.pages, message.page_size, message.pages, 0, 0)
                self.back("cache", lambda: self.core.emptied(pool), alive)
            elif isinstance(message, Commit):
                if message.epoch == self.pool_epoch:
                    self.commit(self.cache, message)
            else:
                answer = self.answer(self.cache, message)
                lost = self.rng.random() < 0.03
                self.back("cache", lambda: self.answered(asked, answer, lost=lost), alive)

        self.way(f"to cache {incarnation} of {scheduler}", arrive)

    def commit(self, cache: RadixCache, message: Commit) -> None:
        for entry in message.entries:
            held = cache._held.get(entry.lease)
            tokens = unpack(entry.key)
            if held is not None and self.model is not None and self.model.epoch == message.epoch:
                assert self.model.holds(tokens, held.pages, len(tokens)), "committed KV is not there"
            assert cache.commit(entry) or not tokens, f"commit of {entry} refused"

    def answer(self, cache: RadixCache, message: Grant | Match) -> Granted | Matched:
        if isinstance(message, Match):
            return Matched(cache.match(message.probes, touch=message.touch))
        if message.epoch != self.pool_epoch:
            return Granted(self.pool_epoch, [])
        leases, more = cache.serve(message.wants, message.more)
        return Granted(self.pool_epoch, leases, more)

    def answered(self, asked: int, answer: Granted | Matched, *, lost: bool) -> list[Effect]:
        if lost:
            return self.core.grant_failed(asked, self.now)
        if isinstance(answer, Matched):
            return self.core.matched(asked, answer)
        return self.core.granted(asked, answer)

    def crash_cache(self) -> None:
        if self.cache is None:
            return
        self.restarts += 1
        self.cache = None
        self.tell(self.cache_down)
        self.at(self.rng.random() * 0.02, self.start_cache)

    # -- crashes of askers and scheduler ------------------------------------------------------------------

    def crash_owner(self) -> None:
        """Some of its requests are submitted again by a successor, soon or after the scheduler has given them up."""
        owner = Address("tokenizer", self.rng.randint(1, self.owners))
        successor = Address("tokenizer", owner.epoch + 10)
        self.perform(self.core.owner_down(owner, self.now))
        for asked in self.asked.values():
            if asked.owner == owner and asked.finish is None and not asked.gone:
                asked.gone = True
                if self.rng.random() < 0.7:
                    delay = self.rng.choice([LAG, 0.05, ORPHAN, 2 * ORPHAN]) * self.rng.random()
                    self.at(delay, lambda asked=asked: self.come_back(asked, successor))  # type: ignore[misc]

    def come_back(self, asked: Asked, successor: Address) -> None:
        asked.gone, asked.owner = False, successor
        self.orphaned_and_back += 1
        self.perform(self.core.submit([self.again(asked)], successor, self.now))

    def crash_scheduler(self) -> None:
        """Everything it knew is gone; askers come again with what they have."""
        self.restarts += 1
        self.start_scheduler()
        if self.cache is not None:
            self.cache.release_all()
            self.tell(self.cache_up)
        if self.model is not None:
            self.tell(self.worker_up)
        for asked in list(self.asked.values()):
            if asked.finish is None and not asked.gone:
                asked.stop_at, asked.stopped = 0, -1
                self.tell(
                    lambda asked=asked: self.core.submit([self.again(asked)], asked.owner, self.now),  # type: ignore[misc]
                    self.rng.random() * LAG,
                )
