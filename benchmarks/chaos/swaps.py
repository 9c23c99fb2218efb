"""Another class takes an actor's place under load, again and again; and one whose restore raises does not.

The classes are the actor's own and its twin from `plugins`. What a swap costs is the time to the next token, from the order for each request that runs then and
from its own beginning for one that begins soon after; the same is measured at moments without a swap, and the difference of the 99th percentiles is what swaps add.
"""

from __future__ import annotations

import asyncio
import random

from benchmarks.chaos.case import Case, Form, Outcome, Plan, percentile
from benchmarks.chaos.history import History, Life
from benchmarks.chaos.kills import ACTORS, check_idle
from benchmarks.chaos.load import Load, now, pick_moment
from benchmarks.chaos.node import ChaosNode, running, toml
from benchmarks.chaos.plugins import CAUSE, CLASSES, twin, unrestorable
from sgl_actors.actors.microkernel.messages import SwapActor, Swapped
from sgl_actors.errors import SglActorsError, SwapFailed

LONGEST_WAIT = 0.3
"""Seconds between two swaps at most."""
SOON = 0.3
"""Seconds after an order in which a request that begins feels it."""
LIMIT = 30.0
ROLL_BACKS = 3
"""Swaps per actor to a class that takes no snapshot."""


async def swap_round(plan: Plan) -> Outcome:
    """One node; `plan.size` swaps of each actor."""
    outcome = Outcome()
    async with running(plan.folder, toml()) as node:
        await swap_all(node, plan, outcome)
        await check_idle(node, outcome)
    return outcome


async def swap_all(node: ChaosNode, plan: Plan, outcome: Outcome, programs: int = 8) -> None:
    """Swap one actor after the other under load."""
    draw, history = random.Random(plan.seed), History(now)
    hits: dict[str, list[float]] = {}
    load = Load(node, history, fake=True, tokens=40, programs=programs, streams=programs)
    await load.open()
    try:
        await load.calm()
        load.begin()
        await asyncio.sleep(SOON)
        calm = await _moments(draw, max(5, plan.size))
        for actor in draw.sample(ACTORS, len(ACTORS)):
            hits[actor] = await swap(node, actor, draw, plan.size, outcome)
            await roll_back(node, actor, outcome)
        await asyncio.sleep(SOON)
        await load.end()
    finally:
        await load.close()
    usual = [wait for at in calm for wait in waits(history.lives, at)]
    for actor, moments in hits.items():
        swapped = [wait for at in moments for wait in waits(history.lives, at)]
        if usual and swapped:
            outcome.sample(f"added p99 {actor}", percentile(swapped, 0.99) - percentile(usual, 0.99))
    verdict = history.check()
    if verdict.retried:
        outcome.fail(f"{verdict.retried} requests had to be asked for again")
    outcome.take(verdict)


async def _moments(draw: random.Random, count: int) -> list[float]:
    """Moments at which nothing happens."""
    found = []
    for _ in range(count):
        await pick_moment(draw, LONGEST_WAIT)
        found.append(now())
    return found


async def swap(node: ChaosNode, actor: str, draw: random.Random, count: int, outcome: Outcome) -> list[float]:
    """Swap to the twin and back, `count` times; returns when."""
    epoch, hits = (await node.rows())[actor].epoch, []
    for number in range(count):
        await pick_moment(draw, LONGEST_WAIT)
        path = CLASSES[actor][0] if number % 2 else twin(actor)
        hits.append(now())
        try:
            swapped = await node.context.call("root", SwapActor(actor, path), Swapped, timeout=LIMIT)
        except SglActorsError as error:
            outcome.fail(f"{actor}: swap {number} to {path}: {error!r}"[:300])
            continue
        outcome.count(f"swaps {actor}")
        outcome.sample(f"held {actor}", swapped.held)
        if not swapped.in_place:
            outcome.count(f"restarted {actor}")
    after = (await node.rows())[actor].epoch
    if after != epoch and not outcome.counts.get(f"restarted {actor}"):
        outcome.fail(f"{actor}: its incarnation is {after}, was {epoch}: something ended it")
    return hits


async def roll_back(node: ChaosNode, actor: str, outcome: Outcome) -> None:
    """A class whose restore raises: refused, and the actor goes on."""
    before = (await node.rows())[actor]
    for _ in range(ROLL_BACKS):
        try:
            await node.context.call("root", SwapActor(actor, unrestorable(actor)), Swapped, timeout=LIMIT)
        except SwapFailed as error:
            if CAUSE in error.message:
                outcome.count("rolled back")
            else:
                outcome.fail(f"{actor}: failed otherwise than by its restore: {error.message}"[:300])
        except SglActorsError as error:
            outcome.fail(f"{actor}: a swap that cannot be: {error!r}"[:300])
        else:
            outcome.fail(f"{actor}: a class whose restore raises took over")
    after = (await node.rows())[actor]
    if (after.epoch, after.state) != (before.epoch, "running"):
        outcome.fail(
            f"{actor}: {after.state} in incarnation {after.epoch} after a roll back, was {before.epoch}"
        )


def waits(lives: list[Life], at: float) -> list[float]:
    """Of each request that runs at `at` or begins soon after: the time to its next token."""
    found = []
    for life in lives:
        if life.began < at + SOON and (not life.ended or life.ended > at):
            since = max(at, life.began)
            found += [time - since for time in life.times() if time > since][:1]
    return found


SWAPS = Case(
    "swaps",
    "live class swaps of every component under load: no request fails or is asked for twice; a class whose restore raises is rolled back",
    swap_round,
    Form(4, 25),
    Form(1, 2),
    {f"added p99 {actor}": (1.0, 0.5) for actor in ACTORS},
)
