"""Hit rates of the standard workloads without a model: the real scheduler and cache on a virtual clock.

    python -m benchmarks.replay [--workload mmlu,rag] [--policy lpm,fcfs] [--matrix] [--made-up] [--costs FILE] [--check]

Prints one JSON line per case: a workload, a pool (unlimited, or a quarter of the distinct tokens but room for the longest request) and a
configuration, with the hit rate and `best`: that of the depth-first order, one call at a time, LRU, in the same pool. With an unlimited pool
that is the optimum. Without `--matrix` or `--policy` only the default configuration is run. Texts are those of `--data` or
$SGL_ACTORS_DATA in tokens of the default model, without either made up in the same sizes.
`--check` ends with 1 where the default misses: 99 % of the optimum in every workload; in the small pool 96 % of `best` on average, over the
workloads whose requests are all known at the start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.replay.arguments import chosen, read_costs
from benchmarks.replay.engine import Call, Costs, Replay
from benchmarks.replay.oracle import offline, quarter
from benchmarks.replay.workloads import WORKLOADS, Corpus, build, made_up, real
from sgl_actors.actors.scheduler.messages import Options

UNLIMITED = 1 << 22
"""Pages that no workload fills."""
OF_OPTIMUM = 0.99
OF_OFFLINE = 0.96
POOLS = ("unlimited", "quarter")
POLICIES = ("lpm", "dfs-weight", "hrrn", "fcfs")


def corpus(data: str | None) -> Corpus:
    """Real texts where they and the model's tokenizer are, else made-up ones."""
    if data:
        from sgl_actors.actors.node.models import resolve
        from sgl_actors.actors.tokenizer.vocabulary import load

        return real(Path(data), load(resolve("smollm2").path).encode)
    return made_up()


def configurations(policies: list[str], *, matrix: bool, max_batch: int) -> dict[str, Options]:
    """By name: the default one, or the policies asked for with what else can be switched."""
    default = Options(max_batch=max_batch)
    if not policies and not matrix:
        return {"default": default}
    found: dict[str, Options] = {}
    for policy in policies or POLICIES:
        options = msgspec.convert({**msgspec.structs.asdict(default), "policy": policy}, Options)
        found[policy] = options
        if matrix:
            found[f"{policy}, no sharing"] = msgspec.structs.replace(options, sharing=False)
            found[f"{policy}, no bound"] = msgspec.structs.replace(options, overtake=0)
    return found


def measure(calls: list[Call], options: Options, pages: int, costs: Costs) -> dict[str, float]:
    """One run."""
    began = time.process_time()
    result = Replay(calls, options, pages=pages, costs=costs).run()
    return {
        "hit_rate": round(result.hit_rate(), 4),
        "seconds": round(result.seconds, 1),
        "calls_per_second": round(len(calls) / result.seconds, 3),
        "ttft_p50": round(result.ttft(0.5), 2),
        "ttft_p99": round(result.ttft(0.99), 2),
        "waiting_p99": round(result.waiting(0.99), 2),
        "steps": result.steps,
        "retracted": result.retracted,
        "evicted": result.evicted,
        "overtaken": result.overtaken,
        "cpu": round(time.process_time() - began, 2),
    }


class Ratios:
    """Hit rates over what is possible, by pool and configuration: of all workloads, and of those that are known at the start."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str], list[float]] = {}
        self._known: dict[tuple[str, str], list[float]] = {}

    def add(self, pool: str, name: str, ratio: float, *, known: bool) -> None:
        """One workload's."""
        self._all.setdefault((pool, name), []).append(ratio)
        self._known.setdefault((pool, name), []).extend([ratio] * known)

    def report(self) -> bool:
        """Print a line for each; whether the default reaches what it should."""
        reached = True
        for (pool, name), ratios in self._all.items():
            known = statistics.mean(self._known[pool, name] or ratios)
            if name in ("default", Options().policy):
                reached &= min(ratios) >= OF_OPTIMUM if pool == "unlimited" else known >= OF_OFFLINE
            means = {"mean": statistics.mean(ratios), "mean_known": known, "least": min(ratios)}
            rounded = {key: round(value, 4) for key, value in means.items()}
            print(json.dumps({"pool": pool, "configuration": name, **rounded}))
        return reached


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workload", default=",".join(WORKLOADS), help="some of " + ", ".join(WORKLOADS))
    parser.add_argument("--policy", default="", help="some of " + ", ".join(POLICIES))
    parser.add_argument("--pool", default=",".join(POOLS), help="some of " + ", ".join(POOLS))
    parser.add_argument("--matrix", action="store_true", help="every policy, without sharing, without bound")
    parser.add_argument("--max-batch", type=int, default=Options().max_batch)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"))
    parser.add_argument("--made-up", action="store_true", help="made-up texts, whatever --data says")
    parser.add_argument("--costs", type=Path, help="JSON object: seconds of a step, see `Costs`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    costs = read_costs(parser, arguments.costs)
    workloads = chosen(parser, "--workload", arguments.workload, WORKLOADS)
    pools = chosen(parser, "--pool", arguments.pool, POOLS)
    policies = chosen(parser, "--policy", arguments.policy, POLICIES) if arguments.policy else []
    cases = configurations(policies, matrix=arguments.matrix, max_batch=arguments.max_batch)
    texts = corpus(None if arguments.made_up else arguments.data)
    ratios = Ratios()
    for workload in workloads:
        calls = build(workload, texts, arguments.seed)
        known = not any(call.after for call in calls)
        for pool in pools:
            pages = quarter(calls) if pool == "quarter" else UNLIMITED
            best = offline(calls, pages)
            where = {"workload": workload, "calls": len(calls), "pool": pool, "pages": pages}
            for name, options in cases.items():
                row = measure(calls, options, pages, costs)
                ratios.add(pool, name, row["hit_rate"] / best, known=known)
                line = {
                    **where,
                    "configuration": name,
                    "best": round(best, 4),
                    "ratio": round(row["hit_rate"] / best, 4),
                }
                print(json.dumps({**line, **row}), flush=True)
    reached = ratios.report()
    sys.exit(arguments.check and not reached)


if __name__ == "__main__":
    main()
