"""Faults from outside against real nodes, and a checker that says whether anything was lost or doubled.

    python -m benchmarks.chaos [--case NAME …] [--form ci|long] [--rounds N] [--seconds S] [--seed N] [--state FILE] [--table docs/reliability.md]

Prints one JSON line per round. Finished rounds are kept in `--state`: a run that was killed goes on where it was, as long as the code is the same; rounds of
another commit are done again. `--table` writes the table that is made of them. Exit code 1 if anything failed that must not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.cases import CASES
from benchmarks.chaos.node import REPOSITORY
from benchmarks.chaos.state import Round, State, commit
from benchmarks.chaos.table import merge, misses, render, write
from benchmarks.harness import show


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m benchmarks.chaos",
    )
    parser.add_argument(
        "--case", nargs="+", choices=[case.name for case in CASES], default=[], metavar="NAME"
    )
    parser.add_argument("--form", choices=["ci", "long"], default="long")
    parser.add_argument("--rounds", type=int, help="instead of the form's number of rounds")
    parser.add_argument("--seconds", type=float, help="of the soak, instead of the form's")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first round; the next one has the next seed"
    )
    parser.add_argument("--state", type=Path, default=REPOSITORY / "build" / "chaos.jsonl")
    parser.add_argument("--table", type=Path, help="file to write the table into")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    return parser.parse_args(argv)


def main() -> None:
    """Parse and run."""
    options = arguments(sys.argv[1:])
    if options.list:
        for case in CASES:
            print(f"{case.name:14} {case.promise}")
        return
    state, code = State(options.state), commit(REPOSITORY)
    failed = False
    for case in CASES:
        if not options.case or case.name in options.case:
            failed |= _case(case, options, state, code)
    if options.table is not None:
        write(options.table, render(CASES, state.latest()))
    if failed:
        sys.exit(1)


def _case(case: Case, options: argparse.Namespace, state: State, code: str) -> bool:
    """All its rounds; whether one failed."""
    form: Form = getattr(case, options.form)
    outcomes = []
    for number in range(form.rounds if options.rounds is None else options.rounds):
        seed = options.seed + number
        done = state.find(case.name, options.form, number, form.size, seed, code)
        if done is None:
            done = _round(case, form, options, number, seed, code)
            state.add(done)
        outcomes.append(done.outcome)
    whole = merge(outcomes)
    if missed := misses(case, whole):
        print(f"{case.name}: slower than the target: {', '.join(missed)}", file=sys.stderr)
    return bool(whole.failures)


def _round(case: Case, form: Form, options: argparse.Namespace, number: int, seed: int, code: str) -> Round:
    seconds = form.seconds if options.seconds is None else options.seconds
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"chaos-{case.name}-", ignore_cleanup_errors=True) as folder:
        try:
            outcome = asyncio.run(_run(case, Plan(seed, form.size, Path(folder), seconds)))
        except Exception as error:  # noqa: BLE001 - a round that breaks is a failure of its own, and the others go on
            traceback.print_exc()
            outcome = Outcome(failures=[f"the round broke off: {error!r}"[:500]])
    took = round(time.monotonic() - began, 1)
    show(
        case=case.name,
        round=number,
        seed=seed,
        seconds=took,
        **outcome.counts,
        failures=outcome.failures,
        **({"skipped": outcome.skipped} if outcome.skipped else {}),
    )
    return Round(case.name, options.form, number, form.size, seed, code, took, outcome)


async def _run(case: Case, plan: Plan) -> Outcome:
    return await case.run(plan)


if __name__ == "__main__":
    main()
