"""Programs with shared prefixes on the default model: hit rates against their optimum, and throughput with the cache and without.

    python -m benchmarks.workloads [--data DIR] [--only mmlu,react] [--modes off,default] [--rounds 3] [--size small|full] [--check]
    python -m benchmarks.workloads --no-reuse [--rounds 3] [--check]

One node serves all of it. A run is one workload in one mode: the scheduler is switched (`POST /scheduler`), the cache is emptied, all programs
start at once. Modes follow each other in another order in each round. One JSON line per run, then a table of medians.

`hit_rate` is cached over prompt tokens as the node reports them per request; `optimum` the same with the fewest computed tokens that the requests
as they were sent allow (`workload/optimum.py`). Throughput is programs per second; `tokens_per_s` counts prompt and output tokens of
requests that are not hints. Without a cache no hints are sent: they would be work for nothing.

`--no-reuse` sends random prompts, which share nothing, and compares the CPU time spent on the cache with the run's time: all that the cache
actor's process uses (tree, messages, heartbeat), and what the scheduler counts as spent on ordering (`order_seconds_total`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import LiveNode, median, running, show, table, verdict
from benchmarks.workload.optimum import Call, distinct_tokens, fewest_computed
from benchmarks.workload.programs import WORKLOADS, Item, Workload
from benchmarks.workload.recording import recording
from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.actors.node.embedded import join
from sgl_actors.bench.load import load, random_prompts

OF_OPTIMUM = 0.99
OVERHEAD = 0.003
"""Targets: hit rate over its optimum with a pool that holds everything; CPU time on the cache over the run's time without reuse."""
POOL = "3GiB"
"""Holds every token of every workload."""
TIMEOUT = 600.0


@dataclass(frozen=True)
class Mode:
    """How the node and the language are set.

    Attributes:
        scheduler: what differs from the node's configuration.
        hint: `fork` has the common prefix computed before its branches start.
    """

    scheduler: Mapping[str, Any] = field(default_factory=dict)
    hint: bool = True


MODES = {
    "off": Mode({"reuse": False}, hint=False),
    "fcfs": Mode({"policy": "fcfs"}),
    "default": Mode(),
    "no_hint": Mode(hint=False),
    "no_sharing": Mode({"sharing": False}),
}


async def run(node: LiveNode, workload: Workload, items: Sequence[Item], mode: Mode) -> dict[str, Any]:
    """All programs at once on an empty cache; what they took and what they asked."""
    node.configure(**mode.scheduler)
    node.flush()
    calls: list[Call] = []
    async with recording(node.record.endpoint, calls) as backend:
        began = time.perf_counter()
        await workload.program.run_batch(
            items,
            backend=backend,
            temperature=0,
            timeout=TIMEOUT,
            fork_hint=mode.hint,
            max_concurrency=len(items),
        )
        seconds = time.perf_counter() - began
    return measured(calls, len(items), seconds)


def measured(calls: Sequence[Call], programs: int, seconds: float) -> dict[str, Any]:
    """Rates and hit rate of a run."""
    prompt, cached = sum(len(call.prompt) for call in calls), sum(call.cached for call in calls)
    work = sum(len(call.prompt) + len(call.output) for call in calls if not call.hint)
    optimum = 1 - fewest_computed(calls) / prompt
    return {
        "programs": programs,
        "requests": len(calls),
        "seconds": seconds,
        "programs_per_s": programs / seconds,
        "tokens_per_s": work / seconds,
        "prompt_tokens": prompt,
        "computed_tokens": prompt - cached,
        "output_tokens": sum(len(call.output) for call in calls),
        "distinct_tokens": distinct_tokens(calls),
        "hit_rate": cached / prompt,
        "optimum": optimum,
        "of_optimum": cached / prompt / optimum if optimum else 1.0,
    }


async def compare(
    node: LiveNode, data: Path, names: Sequence[str], modes: Sequence[str], rounds: int, size: str
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Every workload in every mode, `rounds` times; results by workload and mode."""
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rng = random.Random(0)
    await load(node.url, random_prompts(16, 10**6), concurrency=16, tokens=4)  # warms up, does not count
    for name in names:
        workload = WORKLOADS[name]
        items = workload.items(data, workload.small if size == "small" else workload.full)
        for round_ in range(rounds):
            for mode in rng.sample(modes, len(modes)):
                result = await run(node, workload, items, MODES[mode])
                results.setdefault((name, mode), []).append(result)
                show(workload=name, mode=mode, round=round_, **result)
    return results


def report(results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """A table of medians, with each mode's throughput over that without the cache."""
    rows = [
        [
            "workload",
            "mode",
            "hit %",
            "optimum %",
            "of optimum %",
            "computed",
            "programs/s",
            "tokens/s",
            "x off",
        ]
    ]
    for name, mode in sorted(results, key=lambda key: ([*WORKLOADS].index(key[0]), [*MODES].index(key[1]))):
        runs = results[name, mode]
        hit, optimum, ratio, computed, rate, tokens = (
            median([one[key] for one in runs])
            for key in (
                "hit_rate",
                "optimum",
                "of_optimum",
                "computed_tokens",
                "programs_per_s",
                "tokens_per_s",
            )
        )
        times = f"{rate / off:.2f}" if (off := rate_of(results, name, "off")) else "-"
        of_optimum = "-" if mode == "off" else f"{ratio:.2%}"[:-1]
        shares = [f"{hit:.1%}"[:-1], f"{optimum:.1%}"[:-1], of_optimum]
        rows.append([name, mode, *shares, f"{computed:.0f}", f"{rate:.3f}", f"{tokens:.0f}", times])
    return rows


def rate_of(
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], name: str, mode: str
) -> float | None:
    """Median of programs per second, None if it was not measured."""
    runs = results.get((name, mode))
    return median([one["programs_per_s"] for one in runs]) if runs else None


def targets(
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
) -> list[tuple[str, float, str, float]]:
    """What is to be reached, as far as it was measured."""
    found = []
    for name, workload in WORKLOADS.items():
        default, off = rate_of(results, name, "default"), rate_of(results, name, "off")
        if default and off and workload.faster:
            found.append((f"{name}: programs/s, cache over none", default / off, ">=", workload.faster))
        if default:
            of_optimum = median([one["of_optimum"] for one in results[name, "default"]])
            found.append((f"{name}: hit rate over optimum", of_optimum, ">=", OF_OPTIMUM))
    return found


async def no_reuse(node: LiveNode, rounds: int, size: str) -> list[tuple[str, float, str, float]]:
    """Random prompts; the share of the run's time that the cache costs as CPU time."""
    cache = psutil.Process(await pid_of(node, "cache"))
    count = 8 if size == "small" else 48
    shares = []
    node.configure()
    for round_ in range(rounds):
        node.flush()
        prompts = random_prompts(count, 10**8 + round_, tokens=512)
        used, counted, began = sum(cache.cpu_times()[:2]), node.counters(), time.perf_counter()
        await load(node.url, prompts, concurrency=16, tokens=64)
        seconds = time.perf_counter() - began
        process = sum(cache.cpu_times()[:2]) - used
        ordering = node.counters().get("order_seconds_total", 0.0) - counted.get("order_seconds_total", 0.0)
        shares.append((process + ordering) / seconds)
        show(
            workload="no_reuse", round=round_, seconds=seconds, cache_process_cpu=process, ordering_cpu=ordering,
            share=shares[-1],
        )  # fmt: skip
    return [("no reuse: CPU time on the cache over the run's time", median(shares), "<=", OVERHEAD)]


async def pid_of(node: LiveNode, actor: str) -> int:
    """Process in which an actor runs."""
    handle = await join(node.record.endpoint)
    try:
        actors = await handle.context("benchmark").call("root", ListActors(), Actors, timeout=10)
    finally:
        await handle.close()
    return next(row.pid for row in actors.rows if row.address.partition("#")[0] == actor)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument(
        "--only", default=",".join(WORKLOADS), help=f"workloads, of {', '.join(WORKLOADS)}; default: all"
    )
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {', '.join(MODES)}; default: all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument(
        "--no-reuse", action="store_true", help="what the cache costs where nothing is shared"
    )
    parser.add_argument("--pool", default=POOL, help="memory of the KV pool")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    names, modes = arguments.only.split(","), arguments.modes.split(",")
    if unknown := [name for name in names if name not in WORKLOADS] + [m for m in modes if m not in MODES]:
        parser.error(f"unknown: {', '.join(unknown)}")
    if not arguments.data and not arguments.no_reuse:
        parser.error("the sample data: --data or $SGL_ACTORS_DATA (docs/data.md)")
    with running(f"cache.memory={arguments.pool}") as node:
        if arguments.no_reuse:
            aims = asyncio.run(no_reuse(node, arguments.rounds, arguments.size))
        else:
            data = Path(arguments.data)
            results = asyncio.run(compare(node, data, names, modes, arguments.rounds, arguments.size))
            print(table(report(results)))
            aims = targets(results)
    verdict(aims, check=arguments.check)


if __name__ == "__main__":
    main()
