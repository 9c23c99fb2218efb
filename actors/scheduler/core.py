"""The scheduler without its mailbox: events in, effects out.

A request waits, is granted a lease, runs, and ends; every request told to the core ends in exactly one `Update` with
`finish`, unless its submitter is gone for longer than `ORPHAN` seconds. Three rounds go on beside each other and never wait for one another:

- *rounds* (`rounds`, `growth`): one question to the cache at a time: pages for those who run and grow, then leases for those who are next;
- *steps* (`steps`): as many in flight as `overlap` allows (without it step n+1 is sent after the StepDone of n, the plain loop);
- *recovery* (`links`): whenever worker or cache is lost, what runs waits again with prompt and tokens so far, in its old place,
  until all three agree on a new epoch. Nobody is told.

Pages go back (`Commit` with release) only after the StepDone of the last step that names them, so a step that reuses
them is sent later still.

A request is admitted with pages for the output expected of it (`estimate`). When those who run want more than there is, the one with
the least work to lose is retracted: its KV goes into the tree, it waits in its old place, and next time asks for all it may
ever need, so nobody is retracted twice for want of pages and every round of this ends.

The core only says which event leads where. What there is has one owner each: `requests` (who lives, their times, suspects), `queue` (who waits), `batch` (who
runs, steps in flight), `rounds` (the question to the cache), `steps` (their size and time), `commits` and `news` (what is to be told), `settings` (options),
`links` (worker, cache and the epoch). `lifecycle` alone moves a request from one to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sgl_actors.actors.cache.messages import Commit, Grant, Granted, Match, Matched, Pool
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.admission import failed, refusal
from sgl_actors.actors.scheduler.batch import Batch
from sgl_actors.actors.scheduler.commits import Commits
from sgl_actors.actors.scheduler.effects import Effect, ToCache, ToWorker
from sgl_actors.actors.scheduler.estimate import OutputEstimate
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.growth import GrowthRound
from sgl_actors.actors.scheduler.handover import Began, Learned, SchedulerState
from sgl_actors.actors.scheduler.lifecycle import Lifecycle
from sgl_actors.actors.scheduler.links import Links
from sgl_actors.actors.scheduler.messages import Configuration, Configure, Finish, Options, Sequence, Stop
from sgl_actors.actors.scheduler.news import News
from sgl_actors.actors.scheduler.policy import policy_named
from sgl_actors.actors.scheduler.quarantine import STRIKES
from sgl_actors.actors.scheduler.queue import Queue
from sgl_actors.actors.scheduler.requests import Requests
from sgl_actors.actors.scheduler.rounds import RETRY, Look, Rounds
from sgl_actors.actors.scheduler.settings import Settings
from sgl_actors.actors.scheduler.steps import Steps
from sgl_actors.actors.worker.messages import ModelInfo, ResetDone, StepDone
from sgl_actors.errors import Cancelled, DeadlineExceeded, Quarantined


class SchedulerCore:
    """See the module. Every event returns the effects it has, in the order to carry them out.

    `stopwatch` is a clock in seconds for the time that ordering takes (`rounds.order_seconds`); without one it stays 0.

    Raises:
        ConfigError, InvalidRequest: an option out of range.
    """

    def __init__(
        self,
        options: Options,
        *,
        epoch: int = 0,
        stopwatch: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.settings = settings = Settings(options)
        self.links = Links(epoch)
        self.batch = Batch()
        self.queue = Queue(options.policy, options.overtake, sharing=options.sharing and options.reuse)
        self.estimate = OutputEstimate()
        self.requests = Requests()
        self.commits = Commits(settings)
        self.news = News()
        self.counters = self.news.counters
        self.steps = Steps(settings, self.batch, self.requests.quarantine, self.news)
        self.lifecycle = Lifecycle(
            settings, self.requests, self.queue, self.batch, self.estimate, self.commits, self.news
        )
        self.rounds = Rounds(
            settings,
            self.queue,
            self.batch,
            self.estimate,
            self.requests.quarantine,
            self.commits,
            self.lifecycle,
            stopwatch,
        )
        self._paused = False
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return f"<SchedulerCore {self.queue!r} {self.batch!r} {self.links!r}>"

    @property
    def waiting(self) -> list[Generation]:
        """Requests that are not in the batch, in order of arrival."""
        return self.queue.waiting

    @property
    def busy(self) -> int:
        """Requests that have not ended."""
        return len(self.requests)

    @property
    def rested(self) -> bool:
        """No step is in flight and no question with the cache."""
        return not self.batch.in_flight and self.rounds.open is None

    @property
    def settled(self) -> bool:
        """No request is live, and no lease or step of an ended one is left."""
        return not self.requests and self.rested

    @property
    def _processed(self) -> int:
        """Tokens that have been computed for anybody."""
        return self.counters["computed_tokens"]

    def wakeup(self) -> float | None:
        """When `tick` is due next."""
        times = (self.requests.next(), self.rounds.retry_at, self.steps.overdue.at())
        return min((at for at in times if at is not None), default=None)

    def watch(self, now: float) -> None:
        """To be called after every event: from when on the worker owes the answer that comes next."""
        owed: tuple[int, int] | None = None
        if self.batch.in_flight:
            owed = (self.links.epoch, self.batch.in_flight[0].number)
        elif self.links.quieting:
            owed = (self.links.epoch, -1)
        self.steps.overdue.watch(owed, now)

    # -- from askers --------------------------------------------------------------------------------------

    def submit(self, sequences: Iterable[Sequence], owner: Address, now: float) -> list[Effect]:
        """Requests of `owner` enter; a live id, or one that ended while nobody owned it, is attached to it instead."""
        for sequence in sequences:
            known = self.requests.find(sequence.id)
            if known is not None and (known.goes_on(sequence) or known.finish is None):
                self.lifecycle.attach(known, sequence, owner)
            else:
                self.lifecycle.enter(sequence, owner, now, self.links.info)
        return self._go_on()

    def stop(self, message: Stop) -> list[Effect]:
        """A stop string was completed by output token number `keep_tokens`."""
        generation = self.requests.live.get(message.id)
        if generation is not None:
            generation.truncate(message.keep_tokens)
            self.lifecycle.end(generation, Finish("stop", message.matched))
        return self._go_on()

    def abort(self, ids: Iterable[str], *, everything: bool = False) -> list[Effect]:
        """End requests now; an id that is not live has ended already."""
        for request in [*self.requests.live] if everything else ids:
            generation = self.requests.live.get(request)
            if generation is not None:
                self.lifecycle.end(generation, _cancelled())
        return self._go_on()

    def owner_down(self, owner: Address, now: float) -> list[Effect]:
        """A submitter has ended: its requests go on for `ORPHAN` seconds, for its successor to take over."""
        self.requests.orphan(owner, now)
        return self._go_on()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: deadlines, and a second chance for a round that brought nothing."""
        for generation in self.requests.late(now):
            message = f"request {generation.spec.id} did not end within its time"
            self.lifecycle.end(generation, Finish("abort", None, DeadlineExceeded.code, message))
        for generation in self.requests.abandoned(now):
            self.lifecycle.end(generation, _cancelled())
        overdue = self.steps.overdue.at()
        if overdue is not None and overdue <= now:
            self._inquire(now)
        self.rounds.tick(now)
        return self._go_on()

    def drain(self) -> None:
        """Refuse new requests from now on, for good."""
        self.lifecycle.draining = True

    def configure(self, message: Configure) -> list[Effect]:
        """Change how requests are ordered, from the next round on; see `configuration`.

        Raises:
            InvalidRequest: a number out of range; nothing was changed.
        """
        options = self.settings.change(message)
        self.queue.policy = policy_named(options.policy)
        self.queue.overtake = options.overtake
        self.queue.sharing = options.sharing and options.reuse
        for generation in self.waiting:
            generation.hint = 0
        self.steps.budget.stall = options.stall
        self.queue.changed()
        return self._go_on()

    def configuration(self) -> Configuration:
        """What is in force."""
        return self.settings.configuration

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
        look = self.rounds.open
        if isinstance(look, Look) and look.epoch == asked == self.links.epoch:
            self.rounds.matched(look, answer)
            if not self._paused:
                self._effects += _questions(self.rounds.ask_leases(look.epoch, self._processed))
        return self._go_on()

    def granted(self, asked: int, answer: Granted) -> list[Effect]:
        """The cache's answer to the round of epoch `asked`. A cache of another epoch has lost our leases."""
        turn, info = self.rounds.open, self.links.info
        if turn is None or isinstance(turn, Look) or not turn.epoch == asked == self.links.epoch:
            return self._go_on()
        if answer.epoch != asked:
            return self._lose(self.links.batch_lost(), "cache of another epoch")
        assert info is not None
        self.rounds.granted(turn, answer, info)
        return self._go_on()

    def grant_failed(self, asked: int, now: float) -> list[Effect]:
        """No answer came to the question of epoch `asked`; leases it may have made are given back, and it is repeated."""
        turn = self.rounds.open
        if turn is None or not turn.epoch == asked == self.links.epoch:
            return self._go_on()
        if isinstance(turn, GrowthRound):
            return self._lose(self.links.batch_lost(), "no answer whether leases have grown")
        self.rounds.failed(turn, now)
        return self._go_on()

    def grant_refused(self, asked: int) -> list[Effect]:
        """The cache no longer takes us for the pool's owner: our leases have ended."""
        if self.rounds.open is None or asked != self.links.epoch:
            return self._go_on()
        return self._lose(self.links.batch_lost(), "cache refused us")

    def uncommitted(self, commit: Commit, now: float) -> None:
        """The cache took no mail: what it was to be told is kept, and told with the next event or a little later."""
        if commit.epoch == self.links.epoch and self.links.ready:
            self.commits.keep(commit)
            self.rounds.retry_at = now + RETRY

    # -- from the worker ----------------------------------------------------------------------------------

    def worker_up(self) -> list[Effect]:
        """A worker incarnation is up."""
        return self._lose(self.links.worker_up(), "worker up")

    def worker_down(self, *, crashed: bool = True) -> list[Effect]:
        """It has ended, and all KV with it. After a crash, what was in flight is suspected of it."""
        condemned = self.requests.quarantine.crashed(self.batch.named) if crashed else []
        self._restart(self.links.worker_down(), "worker crashed" if crashed else "worker stopped")
        for generation in condemned:
            message = f"request {generation.spec.id} crashed the worker {STRIKES} times while it ran alone"
            self.lifecycle.end(generation, failed(Quarantined(message)))
        return self._go_on()

    def described(self, info: ModelInfo) -> list[Effect]:
        """What the worker serves: requests that waited for it are looked at again."""
        self._effects += self.links.described(info)
        for generation in list(self.waiting):
            refused = refusal(generation.spec, info)
            if refused is not None:
                self.lifecycle.end(generation, refused)
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
        info = self.links.info
        assert info is not None
        settled = self.steps.settle(message, info.vocabulary)
        if settled is None:
            return self._lose(self.links.batch_lost(), f"unexpected results of step {message.number}")
        step, results = settled
        trial = len(self.requests.quarantine)
        for generation, result in results:
            self.lifecycle.advance(generation, result)
        if step.prefill or len(self.requests.quarantine) != trial:
            self.queue.changed()
        return self._go_on()

    def _inquire(self, now: float) -> None:
        """What the worker owes was lost on the way, or it is slow: ask what it answers in its turn.

        Behind a lost `Step` it does not know the number of this one (`NeedFull`); behind a lost `StepDone` the answer is not the one that is due. Both begin a
        new epoch. A slow worker loses nothing.
        """
        overdue = self.steps.overdue
        overdue.asked(now)
        self.counters["overdue_answers"] += 1
        self.news.remark("worker owes an answer", steps=len(self.batch.in_flight), slowest=overdue.slowest)
        self._effects += self.links.remind()
        if self.links.ready:
            self._effects.append(ToWorker(self.batch.probe(self.links.epoch)))

    # -- a successor --------------------------------------------------------------------------------------

    def pause(self) -> list[Effect]:
        """Begin no step and no question, until `proceed`. Requests still come and end."""
        self._paused = True
        return self._go_on()

    def withdraw(self) -> list[Effect]:
        """Once at rest: what runs gives its pages back, with all that it has computed, and waits again in its old place."""
        for generation in list(self.batch.running):
            self.lifecycle.put_back(generation)
        return self._go_on()

    def proceed(self) -> list[Effect]:
        """Undo `pause`. An answer that came meanwhile has led to nothing, so the cache is asked again even if nothing else has changed."""
        self._paused = False
        self.queue.changed()
        return self._go_on()

    def state(self, now: float) -> SchedulerState:
        """All that a successor has to know, at rest and withdrawn; but for what only the shell knows. Changes nothing."""
        assert self.rested
        assert not self.batch.running
        ready = self.links.ready
        return SchedulerState(
            epoch=self.links.epoch,
            ready=ready,
            step=self.batch.number,
            ends=self.batch.ends,
            entries=list(self.commits.entries),
            numbers=self.rounds.numbers,
            arrivals=self.requests.arrivals,
            info=self.links.info if ready else None,
            requests=self.requests.hand(now),
            draining=self.lifecycle.draining,
            configured=self.settings.configured,
            trials=self.requests.trials,
            learned=self._learned(),
        )

    def take(self, state: SchedulerState, now: float) -> list[Effect]:
        """Go on where another left off, before anything else."""
        self.configure(state.configured)
        self.lifecycle.draining = state.draining
        self.rounds.numbers, self.requests.arrivals = state.numbers, state.arrivals
        self._learn(state.learned)
        self.requests.take(state.requests, state.trials, now)
        for generation in self.requests.live.values():
            self.queue.enter(generation)
        self.links.epoch = state.epoch
        self.links.resume(state.info if state.ready else None, cache=state.cache is not None)
        if self.links.ready:
            self.batch.resume(state.step, state.ends)
            self.commits.entries = list(state.entries)
        elif state.worker is not None:
            self._effects += self.links.worker_up()
        return self._go_on()

    def _learned(self) -> Learned:
        return Learned(
            dict(self.counters),
            self.steps.seconds,
            self.rounds.order_seconds,
            self.queue.most_overtaken,
            self.estimate.lengths,
            self.steps.budget.decode,
            self.steps.budget.rate,
            [Began(*program) for program in self.queue.programs],
        )

    def _learn(self, learned: Learned) -> None:
        self.counters.update(learned.counters)
        self.steps.seconds, self.rounds.order_seconds = learned.step_seconds, learned.order_seconds
        self.queue.most_overtaken = learned.most_overtaken
        self.queue.programs = [(one.namespace, one.program, one.computed) for one in learned.programs]
        for length in learned.lengths:
            self.estimate.ended(length)
        self.steps.budget.decode, self.steps.budget.rate = learned.decode, learned.rate

    # -- what follows from every event --------------------------------------------------------------------

    def _lose(self, effects: list[Effect], why: str) -> list[Effect]:
        self._restart(effects, why)
        return self._go_on()

    def _restart(self, effects: list[Effect], why: str) -> None:
        """Worker or cache is not what it was: what runs waits again in its old place."""
        self._effects += effects
        asked = self.rounds.open is not None
        self.rounds.forget()
        running = self.lifecycle.restart()
        if running or asked:
            self.news.remark("recovering", why=why, requests=running)

    def _go_on(self) -> list[Effect]:
        """Send what can be sent now. The step goes first: the worker waits for it."""
        starved = self.rounds.growth.starved
        if starved and not self._paused and self.rested:
            self.lifecycle.make_room()
            starved = False
        effects, self._effects = self._effects, []
        if self.links.ready:
            if not (starved or self._paused):
                effects += self._next_steps()
            commit = self.commits.take(self.links.epoch)
            if commit is not None:
                effects.append(ToCache(commit))
            effects += self._next_question()
        effects += self.news.take()
        return effects

    def _next_steps(self) -> list[Effect]:
        """As many as may be in flight and have something to do."""
        sent: list[Effect] = []
        while len(self.batch.in_flight) <= self.settings.options.overlap:
            step = self.steps.assemble(self.links.epoch)
            if step is None:
                break
            sent.append(ToWorker(step))
        return sent

    def _next_question(self) -> list[Effect]:
        """To the cache, unless one is out."""
        info = self.links.info
        if self._paused or info is None:
            return []
        return _questions(self.rounds.ask(self.links.epoch, info, self._processed))


def _questions(question: Grant | Match | None) -> list[Effect]:
    return [] if question is None else [ToCache(question)]


def _cancelled() -> Finish:
    return Finish("abort", None, Cancelled.code, "cancelled")
