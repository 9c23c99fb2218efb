"""Whether cold requests are served beside a steady stream of hot ones, by policy and bound: the real scheduler and cache on a virtual clock.

    python -m benchmarks.starvation [--seconds 1200] [--random] [--costs FILE] [--check]

Hot requests share a long prefix and come at 90 % of the rate that the node sustains under `lpm` (measured first, by saturation). Cold ones
have a long prompt of their own and make 5 % of the load. The pool has room for a full batch of hot requests, or for a cold one beside
few of them; so without a bound `lpm` fills every page that becomes free with the next hot request. Everybody comes in even
intervals, or with `--random` in random ones.

Prints one JSON line per configuration. `cold_waiting` is the longest time a cold one has waited for admission (who waits at the end has waited
till then), also in a run of half the length: where both grow together, nothing bounds it. `--check` ends with 1 unless
`lpm` alone starves, and the default has a p99 time to first token of cold requests of at most twice that of `fcfs` and a hit rate
within 3 points of `lpm` alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.replay.arguments import read_costs
from benchmarks.replay.engine import Call, Costs, Replay
from benchmarks.replay.workloads import FIRST, Inventor
from sgl_actors.actors.scheduler.messages import Options

PREFIX, QUESTION, COLD, OUTPUT = 1024, 64, 2048, 32
"""Tokens: what hot prompts share, what they add, a cold prompt, an output."""
PAGES = 3600
HOT_LOAD, COLD_LOAD = 0.9, 0.05
"""Shares of the node's capacity."""
OF_FCFS = 2.0
POINTS = 0.03
GROWTH = 1.7
"""Least factor of a time that has no bound from a run to one of twice the length."""
BOUNDS = (512, 1024, 2048, 4096, 8192)


class Streams:
    """Hot and cold calls."""

    def __init__(self, seed: int) -> None:
        self._some = Inventor(seed, FIRST)
        self._prefix = self._some.tokens(PREFIX)

    def hot(self, at: float) -> Call:
        """It shares its prefix with all other hot ones."""
        return Call(self._prefix + self._some.tokens(QUESTION), self._some.tokens(OUTPUT), "hot", at)

    def cold(self, at: float) -> Call:
        """It shares nothing."""
        return Call(self._some.tokens(COLD), self._some.tokens(OUTPUT), "cold", at)


def times(rate: float, seconds: float, rng: random.Random | None) -> Iterator[float]:
    """Arrivals in even intervals, or random ones as of many independent users."""
    at = 0.0
    while (at := at + (rng.expovariate(rate) if rng else 1 / rate)) < seconds:
        yield at


def capacity(costs: Costs, requests: int = 600) -> float:
    """Hot requests per second that the node sustains under `lpm` when all are there from the start."""
    streams = Streams(0)
    calls = [streams.hot(0.0) for _ in range(requests)]
    result = Replay(calls, Options(policy="lpm", overtake=0), pages=PAGES, costs=costs).run()
    ends = sorted(one.ended for one in result.outcomes)
    first, last = requests // 10, requests * 9 // 10
    return (last - first) / (ends[last] - ends[first])


def load(rate: float, costs: Costs, seconds: float, rng: random.Random | None) -> list[Call]:
    """Both streams for that many seconds."""
    streams = Streams(1)
    cold_rate = COLD_LOAD / (COLD * costs.token)
    calls = [streams.hot(at) for at in times(HOT_LOAD * rate, seconds, rng)]
    return calls + [streams.cold(at) for at in times(cold_rate, seconds, rng)]


def configurations() -> dict[str, Options]:
    """By name; `lpm` alone has no bound."""
    named = {
        "lpm alone": Options(policy="lpm", overtake=0),
        "fcfs": Options(policy="fcfs"),
        "default": Options(),
    }
    named |= {f"lpm, overtake {bound}": Options(policy="lpm", overtake=bound) for bound in BOUNDS}
    return named | {"hrrn": Options(policy="hrrn"), "dfs-weight": Options(policy="dfs-weight")}


def report(replay: Replay, seconds: float) -> dict[str, float]:
    """One line. Where no cold request has got a token, its time to first token is -1."""
    half = replay.run(seconds / 2).waiting(1.0, "cold")
    result = replay.run(seconds)
    row = {
        "hit_rate": round(result.hit_rate(), 4),
        "cold_ttft_p50": round(result.ttft(0.5, "cold"), 2),
        "cold_ttft_p99": round(result.ttft(0.99, "cold"), 2),
        "cold_waiting": round(result.waiting(1.0, "cold"), 1),
        "cold_waiting_half": round(half, 1),
        "cold_unserved": result.unserved("cold"),
        "hot_ttft_p50": round(result.ttft(0.5, "hot"), 2),
        "hot_ttft_p99": round(result.ttft(0.99, "hot"), 2),
        "overtaken": result.overtaken,
        "retracted": result.retracted,
    }
    return {name: -1 if math.isnan(value) else value for name, value in row.items()}


def failures(rows: dict[str, dict[str, float]], *, evenly: bool) -> list[str]:
    """What the default misses, or the proof that it is needed (random gaps in the hot stream let a cold one in now and then)."""
    alone, fcfs, default = rows["lpm alone"], rows["fcfs"], rows["default"]
    found = []
    if evenly and alone["cold_waiting"] < GROWTH * alone["cold_waiting_half"]:
        found.append("lpm alone does not starve cold requests: the load proves nothing")
    if not 0 < default["cold_ttft_p99"] <= OF_FCFS * fcfs["cold_ttft_p99"]:
        found.append(f"cold p99 {default['cold_ttft_p99']} s, fcfs has {fcfs['cold_ttft_p99']} s")
    if default["hit_rate"] < alone["hit_rate"] - POINTS:
        found.append(f"hit rate {default['hit_rate']}, lpm alone has {alone['hit_rate']}")
    return found


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1200.0, help="of virtual time")
    parser.add_argument("--random", action="store_true", help="random intervals")
    parser.add_argument("--only", default="", help="configurations, by the beginnings of their names")
    parser.add_argument("--costs", type=Path, help="JSON object: seconds of a step, see `Costs`")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    costs = read_costs(parser, arguments.costs)
    beginnings = tuple(arguments.only.split(","))
    if unknown := [one for one in beginnings if not any(name.startswith(one) for name in configurations())]:
        parser.error(
            f"--only: no configuration begins with {', '.join(map(repr, unknown))}; there are {', '.join(configurations())}"
        )
    if arguments.only and arguments.check:
        parser.error("--check compares configurations with each other: leave out --only")
    rate = capacity(costs)
    calls = load(rate, costs, arguments.seconds, random.Random(1) if arguments.random else None)
    cold = sum(call.kind == "cold" for call in calls)
    print(
        json.dumps({"capacity": round(rate, 3), "hot": len(calls) - cold, "cold": cold, "pages": PAGES}),
        flush=True,
    )
    rows: dict[str, dict[str, float]] = {}
    for name, options in configurations().items():
        if not name.startswith(beginnings):
            continue
        replay = Replay(calls, options, pages=PAGES, costs=costs)
        rows[name] = report(replay, arguments.seconds)
        print(json.dumps({"configuration": name, **rows[name]}), flush=True)
    if arguments.check:
        missed = failures(rows, evenly=not arguments.random)
        print(json.dumps({"missed": missed}))
        sys.exit(bool(missed))


if __name__ == "__main__":
    main()
