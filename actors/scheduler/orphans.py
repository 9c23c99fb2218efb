"""Requests whose submitter is gone: they go on for a while, so that its successor need not begin anew."""

from __future__ import annotations

from sgl_actors.actors.scheduler.deadlines import Deadlines
from sgl_actors.actors.scheduler.generation import Generation

ORPHAN = 5.0
"""Seconds that a request goes on, or that its end is kept, after its submitter went down."""


class Orphans:
    """Each is here until it is taken over (`drop`) or its time is up, whether it has ended meanwhile or not."""

    def __init__(self) -> None:
        self._deadlines = Deadlines()
        self._by_id: dict[str, Generation] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, generation: Generation, now: float, seconds: float | None = None) -> None:
        """Its submitter went down; `seconds` of its time are left if that was a while ago."""
        self._by_id[generation.spec.id] = generation
        self._deadlines.add(generation, now + (ORPHAN if seconds is None else seconds))

    def of(self, generation: Generation) -> float | None:
        """When its time is up; None if it is none of them."""
        return self._deadlines.of(generation)

    def ends(self) -> list[Generation]:
        """Those that have ended."""
        return [one for one in self._by_id.values() if one.finish is not None]

    def drop(self, generation: Generation) -> None:
        """It has a submitter again."""
        if self._by_id.get(generation.spec.id) is generation:
            del self._by_id[generation.spec.id]
        self._deadlines.drop(generation)

    def ended(self, request: str) -> Generation | None:
        """The orphan of that id that has ended, for its end to be told."""
        generation = self._by_id.get(request)
        return generation if generation is not None and generation.finish is not None else None

    def next(self) -> float | None:
        """When the first one's time is up."""
        return self._deadlines.next()

    def expired(self, now: float) -> list[Generation]:
        """Take out those whose time is up."""
        expired = self._deadlines.expired(now)
        for generation in expired:
            if self._by_id.get(generation.spec.id) is generation:
                del self._by_id[generation.spec.id]
        return expired
