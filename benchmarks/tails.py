"""What a saturated worker does to everybody else: how soon `/health` answers, and what the way to the first byte takes beside the worker.

    python -m benchmarks.tails [--seconds 10] [--rounds 1] [--settings "model.nice=0;model.nice=5"] [--check]

Load, from a process of its own: 16 streams that decode all the time, and prompts of 512 random tokens, one after the other. Beside it `/health`
is asked every 30 ms, and six askers send prompts of 33 to 38 random tokens for one token. Of each of those, the worker's profile tells when the step
began that took it up and when the one ended that gave its first token. Overhead is the rest: from the sending to that beginning, less
the time in which the worker ran steps that were there before, and from that end to the first byte. Nothing is drafted, so that tokens
per second compare.

Each setting of node.toml is measured in a node of its own, alternately. One JSON line per run; targets, at the end, are those of the last setting.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

from benchmarks.harness import LiveNode, median, running, show, verdict
from sgl_actors.actors.node.client import NodeClient, NodeProfile
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.worker.messages import Profiled
from sgl_actors.bench.client import complete
from sgl_actors.bench.load import random_prompts
from sgl_actors.bench.samples import percentile

STREAMS, STREAM_TOKENS = 16, 400
LONG_TOKENS = 512
PROBES, PROBE_EVERY = (33, 34, 35, 36, 37, 38), 0.1
"""Tokens of the prompt of each asker; no other has that many: a step tells by the number which it is."""
HEALTH_EVERY = 0.03
WARM_UP = 5.0
TARGET_HEALTH, TARGET_OVERHEAD = 0.050, 0.015


@dataclass
class Probes:
    """Seconds that `/health` took, and (tokens, sent, first byte) of each prompt."""

    health: list[float] = field(default_factory=list)
    first: list[tuple[int, float, float]] = field(default_factory=list)


async def load(url: str) -> None:
    """Keep a node busy until this process is ended."""
    seeds = itertools.count(1)
    async with connect(url) as http, asyncio.TaskGroup() as group:
        model = await name_of(http)

        async def stream() -> None:
            while True:
                (prompt,) = random_prompts(1, next(seeds))
                await complete(http, model, prompt, STREAM_TOKENS)

        for _ in range(STREAMS):
            group.create_task(stream())
        while True:
            (prompt,) = random_prompts(1, next(seeds), tokens=LONG_TOKENS)
            await complete(http, model, prompt, 1)


def connect(url: str) -> httpx2.AsyncClient:
    """Without a limit of connections."""
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(base_url=url, timeout=httpx2.Timeout(600), limits=limits)


async def name_of(http: httpx2.AsyncClient) -> str:
    """What the node serves."""
    name: str = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
    return name


async def probe(node: LiveNode, seconds: float) -> tuple[Probes, NodeProfile]:
    """Ask beside the load for so long, and watch the worker meanwhile."""
    probes = Probes()
    handle = await join(node.record.endpoint)
    try:
        async with connect(node.url) as http, asyncio.TaskGroup() as group:
            await asyncio.sleep(WARM_UP)
            model = await name_of(http)
            tasks = [group.create_task(ask_health(http, probes))]
            tasks += [group.create_task(ask_tokens(http, model, length, probes)) for length in PROBES]
            profile = await NodeClient(handle.context("tails")).profile(seconds)
            for task in tasks:
                task.cancel()
    finally:
        await handle.close()
    return probes, profile


async def ask_health(http: httpx2.AsyncClient, probes: Probes) -> None:
    """Again and again."""
    while True:
        began = time.monotonic()
        (await http.get("/health")).raise_for_status()
        probes.health.append(time.monotonic() - began)
        await asyncio.sleep(HEALTH_EVERY)


async def ask_tokens(http: httpx2.AsyncClient, model: str, length: int, probes: Probes) -> None:
    """Again and again a prompt of that length, one at a time."""
    for seed in itertools.count(length * 10**6):
        (prompt,) = random_prompts(1, seed, tokens=length)
        sample = await complete(http, model, prompt, 1, time.monotonic)
        probes.first.append((length, sample.started, sample.arrivals[0]))
        await asyncio.sleep(PROBE_EVERY)


def overheads(first: Sequence[tuple[int, float, float]], profiled: Profiled) -> list[tuple[float, float]]:
    """(seconds before the worker, seconds after it) of each prompt that it took up and answered within the profile."""
    found, steps = [], profiled.steps
    for length, sent, came in first:
        if sent < profiled.began:
            continue  # of the step that ran then nothing is known
        within = [step for step in steps if step.began >= sent and step.ended <= came]
        taken = next((step for step in within if length in step.started), None)
        given = next((step for step in within if length in step.first), None)
        if taken is not None and given is not None:
            busy = sum(
                max(0.0, min(step.ended, taken.began) - max(step.began, sent))
                for step in steps
                if step.number != taken.number
            )
            found.append((taken.began - sent - busy, came - given.ended))
    return found


def measure(settings: Sequence[str], seconds: float) -> dict[str, float]:
    """One node under load."""
    with running("scheduler.speculation=false", *settings) as node:
        loader = subprocess.Popen([sys.executable, "-m", "benchmarks.tails", "--load", node.url])
        try:
            probes, profile = asyncio.run(probe(node, seconds))
        finally:
            loader.kill()
            loader.wait()
    ways = overheads(probes.first, profile.profiled)
    whole = [before + after for before, after in ways]
    worker = sum(step.ended - step.began for step in profile.profiled.steps)
    return {
        "health_p50_s": median(probes.health),
        "health_p99_s": percentile(probes.health, 0.99),
        "health": len(probes.health),
        "overhead_p50_s": median(whole),
        "overhead_p99_s": percentile(whole, 0.99),
        "before_p50_s": median([before for before, _ in ways]),
        "after_p50_s": median([after for _, after in ways]),
        "prompts": len(whole),
        "tokens_per_s": profile.tokens / profile.seconds,
        "step_ms": 1e3 * worker / max(1, profile.steps),
        "saturated": worker / profile.seconds,
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run, at most 60")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--settings", default="", help="KEY=VALUE,… of node.toml; several sets with ; between"
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--load", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        with suppress(KeyboardInterrupt):
            asyncio.run(load(arguments.load))
        return
    sets = [[one for one in group.split(",") if one] for group in arguments.settings.split(";")]
    rows: dict[int, list[dict[str, float]]] = {number: [] for number in range(len(sets))}
    for round_ in range(arguments.rounds):
        for number in range(len(sets)) if round_ % 2 == 0 else reversed(range(len(sets))):
            rows[number].append(measure(sets[number], arguments.seconds))
            show(settings=",".join(sets[number]), round=round_, **rows[number][-1])
    last = rows[len(sets) - 1]
    verdict(
        [
            ("/health p99 [s]", median([row["health_p99_s"] for row in last]), "<=", TARGET_HEALTH),
            (
                "first byte beside the worker, p50 [s]",
                median([row["overhead_p50_s"] for row in last]),
                "<=",
                TARGET_OVERHEAD,
            ),
        ],
        check=arguments.check,
    )


if __name__ == "__main__":
    main()
