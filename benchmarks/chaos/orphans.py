"""The root is killed, and so is a program that has brought its own node: nobody survives.

At a random moment after the start: while processes import, while they serve, and with a compiler process below the grammar actor. Survivors are found
by a variable in their environment, which children and grandchildren inherit.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.node import MARK, REPOSITORY, ChaosNode, marked, toml
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.constraints.constraint import REGEX, Constraint

SURVIVAL = 2.0
"""Seconds after which nobody may be left."""
EARLY = 1.2
"""Seconds within which a node is killed that is coming up."""
NO_GATEWAY = "[actors.gateway]\nenabled = false"
EMBEDDED = """
import asyncio
from sgl_actors.actors.node.embedded import open_node
async def main():
    await open_node("node.toml")
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def orphan_round(plan: Plan) -> Outcome:
    """`plan.size` roots, one after the other."""
    outcome, draw = Outcome(), random.Random(plan.seed)
    for number in range(plan.size):
        kind = draw.choices(["starting", "embedded", "busy"], [0.6, 0.2, 0.2])[0]
        node = ChaosNode(plan.folder / str(number), toml(NO_GATEWAY))
        if kind == "busy":
            await _serve(node)
        elif kind == "embedded":
            _embed(node)
            await asyncio.sleep(draw.uniform(0.2, 2 * EARLY))
        else:
            node.launch()
            await asyncio.sleep(draw.uniform(0.0, EARLY))
        family = len(marked(node.mark))
        node.process.send_signal(signal.SIGKILL)
        node.process.wait()
        at = time.monotonic()
        while (left := marked(node.mark)) and time.monotonic() < at + SURVIVAL:
            await asyncio.sleep(0.005)
        outcome.sample("all gone", time.monotonic() - at)
        outcome.count(f"killed {kind}")
        outcome.count("processes", family)
        if left:
            outcome.fail(
                f"try {number} ({kind}): {len(left)} of {family} processes lived {SURVIVAL:g} s later"
            )
            outcome.count("survivors", len(left))
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        if kind == "busy":
            await node.handle.close()
    outcome.count("survivors", 0)
    return outcome


async def _serve(node: ChaosNode) -> None:
    """Until it has answered, with a constraint, so that the grammar actor has a process below it."""
    node.launch()
    await node.join()
    pattern = Constraint(REGEX, "[a-z]{3,9}")
    sampling = SamplingOptions(max_tokens=4, temperature=0.0, seed=0, ignore_eos=True, constraint=pattern)
    try:
        await node.client.complete(Generate(f"busy-{node.mark}", text="Once", sampling=sampling), timeout=30)
    except SglActorsError as error:
        raise RuntimeError(f"no answer: {error}") from error


def _embed(node: ChaosNode) -> None:
    """A program that opens a node of its own."""
    script = Path(node.folder / "program.py")
    script.write_text(EMBEDDED, "utf-8")
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}",
        MARK: node.mark,
        "TMPDIR": str(node.folder),
    }
    with (node.folder / "out.txt").open("ab") as output:
        node.process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=node.folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


ORPHANS = Case(
    "orphans",
    "the root, or a program with a node of its own, is killed: no process survives 2 s, also when it was still importing",
    orphan_round,
    Form(10, 20),
    Form(1, 4),
    {"all gone": (1.0, SURVIVAL)},
)
