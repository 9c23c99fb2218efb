"""A waiting request as policies and fairness see one."""

from __future__ import annotations

from array import array
from dataclasses import dataclass


@dataclass(eq=False)
class Queued:
    """See `policy.Waiting`."""

    arrival: int
    length: int = 10
    hint: int = 0
    priority: int = 0
    since: int = 0
    key: bytes = b""
    namespace: str = "default"
    overtaken: int = 0

    @property
    def uncached(self) -> int:
        return self.length - self.hint


def packed(tokens: list[int]) -> bytes:
    """A key."""
    return array("q", tokens).tobytes()
