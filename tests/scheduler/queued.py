"""A waiting request as policies and fairness see one."""

from __future__ import annotations

from array import array
from dataclasses import dataclass


@dataclass(eq=False)
class Queued:
    """See `policy.Waiting`. Without a `place` it is that of its arrival, as if a token had been computed between each two."""

    arrival: int
    length: int = 10
    hint: int = 0
    priority: int = 0
    since: int = 0
    key: bytes = b""
    namespace: str = "default"
    overtaken: int = 0
    place: int = -1

    def __post_init__(self) -> None:
        if self.place < 0:
            self.place = self.arrival

    @property
    def uncached(self) -> int:
        return self.length - self.hint


def packed(tokens: list[int]) -> bytes:
    """A key."""
    return array("q", tokens).tobytes()
