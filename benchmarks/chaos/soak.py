"""Mixed load for a long time, each actor killed with a probability of 1 % per second: nothing grows.

Memory, file descriptors, threads and asyncio tasks of all processes are sampled; after a warm-up of a quarter of the time a line is fitted. Of processes that
are replaced now and then the sum says little about a leak of each, so the root, which lives all the time, has a line of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.history import History
from benchmarks.chaos.kills import ACTORS, check_idle
from benchmarks.chaos.load import Load, now
from benchmarks.chaos.node import ChaosNode, running, toml
from sgl_actors.actors.microkernel.process import resident_bytes

FAULTS = 0.01
"""Probability per second that an actor is killed."""
INTERVAL = 2.0
WARM_UP = 0.25
"""Share of the time before anything is measured."""
MEGABYTE = 1 << 20


async def soak_round(plan: Plan) -> Outcome:
    """One node for `plan.seconds`."""
    outcome, draw = Outcome(), random.Random(plan.seed)
    async with running(plan.folder, toml(delay=0.02)) as node:
        history = History(now)
        load = Load(node, history, fake=True, tokens=40, programs=8, streams=6)
        await load.open()
        try:
            await load.calm()
            load.begin()
            samples = await watch(node, draw, plan.seconds, outcome)
            await load.end()
        finally:
            await load.close()
        outcome.take(history.check())
        await check_idle(node, outcome)
    for name, series in samples.items():
        outcome.sample(f"{name} per hour", slope(series) * 3600)
        outcome.counts[f"{name} at the end"] = round(series[-1][1], 1)
    return outcome


async def watch(
    node: ChaosNode, draw: random.Random, seconds: float, outcome: Outcome
) -> dict[str, list[tuple[float, float]]]:
    """Kill now and then; returns what was measured after the warm-up, by name, as (seconds, value)."""
    samples: dict[str, list[tuple[float, float]]] = {}
    began = now()
    while (passed := now() - began) < seconds:
        for actor in ACTORS:
            if draw.random() < FAULTS * INTERVAL:
                await node.kill(actor)
                outcome.count("kills")
        await asyncio.sleep(INTERVAL)
        if passed >= seconds * WARM_UP:
            for name, value in (await measure(node)).items():
                samples.setdefault(name, []).append((passed, value))
    return samples


async def measure(node: ChaosNode) -> dict[str, float]:
    """Of the root and of all processes together: resident MB, file descriptors, threads; asyncio tasks as their kernels count them."""
    actors = await node.actors()
    pids = [row.pid for row in actors.rows if row.pid]
    found = {
        "root MB": resident_bytes(node.process.pid) / MEGABYTE,
        "root fds": float(descriptors(node.process.pid)),
        "MB": sum(map(resident_bytes, pids)) / MEGABYTE,
        "fds": float(sum(map(descriptors, pids))),
        "threads": float(sum(map(threads, pids))),
    }
    tasks = [counters["tasks"] for counters in actors.kernels.values() if "tasks" in counters]
    return found | ({"tasks": sum(tasks)} if tasks else {})


def descriptors(pid: int) -> int:
    """Open file descriptors of a process; 0 if it is gone."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def threads(pid: int) -> int:
    """Threads of a process; 0 if it is gone."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return 0


def slope(series: Sequence[tuple[float, float]]) -> float:
    """Least squares: how much the value grows per second."""
    if len(series) < 2:
        return 0.0
    middle = sum(x for x, _ in series) / len(series)
    height = sum(y for _, y in series) / len(series)
    width = sum((x - middle) ** 2 for x, _ in series)
    return sum((x - middle) * (y - height) for x, y in series) / width if width else 0.0


SOAK = Case(
    "soak",
    "mixed load with each actor killed at 1 %/s: memory, descriptors, threads and tasks stay flat after the warm-up",
    soak_round,
    Form(1, 0, 1200.0),
    Form(0, 0, 10.0),
    {"root MB per hour": (1.0, 3.0), "root fds per hour": (1.0, 5.0)},
)
