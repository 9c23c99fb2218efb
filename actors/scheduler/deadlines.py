"""Whose time is up."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from sgl_actors.actors.scheduler.generation import Generation

SLACK = 64
"""Entries of ended requests that are kept before the heap is swept."""


class Deadlines:
    """A heap of (time, arrival) over live requests; entries that no longer hold are dropped in passing."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._live: dict[int, tuple[float, Generation]] = {}

    def add(self, generation: Generation, at: float) -> None:
        """Watch one; a time it had before no longer counts."""
        self._live[generation.arrival] = (at, generation)
        heappush(self._heap, (at, generation.arrival))

    def drop(self, generation: Generation) -> None:
        """Its time no longer matters."""
        self._live.pop(generation.arrival, None)
        if len(self._heap) > 2 * len(self._live) + SLACK:
            self._heap = [entry for entry in self._heap if self._holds(entry)]
            heapify(self._heap)

    def of(self, generation: Generation) -> float | None:
        """When its time is up; None if nobody watches it."""
        watched = self._live.get(generation.arrival)
        return None if watched is None else watched[0]

    def next(self) -> float | None:
        """The earliest time."""
        while self._heap and not self._holds(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now: float) -> list[Generation]:
        """Take out those whose time is up."""
        found: list[Generation] = []
        while (at := self.next()) is not None and at <= now:
            found.append(self._live.pop(heappop(self._heap)[1])[1])
        return found

    def _holds(self, entry: tuple[float, int]) -> bool:
        at, arrival = entry
        return arrival in self._live and self._live[arrival][0] == at
