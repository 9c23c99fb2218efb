"""Load for any OpenAI-compatible server; our node beside its peers; our node against transformers.

    python -m benchmarks.serve --url http://127.0.0.1:30000 [--workload random,mmlu] [--concurrency 1,16] [--rounds 3]
    python -m benchmarks.serve --against vllm=http://127.0.0.1:8001 llama=http://127.0.0.1:8002 [--url …] [--pids vllm=123 …] [--check]
    python -m benchmarks.serve --lines results.jsonl [--check]
    python -m benchmarks.serve --compare [--url …] [--rounds 3] [--check]

Prints a JSON line per workload, round and server: requests/s, tokens/s, time to first token, between chunks (`itl`) and per output token (`tpot`)
as their client sees them, and how many prompt tokens were computed. `serving/workloads.py` has the workloads; all but `random` and `single` need
the sample data. A round has a seed of its own: every server gets the same work, and nothing that an earlier round left in a prefix cache helps.

`--against` alternates our node and its peers in every round, in changing order, only one of them under load at a time; with `--pids` the others are
stopped (SIGSTOP) meanwhile. `--transformers` adds its batched `generate` in fp32 to `random`, in a process of its own. At the end come ratios of
medians and the targets. Names that targets know: `vllm`, `llama` (peers.md says how they are run). `--lines` takes what earlier runs have printed
(also of single servers, named with `--name`) and prints ratios and targets of that. `--compare` is the short form of an earlier day: the node at
concurrency 1 and 16 with fp32 compute, and transformers on the same prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.harness import running, show, verdict
from benchmarks.serving.generate import Transformers
from benchmarks.serving.peers import alone, idle_cpu, rotated
from benchmarks.serving.targets import OURS, TRANSFORMERS, grouped, ratios, reached
from benchmarks.serving.workloads import DATA_FREE, WORKLOADS
from sgl_actors.bench.client import LoadError
from sgl_actors.bench.load import load, measure, random_prompts

TARGET_BATCHING, TARGET_TRANSFORMERS = 2.0, 1.2
FLOOD = 16
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """What is measured: workloads by name, from which data, how often, and the seed of the first round."""

    workloads: Sequence[str]
    data: Path
    rounds: int = 1
    seed: int = 0
    share: float = 1.0

    def count(self, workload: str) -> int:
        """Programs in a round."""
        return max(1, round(WORKLOADS[workload].count * self.share))


def case(
    url: str, plan: Plan, workload: str, number: int, concurrency: int | None = None
) -> dict[str, float]:
    """One round of a workload on one server."""
    chosen = WORKLOADS[workload]
    programs = chosen.programs(plan.data, plan.seed + number, plan.count(workload))
    return asyncio.run(measure(url, programs, concurrency=concurrency or chosen.concurrency))


def solo(url: str, name: str, plan: Plan, concurrencies: Sequence[int]) -> None:
    """One server by itself; at each concurrency, or at each workload's own."""
    for workload in plan.workloads:
        for number in range(plan.rounds):
            for index, concurrency in enumerate(concurrencies or [WORKLOADS[workload].concurrency]):
                result = case(url, plan, workload, number + 1000 * index, concurrency)
                show(
                    workload=workload,
                    server=name,
                    round=plan.seed + number,
                    concurrency=concurrency,
                    **result,
                )


def against(
    urls: Mapping[str, str], plan: Plan, pids: Mapping[str, int], baseline: Transformers | None
) -> list[dict[str, Any]]:
    """Every workload on all servers, alternately round by round; prints and returns a line per result."""
    lines: list[dict[str, Any]] = []
    for name, url in urls.items():
        with alone(name, pids):
            asyncio.run(load(url, random_prompts(FLOOD, 10**6), concurrency=FLOOD, tokens=4))  # warms up
    for workload in plan.workloads:
        names = [*urls, *([TRANSFORMERS] if baseline is not None and workload == "random" else [])]
        for number in range(plan.rounds):
            for name in rotated(names, plan.seed + number):
                with alone(name, pids):
                    if name == TRANSFORMERS and baseline is not None:
                        prompts = random_prompts(plan.count(workload), plan.seed + number)
                        result = baseline.generate(prompts)
                    else:
                        result = case(urls[name], plan, workload, number)
                lines.append({"workload": workload, "server": name, "round": plan.seed + number} | result)
                show(**lines[-1])
    return lines


def conclude(lines: Sequence[Mapping[str, Any]], *, check: bool) -> None:
    """Ratios of medians, then the targets; with `check` exit 1 if one is missed."""
    found = grouped(lines)
    for line in ratios(found):
        print(json.dumps(line))
    verdict(reached(found), check=check)


def of_medians(rates: dict[str, list[float]]) -> dict[str, float]:
    """Ratios of the medians of `rates` (per case, one number per round)."""
    median = {case: statistics.median(values) for case, values in rates.items()}
    return {
        "batching": round(median["node@16"] / median["node@1"], 3),
        "over_transformers": round(median["node@16"] / median["transformers@16"], 3),
    }


def compare(url: str, baseline: Transformers, rounds: int) -> dict[str, float]:
    """Measure the three cases alternately; print a line for each and return the ratios.

    Each round has prompts of its own, so that no prefix cache has seen them; the first, shorter round warms up and does not count.
    """
    rates: dict[str, list[float]] = {"node@1": [], "node@16": [], "transformers@16": []}
    asyncio.run(load(url, random_prompts(16, 10**6), concurrency=16, tokens=4))
    baseline.generate(random_prompts(16, 10**6), tokens=4)
    for number in range(rounds):
        batch, single = random_prompts(16, 2 * number), random_prompts(4, 2 * number + 1)
        cases: dict[str, Callable[[], dict[str, float]]] = {
            "node@1": lambda single=single: asyncio.run(load(url, single, concurrency=1)),  # type: ignore[misc]
            "node@16": lambda batch=batch: asyncio.run(load(url, batch, concurrency=16)),  # type: ignore[misc]
            "transformers@16": lambda batch=batch: baseline.generate(batch),  # type: ignore[misc]
        }
        for name in rotated(list(cases), number):
            result = cases[name]()
            rates[name].append(result["output_tok_per_s"])
            show(case=name, round=number, **result)
    return of_medians(rates)


def main() -> None:
    """Run; a server that fails is one line on stderr and exit 1."""
    reason = ""
    try:
        run(parse())
    except* (LoadError, httpx2.HTTPError) as group:
        reason = str(group.exceptions[0])
    if reason:
        sys.exit(reason)


def parse() -> argparse.Namespace:
    """The command line; ends with 2 where it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url", help="server to load; our node for --compare and --against, which start one without it"
    )
    parser.add_argument("--name", default=OURS, help="of the server at --url, in its lines")
    parser.add_argument(
        "--workload", default="random", help=f"of {', '.join(WORKLOADS)}, or all; default: random"
    )
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument(
        "--concurrency", default="", help="cases, by most requests at once; default: the workload's"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of each workload's programs, for a trial")
    parser.add_argument("--rounds", type=int, default=0, help="default: 3 of a comparison, else 1")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME=URL", help="peers beside our node")
    parser.add_argument(
        "--pids", nargs="+", default=[], metavar="NAME=PID", help="processes to stop out of turn"
    )
    parser.add_argument("--transformers", action="store_true", help="its generate as a peer in `random`")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of a node that is started"
    )
    parser.add_argument("--lines", type=Path, help="what earlier runs have printed")
    parser.add_argument(
        "--compare", action="store_true", help="the node at 1 and 16 against transformers, in fp32"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="compute threads of each side"
    )
    parser.add_argument(
        "--checkpoint", default="smollm2", help="the served model, for transformers: name or path"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    names = list(WORKLOADS) if arguments.workload == "all" else arguments.workload.split(",")
    arguments.workloads = names
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"unknown workload: {', '.join(unknown)}")
    if not (arguments.compare or arguments.against or arguments.lines or arguments.url):
        parser.error("one of --url, --against, --compare, --lines")
    if not arguments.data and not arguments.lines and any(name not in DATA_FREE for name in names):
        parser.error("the sample data: --data or $SGL_ACTORS_DATA (docs/data.md)")
    for option in ("against", "pids"):
        if wrong := [pair for pair in getattr(arguments, option) if "=" not in pair]:
            parser.error(f"--{option}: expected NAME=VALUE, got {wrong[0]!r}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Measure what was asked for."""
    rounds = arguments.rounds or (3 if arguments.against or arguments.compare else 1)
    plan = Plan(arguments.workloads, Path(arguments.data or "."), rounds, arguments.seed, arguments.share)
    if arguments.lines:
        text = arguments.lines.read_text("utf-8")
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        conclude(lines, check=arguments.check)
    elif arguments.compare:
        run_compare(arguments, rounds)
    elif arguments.against:
        run_against(arguments, plan)
    else:
        concurrencies = [int(text) for text in arguments.concurrency.split(",") if text]
        solo(arguments.url, arguments.name, plan, concurrencies)


def run_against(arguments: argparse.Namespace, plan: Plan) -> None:
    """`--against`."""
    peers = dict(pair.split("=", 1) for pair in arguments.against)
    pids = {name: int(pid) for name, pid in (pair.split("=", 1) for pair in arguments.pids)}
    with ExitStack() as stack:
        baseline = stack.enter_context(transformers(arguments)) if arguments.transformers else None
        url = (
            arguments.url
            or stack.enter_context(running(f"model.threads={arguments.threads}", *arguments.set)).url
        )
        for name, pid in pids.items():
            show(idle=name, cores=idle_cpu(pid, IDLE_SECONDS))
        lines = against({OURS: url} | peers, plan, pids, baseline)
    conclude(lines, check=arguments.check)


def run_compare(arguments: argparse.Namespace, rounds: int) -> None:
    """`--compare`."""
    settings = ("model.dtype=float32", f"model.threads={arguments.threads}", *arguments.set)
    with ExitStack() as stack:
        baseline = stack.enter_context(transformers(arguments))
        url = arguments.url or stack.enter_context(running(*settings)).url
        found = compare(url, baseline, rounds)
    show(
        case="ratios", target_batching=TARGET_BATCHING, target_over_transformers=TARGET_TRANSFORMERS, **found
    )
    missed = found["batching"] < TARGET_BATCHING or found["over_transformers"] < TARGET_TRANSFORMERS
    sys.exit(1 if arguments.check and missed else 0)


@contextmanager
def transformers(arguments: argparse.Namespace) -> Iterator[Transformers]:
    """The baseline's process, for as long as the block runs."""
    from sgl_actors.actors.node.models import resolve

    baseline = Transformers(resolve(arguments.checkpoint).path, arguments.threads)
    try:
        yield baseline
    finally:
        baseline.close()


if __name__ == "__main__":
    main()
