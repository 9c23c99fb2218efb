"""How many prompt tokens a step may hold, so that those who are generating hardly notice.

The measured time of a step is taken as ``decode + rate * prompt tokens``: `decode` follows the steps without prompt tokens, `rate` the
others. While somebody generates, a step gets as many prompt tokens as make it `stall` times as long as one without; else all of `chunk`.
"""

from __future__ import annotations

LEAST = 16
"""Prompt tokens a step may always hold, so that a prompt gets on however slow the machine is."""
SMOOTHING = 0.3
"""Weight of the newest measurement."""
RISE = 2.0
"""A budget grows at most by that factor from step to step: a rate measured once may have been luck."""


class ChunkBudget:
    """Learns from the steps of one worker."""

    def __init__(self, chunk: int, stall: float) -> None:
        self.chunk = chunk
        self.stall = stall
        self.decode = 0.0
        self.rate = 0.0
        self._last = LEAST

    def __repr__(self) -> str:
        return f"<ChunkBudget decode={self.decode * 1e3:.1f} ms rate={self.rate * 1e3:.2f} ms/token>"

    def tokens(self, *, decoding: bool) -> int:
        """Prompt tokens of the next step."""
        if not decoding or not self.stall:
            return self.chunk
        if not self.rate or not self.decode:
            return min(self.chunk, max(LEAST, self.chunk // 8))
        wanted = int((self.stall - 1) * self.decode / self.rate)
        self._last = max(LEAST, min(self.chunk, wanted, int(self._last * RISE)))
        return self._last

    def learn(self, seconds: float, *, decoding: int, prefill: int) -> None:
        """A step of `decoding` sequences that generate and `prefill` prompt tokens took that long."""
        if seconds <= 0:
            return
        if not prefill:
            self.decode = _follow(self.decode, seconds)
        elif prefill >= LEAST // 2:
            base = self.decode if decoding else 0.0
            self.rate = _follow(self.rate, max(seconds - base, seconds / 10) / prefill)


def _follow(old: float, new: float) -> float:
    return new if not old else old + SMOOTHING * (new - old)
