"""Each CPU kernel's time, GB/s and GOP/s, beside limits of the machine measured in the same run.

    python -m benchmarks.kernels [--only linear,attention] [--threads 2] [--rounds 5]

Prints one JSON line with the limits, then one per case. Needs the native library. Take no number on a busy machine: each line has the load average.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from importlib import import_module

import torch

from benchmarks.kernel.limits import measure_limits

SUITES = ("linear", "attention")
"""Modules of `benchmarks.kernel`; each has `run(limits, *, threads, rounds)`, which yields its cases."""


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join(SUITES), help="suites, comma-separated")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="compute threads, ours and torch's"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case")
    given = parser.parse_args()
    names = given.only.split(",")
    unknown = sorted(set(names) - set(SUITES))
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}: there are {', '.join(SUITES)}")
    torch.set_num_threads(given.threads)
    limits = measure_limits()
    _show({"limits": dataclasses.asdict(limits), "threads": given.threads})
    for name in names:
        for case in import_module(f"benchmarks.kernel.{name}").run(
            limits, threads=given.threads, rounds=given.rounds
        ):
            _show(case)


def _show(line: dict[str, object]) -> None:
    print(json.dumps(line | {"load": round(os.getloadavg()[0], 2)}), flush=True)


if __name__ == "__main__":
    main()
