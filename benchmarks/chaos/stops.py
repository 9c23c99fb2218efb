"""Processes that are stopped for 10 s and woken, and event loops that block: found, replaced, and no word of the old incarnation is heard.

A stopped process is killed before its successor comes up, so what wakes it finds nobody. One that is stopped for a moment only goes on as it was.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.history import History
from benchmarks.chaos.kills import ACTORS, check_idle, until_serving
from benchmarks.chaos.load import Load, now
from benchmarks.chaos.node import ChaosNode, running, toml
from benchmarks.chaos.node_kills import Job
from benchmarks.chaos.plugins import Block, twin
from sgl_actors.actors.microkernel.messages import ActorRow
from sgl_actors.actors.microkernel.process import runs

STOPPED = 10.0
"""Seconds a process is stopped."""
MOMENT = 0.5
"""Seconds after which a stop is no fault."""
BLOCKED = 60.0
"""Seconds for which an event loop blocks; it is not to live that long."""
LIMIT = 30.0

Hurt = Callable[[ChaosNode, str, Outcome, random.Random], Coroutine[Any, Any, None]]


async def until_replaced(node: ChaosNode, old: ActorRow) -> ActorRow | None:
    """Its successor as soon as the node knows that the old one is over; None if that takes too long."""
    deadline = now() + LIMIT
    while now() < deadline:
        row = (await node.rows())[old.address]
        if row.pid not in (0, old.pid) or row.epoch > old.epoch:
            return row
        await asyncio.sleep(0.01)
    return None


async def until_running(node: ChaosNode, old: ActorRow) -> None:
    """Until an incarnation after `old` is up."""
    while not ((row := (await node.rows())[old.address]).state == "running" and row.epoch > old.epoch):
        await asyncio.sleep(0.01)


async def stop_and_wake(node: ChaosNode, actor: str, outcome: Outcome, draw: random.Random) -> None:
    """A moment's stop, which nobody notices; then a long one."""
    row = await node.kill(actor, signal.SIGSTOP)
    await asyncio.sleep(draw.uniform(0, MOMENT))
    os.kill(row.pid, signal.SIGCONT)
    await asyncio.sleep(0.2)
    if (await node.rows())[actor].epoch != row.epoch:
        outcome.fail(f"{actor} was replaced though it was stopped for less than {MOMENT} s")
    row = await node.kill(actor, signal.SIGSTOP)
    at = now()
    await _replaced(node, actor, row, at, outcome)
    await asyncio.sleep(max(0.0, at + STOPPED - now()))
    if runs(row.pid):
        os.kill(row.pid, signal.SIGCONT)
        outcome.count("woken")
        outcome.fail(f"{actor}: the stopped process {row.pid} lived on beside its successor")
    outcome.count("stopped")


async def block(node: ChaosNode, actor: str, outcome: Outcome, draw: random.Random) -> None:
    """Its loop blocks, asleep or busy."""
    row = (await node.rows())[actor]
    busy = draw.random() < 0.5
    node.context.cast(actor, Block(BLOCKED, busy))
    await _replaced(node, actor, row, now(), outcome)
    outcome.count("blocked busy" if busy else "blocked asleep")


async def stop_root(node: ChaosNode, outcome: Outcome) -> None:
    """The root is stopped and woken: it may replace processes that were fine, and whoever waits gets an answer all the same."""
    node.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED)
    node.process.send_signal(signal.SIGCONT)
    outcome.count("root stopped")
    await node.until_up()


async def stop_script(node: ChaosNode, plan: Plan, outcome: Outcome) -> None:
    """A user's script is stopped and continued, as with Ctrl-Z and fg: it ends as it would have."""
    outputs = []
    for name, stopped in (("calm", False), ("stopped", True)):
        job = Job(plan.folder, name, 150)
        job.start(node.record.endpoint)
        if stopped:
            while not job.journal.exists():
                await asyncio.sleep(0.01)
            job.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(STOPPED)
            job.process.send_signal(signal.SIGCONT)
        code, out, err = await job.result()
        if code:
            outcome.fail(f"script {name}: exit code {code}: {err[-500:]}")
        outputs.append(out)
    outcome.count("scripts stopped")
    if outputs[0] != outputs[1]:
        outcome.fail("a script that was stopped and continued printed something else")


async def _replaced(node: ChaosNode, actor: str, row: ActorRow, at: float, outcome: Outcome) -> None:
    if await until_replaced(node, row) is None:
        outcome.fail(f"{actor}: not replaced within {LIMIT:g} s")
        return
    outcome.sample("found", now() - at)
    await until_running(node, row)
    if runs(row.pid):
        outcome.fail(f"{actor}: process {row.pid} of the old incarnation lived when the new one was up")
    async with httpx2.AsyncClient(timeout=LIMIT) as http:
        if await until_serving(node, http, actor):
            outcome.sample(f"back {actor}", now() - at)
        else:
            outcome.fail(f"{actor}: not serving again")


async def hurt_each(plan: Plan, hurt: Hurt, config: str) -> Outcome:
    """One node; actors in a random order, `plan.size` of them (7 are all)."""
    outcome, draw = Outcome(), random.Random(plan.seed)
    async with running(plan.folder, config) as node:
        history = History(now)
        load = Load(node, history, fake=True, tokens=40, programs=4, streams=4)
        await load.open()
        try:
            await load.calm()
            load.begin()
            for actor in draw.sample(ACTORS, min(plan.size, len(ACTORS))):
                await hurt(node, actor, outcome, draw)
            if hurt is stop_and_wake:
                await stop_root(node, outcome)
                await stop_script(node, plan, outcome)
            await load.end()
        finally:
            await load.close()
        outcome.take(history.check())
        await check_idle(node, outcome)
    return outcome


async def stop_round(plan: Plan) -> Outcome:
    """SIGSTOP and SIGCONT."""
    return await hurt_each(plan, stop_and_wake, toml())


async def block_round(plan: Plan) -> Outcome:
    """Blocked loops."""
    actors = "\n".join(f'[actors."{actor}"]\nclass = "{twin(actor)}"' for actor in ACTORS)
    return await hurt_each(plan, block, toml(actors, fake=False))


STOPS = Case(
    "stops",
    "SIGSTOP for 10 s and SIGCONT: found, replaced, and the woken process does nothing; a short stop harms nobody; the root and a user's script go on",
    stop_round,
    Form(3, 7),
    Form(0, 0),
    {"found": (1.0, 3.0)},
)
BLOCKS = Case(
    "blocks",
    "an event loop that blocks (asleep or busy) is found and its process replaced",
    block_round,
    Form(3, 7),
    Form(0, 0),
    {"found": (1.0, 5.0)},
)
