"""Hit rates and waiting of whole workloads, replayed on a virtual clock: the real scheduler and cache, no model."""

from __future__ import annotations

import statistics

import pytest

from benchmarks import starvation
from benchmarks.replay.engine import END, Call, Costs, Replay, Result
from benchmarks.replay.oracle import TokenTrie, distinct, offline, optimum, quarter
from benchmarks.replay.workloads import FIRST, WORKLOADS, Corpus, Inventor, build, made_up
from sgl_actors.actors.scheduler.messages import Options

UNLIMITED = 1 << 20
INDEPENDENT = ("mmlu", "hellaswag", "json_decoding", "rag")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return made_up(share=0.2)


def hit_rate(calls: list[Call], pages: int, options: Options | None = None) -> float:
    return Replay(calls, options or Options(), pages=pages).run().hit_rate()


def test_optimum_counts_what_is_distinct() -> None:
    """One minus distinct prompt tokens over all; a repeated prompt computes one token, and outputs are no prompt tokens."""
    calls = [
        Call([1, 2, 3, 4], [5, 6]),
        Call([1, 2, 7]),
        Call([1, 2, 7]),
        Call([1, 2, 3, 4, 5, 8], after=(0,)),
    ]
    assert optimum(calls) == 1 - (4 + 1 + 1 + 1) / 16
    assert distinct(calls) == 7


def test_scored_tokens_are_computed() -> None:
    """A call that wants log probabilities from token 2 on can use one cached token only."""
    assert optimum([Call([1, 2, 3, 4]), Call([1, 2, 3, 4], scored=2, after=(0,))]) == 1 / 8


def test_the_trie_forgets_the_least_recently_used() -> None:
    """Tokens go from the end of what was used longest ago, and only as many as are needed."""
    trie = TokenTrie(6)
    assert [trie.run(Call(prompt)) for prompt in ([1, 2, 3], [4, 5, 6], [1, 2, 3])] == [0, 0, 2]
    assert [trie.run(Call(prompt)) for prompt in ([7, 8], [4, 5, 6], [1, 2, 9])] == [0, 1, 1]


@pytest.mark.parametrize("name", WORKLOADS)
def test_offline_order_loses_nothing(name: str, corpus: Corpus) -> None:
    """Depth first, a pool for a quarter of the tokens and the longest request is enough for the optimum."""
    calls = build(name, corpus)
    assert offline(calls, quarter(calls)) == optimum(calls)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_one_request_at_a_time_is_the_oracle(name: str, corpus: Corpus) -> None:
    """In depth-first order with a batch of one, scheduler and cache reach exactly what the oracle says of the same small pool."""
    calls = sorted(build(name, corpus), key=lambda call: call.prompt)
    pages = quarter(calls)
    assert hit_rate(calls, pages, Options(policy="fcfs", max_batch=1)) == offline(calls, pages)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param(
            name,
            policy,
            marks=pytest.mark.slow if name.startswith("chat") and policy != Options().policy else [],
        )
        for name in WORKLOADS
        for policy in ("lpm", "dfs-weight", "hrrn", "fcfs")
    ],
)
def test_large_pool_reaches_the_optimum(name: str, policy: str, corpus: Corpus) -> None:
    """Whatever the order, with pages for all of it each distinct token is computed about once."""
    calls = build(name, corpus)
    options = Options(policy=policy)  # type: ignore[arg-type]
    assert hit_rate(calls, UNLIMITED, options) >= 0.99 * optimum(calls)


def test_without_sharing_prefixes_are_computed_again(corpus: Corpus) -> None:
    """Of requests that come together those behind the first would find its prefix if they waited: without sharing they do not."""
    calls = build("json_decoding", corpus)
    assert hit_rate(calls, UNLIMITED, Options(sharing=False)) < hit_rate(calls, UNLIMITED) - 0.02


def test_without_reuse_nothing_is_cached(corpus: Corpus) -> None:
    """Reuse off: no hit at all, the same ends."""
    result = Replay(build("mmlu", corpus), Options(reuse=False), pages=UNLIMITED).run()
    assert result.hit_rate() == 0
    assert not result.unserved()


def test_small_pool_comes_near_the_offline_order() -> None:
    """A quarter of the tokens, all requests known at the start: the default order is within 4 % of the offline one on average."""
    corpus, ratios = made_up(), []
    for name in ("mmlu", "hellaswag", "json_decoding", "judge", "rag"):
        calls = build(name, corpus)
        pages = quarter(calls)
        ratios.append(hit_rate(calls, pages) / offline(calls, pages))
    assert statistics.mean(ratios) >= 0.96, ratios


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("overlap", [False, True])
def test_tiny_pool_finishes(page_size: int, overlap: bool) -> None:
    """Many short outputs, then long ones, in a pool for two requests: the estimate is wrong, some are retracted, all end."""
    some = Inventor(0, FIRST)
    outputs = [4] * 30 + [150] * 10
    calls = [Call(some.tokens(20), some.tokens(output), asked=200, at=n) for n, output in enumerate(outputs)]
    replay = Replay(calls, Options(overlap=overlap), pages=448 // page_size, page_size=page_size)
    result = replay.run()
    assert not result.unserved()
    assert result.retracted > 0
    assert result.evicted > 0
    assert replay.cache.core.check() == []
    assert replay.cache.core.leases == 0


def test_a_replay_repeats_itself(corpus: Corpus) -> None:
    """The same workload twice: the same times and hits for every request."""
    calls = build("tree_of_thought", corpus)
    first, second = (Replay(calls, Options(), pages=quarter(calls)).run() for _ in range(2))
    assert first == second


def test_costs_add_up() -> None:
    """One request: prompt in one step, then a step per token; END is one more."""
    costs = Costs(step=1.0, row=0.1, token=0.01, attention=0.001)
    result = Replay([Call([3, 4, 5, 6], [7, 8], asked=9)], Options(), pages=64, costs=costs).run()
    assert END not in result.outcomes[0].call.output
    assert result.seconds == pytest.approx((1 + 4 * (0.01 + 0.001 * 2)) + 2 * 1.1)
    assert result.ttft(0.5) == pytest.approx(1.048)


def test_cold_requests_starve_without_a_bound_only() -> None:
    """Beside a stream of hot requests cold ones are never served under `lpm` alone; with a bound, about as soon as first come, first served."""
    costs, seconds = Costs(), 150.0
    calls = starvation.load(starvation.capacity(costs, 150), costs, seconds, None)

    def run(options: Options) -> Result:
        return Replay(calls, options, pages=starvation.PAGES, costs=costs).run(seconds)

    alone, bounded = run(Options(overtake=0)), run(Options(overtake=1024))
    fcfs = run(Options(policy="fcfs", overtake=1024))
    assert alone.unserved("cold") == len(list(alone.of("cold"))) > 1
    assert not bounded.unserved("cold")
    assert bounded.overtaken <= 1024
    assert bounded.ttft(0.99, "cold") <= 2 * fcfs.ttft(0.99, "cold")
    assert bounded.hit_rate() >= alone.hit_rate() - 0.03
