"""Our node beside its peers: ratios and targets, whose turn it is, and what the workloads ask."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.serve import Plan, against, of_medians
from benchmarks.serving.peers import alone, rotated
from benchmarks.serving.targets import TARGETS, grouped, ratios, reached
from benchmarks.serving.workloads import DATA_FREE, WORKLOADS
from sgl_actors.bench.client import Request, connect
from sgl_actors.bench.load import run_programs
from sgl_actors.bench.samples import Sample
from tests.bench.stub import Stub, serving


def test_ratios_of_the_comparison_in_fp32() -> None:
    """One slow round does not move them."""
    rates = {
        "node@1": [10.0, 1.0, 12.0],
        "node@16": [40.0, 30.0, 500.0],
        "transformers@16": [20.0, 20.0, 1.0],
    }
    assert of_medians(rates) == {"batching": 4.0, "over_transformers": 2.0}


def results(workload: str, server: str, **metrics: list[float]) -> list[dict[str, Any]]:
    return [
        {"workload": workload, "server": server} | dict(zip(metrics, values, strict=True))
        for values in zip(*metrics.values(), strict=True)
    ]


def test_targets_are_of_medians() -> None:
    """Ours over the peer's, one slow round apart; what was not measured is no target, other lines are skipped."""
    lines = [
        *results("mmlu", "node", req_per_s=[9.0, 8.0, 1.0], ttft_ms_p50=[5.0, 5.0, 5.0]),
        *results("mmlu", "vllm", req_per_s=[2.0, 2.0, 7.0]),
        *results("react", "vllm", req_per_s=[2.0]),
        {"idle": "vllm", "cores": 0.1},
    ]
    found = grouped(lines)
    assert reached(found) == [("mmlu: req_per_s over vllm", 4.0, ">=", 3.0)]
    assert ratios(found) == [{"workload": "mmlu", "over": "vllm", "rounds": 3, "req_per_s": 4.0}]


def test_every_target_has_a_workload_and_a_metric() -> None:
    """A target that names something else would never be missed."""
    metrics = {"req_per_s", "output_tok_per_s", "tpot_ms_p50", "ttft_ms_p50"}
    assert {target.workload for target in TARGETS} <= WORKLOADS.keys()
    assert {target.metric for target in TARGETS} <= metrics


def test_everybody_is_first_in_turn() -> None:
    """The order of a round begins one further each time."""
    assert [rotated(["a", "b", "c"], number) for number in (0, 1, 5)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
    ]


def test_others_are_stopped_out_of_turn() -> None:
    """While one is measured the others stand still; they go on afterwards, and one that has ended does not matter."""
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    waiting = [sys.executable, "-c", code]
    with (
        subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one,
        subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as two,
    ):
        for process in (one, two):
            assert process.stdout is not None
            process.stdout.readline()
        with alone("one", {"one": one.pid, "two": two.pid, "gone": 2**22}):
            os.waitid(os.P_PID, two.pid, os.WSTOPPED | os.WNOWAIT)
            assert psutil.Process(two.pid).status() == psutil.STATUS_STOPPED
            assert psutil.Process(one.pid).status() != psutil.STATUS_STOPPED
        os.waitid(os.P_PID, two.pid, os.WCONTINUED | os.WNOWAIT)
        assert psutil.Process(two.pid).status() != psutil.STATUS_STOPPED
        for process in (one, two):
            process.communicate()


def shared_beginning(prompts: list[str]) -> int:
    """Characters that all begin with."""
    shortest, longest = min(prompts), max(prompts)
    return next((n for n, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))


CALLS = {"mmlu": 64, "react": 48, "tot": 78, "chat_short": 32, "chat_long": 32, "json": 16}


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in DATA_FREE])
async def test_what_a_workload_asks(name: str, data: Path) -> None:
    """As many requests as it says, the same for a seed, behind a shared beginning that another seed does not have."""
    asked: list[str] = []

    async def ask(request: Request) -> Sample:
        asked.append(json.dumps(request.messages) if request.messages else str(request.prompt))
        return Sample(0.0, text=" and so on")

    for seed in (1, 1, 2):
        for program in WORKLOADS[name].programs(data, seed, WORKLOADS[name].count):
            await program(ask)
    count = CALLS[name]
    assert len(asked) == 3 * count
    assert sorted(asked[:count]) == sorted(asked[count : 2 * count])
    assert shared_beginning(asked[:count]) > shared_beginning(asked) + 10


@pytest.mark.parametrize("name", DATA_FREE)
async def test_workloads_without_data(name: str) -> None:
    """They run against any server."""
    stub = Stub()
    workload = WORKLOADS[name]
    async with serving(stub) as url, connect(url, connections=16) as server:
        samples, _ = await run_programs(
            server, workload.programs(Path(), 3, workload.count), concurrency=workload.concurrency
        )
    assert len(samples) == workload.count
    assert stub.most <= workload.concurrency


async def test_servers_alternate(capsys: pytest.CaptureFixture[str]) -> None:
    """A line per round and server, the first in turn; every server is asked the same."""
    ours, theirs = Stub(), Stub()
    async with serving(ours) as node, serving(theirs) as peer:
        urls = {"node": node, "vllm": peer}
        lines = await asyncio.to_thread(against, urls, Plan(["single"], Path(), rounds=2), {}, None)
    order = [(0, "node"), (0, "vllm"), (1, "vllm"), (1, "node")]
    assert [(line["round"], line["server"]) for line in lines] == order
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["round"], line["server"]) for line in shown] == order
    prompts = [sorted(str(body["prompt"]) for body in stub.bodies) for stub in (ours, theirs)]
    assert prompts[0] == prompts[1]
