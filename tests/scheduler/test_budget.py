"""How many prompt tokens a step holds."""

from __future__ import annotations

import pytest

from sgl_actors.actors.scheduler.budget import LEAST, ChunkBudget


def steps(budget: ChunkBudget, count: int, *, decode: float, rate: float, base: float = 0.0) -> list[float]:
    """Steps of a machine that takes `decode` seconds for those who generate and `rate` per prompt token; their durations."""
    durations = []
    for _ in range(count):
        tokens = budget.tokens(decoding=True)
        durations.append(decode + rate * tokens + base)
        budget.learn(durations[-1], decoding=8, prefill=tokens)
    return durations


def test_nobody_generates_so_a_step_holds_the_whole_chunk() -> None:
    """Without running streams there is nobody to spare."""
    assert ChunkBudget(512, 3.0).tokens(decoding=False) == 512


@pytest.mark.parametrize("rate", [0.0001, 0.00125, 0.02])
def test_budget_follows_the_measured_time_of_steps(rate: float) -> None:
    """After a few steps one with prompt tokens takes `stall` times as long as one without, or holds the least or the most there is."""
    budget = ChunkBudget(512, 3.0)
    budget.learn(0.045, decoding=8, prefill=0)
    durations = steps(budget, 20, decode=0.045, rate=rate)
    tokens = budget.tokens(decoding=True)
    assert abs(tokens - max(LEAST, min(512, int(2.0 * 0.045 / rate)))) <= 1
    assert max(durations) <= 1.05 * max(3.0 * 0.045, 0.045 + LEAST * rate, 0.045 + 64 * rate)


def test_first_mixed_step_is_careful() -> None:
    """Before anything is known of the machine, running streams are not stalled by a whole chunk."""
    assert ChunkBudget(512, 3.0).tokens(decoding=True) <= 64


def test_one_slow_step_does_not_starve_prompts() -> None:
    """A machine that was busy for a moment: the budget recovers within ten steps."""
    budget = ChunkBudget(512, 3.0)
    budget.learn(0.045, decoding=8, prefill=0)
    steps(budget, 10, decode=0.045, rate=0.00125)
    before = budget.tokens(decoding=True)
    steps(budget, 1, decode=0.045, rate=0.00125, base=1.0)
    assert budget.tokens(decoding=True) < before
    steps(budget, 10, decode=0.045, rate=0.00125)
    assert budget.tokens(decoding=True) >= 0.9 * before


def test_no_limit_means_the_whole_chunk() -> None:
    """`stall` 0 switches the limit off."""
    budget = ChunkBudget(512, 0.0)
    budget.learn(0.045, decoding=8, prefill=0)
    assert budget.tokens(decoding=True) == 512
