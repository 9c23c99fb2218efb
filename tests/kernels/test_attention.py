"""Paged attention against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.kernels import reference
from sgl_actors.kernels.attention import AttentionRow, plan_attention
from sgl_actors.kernels.cpu import attention as cpu_attention

SLOTS = 400
DIM = 8


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """Rows as (tokens before, new tokens, contiguous): decodes and prefill chunks mixed."""
    row = st.tuples(st.integers(0, 40), st.one_of(st.just(1), st.integers(1, 20)), st.booleans())
    return draw(st.lists(row, min_size=1, max_size=6))


def make_rows(shape: list[tuple[int, int, bool]], generator: torch.Generator) -> list[AttentionRow]:
    """Rows with slots of their own, in scattered places unless contiguous."""
    places = torch.randperm(SLOTS, generator=generator)
    rows, used = [], 0
    for before, new, contiguous in shape:
        length = before + new
        if contiguous:
            first = int(torch.randint(SLOTS - length, (1,), generator=generator))
            slots = torch.arange(first, first + length)
        else:
            slots = places[used : used + length]
            used += length
        rows.append(AttentionRow(slots, new, contiguous))
    return rows


@settings(max_examples=60, deadline=None)
@given(
    shape=batches(),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 7]),
)
def test_attention_agrees_with_the_reference(
    shape: list[tuple[int, int, bool]], kv_heads: int, group: int, window: int | None
) -> None:
    """Any mix of decodes and chunks, any slots, grouped heads and windows give the reference's result."""
    generator = torch.Generator().manual_seed(len(shape) + kv_heads)
    rows = make_rows(shape, generator)
    pool = torch.randn(SLOTS, 2, kv_heads, DIM, generator=generator)
    query = torch.randn(sum(row.new for row in rows), kv_heads * group, DIM, generator=generator)
    ours = plan_attention(rows, scale=0.3, window=window).attend(query, pool)
    expected = reference.attention(query, pool, rows, scale=0.3, window=window)
    assert torch.allclose(ours.double(), expected, atol=1e-5)


@pytest.mark.parametrize("limit", [{"ALONE": 8}, {"GROUP_TOKENS": 40}, {"QUERY_BLOCK": 4}, {"PADDING": 1.0}])
def test_limits_of_grouping_do_not_change_the_result(
    limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch is cut into calls has no influence on what comes out."""
    generator = torch.Generator().manual_seed(5)
    rows = make_rows(
        [(30, 1, False), (3, 1, False), (12, 1, True), (0, 19, False), (9, 1, False), (8, 11, True)],
        generator,
    )
    pool = torch.randn(SLOTS, 2, 2, DIM, generator=generator)
    query = torch.randn(sum(row.new for row in rows), 4, DIM, generator=generator)
    expected = reference.attention(query, pool, rows, scale=0.3)
    for name, value in limit.items():
        monkeypatch.setattr(cpu_attention, name, value)
    ours = plan_attention(rows, scale=0.3).attend(query, pool)
    assert torch.allclose(ours.double(), expected, atol=1e-5)


def test_a_bad_value_of_one_row_stays_in_that_row() -> None:
    """NaN keys of one decode do not reach the decodes that are padded and run together with it."""
    generator = torch.Generator().manual_seed(7)
    rows = make_rows([(20, 1, False), (11, 1, False), (15, 1, False)], generator)
    pool = torch.randn(SLOTS, 2, 2, DIM, generator=generator)
    pool[rows[1].slots] = float("nan")
    out = plan_attention(rows, scale=0.3).attend(torch.randn(3, 4, DIM, generator=generator), pool)
    assert torch.isnan(out).any(dim=1).tolist() == [False, True, False]


def test_a_plan_serves_many_layers() -> None:
    """A plan gives right results when it is used again with another pool and query."""
    generator = torch.Generator().manual_seed(9)
    rows = make_rows([(20, 1, False), (4, 6, False), (15, 1, False)], generator)
    plan = plan_attention(rows, scale=0.3)
    for _ in range(3):
        pool = torch.randn(SLOTS, 2, 2, DIM, generator=generator)
        query = torch.randn(8, 4, DIM, generator=generator)
        expected = reference.attention(query, pool, rows, scale=0.3)
        assert torch.allclose(plan.attend(query, pool).double(), expected, atol=1e-5)
