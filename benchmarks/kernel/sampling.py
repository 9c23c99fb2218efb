"""The sampler over batches: microseconds per row by what the rows ask for.

    python -m benchmarks.kernel.sampling [--rows 1,16,64] [--vocabulary 49152] [--rounds 5] [--threads 1]

Logits are normal with a standard deviation of 3, so that about 100 tokens hold 0.95 of the mass. Cases run in turn in each round; one JSON line per case
with the median over the rounds. `read_us` is the time to read the same logits once (their sum), the least that a sampler takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.harness import median, show
from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import sample

SEEN = 500
"""Distinct tokens of a sequence whose penalties are counted."""
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 50},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "top_k_top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "bias": {"temperature": 0.0, "logit_bias": tuple((token, 1.5) for token in range(0, 300, 3))},
}


def make_rows(count: int, wanted: dict[str, Any]) -> list[SampleRow]:
    """`count` sequences that have written half of `SEEN` tokens."""
    seen = tuple(range(7, 7 + 13 * SEEN, 13))
    counts = {token: 1 + token % 3 for token in seen[: SEEN // 2]}
    return [
        SampleRow(Sampling(seed=index, **wanted), 1000 + index, SEEN // 2, counts, seen)
        for index in range(count)
    ]


def seconds(call: Callable[[], object], least: float = 0.05) -> float:
    """Of one call, over as many as take `least` seconds."""
    calls, began = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        took = time.perf_counter() - began
        if took > least:
            return took / calls


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for count in map(int, options.rows.split(",")):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(count, options.vocabulary, generator=generator) * 3
        cases = {name: make_rows(count, wanted) for name, wanted in CASES.items()}
        times: dict[str, list[float]] = {name: [] for name in [*cases, "read"]}
        with torch.inference_mode():
            for _ in range(options.rounds):
                times["read"].append(seconds(logits.sum))
                for name, rows in cases.items():
                    times[name].append(seconds(partial(sample, logits, rows)))
        for name in cases:
            took = median(times[name])
            show(
                case=name,
                rows=count,
                us=took * 1e6,
                us_per_row=took * 1e6 / count,
                read_us=median(times["read"]) * 1e6,
            )


if __name__ == "__main__":
    main()
