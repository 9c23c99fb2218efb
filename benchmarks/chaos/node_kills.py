"""The node, the user's process, or both are killed at random points under durable programs; the journal's tail is torn now and then.

A job is four programs in a script of a user. After up to `MOST` kills it is left alone; what it prints has to be what the same script prints without faults.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.chaos import durable_driver
from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.load import now
from benchmarks.chaos.node import REPOSITORY, ChaosNode, marked, toml

PROGRAMS = 4
MOST = 4
"""Kills of one job."""
LATEST = 1.5
"""Seconds after which the node or the script is killed at the latest."""
TORN = 4096
"""Bytes that are cut from the journal's log at most."""
LIMIT = 300.0
TRIES = 20
"""Starts of a script at most: a bound against hanging."""
NO_GATEWAY = "[actors.gateway]\nenabled = false"


class Job:
    """The script of a user, started as often as it takes."""

    def __init__(self, folder: Path, name: str, tokens: int) -> None:
        self.folder, self.name, self.tokens = folder, name, tokens
        self.journal = folder / f"{name}.db"
        self.process: subprocess.Popen[str]

    def start(self, endpoint: str) -> None:
        """Start it (again)."""
        arguments = [endpoint, str(self.journal), self.name, str(PROGRAMS), str(self.tokens)]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(durable_driver.__file__)), *arguments],
            env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def result(self) -> tuple[int, str, str]:
        """(exit code, what it printed, what it said of errors)."""
        try:
            out, err = await asyncio.to_thread(self.process.communicate, None, LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
        return self.process.returncode, out, err

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()

    def tear(self, draw: random.Random) -> int:
        """Cut the tail of the journal's log; returns how many bytes."""
        log = Path(f"{self.journal}-wal")
        size = log.stat().st_size if log.exists() else 0
        cut = draw.randrange(min(size, TORN) + 1)
        if cut:
            os.truncate(log, size - cut)
        return cut


async def node_kill_round(plan: Plan, *, fake: bool) -> Outcome:
    """`plan.size` kills over as many jobs as that takes."""
    outcome, draw = Outcome(), random.Random(plan.seed)
    tokens = 60 if fake else 24
    config = toml(NO_GATEWAY, fake=fake, delay=0.01)
    node = await _start(plan.folder / "node 0", config)
    try:
        calm = Job(plan.folder, "calm", tokens)
        calm.start(node.record.endpoint)
        code, wanted, err = await calm.result()
        if code:
            raise RuntimeError(f"without faults: exit code {code}: {err[-1000:]}")
        kills = jobs = 0
        while kills < plan.size:
            job = Job(plan.folder, f"job{jobs}", tokens)
            jobs += 1
            job.start(node.record.endpoint)
            for _ in range(min(draw.randint(1, MOST), plan.size - kills)):
                await asyncio.sleep(draw.uniform(0.1, LATEST))
                kills += 1
                node = await hurt(plan, node, job, config, draw, outcome, number=kills)
            await finish(node, job, wanted, outcome)
    finally:
        await _end(node)
    return outcome


async def hurt(
    plan: Plan, node: ChaosNode, job: Job, config: str, draw: random.Random, outcome: Outcome, *, number: int
) -> ChaosNode:
    """One kill, and what was killed is started again; returns the node that runs then."""
    what = draw.choices(("node", "script", "both"), (0.6, 0.2, 0.2))[0]
    outcome.count(f"killed {what}")
    at = now()
    if what != "script":
        node.process.send_signal(signal.SIGKILL)
        node.process.wait()
    if what != "node":
        job.kill()
        if draw.random() < 0.5 and job.tear(draw):
            outcome.count("torn tails")
    if what != "script":
        await _end(node)
        node = await _start(plan.folder / f"node {number}", config)
        outcome.sample("node up again", now() - at)
    if what != "node":
        job.start(node.record.endpoint)
    return node


async def finish(node: ChaosNode, job: Job, wanted: str, outcome: Outcome) -> None:
    """Let it end, started again if its node had failed it, and compare."""
    outcome.count("programs", PROGRAMS)
    for _ in range(TRIES):
        code, out, err = await job.result()
        if code != durable_driver.FAILED:
            break
        outcome.count("asked again")
        job.start(node.record.endpoint)
    if code:
        outcome.fail(f"{job.name}: exit code {code}: {err[-500:]}")
    elif out != wanted:
        outcome.fail(f"{job.name}: it returned something else than without faults: {out[:200]!r}")
    else:
        outcome.count("identical", PROGRAMS)


async def _start(folder: Path, config: str) -> ChaosNode:
    node = ChaosNode(folder, config)
    node.launch()
    await node.join()
    return node


async def _end(node: ChaosNode) -> None:
    await node.stop()
    for pid in marked(node.mark):
        os.kill(pid, signal.SIGKILL)


def _case(name: str, words: str, long: Form, ci: Form, *, fake: bool) -> Case:
    run: Callable[[Plan], Awaitable[Outcome]] = lambda plan: node_kill_round(plan, fake=fake)  # noqa: E731
    return Case(name, words, run, long, ci)


FAKE = _case(
    "node-kills",
    "kill -9 of the node, the script or both under durable programs, torn journal tails: all finish identically",
    Form(10, 20),
    Form(1, 2),
    fake=True,
)
MODEL = _case("node-kills-model", "the same with the default model", Form(2, 10), Form(0, 0), fake=False)
