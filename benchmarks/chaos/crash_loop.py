"""An actor that cannot run: the node tries as often as it may, then ends with an exit code and the first cause in its last line."""

from __future__ import annotations

import asyncio
import random
import time

import msgspec

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.kills import ACTORS
from benchmarks.chaos.node import ChaosNode, marked, toml
from benchmarks.chaos.plugins import CAUSE, fails

INTENSITY = 3
LIMIT = 60.0
KINDS = ("ToStart", "Soon", "ToLoad")


async def crash_round(plan: Plan) -> Outcome:
    """`plan.size` nodes, one after the other."""
    outcome, draw = Outcome(), random.Random(plan.seed)
    for number in range(plan.size):
        await give_up(plan, number, draw, outcome)
    return outcome


async def give_up(plan: Plan, number: int, draw: random.Random, outcome: Outcome) -> None:
    """One node with one actor that fails."""
    actor, kind = draw.choice(ACTORS), KINDS[number % len(KINDS)]
    config = toml(
        f'[actors."{actor}"]\nclass = "{fails(kind)}"', fake=actor != "worker/0", intensity=INTENSITY
    )
    node = ChaosNode(plan.folder / str(number), config)
    began = time.monotonic()
    node.launch()
    try:
        code = await asyncio.to_thread(node.process.wait, LIMIT)
    finally:
        node.process.kill()
        node.process.wait()
    outcome.sample("given up", time.monotonic() - began)
    outcome.count("nodes")
    what = f"{actor} {kind}"
    if code != 1:
        outcome.fail(f"{what}: exit code {code}, expected 1")
    last = node.output().strip().rpartition("\n")[2]
    if actor not in last or CAUSE not in last:
        outcome.fail(f"{what}: the last line does not say why: {last[:300]!r}")
    starts = _falls(node, actor)
    outcome.count("starts of the failing actor", starts)
    if starts > INTENSITY + 1:
        outcome.fail(f"{what}: started {starts} times, at most {INTENSITY + 1} are allowed")
    if left := marked(node.mark):
        outcome.fail(f"{what}: processes {left} outlived the node")


def _falls(node: ChaosNode, actor: str) -> int:
    """How often the root has noted that the actor went down."""
    log = node.runtime_dir / "logs" / "root.jsonl"
    lines = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
    return sum(line["event"] == "down" and line.get("name") == actor for line in lines)


CRASH_LOOP = Case(
    "crash-loop",
    "an actor whose start, task or import raises: the node gives up after the permitted restarts, exit code 1, first cause in the last line",
    crash_round,
    Form(3, 7),
    Form(1, 2),
)
