"""Paged attention for GPUs under Triton's interpreter, against the float64 reference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from sgl_actors.kernels import reference
from sgl_actors.kernels.attention import AttentionRow

pytestmark = pytest.mark.interpreted

SLOTS = 2048
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
"""Largest error allowed, over 1 plus the size of the result: some last places of the type."""

DECODES = [(20, 1), (0, 1), (299, 1), (255, 1), (63, 1)]
DRAFTS = [(20, 3), (0, 2), (270, 8), (5, 1)]
PREFILLS = [(0, 20), (70, 33), (0, 9)]
MIXED = [(30, 1), (0, 19), (9, 4), (261, 12), (8, 1)]


@dataclass(frozen=True)
class Problem:
    """One flat batch with random contents."""

    rows: list[AttentionRow]
    query: torch.Tensor
    pool: torch.Tensor

    @property
    def scale(self) -> float:
        return float(self.query.shape[2] ** -0.5)

    def expect(self, window: int | None = None) -> torch.Tensor:
        return reference.attention(self.query, self.pool, self.rows, scale=self.scale, window=window)


def make_problem(
    shape: list[tuple[int, int]],
    *,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    page_size: int = 1,
    shared: int = 0,
) -> Problem:
    """Rows of (tokens before, new tokens) in pages of their own, in scattered places; their first `shared` tokens lie in the same ones."""
    generator = torch.Generator().manual_seed(len(shape) + head_dim)
    pages = iter(torch.randperm(SLOTS // page_size, generator=generator).tolist())

    def take(tokens: int) -> list[int]:
        slots: list[int] = []
        while len(slots) < tokens:
            page = next(pages)
            slots += range(page * page_size, (page + 1) * page_size)
        return slots[:tokens]

    prefix = take(shared)
    rows = [AttentionRow(torch.tensor(prefix + take(before + new - shared)), new) for before, new in shape]
    pool = torch.randn(SLOTS, 2, kv_heads, head_dim, generator=generator).to(dtype)
    query = torch.randn(sum(new for _, new in shape), heads, head_dim, generator=generator).to(dtype)
    return Problem(rows, query, pool)


def attend(problem: Problem, window: int | None = None) -> torch.Tensor:
    from sgl_actors.kernels.triton.attention import TritonPlan

    plan = TritonPlan(problem.rows, scale=problem.scale, window=window)
    return plan.attend(problem.query, problem.pool)


def check(problem: Problem, window: int | None = None) -> None:
    expected = problem.expect(window)
    error = (attend(problem, window).double() - expected).abs() / (1 + expected.abs())
    assert error.max().item() <= TOLERANCE[problem.query.dtype]


SHAPES = {"decodes": DECODES, "drafts": DRAFTS, "prefills": PREFILLS, "mixed": MIXED}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(
            shape,
            dtype,
            id=f"{name}-{dtype}",
            marks=[] if dtype == torch.bfloat16 or name == "mixed" else pytest.mark.slow,
        )
        for name, shape in SHAPES.items()
        for dtype in TOLERANCE
    ],
)
def test_ragged_batches_agree_with_the_reference(shape: list[tuple[int, int]], dtype: torch.dtype) -> None:
    """Decodes, drafts, prefills with a cached prefix, and all of them mixed, in each type."""
    check(make_problem(shape, dtype=dtype))


@pytest.mark.parametrize("head_dim", [80, 128])
@pytest.mark.parametrize("page_size", [1, 16])
def test_head_sizes_and_page_sizes(head_dim: int, page_size: int) -> None:
    """A head size that is no power of two, a large one, and pages of several tokens."""
    check(make_problem(MIXED, head_dim=head_dim, page_size=page_size, dtype=torch.bfloat16))


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (3, 1), (20, 1), (6, 2)])
def test_grouped_heads(heads: int, kv_heads: int) -> None:
    """One query head per key head, groups that are no power of two, and one larger than a decode's tile."""
    check(make_problem(MIXED, heads=heads, kv_heads=kv_heads, head_dim=16))


@pytest.mark.parametrize("window", [1, 7, 300])
def test_windows(window: int) -> None:
    """A token sees itself and the window's tokens before it, whatever a row is run as."""
    check(make_problem(MIXED, head_dim=16), window)


@pytest.mark.parametrize(
    ("window", "dtype"),
    [
        (None, torch.bfloat16),
        (400, torch.float32),
        pytest.param(None, torch.float32, marks=pytest.mark.slow),
        pytest.param(400, torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_branches_of_a_fork_share_their_prefix(window: int | None, dtype: torch.dtype) -> None:
    """Rows with a common prefix give what they give one by one; their common splits are run once."""
    from sgl_actors.kernels.triton.attention_tables import make_tables, read_batch

    problem = make_problem([(600, 1), (560, 3), (580, 1), (550, 12)], shared=540, dtype=dtype)
    tables = make_tables(read_batch(problem.rows), 2, window)
    assert len(tables.shared) == (2 if window is None else 1)
    assert len(tables.members) == 5 * len(tables.shared)
    check(problem, window)


def test_a_cascade_larger_than_a_tile() -> None:
    """More branches than a tile has rows are run in several."""
    problem = make_problem(
        [(256 + step, 1) for step in range(9)], shared=256, heads=16, kv_heads=1, head_dim=16
    )
    check(problem)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """A decode gives the same bits alone and in a batch."""
    problem = make_problem(DECODES)
    together = attend(problem)
    for place, row in enumerate(problem.rows):
        alone = Problem([row], problem.query[place : place + 1], problem.pool)
        assert torch.equal(attend(alone)[0], together[place])


def test_a_bad_value_of_one_row_stays_in_that_row() -> None:
    """NaN keys and values of one row reach no other."""
    problem = make_problem(MIXED)
    problem.pool[problem.rows[2].slots] = float("nan")
    bad = torch.isnan(attend(problem)).any(dim=1)
    expected = torch.zeros(len(problem.query), dtype=torch.bool)
    expected[20:24] = True
    assert torch.equal(bad, expected)


def test_a_query_that_is_a_slice() -> None:
    """Queries may be the first heads of a wider tensor, as the merged projection leaves them."""
    problem = make_problem(MIXED, head_dim=16)
    wide = torch.full((len(problem.query), 8, 16), float("nan"))
    wide[:, :4] = problem.query
    assert torch.equal(attend(Problem(problem.rows, wide[:, :4], problem.pool)), attend(problem))


def test_a_plan_is_filled_anew() -> None:
    """`refill` puts a smaller batch into the same tables, and refuses one that has no room."""
    from sgl_actors.kernels.triton.attention import TritonPlan

    large = make_problem([(299, 1), (270, 1), (600, 1)], head_dim=16)
    small = make_problem([(30, 1), (290, 1)], head_dim=16)
    plan = TritonPlan(large.rows, scale=large.scale, window=None)
    plan.attend(large.query, large.pool)
    plan.refill(small.rows)
    assert torch.allclose(plan.attend(small.query, small.pool).double(), small.expect(), atol=2e-6)
    with pytest.raises(ValueError, match="room"):
        plan.refill(large.rows * 2)
    with pytest.raises(ValueError, match="tiles"):
        plan.refill(make_problem([(20, 3)], head_dim=16).rows)


def test_a_plan_with_room_takes_longer_rows_and_forks() -> None:
    """With `spare`, tables made for short decodes hold as many rows that have grown into several splits, shared or not."""
    from sgl_actors.kernels.triton.attention import TritonPlan

    short = make_problem([(200, 1), (210, 1), (40, 1), (180, 1)], head_dim=16)
    plan = TritonPlan(short.rows, scale=short.scale, window=None, spare=2.0)
    assert torch.allclose(plan.attend(short.query, short.pool).double(), short.expect(), atol=2e-6)
    for later in (
        make_problem([(300, 1), (280, 1), (0, 1), (270, 1)], head_dim=16),
        make_problem([(300, 1), (280, 1), (260, 1), (270, 1)], head_dim=16, shared=256),
        short,
    ):
        plan.refill(later.rows)
        assert torch.allclose(plan.attend(later.query, later.pool).double(), later.expect(), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "head_dim", "page_size", "heads"),
    list(itertools.product(TOLERANCE, [64, 80, 128], [1, 16], [(2, 2), (6, 2)])),
    ids=str,
)
def test_the_full_matrix(dtype: torch.dtype, head_dim: int, page_size: int, heads: tuple[int, int]) -> None:
    """Every type with every head size, page size and grouping, with and without a window and a fork."""
    for shared, shape in ((0, MIXED), (0, DECODES), (540, [(600, 1), (560, 3), (580, 12)])):
        problem = make_problem(
            shape,
            dtype=dtype,
            head_dim=head_dim,
            page_size=page_size,
            heads=heads[0],
            kv_heads=heads[1],
            shared=shared,
        )
        for window in (None, 33):
            check(problem, window)
