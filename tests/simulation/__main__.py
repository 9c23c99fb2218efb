# ruff: noqa: T201 - it prints
"""`python -m tests.simulation --seed 17 --trace` repeats one history, `--seeds 0-9999 --jobs 2` runs many.

Exit code 1 if an invariant was violated; each failing seed prints the line that repeats it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

REPLAY = "python -m tests.simulation --seed"


def many(first: int, last: int, jobs: int) -> int:
    """Run a range of seeds; returns how many failed."""
    from tests.simulation.history import run_seeds

    chunks = [list(range(at, min(at + 25, last + 1))) for at in range(first, last + 1, 25)]
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    failed: list[int] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        results = pool.map(run_seeds, chunks) if jobs > 1 else map(run_seeds, chunks)
        for rows in results:
            if counts["seeds"] and counts["seeds"] % 1000 == 0:
                rate = counts["seeds"] / (time.perf_counter() - began)
                print(
                    f"{counts['seeds']} seeds, {len(failed)} failed, {rate:.1f}/s",
                    file=sys.stderr,
                    flush=True,
                )
            for seed, _, violations, of_seed in rows:
                counts.update(of_seed)
                counts["seeds"] += 1
                if violations:
                    failed.append(seed)
                    print(
                        f"seed {seed}: {violations[0][:1500]}\n  repeat: {REPLAY} {seed} --trace", flush=True
                    )
    seconds = time.perf_counter() - began
    for name, count in sorted(counts.items()):
        print(f"{count:8d} {name}")
    number = last - first + 1
    print(
        f"{number - len(failed)} of {number} seeds hold, {number / seconds:.1f} seeds/s; failed: {failed[:40]}"
    )
    return len(failed)


def one(seed: int, *, trace: bool) -> int:
    """Run one seed and tell what it was."""
    from tests.simulation.history import Plan, run_history, undisturbed

    undisturbed()
    plan = Plan.of(seed)
    print(f"seed {seed}: faults {plan.faults}, {plan.requests} requests, {plan.programs} programs")
    verdict = run_history(seed, print if trace else None)
    for violation in verdict.violations:
        print(f"VIOLATION {violation}")
    print(f"hash {verdict.digest}, {verdict.seconds:.1f} s of virtual time, {verdict.turns} turns")
    return len(verdict.violations)


def main() -> None:
    """See the module."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", metavar="A-B")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print every message handled")
    arguments = parser.parse_args()
    if arguments.seeds:
        first, _, last = arguments.seeds.partition("-")
        sys.exit(bool(many(int(first), int(last), arguments.jobs)))
    sys.exit(bool(one(arguments.seed or 0, trace=arguments.trace)))


if __name__ == "__main__":
    main()
