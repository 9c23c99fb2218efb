"""Time to first token with a warm cache, beside running streams, and of cold requests under a stream of hot ones.

    python -m benchmarks.latency [--only warm,beside,starvation] [--rounds 5] [--seconds 60] [--check]

warm        a prompt of 1,500 random tokens of which 1,400 are cached, and one of which none is, alternately.
beside      a prompt of 4,000 tokens arrives while 8 streams decode, and alone, alternately: the longest gap between the streams' tokens
            until its first token, over their median gap before it came, and its time to first token over that alone.
starvation  requests that share a hot prefix arrive at 90 % of the rate measured under `lpm`, and cold ones beside them, so that more comes
            than can be served: under `lpm` with `overtake = 0`, the node's default and `fcfs`. All requests are served in the end;
            counted are their times to first token, and the hit rate over all of them.

All prompts are random token ids and all output is forced to its length. One JSON line per run; targets at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.harness import LiveNode, median, running, show, verdict
from sgl_actors.bench.client import LoadError, complete
from sgl_actors.bench.load import random_prompts
from sgl_actors.bench.samples import percentile

WARM_TOKENS, WARM_CACHED = 1_500, 1_400
LONG_TOKENS, STREAMS, STREAM_TOKENS, STREAM_WARM = 4_000, 8, 600, 40
HOT_PREFIX, HOT_OWN, COLD_TOKENS, REPLY = 1_024, 48, 512, 8
COLD_SHARE = 0.25
"""Of the node's time, that the cold requests would take: with the hot ones' 0.9 more than there is."""
BATCH = 8
"""Sequences in a step for the starvation runs: with few places, requests wait where the policy orders them."""
OVERTAKEN = "overtaken"
"""Part of the name of the scheduler's statistics about overtaking."""

Targets = list[tuple[str, float, str, float]]


@dataclass
class Clock:
    """The clock of one request, which remembers when it was read: at the sending, then at each chunk.

    `warm` is set once `until` tokens have come.
    """

    until: int = 0
    times: list[float] = field(default_factory=list)
    warm: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self) -> float:
        """Seconds."""
        now = time.perf_counter()
        self.times.append(now)
        if len(self.times) > self.until:
            self.warm.set()
        return now


class Asker:
    """Sends prompts to one node."""

    def __init__(self, http: httpx2.AsyncClient, model: str, node: LiveNode) -> None:
        self.http, self.model, self.node = http, model, node

    async def first_token(self, prompt: list[int], tokens: int = 1) -> float:
        """Seconds until the first token of a reply of `tokens` tokens."""
        sample = await complete(self.http, self.model, prompt, tokens)
        return sample.arrivals[0] - sample.started

    async def counters(self) -> dict[str, float]:
        """See `LiveNode.counters`."""
        return await asyncio.to_thread(self.node.counters)

    async def switch(self, **changes: Any) -> dict[str, Any]:
        """Configure the scheduler and empty the cache."""
        found = await asyncio.to_thread(self.node.configure, **changes)
        await asyncio.to_thread(self.node.flush)
        return found


async def with_asker(
    node: LiveNode, case: Callable[[Asker, argparse.Namespace], Awaitable[Targets]], arguments: Any
) -> Targets:
    """Run a case with connections of its own."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=node.url, timeout=httpx2.Timeout(600), limits=limits) as http:
        model = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        return await case(Asker(http, model, node), arguments)


async def warm(asker: Asker, arguments: argparse.Namespace) -> Targets:
    """See the module."""
    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    for round_ in range(arguments.rounds):
        known, unknown = random_prompts(2, 2 * round_, tokens=WARM_TOKENS)
        await asker.switch()
        await asker.first_token(known[:WARM_CACHED])
        cases = [("cached", known), ("uncached", unknown)]
        for case, prompt in cases if round_ % 2 else reversed(cases):
            seconds[case].append(await asker.first_token(prompt))
            show(case="warm", round=round_, prompt=case, ttft_s=seconds[case][-1])
    ratio = median(seconds["cached"]) / median(seconds["uncached"])
    return [(f"TTFT of {WARM_TOKENS} tokens, {WARM_CACHED} cached, over uncached", ratio, "<=", 0.25)]


async def beside(asker: Asker, arguments: argparse.Namespace) -> Targets:
    """See the module."""
    alone: list[float] = []
    together: list[float] = []
    gaps: list[float] = []
    for round_ in range(arguments.rounds):
        one, two = random_prompts(2, 10**6 + round_, tokens=LONG_TOKENS)
        for case in ("alone", "with") if round_ % 2 else ("with", "alone"):
            await asker.switch()
            if case == "alone":
                alone.append(await asker.first_token(one))
                show(case="beside", round=round_, streams=0, ttft_s=alone[-1])
            else:
                result = await among_streams(asker, two, round_)
                together.append(result["ttft_s"])
                gaps.append(result["longest_gap_s"] / result["median_gap_s"])
                show(case="beside", round=round_, streams=STREAMS, **result, gap_ratio=gaps[-1])
    what = f"{LONG_TOKENS} tokens beside {STREAMS} streams"
    return [
        (f"{what}: longest gap of the streams over their median before, worst round", max(gaps), "<=", 4.0),
        (f"{what}: TTFT over alone", median(together) / median(alone), "<=", 2.0),
    ]


async def among_streams(asker: Asker, prompt: list[int], seed: int) -> dict[str, float]:
    """Send `prompt` once all streams have run for `STREAM_WARM` tokens; the streams end when it has its first token."""
    clocks = [Clock(STREAM_WARM) for _ in range(STREAMS)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(complete(asker.http, asker.model, own, STREAM_TOKENS, clock))
            for own, clock in zip(random_prompts(STREAMS, 10**7 + seed), clocks, strict=True)
        ]
        for clock in clocks:
            await clock.warm.wait()
        sent = time.perf_counter()
        ttft = await asker.first_token(prompt)
        if any(task.done() for task in tasks):
            raise LoadError(f"a stream of {STREAM_TOKENS} tokens ended before the prompt had its first token")
        for task in tasks:
            task.cancel()
    before, during = split_gaps([clock.times[1:] for clock in clocks], sent, sent + ttft)
    return {
        "ttft_s": ttft,
        "median_gap_s": median(before),
        "gap_p99_s": percentile(during, 0.99),
        "longest_gap_s": max(during),
    }


def split_gaps(
    arrivals: Sequence[Sequence[float]], sent: float, came: float
) -> tuple[list[float], list[float]]:
    """Gaps between neighbouring tokens: those that ended before `sent`, and those that were open between `sent` and `came`.

    The first gaps of a stream, while others still compute their prompts, count to neither.
    """
    gaps = [(a, b) for times in arrivals for a, b in itertools.pairwise(times)]
    begun = max(times[0] for times in arrivals)
    before = [b - a for a, b in gaps if begun <= a and b <= sent]
    return before, [b - a for a, b in gaps if b > sent and a < came]


# -- starvation -------------------------------------------------------------------------------------------


@dataclass
class Load:
    """An arrival plan: hot and cold prompts with their times, the same for every mode."""

    hot: list[tuple[float, list[int]]]
    cold: list[tuple[float, list[int]]]


def plan(seconds: float, hot_rate: float, cold_rate: float, seed: int) -> Load:
    """Arrivals at random times (Poisson) for `seconds`."""
    rng = random.Random(seed)

    def times(rate: float) -> list[float]:
        found, now = [], rng.expovariate(rate)
        while now < seconds:
            found.append(now)
            now += rng.expovariate(rate)
        return found

    prefix = random_prompts(1, seed, tokens=HOT_PREFIX)[0]
    hot, cold = times(hot_rate), times(cold_rate)
    owns = random_prompts(len(hot), seed + 1, tokens=HOT_OWN)
    colds = random_prompts(len(cold), seed + 2, tokens=COLD_TOKENS)
    return Load(
        [(at, prefix + own) for at, own in zip(hot, owns, strict=True)], list(zip(cold, colds, strict=True))
    )


async def capacity(asker: Asker, seconds: float, prompts: Sequence[list[int]]) -> float:
    """Requests per second that are served under `lpm` when there is always one waiting; the first prompt's prefix is known."""
    await asker.switch(policy="lpm", overtake=0)
    await asker.first_token(prompts[0])
    left, done, began = iter(prompts[1:]), 0, time.perf_counter()

    async def work() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds and (prompt := next(left, None)) is not None:
            await asker.first_token(prompt, REPLY)
            done += 1

    await asyncio.gather(*(work() for _ in range(2 * BATCH)))
    return done / (time.perf_counter() - began)


async def serve(asker: Asker, arrivals: Load, seconds: float) -> dict[str, Any]:
    """Send the plan's requests at their times and wait for all."""
    ttft: dict[str, list[float]] = {"hot": [], "cold": []}
    began = time.perf_counter()

    async def one(kind: str, at: float, prompt: list[int]) -> None:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        ttft[kind].append(await asker.first_token(prompt, REPLY))

    async def at_end() -> int:
        await asyncio.sleep(max(0.0, began + seconds - time.perf_counter()))
        return len(arrivals.cold) - len(ttft["cold"])

    before = await asker.counters()
    waiting, *_ = await asyncio.gather(
        at_end(),
        *(one("hot", *arrival) for arrival in arrivals.hot),
        *(one("cold", *arrival) for arrival in arrivals.cold),
    )
    after = await asker.counters()
    prompt, cached = (
        after[f"gateway_{name}_tokens_total"] - before[f"gateway_{name}_tokens_total"]
        for name in ("prompt", "cached")
    )
    found: dict[str, Any] = {"hit_rate": cached / prompt, "cold_waiting_at_end": waiting}
    for kind, values in ttft.items():
        found[f"{kind}_requests"] = len(values)
        found |= {f"{kind}_ttft_p{p}_s": percentile(values, p / 100) for p in (50, 99, 100)}
    return found | {name: value for name, value in after.items() if OVERTAKEN in name}


async def starvation(asker: Asker, arguments: argparse.Namespace) -> Targets:
    """See the module."""
    prefix = random_prompts(1, 10**8, tokens=HOT_PREFIX)[0]
    own = random_prompts(5_000, 10**8 + 1, tokens=HOT_OWN)
    hot = await capacity(asker, arguments.seconds / 6, [prefix + tail for tail in own])
    cold = await capacity(asker, arguments.seconds / 6, random_prompts(1_000, 10**8 + 2, tokens=COLD_TOKENS))
    show(case="starvation", hot_capacity_per_s=hot, cold_capacity_per_s=cold)
    modes: Mapping[str, dict[str, Any]] = {
        "fcfs": {"policy": "fcfs"},
        "default": {},
        "lpm": {"policy": "lpm", "overtake": 0},
    }
    arrivals = plan(arguments.seconds, 0.9 * hot, COLD_SHARE * cold, 10**9)
    if not arrivals.cold:
        raise LoadError(f"no cold request within {arguments.seconds:g} s: give more --seconds")
    results = {}
    for name, changes in modes.items():
        in_force = await asker.switch(**changes)
        results[name] = await serve(asker, arrivals, arguments.seconds)
        show(
            case="starvation",
            mode=name,
            policy=in_force.get("policy"),
            overtake=in_force.get("overtake"),
            **results[name],
        )
    default, fcfs, lpm = results["default"], results["fcfs"], results["lpm"]
    wait = default["cold_ttft_p99_s"] / fcfs["cold_ttft_p99_s"]
    points = 100 * (lpm["hit_rate"] - default["hit_rate"])
    return [
        ("starvation: cold p99 TTFT, default over fcfs", wait, "<=", 2.0),
        ("starvation: points of hit rate that the default loses against lpm", points, "<=", 3.0),
    ]


CASES: dict[str, tuple[Callable[[Asker, argparse.Namespace], Awaitable[Targets]], tuple[str, ...]]] = {
    "warm": (warm, ()),
    "beside": (beside, ()),
    "starvation": (starvation, (f"scheduler.max_batch={BATCH}",)),
}
"""What is measured, and how the node for it is set."""


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES), help=f"cases, of {', '.join(CASES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of warm and beside")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals in each starvation run")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}")
    aims: Targets = []
    for name in names:
        case, settings = CASES[name]
        with running(*settings) as node:
            aims += asyncio.run(with_asker(node, case, arguments))
    verdict(aims, check=arguments.check)


if __name__ == "__main__":
    main()
