"""The requests that live: who they are, how long they have, and which of them are suspected of a crash."""

from __future__ import annotations

from collections.abc import Iterable

from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.deadlines import Deadlines
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.handover import LiveRequest
from sgl_actors.actors.scheduler.messages import Sequence
from sgl_actors.actors.scheduler.orphans import Orphans
from sgl_actors.actors.scheduler.quarantine import Quarantine


class Requests:
    """Each is here from its submission to its end; where it stands meanwhile is not known here (`queue`, `batch`).

    Attributes:
        live: by id.
        orphans: those without a submitter, and ends that nobody has been told.
        quarantine: suspects of a crash.
        arrivals: how many have come so far.
    """

    def __init__(self) -> None:
        self.live: dict[str, Generation] = {}
        self.orphans = Orphans()
        self.quarantine = Quarantine()
        self.arrivals = 0
        self._deadlines = Deadlines()

    def __len__(self) -> int:
        return len(self.live)

    def find(self, request: str) -> Generation | None:
        """The live one of that id, or one that ended while nobody owned it."""
        return self.live.get(request) or self.orphans.ended(request)

    def add(self, sequence: Sequence, owner: Address) -> Generation:
        """A new one."""
        self.arrivals += 1
        tokens = sequence.prompt + sequence.output
        generation = self.live[sequence.id] = Generation(sequence, owner, self.arrivals, tokens)
        return generation

    def limit(self, generation: Generation, at: float) -> None:
        """It has to end by then."""
        self._deadlines.add(generation, at)

    def remove(self, generation: Generation) -> None:
        """It has ended."""
        del self.live[generation.spec.id]
        self._deadlines.drop(generation)
        self.quarantine.forget(generation)

    def orphan(self, owner: Address, now: float) -> None:
        """That submitter is gone."""
        for generation in self.live.values():
            if generation.owner == owner:
                generation.owner = None
                self.orphans.add(generation, now)

    def late(self, now: float) -> list[Generation]:
        """Those that did not end in time; each is said once."""
        return self._deadlines.expired(now)

    def abandoned(self, now: float) -> list[Generation]:
        """Live ones that no submitter has come back for; each is said once."""
        return [one for one in self.orphans.expired(now) if one.finish is None]

    def next(self) -> float | None:
        """When there will be a `late` or `abandoned` one."""
        times = (self._deadlines.next(), self.orphans.next())
        return min((at for at in times if at is not None), default=None)

    # -- a successor --------------------------------------------------------------------------------------

    def hand(self, now: float) -> list[LiveRequest]:
        """What a successor has to know of them, in order of arrival."""
        known = [*self.live.values(), *self.orphans.ends()]
        return [self._hand(one, now) for one in sorted(known, key=lambda one: one.arrival)]

    @property
    def trials(self) -> list[list[str]]:
        """Ids of the suspects, in the groups in which they stand trial."""
        return [[one.spec.id for one in group] for group in self.quarantine.groups]

    def take(self, requests: Iterable[LiveRequest], trials: list[list[str]], now: float) -> None:
        """Go on where another left off."""
        records = []
        for one in requests:
            generation = Generation.taken(one)
            if one.owner is None:
                self.orphans.add(generation, now, one.kept)
            if one.finish is not None:
                continue
            self.live[one.sequence.id] = generation
            if one.left is not None:
                self.limit(generation, now + one.left)
            records.append((generation, one.standing.goal, one.standing.strikes))
        groups = [[self.live[name] for name in group if name in self.live] for group in trials]
        self.quarantine.resume(groups, records)

    def _hand(self, generation: Generation, now: float) -> LiveRequest:
        until, kept = self._deadlines.of(generation), self.orphans.of(generation)
        return generation.handed(
            None if until is None else max(0.0, until - now),
            None if kept is None else max(0.0, kept - now),
            self.quarantine.record(generation),
        )
