"""The scheduler without its mailbox: events in, effects out.

A request waits, is granted a lease, runs, and ends; every request told to the core ends in exactly one `Update` with
`finish`, unless its submitter is gone for longer than `ORPHAN` seconds. Three rounds go on beside each other and never wait for one another:

- *rounds*: one question to the cache at a time: what it has of those that wait (`Match`, a hint), then leases for those who are next by
  policy, bounded waiting and sharing (`queue`), and before all of that pages for those who run and grow;
- *steps*: as many in flight as `ahead` allows (0: step n+1 is sent after the StepDone of n, the plain loop);
- *recovery*: whenever worker or cache is lost, what runs waits again with prompt and tokens so far, in its old place,
  until `links` are ready under a new epoch. Nobody is told.

Pages go back (`Commit` with release) only after the StepDone of the last step that names them, so a step that reuses
them is sent later still.

A request is admitted with pages for the output expected of it (`estimate`). When those who run want more than there is, the one with
the least work to lose is retracted: its KV goes into the tree, it waits in its old place, and next time asks for all it may
ever need, so nobody is retracted twice for want of pages and every round of this ends.

It is one state machine and reads best in one piece; what it decides with stands beside it: `generation` (one request),
`batch` (steps), `links` (recovery), `orphans` (submitters that are gone), `quarantine` (which request crashes the worker),
`queue`, `budget`, `estimate`, `admission`, `deadlines`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from sgl_actors.actors.cache.messages import Commit, Entry, Grant, Granted, Lease, Match, Matched, Pool
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.admission import failed, refusal
from sgl_actors.actors.scheduler.batch import Batch
from sgl_actors.actors.scheduler.budget import ChunkBudget
from sgl_actors.actors.scheduler.deadlines import Deadlines
from sgl_actors.actors.scheduler.effects import Effect, Note, Report, ToCache, ToWorker
from sgl_actors.actors.scheduler.estimate import OutputEstimate
from sgl_actors.actors.scheduler.generation import MARGIN, Generation
from sgl_actors.actors.scheduler.links import Links
from sgl_actors.actors.scheduler.messages import (
    Configuration,
    Configure,
    Finish,
    Options,
    Progress,
    Sequence,
    Stop,
    Update,
)
from sgl_actors.actors.scheduler.orphans import Orphans
from sgl_actors.actors.scheduler.policy import policy_named
from sgl_actors.actors.scheduler.quarantine import STRIKES, Quarantine
from sgl_actors.actors.scheduler.queue import Queue
from sgl_actors.actors.worker.messages import ModelInfo, ResetDone, SequenceResult, Step, StepDone
from sgl_actors.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    Quarantined,
    RemoteError,
)

LEAST_STALL = 1.2
"""Least `stall`: below, a prompt would take for ever."""
FOLLOW = 512
"""Tokens that are looked for in the cache behind those of a request, for the worker to guess with."""
RETRY = 0.1
"""Seconds before the cache is asked again after it gave no answer or took no mail."""


@dataclass(frozen=True, slots=True)
class Look:
    """A `Match` that the cache has not answered: for whom."""

    epoch: int
    probed: list[Generation]


@dataclass(frozen=True, slots=True)
class Round:
    """A `Grant` of leases that the cache has not answered: for whom, chosen from whom, and how many leases had ended when it was asked."""

    epoch: int
    wanted: dict[int, Generation]
    line: list[Generation]
    releases: int


@dataclass(frozen=True, slots=True)
class Growth:
    """A `Grant` of more pages that the cache has not answered; as `Round`."""

    epoch: int
    growing: list[Generation]
    releases: int


class SchedulerCore:
    """See the module. Every event returns the effects it has, in the order to carry them out.

    `stopwatch` is a clock in seconds for the time that ordering takes (`order_seconds`); without one it stays 0.
    """

    def __init__(
        self, options: Options, *, epoch: int = 0, stopwatch: Callable[[], float] = lambda: 0.0
    ) -> None:
        for name in ("max_batch", "chunk", "queue", "speculation_tokens"):
            if getattr(options, name) < 1:
                raise ConfigError(
                    f"[scheduler] {name}: must be at least 1, is {getattr(options, name)}", param=name
                )
        _check_order(options)
        self.options = options
        self.links = Links(epoch)
        self.batch = Batch()
        self.queue = Queue(options.policy, options.overtake, sharing=options.sharing and options.reuse)
        self.budget = ChunkBudget(options.chunk, options.stall)
        self.estimate = OutputEstimate()
        self.draining = False
        self.counters: Counter[str] = Counter()
        self.step_seconds = 0.0
        self.order_seconds = 0.0
        self._stopwatch = stopwatch
        self._live: dict[str, Generation] = {}
        self._deadlines = Deadlines()
        self._orphans = Orphans()
        self._quarantine = Quarantine()
        self._arrivals = 0
        self._numbers = 0
        self._releases = 0
        self._changes = 0
        self._looked = -1
        self._round: Look | Round | Growth | None = None
        self._stuck: tuple[Generation, int, int] | None = None
        self._grown = -1
        self._sparing = False
        self._retry_at: float | None = None
        self._effects: list[Effect] = []
        self._entries: list[Entry] = []
        self._updates: dict[Address, list[Update]] = {}
        self._notes: list[Note] = []

    def __repr__(self) -> str:
        return f"<SchedulerCore {self.queue!r} {self.batch!r} {self.links!r}>"

    @property
    def waiting(self) -> list[Generation]:
        """Requests that are not in the batch, in order of arrival."""
        return self.queue.waiting

    @property
    def busy(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def settled(self) -> bool:
        """No request is live, and no lease or step of an ended one is left."""
        return not self._live and self._round is None and not self.batch.in_flight

    def wakeup(self) -> float | None:
        """When `tick` is due next."""
        times = (self._deadlines.next(), self._orphans.next(), self._retry_at)
        return min((at for at in times if at is not None), default=None)

    # -- from askers --------------------------------------------------------------------------------------

    def submit(self, sequences: Iterable[Sequence], owner: Address, now: float) -> list[Effect]:
        """Requests of `owner` enter; a live id, or one that ended while nobody owned it, is attached to it instead."""
        for sequence in sequences:
            known = self._live.get(sequence.id) or self._orphans.ended(sequence.id)
            if known is not None and (known.goes_on(sequence) or known.finish is None):
                self._attach(known, sequence, owner)
            else:
                self._enter(sequence, owner, now)
        return self._go_on()

    def stop(self, message: Stop) -> list[Effect]:
        """A stop string was completed by output token number `keep_tokens`."""
        generation = self._live.get(message.id)
        if generation is not None:
            generation.truncate(message.keep_tokens)
            self._end(generation, Finish("stop", message.matched))
        return self._go_on()

    def abort(self, ids: Iterable[str], *, everything: bool = False) -> list[Effect]:
        """End requests now; an id that is not live has ended already."""
        for request in [*self._live] if everything else ids:
            generation = self._live.get(request)
            if generation is not None:
                self._end(generation, _cancelled())
        return self._go_on()

    def owner_down(self, owner: Address, now: float) -> list[Effect]:
        """A submitter has ended: its requests go on for `ORPHAN` seconds, for its successor to take over."""
        for generation in self._live.values():
            if generation.owner == owner:
                generation.owner = None
                self._orphans.add(generation, now)
        return self._go_on()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: deadlines, and a second chance for a round that brought nothing."""
        for generation in self._deadlines.expired(now):
            message = f"request {generation.spec.id} did not end within its time"
            self._end(generation, Finish("abort", None, DeadlineExceeded.code, message))
        for generation in self._orphans.expired(now):
            if generation.finish is None:
                self._end(generation, _cancelled())
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
        self._stuck, self._grown = None, -1
        self._changes += 1
        return self._go_on()

    def drain(self) -> None:
        """Refuse new requests from now on, for good."""
        self.draining = True

    def configure(self, message: Configure) -> list[Effect]:
        """Change how requests are ordered, from the next round on; see `configuration`.

        Raises:
            InvalidRequest: a number out of range; nothing was changed.
        """
        given = {name: value for name, value in msgspec.structs.asdict(message).items() if value is not None}
        options = msgspec.structs.replace(self.options, **given)
        _check_order(options)
        self.options = options
        self.queue.policy = policy_named(options.policy)
        self.queue.overtake = options.overtake
        self.queue.sharing = options.sharing and options.reuse
        for generation in self.waiting:
            generation.hint = 0
        self.budget.stall = options.stall
        self._changes += 1
        return self._go_on()

    def configuration(self) -> Configuration:
        """What is in force."""
        options = self.options
        return Configuration(
            options.policy,
            options.overtake,
            options.sharing,
            options.reuse,
            options.stall,
            options.speculation,
        )

    # -- from the cache -----------------------------------------------------------------------------------

    def cache_up(self) -> list[Effect]:
        """A cache incarnation is up."""
        self._effects += self.links.cache_up()
        return self._go_on()

    def cache_down(self) -> list[Effect]:
        """It has ended: all leases are void."""
        return self._lose(self.links.cache_down(), "cache down")

    def emptied(self, pool: Pool) -> list[Effect]:
        """The cache's answer to its `Reset`."""
        self._effects += self.links.emptied(pool.epoch)
        return self._go_on()

    def matched(self, asked: int, answer: Matched) -> list[Effect]:
        """The cache's answer to the look of epoch `asked`."""
        look = self._round
        if not isinstance(look, Look) or not look.epoch == asked == self.links.epoch:
            return self._go_on()
        self._round = None
        if self.options.reuse:
            for generation, length in zip(look.probed, answer.lengths, strict=False):
                generation.hint = length
        grant = self._ask_leases()
        if grant is not None:
            self._effects.append(ToCache(grant))
        return self._go_on()

    def granted(self, asked: int, answer: Granted) -> list[Effect]:
        """The cache's answer to the round of epoch `asked`. A cache of another epoch has lost our leases."""
        turn = self._round
        if turn is None or isinstance(turn, Look) or not turn.epoch == asked == self.links.epoch:
            return self._go_on()
        if answer.epoch != asked:
            return self._lose(self.links.batch_lost(), "cache of another epoch")
        self._round = None
        if isinstance(turn, Growth):
            self._grow(turn, answer.more)
        else:
            self._admit(turn, {lease.lease: lease for lease in answer.leases})
        return self._go_on()

    def grant_failed(self, asked: int, now: float) -> list[Effect]:
        """No answer came to the question of epoch `asked`; leases it may have made are given back, and it is repeated."""
        turn = self._round
        if turn is None or not turn.epoch == asked == self.links.epoch:
            return self._go_on()
        if isinstance(turn, Growth):
            return self._lose(self.links.batch_lost(), "no answer whether leases have grown")
        self._round = None
        self._retry_at = now + RETRY
        for number, generation in turn.wanted.items() if isinstance(turn, Round) else ():
            generation.number = 0
            self._release(Entry(number, b""))
        return self._go_on()

    def grant_refused(self, asked: int) -> list[Effect]:
        """The cache no longer takes us for the pool's owner: our leases have ended."""
        if self._round is None or asked != self.links.epoch:
            return self._go_on()
        return self._lose(self.links.batch_lost(), "cache refused us")

    def uncommitted(self, commit: Commit, now: float) -> None:
        """The cache took no mail: what it was to be told is kept, and told with the next event or a little later."""
        if commit.epoch == self.links.epoch and self.links.ready:
            self._entries[:0] = commit.entries
            self._retry_at = now + RETRY

    # -- from the worker ----------------------------------------------------------------------------------

    def worker_up(self) -> list[Effect]:
        """A worker incarnation is up."""
        return self._lose(self.links.worker_up(), "worker up")

    def worker_down(self, *, crashed: bool = True) -> list[Effect]:
        """It has ended, and all KV with it. After a crash, what was in flight is suspected of it."""
        condemned = self._quarantine.crashed(self.batch.named) if crashed else []
        self._retract(self.links.worker_down(), "worker crashed" if crashed else "worker stopped")
        for generation in condemned:
            message = f"request {generation.spec.id} crashed the worker {STRIKES} times while it ran alone"
            self._end(generation, failed(Quarantined(message)))
        return self._go_on()

    def described(self, info: ModelInfo) -> list[Effect]:
        """What the worker serves: requests that waited for it are looked at again."""
        self._effects += self.links.described(info)
        for generation in list(self.waiting):
            refused = refusal(generation.spec, info)
            if refused is not None:
                self._end(generation, refused)
        return self._go_on()

    def quieted(self, answer: ResetDone) -> list[Effect]:
        """No earlier step touches a page any more."""
        self._effects += self.links.quieted(answer.epoch)
        return self._go_on()

    def batch_lost(self, epoch: int) -> list[Effect]:
        """The worker does not hold the batch of that epoch (`NeedFull`)."""
        if epoch != self.links.epoch:
            return self._go_on()
        return self._lose(self.links.batch_lost(), "batch lost")

    def step_done(self, message: StepDone) -> list[Effect]:
        """The oldest step in flight has run."""
        if message.epoch != self.links.epoch or not self.links.ready:
            return self._go_on()
        settled = self.batch.settle(message)
        if settled is None:
            return self._lose(self.links.batch_lost(), f"unexpected results of step {message.number}")
        step, results = settled
        self.counters["steps"] += 1
        self.counters["computed_tokens"] += step.prefill + step.decoding + step.accepted
        self.step_seconds += message.seconds
        self.budget.learn(message.seconds, decoding=step.decoding, prefill=step.prefill)
        trial = len(self._quarantine)
        for generation, result in results:
            self._advance(generation, result)
        if step.prefill or len(self._quarantine) != trial:
            self._changes += 1
        return self._go_on()

    # -- a request's way ----------------------------------------------------------------------------------

    def _enter(self, sequence: Sequence, owner: Address, now: float) -> None:
        self._arrivals += 1
        tokens = sequence.prompt + sequence.output
        generation = Generation(sequence, owner, self._arrivals, tokens)
        self.counters["requests"] += 1
        self.counters["prompt_tokens"] += len(sequence.prompt)
        full = len(self.waiting) >= self.options.queue
        self._live[sequence.id] = generation
        self.queue.arrive(generation, self.counters["computed_tokens"])
        self._changes += 1
        self._note("submitted", generation, prompt=len(sequence.prompt), output=len(sequence.output))
        if self.draining:
            self._end(generation, failed(NotReady("the node is draining")))
        elif (refused := refusal(sequence, self.links.info)) is not None:
            self._end(generation, refused)
        elif sequence.output and (finish := generation.conclusion()) is not None:
            self._end(generation, finish)
        elif full:
            self._end(generation, failed(Overloaded(f"{self.options.queue} requests wait already")))
        elif timeout := sequence.timeout or self.options.timeout:
            self._deadlines.add(generation, now + timeout)

    def _attach(self, generation: Generation, sequence: Sequence, owner: Address) -> None:
        """The asker of a request has submitted it again: tell it all from what it has on. A stranger is refused."""
        if not generation.goes_on(sequence):
            error = InvalidRequest(f"id {sequence.id} is in use by another request", param="id")
            update = Update(sequence.id, len(sequence.output), [], finish=failed(error))
            self._updates.setdefault(owner, []).append(update)
            return
        self._orphans.drop(generation)
        generation.owner = owner
        since = min(len(sequence.output), generation.reported)
        self._note("attached", generation, output=since)
        self._tell(generation, since, len(generation.prompt_logprobs) if sequence.output else 0)

    def _advance(self, generation: Generation, result: SequenceResult) -> None:
        """A step that named it has run."""
        if generation.finish is not None:
            self._let_go(generation)
            return
        self._quarantine.stepped(generation)
        finish = generation.conclusion()
        since = generation.before
        if result.error:
            finish = Finish("error", None, result.code or RemoteError.code, result.error)
            since = generation.reported
        news = generation.reported - since
        self.counters["generation_tokens"] += news
        self.counters["forced_tokens"] += len(result.forced) + (result.token_id >= 0 and not result.chosen)
        self.counters["held_back_tokens"] += result.held_back
        self.counters["drafted_tokens"] += result.drafted
        self.counters["accepted_tokens"] += len(result.accepted)
        scored = 0 if result.error else len(result.prompt_logprobs)
        known = len(generation.prompt_logprobs) - scored
        if finish is not None:
            self._end(generation, finish, since=since, prompt_since=known)
        elif news or scored:
            self._tell(generation, since, known)
        if finish is None and not generation.shared and (generation.prefilled or self.queue.deferring):
            self._share(generation)

    def _end(
        self,
        generation: Generation,
        finish: Finish,
        *,
        since: int | None = None,
        prompt_since: int | None = None,
    ) -> None:
        """The one place where a request ends."""
        assert generation.finish is None, f"{generation!r} ends twice"
        generation.finish = finish
        del self._live[generation.spec.id]
        self._deadlines.drop(generation)
        self._quarantine.forget(generation)
        self._changes += 1
        self.counters[f"finished_{finish.reason}"] += 1
        if finish.reason == "stop" or (
            finish.reason == "length" and generation.spec.max_tokens >= self.estimate.first
        ):
            self.estimate.ended(generation.generated)
        self._tell(
            generation,
            generation.reported if since is None else since,
            len(generation.prompt_logprobs) if prompt_since is None else prompt_since,
        )
        self._note(
            "finished", generation, reason=finish.reason, code=finish.code, output=generation.generated
        )
        if generation.target:
            self.batch.leave(generation)
            self.queue.computed(generation)
            if generation.busy and self.options.reuse:
                # A request that goes on from its text may come before the step in flight ends.
                self._entries.append(generation.entry(release=False))
            self._let_go(generation)
        else:
            self.queue.leave(generation)

    def _let_go(self, generation: Generation) -> None:
        """Give the pages of an ended request back once no step in flight names them."""
        if not generation.busy:
            self._release(generation.entry(release=True, reuse=self.options.reuse))

    def _share(self, generation: Generation) -> None:
        """Offer what is computed of a prompt to others: all of it, or while somebody waits for it each chunk."""
        self._changes += 1
        if generation.prefilled:
            generation.shared = True
            self.queue.computed(generation)
        if self.options.reuse:
            self._entries.append(generation.entry(release=False))

    def _release(self, entry: Entry) -> None:
        self._releases += 1
        self._changes += 1
        self._entries.append(entry)

    def _lose(self, effects: list[Effect], why: str) -> list[Effect]:
        self._retract(effects, why)
        return self._go_on()

    def _retract(self, effects: list[Effect], why: str) -> None:
        """Worker or cache is not what it was: what runs waits again in its old place."""
        self._effects += effects
        running = self.batch.clear()
        if running or self._round is not None:
            self._notes.append(Note("recovering", fields={"why": why, "requests": len(running)}))
        self.counters["requeued"] += len(running)
        for generation in running:
            generation.retract()
            self.queue.enter(generation)
        self.queue.forget()
        for generation in self._round.wanted.values() if isinstance(self._round, Round) else ():
            generation.number = 0
        self._round = self._stuck = self._retry_at = None
        self._grown = -1
        self._changes += 1
        self._entries.clear()

    # -- rounds -------------------------------------------------------------------------------------------

    def _go_on(self) -> list[Effect]:
        """Send what can be sent now. The step goes first: the worker waits for it."""
        short = self._grown == self._releases and any(one.stalled for one in self.batch.running)
        if short and not self.batch.in_flight and self._round is None:
            self._make_room()
            short = False
        effects, self._effects = self._effects, []
        if self.links.ready:
            while len(self.batch.in_flight) <= self.options.overlap and not short:
                step = self._next_step()
                if step is None:
                    break
                effects.append(ToWorker(step))
            if self._entries:
                effects.append(ToCache(Commit(self.links.epoch, self._entries)))
                self._entries = []
            question = self._next_question()
            if question is not None:
                effects.append(ToCache(question))
        effects += [Report(owner, Progress(updates)) for owner, updates in self._updates.items()]
        self._updates = {}
        effects += self._notes
        self._notes = []
        return effects

    def _next_step(self) -> Step | None:
        """Of all in the batch, or while some of them are on trial, of those alone."""
        on_trial = self._quarantine.on_trial
        alone = any(on_trial(generation) for generation in self.batch.running)
        chunk = self.budget.tokens(decoding=self.batch.decoding())
        jump = self.budget.tokens(decoding=self.batch.decoding(free=True))
        drafts = self.options.speculation_tokens if self.options.speculation else 0
        return self.batch.assemble(
            self.links.epoch, chunk, on_trial if alone else None, jump=jump, drafts=drafts
        )

    def _next_question(self) -> Grant | Match | None:
        """What to ask the cache, unless a question is out: pages for those who run first, then about those who wait."""
        if self._round is not None or self._retry_at is not None:
            return None
        return self._ask_pages() or self._look()

    def _ask_pages(self) -> Grant | None:
        """More pages for those who need them soon; after a refusal no more than they need, after another not before a lease has ended."""
        growing = [one for one in self.batch.running if one.short]
        if not growing or self._grown == self._releases:
            return None
        info = self.links.info
        assert info is not None
        growing.sort(key=lambda one: one.capacity - one.planned)
        more = [
            one.more(MARGIN if self._sparing else self.estimate.growth(one.generated), info.page_size)
            for one in growing
        ]
        self._round = Growth(self.links.epoch, growing, self._releases)
        return Grant(self.links.epoch, [], more)

    def _look(self) -> Grant | Match | None:
        """Where there is room and something has changed since the last time: see what the cache has of those that wait."""
        eligible = self._eligible()
        if not eligible or self._looked == self._changes or self._grown == self._releases or not self._room:
            return None
        self._looked = self._changes
        began = self._stopwatch()
        probed = self.queue.first(eligible, self.counters["computed_tokens"]) if self.options.reuse else []
        self.order_seconds += self._stopwatch() - began
        if not probed:
            return self._ask_leases()
        self._round = Look(self.links.epoch, probed)
        return Match([generation.probe() for generation in probed], touch=True)

    def _ask_leases(self) -> Grant | None:
        """Ask for those who are next, unless the first is known not to fit."""
        eligible = self._eligible()
        if not eligible or not self._room:
            return None
        began = self._stopwatch()
        tokens = self.options.chunk - self.batch.backlog()
        chosen = self.queue.choose(eligible, self._room, tokens, self.counters["computed_tokens"])
        self.order_seconds += self._stopwatch() - began
        if not chosen or self._stuck == (chosen[0].request, chosen[0].request.hint, self._releases):
            return None
        self._stuck = None
        wants, wanted = [], {}
        for choice in chosen:
            generation = choice.request
            self._numbers += 1
            generation.number = self._numbers
            wanted[generation.number] = generation
            expected = self.estimate.expect(generation.generated)
            follow = FOLLOW if self.options.reuse and self.options.speculation else 0
            wants.append(generation.want(expected, choice.least, reuse=self.options.reuse, follow=follow))
        self._round = Round(self.links.epoch, wanted, list(eligible), self._releases)
        return Grant(self.links.epoch, wants)

    @property
    def _room(self) -> int:
        """How many may be admitted now.

        Nobody, while what has been admitted fills a step: who is admitted earlier than it can run only keeps pages from others, and has
        been chosen without knowing what they leave in the cache.
        """
        full = self.batch.backlog() >= self.options.chunk
        return 0 if full else max(0, self.options.max_batch - len(self.batch.running))

    def _eligible(self) -> list[Generation]:
        """Who may be admitted: all that wait, or while somebody is on trial those who are."""
        if self._quarantine.trial:
            return [one for one in self.waiting if self._quarantine.on_trial(one)]
        return self.waiting

    def _admit(self, turn: Round, leases: dict[int, Lease]) -> None:
        """Those with a lease run, the others go on waiting."""
        assert self.links.info is not None
        line = [one for one in turn.line if not one.target and one.finish is None]
        for number, generation in turn.wanted.items():
            lease = leases.get(number)
            if generation.finish is not None:
                if lease is not None:
                    self._release(Entry(number, b""))
            elif lease is None:
                generation.number = 0
                if self._stuck is None:
                    self._stuck = (generation, generation.hint, turn.releases)
                if generation.hint:  # it may be that the cache has less of it by now
                    generation.hint = 0
                    self._changes += 1
            else:
                line.remove(generation)
                self.queue.admitted(generation, lease.cached, line)
                first = generation.cached < 0
                generation.admit(lease, self.links.info.page_size)
                self.batch.admit(generation)
                if first:
                    self.counters["cached_tokens"] += generation.cached
                self._note("admitted", generation, cached=lease.cached, pages=len(lease.pages))

    def _grow(self, turn: Growth, more: list[list[int]]) -> None:
        """Take up the pages that came."""
        assert self.links.info is not None
        for generation, pages in zip(turn.growing, more, strict=False):
            generation.grow(pages, self.links.info.page_size)
        refused = len(more) < len(turn.growing)
        if refused and self._sparing:
            self._grown = turn.releases
        self._sparing = refused

    def _make_room(self) -> None:
        """Somebody cannot go on for want of pages: retract the request of the lowest class that loses the least work. No step is in flight."""
        modest = [one for one in self.batch.running if one.modest]
        victim = min(modest, key=lambda one: (one.priority, one.computed - one.lent, -one.arrival))
        self.counters["retracted"] += 1
        self.estimate.wrong()
        self._note("retracted", victim, computed=victim.computed, output=victim.generated)
        self.batch.leave(victim)
        self.queue.computed(victim)
        self._release(victim.entry(release=True, reuse=self.options.reuse))
        victim.retract()
        victim.modest = False
        self.queue.enter(victim)

    def _tell(self, generation: Generation, since: int, prompt_since: int) -> None:
        if generation.owner is None:
            return
        self._updates.setdefault(generation.owner, []).append(generation.update(since, prompt_since))

    def _note(self, event: str, generation: Generation, **fields: float | str) -> None:
        spec = generation.spec
        self._notes.append(Note(event, spec.id, spec.program, spec.trace, fields))


def _cancelled() -> Finish:
    return Finish("abort", None, Cancelled.code, "cancelled")


def _check_order(options: Options) -> None:
    """Raise `InvalidRequest` for numbers that make no sense."""
    if options.overtake < 0:
        raise InvalidRequest(
            f"overtake is {options.overtake}, must be 0 (no limit) or more", param="overtake"
        )
    if options.stall and options.stall < LEAST_STALL:
        raise InvalidRequest(
            f"stall is {options.stall}, must be 0 (no limit) or at least {LEAST_STALL}", param="stall"
        )
