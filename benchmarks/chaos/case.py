"""What a case is, and what a round of it says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.chaos.history import Verdict


class Outcome(msgspec.Struct):
    """What one round found.

    Attributes:
        counts: summed over rounds.
        samples: seconds (or what the name says), put together over rounds for percentiles.
        failures: what must not be; any makes the case fail.
        skipped: why it could not be run here.
    """

    counts: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    failures: list[str] = []
    skipped: str = ""

    def count(self, name: str, more: float = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + more

    def sample(self, name: str, value: float) -> None:
        """Add one value."""
        self.samples.setdefault(name, []).append(round(value, 4))

    def fail(self, words: str) -> None:
        """Note what must not be."""
        self.failures.append(words)

    def take(self, verdict: Verdict) -> None:
        """Add what the history's checker said."""
        for name, value in (
            ("requests", verdict.requests),
            ("tokens", verdict.tokens),
            ("retried", verdict.retried),
        ):
            self.count(name, value)
        self.sample("longest request", verdict.longest)
        for name in ("lost", "doubled"):
            self.count(name, verdict.kinds[name])
        self.failures += verdict.failures


@dataclass(frozen=True)
class Plan:
    """One round: its seed, how much of the fault (kills, swaps, requests), a folder of its own, and seconds for cases that run for a time."""

    seed: int
    size: int
    folder: Path
    seconds: float = 0.0


@dataclass(frozen=True)
class Form:
    """How much of a case: rounds, and faults per round."""

    rounds: int
    size: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One promise, and the faults under which it has to hold.

    Attributes:
        name: on the command line.
        promise: what has to hold, in a line.
        run: does one round.
        long: the form in which the numbers are published.
        ci: a small one.
        targets: by name of a sample, (percentile, most); a miss is shown, and is no failure: it depends on the machine.
    """

    name: str
    promise: str
    run: Callable[[Plan], Awaitable[Outcome]]
    long: Form
    ci: Form
    targets: dict[str, tuple[float, float]] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of them do not exceed; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def spread(values: Sequence[float]) -> str:
    """Median, 95th percentile and most, as text."""
    return f"{statistics.median(values):.2f} / {percentile(values, 0.95):.2f} / {max(values):.2f}"
