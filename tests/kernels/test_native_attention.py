"""The native library's paged attention against the float64 reference, and its promise of equal bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.kernels import reference
from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.cpu.native import ISAS, Pool, library
from sgl_actors.kernels.cpu.paged import paged_attention

pytestmark = pytest.mark.skipif(library() is None, reason="the native library is not built")

SLOTS = 1600
SCALE = 0.4
WINDOWS = (None, 1, 7, 64, 100)


def isas() -> list[int]:
    """The instruction sets that this machine runs."""
    native = library()
    return list(range(native.sgl_best_isa() + 1)) if native else [0]


@pytest.fixture(params=isas(), ids=lambda isa: ISAS[isa])
def isa(request: pytest.FixtureRequest) -> int:
    """Each instruction set in turn."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Two threads."""
    return Pool(2)


@dataclass(frozen=True)
class Case:
    """A pass: rows over one layer's keys and values, those of slots that no row has are NaN."""

    query: torch.Tensor
    kv: torch.Tensor
    rows: list[AttentionRow]
    window: int | None

    def attend(self, pool: Pool, isa: int, *, cascade: bool = True) -> torch.Tensor:
        """[tokens, heads * head_dim]."""
        return paged_attention(
            pool,
            self.query,
            self.kv,
            self.rows,
            scale=SCALE,
            window=self.window,
            cascade=cascade,
            isa=isa,
        )

    def expected(self) -> torch.Tensor:
        """In float64."""
        return reference.attention(self.query, self.kv, self.rows, scale=SCALE, window=self.window)


def make_case(
    shape: list[tuple[int, int, int]],
    *,
    kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Rows of (tokens before, new tokens, of those before how many are the first row's), in scattered slots."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(SLOTS, generator=generator)
    rows: list[AttentionRow] = []
    used = 0
    for before, new, shared in shape:
        common = rows[0].slots[: min(shared, before)] if rows else places[:0]
        own = before + new - len(common)
        rows.append(AttentionRow(torch.cat((common, places[used : used + own])), new))
        used += own
    kv = torch.full((SLOTS, 2, kv_heads, head_dim), torch.nan, dtype=dtype)
    live = torch.cat([row.slots for row in rows]).unique()
    kv[live] = torch.randn(len(live), 2, kv_heads, head_dim, generator=generator).to(dtype)
    tokens = sum(new for _, new, _ in shape)
    query = torch.randn(tokens, kv_heads * group, head_dim, generator=generator)
    return Case(query, kv, rows, window)


@st.composite
def shapes(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Decodes, drafts to verify and prefill chunks mixed; some behind a prefix of the first row."""
    row = st.tuples(
        st.integers(0, 200),
        st.one_of(st.just(1), st.integers(2, 8), st.integers(9, 70)),
        st.one_of(st.just(0), st.integers(1, 200)),
    )
    return draw(st.lists(row, min_size=1, max_size=5))


@settings(max_examples=20, deadline=None)
@given(shape=shapes(), window=st.sampled_from(WINDOWS), cascade=st.booleans(), seed=st.integers(0, 99))
def test_any_mix_of_rows_agrees_with_the_reference(
    pool: Pool, shape: list[tuple[int, int, int]], window: int | None, cascade: bool, seed: int
) -> None:
    """Ragged decodes and chunks, shared and scattered slots, and windows give the reference's result, whatever lies in other slots."""
    case = make_case(shape, window=window, seed=seed)
    for isa in isas():
        ours = case.attend(pool, isa, cascade=cascade)
        assert torch.allclose(ours.double(), case.expected(), atol=4e-6, rtol=0), ISAS[isa]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 24])
def test_heads_of_every_size_and_number(
    pool: Pool, isa: int, head_dim: int, group: int, dtype: torch.dtype
) -> None:
    """Head sizes with a kernel of their own and any multiple of eight, and any number of query heads to one of keys."""
    case = make_case(
        [(130, 1, 0), (60, 20, 0), (150, 1, 128), (128, 3, 100)], head_dim=head_dim, group=group, dtype=dtype
    )
    assert torch.allclose(case.attend(pool, isa).double(), case.expected(), atol=1e-5, rtol=0)


def test_more_query_heads_than_a_block_has_rows(pool: Pool, isa: int) -> None:
    """All of 60 query heads on one head of keys."""
    case = make_case([(100, 1, 0), (100, 12, 80)], kv_heads=1, group=60, head_dim=8)
    assert torch.allclose(case.attend(pool, isa).double(), case.expected(), atol=4e-6, rtol=0)


def test_large_scores_do_not_overflow(pool: Pool, isa: int) -> None:
    """Scores of some thousands, positive and negative, still give weights that add up to one."""
    case = make_case([(150, 1, 0), (90, 10, 0)])
    case = replace(case, query=case.query * 3000)
    ours = case.attend(pool, isa)
    assert torch.isfinite(ours).all()
    assert torch.allclose(ours.double(), case.expected(), atol=1e-2, rtol=0)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), window=st.sampled_from(WINDOWS), seed=st.integers(0, 99))
def test_a_token_has_the_same_bits_however_it_is_computed(
    pool: Pool, shape: list[tuple[int, int, int]], window: int | None, seed: int
) -> None:
    """A whole batch equals each of its tokens decoded alone, without cascade, on one thread, and from consecutive slots."""
    case = make_case(shape, window=window, seed=seed, head_dim=8)
    single = Pool(1)
    for isa in isas():
        whole = case.attend(pool, isa)
        assert torch.equal(whole, case.attend(pool, isa, cascade=False)), ISAS[isa]
        assert torch.equal(whole, case.attend(single, isa)), ISAS[isa]
        token = 0
        for row in case.rows:
            length = len(row.slots)
            consecutive = replace(case, kv=case.kv[row.slots].contiguous())
            for position in {length - row.new, length - 1, length - (row.new + 1) // 2}:
                place = token + position - (length - row.new)
                alone = replace(
                    consecutive,
                    query=case.query[place : place + 1],
                    rows=[AttentionRow(torch.arange(position + 1), 1)],
                )
                assert torch.equal(whole[place], alone.attend(single, isa)[0]), (ISAS[isa], place)
            token += row.new


@pytest.mark.parametrize("cut", [1, 5, 63, 64, 65, 100])
def test_chunks_of_a_prefill_have_the_bits_of_the_whole(pool: Pool, isa: int, cut: int) -> None:
    """A prompt in one pass or in two, cut anywhere."""
    whole = make_case([(0, 170, 0)], head_dim=64)
    slots = whole.rows[0].slots
    parts = [
        replace(whole, query=whole.query[:cut], rows=[AttentionRow(slots[:cut], cut)]),
        replace(whole, query=whole.query[cut:], rows=[AttentionRow(slots, 170 - cut)]),
    ]
    assert torch.equal(whole.attend(pool, isa), torch.cat([part.attend(pool, isa) for part in parts]))


def test_nothing_before_the_window_is_read(pool: Pool, isa: int) -> None:
    """Slots of tokens that no query sees any more may hold anything."""
    case = make_case([(200, 1, 0), (190, 4, 0), (150, 30, 0)], window=20)
    spoilt = case.kv.clone()
    for row in case.rows:
        spoilt[row.slots[: len(row.slots) - row.new - 19]] = torch.nan
    assert torch.equal(case.attend(pool, isa), replace(case, kv=spoilt).attend(pool, isa))


def test_a_spoilt_sequence_harms_no_other(pool: Pool, isa: int) -> None:
    """NaN in one branch's own part leaves the others of its group as they were."""
    case = make_case([(140, 1, 0), (150, 1, 128), (160, 2, 128)])
    spoilt = case.kv.clone()
    spoilt[case.rows[1].slots[130:]] = torch.nan
    clean, ours = case.attend(pool, isa), replace(case, kv=spoilt).attend(pool, isa)
    assert ours[1].isnan().any()
    assert torch.equal(clean[[0, 2, 3]], ours[[0, 2, 3]])


@pytest.mark.parametrize(
    ("query", "kv"),
    [
        ((1, 4, 12), (8, 2, 2, 12)),
        ((1, 3, 8), (8, 2, 2, 8)),
        ((1, 4, 8), (8, 2, 2, 16)),
        ((2, 4, 8), (8, 2, 2, 8)),
    ],
    ids=["head of twelve", "heads", "sizes", "queries"],
)
def test_shapes_that_do_not_fit_are_refused(pool: Pool, query: tuple[int, ...], kv: tuple[int, ...]) -> None:
    """They are named, instead of memory being read that is not there."""
    with pytest.raises(ValueError, match="expected"):
        paged_attention(
            pool, torch.zeros(query), torch.zeros(kv), [AttentionRow(torch.arange(3), 1)], scale=1.0
        )


@pytest.mark.parametrize("at", [5, 70])
def test_a_key_beyond_fp16_shows_in_the_result(pool: Pool, isa: int, at: int) -> None:
    """Its product with a query is no number: neither it nor the keys before it are silently left out."""
    kv = torch.ones(100, 2, 1, 16, dtype=torch.float16)
    kv[at, 0, 0, :2] = torch.inf
    query = torch.ones(1, 1, 16)
    query[..., 1] = -1
    out = paged_attention(pool, query, kv, [AttentionRow(torch.arange(100), 1)], scale=SCALE, isa=isa)
    assert out.isnan().all()
