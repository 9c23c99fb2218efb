"""Which request crashes the worker? Found by running the suspects of a crash in halves, each by itself.

All that the steps in flight named are suspects of a crash. They are put on trial: half of them may run while all others wait,
then the other half; a crash splits the group that was running. So a crash counts against a request only if it ran alone, and
the one that crashed the worker alone `STRIKES` times is condemned. In a batch of n that takes at most log2(n) + 2 crashes,
rounded up: 6 for 16, 7 for 32.

Who has stood trial pauses while others are tried. A suspect has stood its trial when it has been computed as far as it was to be in the step that crashed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from sgl_actors.actors.scheduler.generation import Generation

STRIKES = 2
"""Crashes alone that end a request."""


class Quarantine:
    """Groups of suspects; the first one is on trial. Knows requests that live, `forget` them when they end."""

    def __init__(self) -> None:
        self._groups: deque[list[Generation]] = deque()
        self._goals: dict[Generation, int] = {}
        self._strikes: Counter[Generation] = Counter()

    def __repr__(self) -> str:
        return f"<Quarantine {[len(group) for group in self._groups]}>"

    def __len__(self) -> int:
        """Suspects that have not stood their trial."""
        return len(self._goals)

    @property
    def trial(self) -> list[Generation]:
        """Who may enter the batch now; everybody if empty."""
        return self._groups[0] if self._groups else []

    @property
    def groups(self) -> list[list[Generation]]:
        """Who stands trial together, the first group now."""
        return [list(group) for group in self._groups if group]

    def record(self, generation: Generation) -> tuple[int, int]:
        """How far it has to be computed to have stood its trial, 0 if it is no suspect; and its crashes alone."""
        return self._goals.get(generation, 0), self._strikes[generation]

    def resume(
        self, groups: Iterable[Iterable[Generation]], records: Sequence[tuple[Generation, int, int]]
    ) -> None:
        """Go on where another left off: its `groups`, and of each request its `record`."""
        self._goals = {generation: goal for generation, goal, _ in records if goal}
        self._strikes = Counter({generation: strikes for generation, _, strikes in records if strikes})
        known = ([one for one in group if one in self._goals] for group in groups)
        self._groups = deque(group for group in known if group)
        tried = {one for group in self._groups for one in group}
        self._goals = {one: goal for one, goal in self._goals.items() if one in tried}

    def crashed(self, named: Iterable[Generation]) -> list[Generation]:
        """The worker died with steps in flight for `named`, still as planned. Returns the condemned.

        Those of them that have ended are no suspects, but nobody ran alone beside them.
        """
        named = list(named)
        suspects = [generation for generation in named if generation.finish is None]
        for generation in suspects:
            self._drop(generation)
            self._goals[generation] = generation.planned
        if len(named) == 1:
            self._strikes.update(suspects)
            if suspects and self._strikes[suspects[0]] >= STRIKES:
                return suspects
        middle = (len(suspects) + 1) // 2
        self._groups.extendleft(half for half in (suspects[middle:], suspects[:middle]) if half)
        return []

    def stepped(self, generation: Generation) -> None:
        """A step that named it has run."""
        if generation.computed >= self._goals.get(generation, generation.computed + 1):
            self._drop(generation)

    def forget(self, generation: Generation) -> None:
        """It has ended."""
        self._drop(generation)
        del self._strikes[generation]

    def on_trial(self, generation: Generation) -> bool:
        """Whether it is in the group that is on trial and has not stood it."""
        return generation in self.trial

    def _drop(self, generation: Generation) -> None:
        if self._goals.pop(generation, None) is None:
            return
        for group in self._groups:
            if generation in group:
                group.remove(generation)
                break
        while self._groups and not self._groups[0]:
            self._groups.popleft()
