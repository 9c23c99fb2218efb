"""Seeds of the deterministic simulation (tests/simulation): each is a history of its own, with faults, on a virtual clock."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.node import REPOSITORY

COUNT = re.compile(r"^ *(\d+) (seeds|deaths|fault: .+)$", re.MULTILINE)


async def simulation_round(plan: Plan) -> Outcome:
    """`plan.size` seeds, other ones in each round."""
    outcome = Outcome()
    first = (plan.seed - 1) * plan.size
    command = [sys.executable, "-m", "tests.simulation", "--seeds", f"{first}-{first + plan.size - 1}"]
    jobs = ["--jobs", str(os.cpu_count() or 1)]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, *jobs],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    for number, name in COUNT.findall(done.stdout):
        outcome.count("faults" if name.startswith("fault") else name, int(number))
    failed = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
    outcome.count("seeds that fail", len(failed))
    outcome.failures += failed[:20]
    if done.returncode and not failed:
        outcome.fail(f"exit code {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return outcome


SIMULATION = Case(
    "simulation",
    "delays, drops, partitions and crashes on a seeded loop with a virtual clock: no invariant is violated",
    simulation_round,
    Form(10, 1000),
    Form(1, 20),
)
