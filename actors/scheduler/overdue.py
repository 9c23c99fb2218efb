"""Answers of the worker that take too long: they may have been lost on the way."""

from __future__ import annotations

PATIENCE = 5.0
"""Seconds that an answer of the worker is waited for at least, before it is asked whether the question was lost."""
USUAL = 20.0
"""And at least that many times as long as its slowest step of late."""
FADE = 0.95
"""By that factor per step, slow steps are forgotten."""


class Overdue:
    """Knows which answer comes next and since when it is owed, and how long steps take.

    Attributes:
        slowest: seconds of the slowest step of late.
    """

    def __init__(self) -> None:
        self.slowest = 0.0
        self._owed: tuple[int, int] | None = None
        self._since = 0.0

    def watch(self, owed: tuple[int, int] | None, now: float) -> None:
        """What the worker owes now, by epoch and number; None: nothing."""
        if owed != self._owed:
            self._owed, self._since = owed, now

    def at(self) -> float | None:
        """When that answer is taken for lost."""
        if self._owed is None:
            return None
        return self._since + max(PATIENCE, USUAL * self.slowest)

    def asked(self, now: float) -> None:
        """The worker has been asked for it: wait as long once more."""
        self._since = now

    def ran(self, seconds: float) -> None:
        """A step took that long."""
        self.slowest = max(seconds, FADE * self.slowest)
