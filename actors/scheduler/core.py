"""The scheduler without its mailbox: events in, effects out.

A request waits, is granted a lease, runs, and ends; every request told to the core ends in exactly one `Update` with
`finish`, unless its submitter is gone for longer than `ORPHAN` seconds. Three rounds go on beside each other and never wait for one another:

- *grants*: one question to the cache at a time, for the requests that the policy puts first;
- *steps*: as many in flight as `ahead` allows (0: step n+1 is sent after the StepDone of n, the plain loop);
- *recovery*: whenever worker or cache is lost, what runs waits again with prompt and tokens so far, in its old place,
  until `links` are ready under a new epoch. Nobody is told.

Pages go back (`Commit` with release) only after the StepDone of the last step that names them, so a step that reuses
them is sent later still.

It is one state machine and reads best in one piece; what it decides with stands beside it: `generation` (one request),
`batch` (steps), `links` (recovery), `orphans` (submitters that are gone), `quarantine` (which request crashes the worker),
`policy`, `admission`, `deadlines`.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sgl_actors.actors.cache.messages import Commit, Entry, Grant, Granted, Pool
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.admission import failed, refusal
from sgl_actors.actors.scheduler.batch import Batch
from sgl_actors.actors.scheduler.deadlines import Deadlines
from sgl_actors.actors.scheduler.effects import Effect, Note, Report, ToCache, ToWorker
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.links import Links
from sgl_actors.actors.scheduler.messages import Finish, Options, Progress, Sequence, Stop, Update
from sgl_actors.actors.scheduler.orphans import Orphans
from sgl_actors.actors.scheduler.policy import Policy, policy_named
from sgl_actors.actors.scheduler.quarantine import STRIKES, Quarantine
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

RETRY = 0.1
"""Seconds before the cache is asked again after it gave no answer or took no mail."""


@dataclass(frozen=True, slots=True)
class Round:
    """A `Grant` that the cache has not answered: for whom, and how many leases had ended when it was asked."""

    epoch: int
    wanted: dict[int, Generation]
    releases: int


class SchedulerCore:
    """See the module. Every event returns the effects it has, in the order to carry them out."""

    def __init__(
        self, options: Options, *, epoch: int = 0, ahead: int = 0, policy: Policy | None = None
    ) -> None:
        for name in ("max_batch", "chunk", "queue"):
            if getattr(options, name) < 1:
                raise ConfigError(
                    f"[scheduler] {name}: must be at least 1, is {getattr(options, name)}", param=name
                )
        self.options = options
        self.policy = policy or policy_named(options.policy)
        self.links = Links(epoch)
        self.batch = Batch()
        self.waiting: list[Generation] = []
        self.draining = False
        self.counters: Counter[str] = Counter()
        self.step_seconds = 0.0
        self._ahead = ahead
        self._live: dict[str, Generation] = {}
        self._deadlines = Deadlines()
        self._orphans = Orphans()
        self._quarantine = Quarantine()
        self._arrivals = 0
        self._numbers = 0
        self._releases = 0
        self._round: Round | None = None
        self._stuck: tuple[Generation, int] | None = None
        self._retry_at: float | None = None
        self._effects: list[Effect] = []
        self._entries: list[Entry] = []
        self._updates: dict[Address, list[Update]] = {}
        self._notes: list[Note] = []

    def __repr__(self) -> str:
        return f"<SchedulerCore waiting={len(self.waiting)} {self.batch!r} {self.links!r}>"

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
        self._stuck = None
        return self._go_on()

    def drain(self) -> None:
        """Refuse new requests from now on, for good."""
        self.draining = True

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

    def granted(self, asked: int, answer: Granted) -> list[Effect]:
        """The cache's answer to the round of epoch `asked`. A cache of another epoch has lost our leases."""
        turn = self._round
        if turn is None or not turn.epoch == asked == self.links.epoch:
            return self._go_on()
        if answer.epoch != asked:
            return self._lose(self.links.batch_lost(), "cache of another epoch")
        self._round = None
        leases = {lease.lease: lease for lease in answer.leases}
        for number, generation in turn.wanted.items():
            lease = leases.get(number)
            if generation.finish is not None:
                if lease is not None:
                    self._release(Entry(number, []))
            elif lease is None:
                generation.number = 0
                if self._stuck is None:
                    self._stuck = (generation, turn.releases)
            else:
                self.waiting.remove(generation)
                first = generation.cached < 0
                generation.admit(lease)
                self.batch.admit(generation)
                if first:
                    self.counters["cached_tokens"] += generation.cached
                self._note("admitted", generation, cached=lease.cached, pages=len(lease.pages))
        return self._go_on()

    def grant_failed(self, asked: int, now: float) -> list[Effect]:
        """No answer came to the round of epoch `asked`; leases it may have made are given back, and it is repeated."""
        turn = self._round
        if turn is not None and turn.epoch == asked == self.links.epoch:
            self._round = None
            self._retry_at = now + RETRY
            for number, generation in turn.wanted.items():
                generation.number = 0
                self._release(Entry(number, []))
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
        self.counters["steps"] += 1
        self.step_seconds += message.seconds
        for generation, result in settled:
            self._advance(generation, result)
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
        self.waiting.append(generation)
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
        since = min(len(sequence.output), generation.generated)
        self._note("attached", generation, output=since)
        self._tell(generation, since, len(generation.prompt_logprobs) if sequence.output else 0)

    def _advance(self, generation: Generation, result: SequenceResult) -> None:
        """A step that named it has run."""
        if generation.finish is not None:
            self._let_go(generation)
            return
        self._quarantine.stepped(generation)
        news = int(result.token_id >= 0)
        finish = generation.conclusion()
        if result.error:
            finish = Finish("error", None, RemoteError.code, result.error)
            news = 0
        self.counters["generation_tokens"] += news
        since = generation.generated - news
        scored = 0 if result.error else len(result.prompt_logprobs)
        known = len(generation.prompt_logprobs) - scored
        if finish is not None:
            self._end(generation, finish, since=since, prompt_since=known)
        elif news or scored:
            self._tell(generation, since, known)
        if finish is None and generation.prefilled and not generation.shared:
            generation.shared = True
            self._entries.append(generation.entry(release=False))

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
        self.counters[f"finished_{finish.reason}"] += 1
        self._tell(
            generation,
            generation.generated if since is None else since,
            len(generation.prompt_logprobs) if prompt_since is None else prompt_since,
        )
        self._note(
            "finished", generation, reason=finish.reason, code=finish.code, output=generation.generated
        )
        if generation.target:
            self.batch.leave(generation)
            self._let_go(generation)
        else:
            self.waiting.remove(generation)

    def _let_go(self, generation: Generation) -> None:
        """Give the pages of an ended request back once no step in flight names them."""
        if not generation.busy:
            self._release(generation.entry(release=True))

    def _release(self, entry: Entry) -> None:
        self._releases += 1
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
        self.counters["retracted"] += len(running)
        for generation in running:
            generation.retract()
            insort(self.waiting, generation, key=lambda one: one.arrival)
        for generation in self._round.wanted.values() if self._round is not None else ():
            generation.number = 0
        self._round = self._stuck = self._retry_at = None
        self._entries.clear()

    # -- rounds -------------------------------------------------------------------------------------------

    def _go_on(self) -> list[Effect]:
        """Send what can be sent now. The step goes first: the worker waits for it."""
        effects, self._effects = self._effects, []
        if self.links.ready:
            while len(self.batch.in_flight) <= self._ahead:
                step = self._next_step()
                if step is None:
                    break
                effects.append(ToWorker(step))
            if self._entries:
                effects.append(ToCache(Commit(self.links.epoch, self._entries)))
                self._entries = []
            grant = self._next_round()
            if grant is not None:
                effects.append(ToCache(grant))
        effects += [Report(owner, Progress(updates)) for owner, updates in self._updates.items()]
        self._updates = {}
        effects += self._notes
        self._notes = []
        return effects

    def _next_step(self) -> Step | None:
        """Of all in the batch, or while some of them are on trial, of those alone."""
        on_trial = self._quarantine.on_trial
        alone = any(on_trial(generation) for generation in self.batch.running)
        return self.batch.assemble(self.links.epoch, self.options.chunk, on_trial if alone else None)

    def _next_round(self) -> Grant | None:
        """Ask for those the policy puts first, unless a round is out or the first is known not to fit."""
        room = self.options.max_batch - len(self.batch.running)
        waiting = self.waiting
        if self._quarantine.trial:
            waiting = [one for one in waiting if self._quarantine.on_trial(one)]
        if self._round is not None or self._retry_at is not None or room < 1 or not waiting:
            return None
        chosen = self.policy.choose(waiting, room)
        if not chosen or self._stuck == (chosen[0], self._releases):
            return None
        self._stuck = None
        for generation in chosen:
            self._numbers += 1
            generation.number = self._numbers
        wanted = {generation.number: generation for generation in chosen}
        self._round = Round(self.links.epoch, wanted, self._releases)
        return Grant(self.links.epoch, [generation.want() for generation in chosen])

    def _tell(self, generation: Generation, since: int, prompt_since: int) -> None:
        if generation.owner is None:
            return
        self._updates.setdefault(generation.owner, []).append(generation.update(since, prompt_since))

    def _note(self, event: str, generation: Generation, **fields: float | str) -> None:
        spec = generation.spec
        self._notes.append(Note(event, spec.id, spec.program, spec.trace, fields))


def _cancelled() -> Finish:
    return Finish("abort", None, Cancelled.code, "cancelled")
