"""How many prompt tokens a step may hold, so that those who are generating hardly notice.

The measured time of a step is taken as ``decode + rate * prompt tokens``: `decode` follows the steps without prompt tokens, `rate` the
others. While somebody generates, a step gets as many prompt tokens as make it `stall` times as long as one without; else all of `chunk`.
"""

from __future__ import annotations

from collections import deque
from statistics import median

LEAST = 16
"""Prompt tokens a step may always hold, so that a prompt gets on however slow the machine is."""
REMEMBERED = 15
"""Steps without prompt tokens whose median is the time of one."""
WORSE, BETTER = 0.5, 0.15
"""Weight of the newest measurement where it says that a prompt token costs more than thought, and less."""
LUCK = 2.0
"""One measurement counts as at most that many times the rate so far: the machine was busy with something else."""


class ChunkBudget:
    """Learns from the steps of one worker."""

    def __init__(self, chunk: int, stall: float) -> None:
        self.chunk = chunk
        self.stall = stall
        self.decode = 0.0
        self.rate = 0.0
        self._decodes: deque[float] = deque(maxlen=REMEMBERED)

    def __repr__(self) -> str:
        return f"<ChunkBudget decode={self.decode * 1e3:.1f} ms rate={self.rate * 1e3:.2f} ms/token>"

    def tokens(self, *, decoding: bool) -> int:
        """Prompt tokens of the next step."""
        if not decoding or not self.stall:
            return self.chunk
        if not self.rate or not self.decode:
            return min(self.chunk, max(LEAST, self.chunk // 8))
        return min(self.chunk, max(LEAST, int((self.stall - 1) * self.decode / self.rate)))

    def learn(self, seconds: float, *, decoding: int, prefill: int) -> None:
        """A step of `decoding` sequences that generate and `prefill` prompt tokens took that long."""
        if seconds <= 0:
            return
        if not prefill:
            self._decodes.append(seconds)
            self.decode = median(self._decodes)
        elif prefill >= LEAST // 2:
            base = self.decode if decoding else 0.0
            rate = max(seconds - base, seconds / 10) / prefill
            if self.rate:
                rate = min(rate, LUCK * self.rate)
            weight = 1.0 if not self.rate else WORSE if rate > self.rate else BETTER
            self.rate += weight * (rate - self.rate)
