"""What this machine can do at most, and how a kernel's time is taken beside others'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]
Cases = Iterator[dict[str, Any]]

READ_BYTES = 1 << 29
CUBE = 1536
ATTEMPTS = 5


@dataclass(frozen=True)
class Limits:
    """Best of some attempts with all threads.

    Attributes:
        read: bytes per second of a sum over half a GiB.
        sgemm: fp32 operations per second of torch's product of two square matrices.
    """

    read: float
    sgemm: float


def measure_limits() -> Limits:
    """Measure them; takes about a second."""
    values = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    a = torch.randn(CUBE, CUBE)
    return Limits(
        read=READ_BYTES / _best(values.sum),
        sgemm=2 * CUBE**3 / _best(lambda: a @ a),
    )


def medians(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Seconds per call: medians over `rounds`, each calling every candidate once, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            seconds[name].append(_timed(call))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _best(call: Call) -> float:
    return min(_timed(call) for _ in range(ATTEMPTS))


def _timed(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
