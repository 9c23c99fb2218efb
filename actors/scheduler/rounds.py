"""Rounds of questions to the cache, one at a time: pages for those who run, then leases for those who wait.

A round of leases is one question or two: what the cache has of those that wait (`Match`, a hint), where that matters, then `Grant` for those who
are next by policy, bounded waiting and sharing (`queue`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sgl_actors.actors.cache.messages import Grant, Granted, Lease, Match, Matched
from sgl_actors.actors.scheduler.batch import Batch
from sgl_actors.actors.scheduler.commits import Commits
from sgl_actors.actors.scheduler.estimate import OutputEstimate
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.growth import Growth, GrowthRound
from sgl_actors.actors.scheduler.lifecycle import Lifecycle
from sgl_actors.actors.scheduler.quarantine import Quarantine
from sgl_actors.actors.scheduler.queue import Queue
from sgl_actors.actors.scheduler.settings import Settings
from sgl_actors.actors.worker.messages import ModelInfo

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
class LeaseRound:
    """A `Grant` of leases that the cache has not answered: for whom, chosen from whom, and how many leases had ended when it was asked."""

    epoch: int
    wanted: dict[int, Generation]
    line: list[Generation]
    releases: int


class Rounds:
    """Asks where there is room and something has changed; has those admitted who get a lease.

    Attributes:
        open: the question that the cache has not answered.
        numbers: of sequences and leases, so far.
        order_seconds: that choosing who is next has taken.
        retry_at: no question before then.
    """

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        batch: Batch,
        estimate: OutputEstimate,
        quarantine: Quarantine,
        commits: Commits,
        lifecycle: Lifecycle,
        stopwatch: Callable[[], float],
    ) -> None:
        self.open: Look | LeaseRound | GrowthRound | None = None
        self.growth = Growth(batch, estimate, commits)
        self.numbers = 0
        self.order_seconds = 0.0
        self.retry_at: float | None = None
        self._settings = settings
        self._queue = queue
        self._batch = batch
        self._estimate = estimate
        self._quarantine = quarantine
        self._commits = commits
        self._lifecycle = lifecycle
        self._stopwatch = stopwatch
        self._looked = (-1, -1)  # changes and releases at the last look
        self._stuck: tuple[Generation, int, int] | None = (
            None  # the first in line did not fit, with that hint, after so many releases
        )

    def ask(self, epoch: int, info: ModelInfo, processed: int) -> Grant | Match | None:
        """What to ask the cache, unless a question is out; `processed` tokens have been computed so far."""
        if self.open is not None or self.retry_at is not None:
            return None
        growth = self.growth.ask(epoch, info)
        if growth is not None:
            self.open, grant = growth
            return grant
        return self._look(epoch, processed)

    def matched(self, look: Look, answer: Matched) -> None:
        """What the cache has of those that wait; `ask_leases` follows."""
        self.open = None
        if self._settings.options.reuse:
            for generation, length in zip(look.probed, answer.lengths, strict=False):
                generation.hint = length

    def granted(self, turn: LeaseRound | GrowthRound, answer: Granted, info: ModelInfo) -> None:
        """What the cache gives to those who were asked for."""
        self.open = None
        if isinstance(turn, GrowthRound):
            self.growth.take(turn, answer.more, info)
        else:
            self._admit(turn, {lease.lease: lease for lease in answer.leases}, info)

    def failed(self, turn: Look | LeaseRound, now: float) -> None:
        """No answer came; leases that the cache may have made are given back, and it is asked again."""
        self.open = None
        self.retry_at = now + RETRY
        for number, generation in turn.wanted.items() if isinstance(turn, LeaseRound) else ():
            generation.number = 0
            self._commits.void(number)

    def tick(self, now: float) -> None:
        """Time has passed: a second chance for what brought nothing."""
        if self.retry_at is not None and self.retry_at <= now:
            self.retry_at = None
        self._stuck = None
        self.growth.retry()
        self._queue.changed()

    def forget(self) -> None:
        """All leases are void, and an answer that comes means nothing."""
        for generation in self.open.wanted.values() if isinstance(self.open, LeaseRound) else ():
            generation.number = 0
        self.open = self._stuck = self.retry_at = None
        self.growth.retry()

    def _look(self, epoch: int, processed: int) -> Grant | Match | None:
        """Where there is room and something has changed since the last time: see what the cache has of those that wait."""
        eligible = self._eligible()
        seen = (self._queue.changes, self._commits.releases)
        if not eligible or self._looked == seen or self.growth.refused or not self._room:
            return None
        self._looked = seen
        began = self._stopwatch()
        probed = self._queue.first(eligible, processed) if self._settings.options.reuse else []
        self.order_seconds += self._stopwatch() - began
        if not probed:
            return self.ask_leases(epoch, processed)
        self.open = Look(epoch, probed)
        return Match([generation.probe() for generation in probed], touch=True)

    def ask_leases(self, epoch: int, processed: int) -> Grant | None:
        """Ask for those who are next, unless the first is known not to fit."""
        eligible, options = self._eligible(), self._settings.options
        if not eligible or not self._room:
            return None
        began = self._stopwatch()
        tokens = options.chunk - self._batch.backlog()
        chosen = self._queue.choose(eligible, self._room, tokens, processed)
        self.order_seconds += self._stopwatch() - began
        if not chosen or self._stuck == (chosen[0].request, chosen[0].request.hint, self._commits.releases):
            return None
        self._stuck = None
        follow = FOLLOW if options.reuse and options.speculation else 0
        wants, wanted = [], {}
        for choice in chosen:
            generation = choice.request
            self.numbers += 1
            generation.number = self.numbers
            wanted[generation.number] = generation
            expected = self._estimate.expect(generation.generated)
            wants.append(generation.want(expected, choice.least, reuse=options.reuse, follow=follow))
        self.open = LeaseRound(epoch, wanted, list(eligible), self._commits.releases)
        return Grant(epoch, wants)

    @property
    def _room(self) -> int:
        """How many may be admitted now.

        Nobody, while what has been admitted fills a step: who is admitted earlier than it can run only keeps pages from others, and has
        been chosen without knowing what they leave in the cache.
        """
        options = self._settings.options
        full = self._batch.backlog() >= options.chunk
        return 0 if full else max(0, options.max_batch - len(self._batch.running))

    def _eligible(self) -> list[Generation]:
        """Who may be admitted: all that wait, or while somebody is on trial those who are."""
        waiting = self._queue.waiting
        if self._quarantine.trial:
            return [one for one in waiting if self._quarantine.on_trial(one)]
        return waiting

    def _admit(self, turn: LeaseRound, leases: dict[int, Lease], info: ModelInfo) -> None:
        """Those with a lease run, the others go on waiting."""
        line = [one for one in turn.line if not one.target and one.finish is None]
        for number, generation in turn.wanted.items():
            lease = leases.get(number)
            if generation.finish is not None:
                if lease is not None:
                    self._commits.void(number)
            elif lease is None:
                generation.number = 0
                if self._stuck is None:
                    self._stuck = (generation, generation.hint, turn.releases)
                if generation.hint:  # it may be that the cache has less of it by now
                    generation.hint = 0
                    self._queue.changed()
            else:
                line.remove(generation)
                self._lifecycle.admit(generation, lease, line, info.page_size)
