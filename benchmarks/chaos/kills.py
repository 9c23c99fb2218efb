"""Random SIGKILLs of every actor's process under load.

A round is one node. 16 programs × 4 branches (three quarters of them over the bus, the others over HTTP), HTTP streams and bus clients run in endless turns;
`size` kills hit the actors in a random order, a fifth of them while an earlier one has not been mended. After each it is measured how long it takes until a new request that needs
the actor succeeds, and how long running streams pause.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections.abc import Awaitable, Callable

import httpx2

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.history import History, Life
from benchmarks.chaos.load import PROGRAMS, Load, now, pick_moment
from benchmarks.chaos.node import ChaosNode, running, toml
from sgl_actors.actors.programs.messages import ListPrograms, Programs
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.constraints.constraint import REGEX, Constraint

ACTORS = ("cache", "worker/0", "scheduler", "grammar", "tokenizer", "programs", "gateway")
TOGETHER = 0.2
"""Share of kills that come while an earlier one has not been mended."""
LONGEST_WAIT = 0.6
"""Seconds between two kills at most, beside the time it takes to mend one."""
PROBE_LIMIT = 60.0
WINDOW = 10.0
"""Seconds after a kill in which the pause of a running stream is looked for."""

_numbers = itertools.count()


async def probe(node: ChaosNode, http: httpx2.AsyncClient, actor: str) -> None:
    """A new request that needs the actor; raises until it succeeds."""
    number = next(_numbers)
    if actor == "programs":
        await node.client.ask("programs", ListPrograms(), Programs, timeout=5.0)
        return
    if actor == "gateway":
        body = {
            "text": f"Probe {number}",
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "priority": 9,
        }
        (await http.post(f"{node.url}/generate", json=body)).raise_for_status()
        return
    pattern = (
        Constraint(REGEX, f"[a-z]{{1,{1 + number % 999}}}|x{{{number // 999}}}")
        if actor == "grammar"
        else None
    )
    sampling = SamplingOptions(max_tokens=1, temperature=0.0, seed=0, ignore_eos=True, constraint=pattern)
    request = Generate(f"probe-{secrets.token_hex(6)}", text=f"Probe {number}", sampling=sampling, priority=9)
    await node.client.complete(request, timeout=PROBE_LIMIT)


async def until_serving(node: ChaosNode, http: httpx2.AsyncClient, actor: str) -> bool:
    """Ask until it works; False if it does not within `PROBE_LIMIT`."""
    deadline = now() + PROBE_LIMIT
    while now() < deadline:
        try:
            await probe(node, http, actor)
        except (SglActorsError, httpx2.HTTPError):
            await asyncio.sleep(0.02)
        else:
            return True
    return False


def pauses(lives: list[Life], at: float) -> list[float]:
    """Of streams that ran at `at` and went on: the longest time without a token within `WINDOW` from then."""
    found = []
    for life in lives:
        times = life.times()
        later = [time for time in times if at < time < at + WINDOW]
        if later and times[0] < at:
            found.append(max(two - one for one, two in itertools.pairwise([at, *later])))
    return found


async def kill_round(plan: Plan, *, fake: bool) -> Outcome:
    """One node and `plan.size` kills."""
    outcome = Outcome()
    async with running(plan.folder, toml(fake=fake, delay=0.01)) as node:
        await kill_under_load(node, plan, outcome, fake=fake)
        await check_idle(node, outcome)
    return outcome


async def kill_under_load(
    node: ChaosNode, plan: Plan, outcome: Outcome, *, fake: bool = True, programs: int = PROGRAMS
) -> None:
    """A run without faults to know what is right, then the load and the kills."""
    history = History(now)
    load = Load(
        node,
        history,
        fake=fake,
        tokens=40 if fake else 24,
        programs=programs,
        streams=programs // (2 if fake else 4),
    )
    await load.open()
    try:
        await load.calm()
        load.begin()
        await asyncio.sleep(0.5)
        kills = await storm(node, random.Random(plan.seed), plan.size, outcome)
        await load.end()
    finally:
        await load.close()
    for actor, at in kills:
        for pause in sorted(pauses(history.lives, at))[-1:]:
            outcome.sample(f"pause {actor}", pause)
    outcome.take(history.check())


async def storm(
    node: ChaosNode, draw: random.Random, kills: int, outcome: Outcome
) -> list[tuple[str, float]]:
    """Kill `kills` times; returns whom and when."""
    hits: list[tuple[str, float]] = []
    deck: list[str] = []
    async with asyncio.TaskGroup() as group:

        async def mend(actor: str, at: float) -> None:
            async with httpx2.AsyncClient(timeout=PROBE_LIMIT) as own:
                if await until_serving(node, own, actor):
                    outcome.sample(f"back {actor}", now() - at)
                else:
                    outcome.fail(f"{actor} killed at {at:.1f}: not back within {PROBE_LIMIT:g} s")

        for _ in range(kills):
            if not deck:
                deck = draw.sample(ACTORS, len(ACTORS))
            actor = deck.pop()
            await node.kill(actor)
            at = now()
            hits.append((actor, at))
            outcome.count("kills")
            mending = group.create_task(mend(actor, at))
            if draw.random() >= TOGETHER:
                await mending
            await pick_moment(draw, LONGEST_WAIT)
    return hits


async def check_idle(node: ChaosNode, outcome: Outcome) -> None:
    """With nothing to do nobody holds anything."""
    left = await node.until_idle()
    for name, value in left.items():
        if value:
            outcome.fail(f"idle, and {value:g} {name}")


def _case(name: str, words: str, long: Form, ci: Form, worker: float, *, fake: bool) -> Case:
    run: Callable[[Plan], Awaitable[Outcome]] = lambda plan: kill_round(plan, fake=fake)  # noqa: E731
    targets = {f"back {actor}": (0.95, worker if actor == "worker/0" else 3.0) for actor in ACTORS}
    return Case(name, words, run, long, ci, targets)


FAKE = _case(
    "kills",
    "SIGKILL of any actor under 16 programs × 4 branches: nothing lost, nothing doubled, one end each, outputs as without faults",
    Form(10, 20),
    Form(1, 7),
    3.0,
    fake=True,
)
MODEL = _case("kills-model", "the same with the default model", Form(4, 10), Form(0, 0), 6.0, fake=False)
