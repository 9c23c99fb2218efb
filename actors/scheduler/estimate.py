"""How long outputs get: what admission reserves for a request that may run much longer than it will."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

REMEMBERED = 256
"""Ends that count."""
QUANTILE = 0.9
ENOUGH = 16
CAUTION = 1.5
"""Factor on the estimate for each time that it was wrong; it wears off over some 60 ends."""
WEAR = 0.98
MOST = 8.0


class OutputEstimate:
    """A running quantile of output lengths, in tokens.

    Only those that got at least as far count for a request that has output already, so that an estimate for one that runs long
    is not made of the short ones.

    Args:
        first: expected before enough have ended to know better.
        least: fewer are never expected.
    """

    def __init__(self, first: int = 256, least: int = 32) -> None:
        self.first = first
        self.least = least
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._caution = 1.0

    def __repr__(self) -> str:
        return f"<OutputEstimate {self.expect(0)} of {len(self._sorted)} caution={self._caution:.2f}>"

    @property
    def lengths(self) -> list[int]:
        """What it is made of, oldest first."""
        return list(self._recent)

    def ended(self, length: int) -> None:
        """An output ended with that many tokens."""
        self._recent.append(length)
        insort(self._sorted, length)
        if len(self._recent) > REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._caution = max(1.0, self._caution * WEAR)

    def wrong(self) -> None:
        """A request had to be retracted because others grew longer than expected."""
        self._caution = min(MOST, self._caution * CAUTION)

    def expect(self, generated: int) -> int:
        """Output tokens still to come for a request that has `generated`."""
        first = bisect_left(self._sorted, generated)
        known = len(self._sorted) - first
        if len(self._sorted) < ENOUGH or not known:
            length = max(self.first, 2 * generated)
        else:
            length = self._sorted[first + min(known - 1, int(known * QUANTILE))]
        return max(self.least, int((length - generated) * self._caution))

    def growth(self, generated: int) -> int:
        """Tokens to reserve at a time for a request that turned out longer than expected: more and more, yet never much in vain."""
        return max(self.least, min(self.expect(generated), generated // 2))
