"""Copies of KV pages for GPUs under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.interpreted


def make_pool(dtype: torch.dtype, head_dim: int, slots: int = 64) -> torch.Tensor:
    return torch.randn(3, slots, 2, 2, head_dim, generator=torch.Generator().manual_seed(slots)).to(dtype)


TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "page_size"),
    [
        pytest.param(
            dtype, head_dim, page_size, marks=[] if head_dim == 80 or dtype == TYPES[1] else pytest.mark.slow
        )
        for dtype in TYPES
        for head_dim in (64, 80, 5)
        for page_size in (1, 16)
    ],
    ids=str,
)
def test_pages_travel_through_a_dense_block(dtype: torch.dtype, head_dim: int, page_size: int) -> None:
    """Gathered pages are what the pool holds; scattered into another pool they are there, and nothing else has changed."""
    from sgl_actors.kernels.triton.pages import gather_slots, page_slots, scatter_slots

    pool, other = make_pool(dtype, head_dim), make_pool(dtype, head_dim, 48)
    come, go = page_slots(torch.tensor([3, 0, 2]), page_size), page_slots(torch.tensor([1, 2, 0]), page_size)
    block = gather_slots(pool, come)
    assert torch.equal(block, pool[:, come])
    expected = other.clone()
    expected[:, go] = pool[:, come]
    scatter_slots(block, other, go)
    assert torch.equal(other, expected)


def test_pages_are_copied_within_a_pool_and_bit_by_bit() -> None:
    """A copy within one pool leaves the rest alone and keeps the payload of a NaN."""
    from sgl_actors.kernels.triton.pages import copy_slots

    pool = make_pool(torch.float32, 16)
    pool.view(torch.int32)[:, 5] = 0x7FC01234
    expected = pool.view(torch.int32).clone()
    expected[:, [9, 60]] = expected[:, [5, 7]]
    copy_slots(pool, torch.tensor([5, 7]), pool, torch.tensor([9, 60]))
    assert torch.equal(pool.view(torch.int32), expected)


def test_a_slot_wider_than_a_tile() -> None:
    """A slot of more words than a program takes at once is copied in parts."""
    from sgl_actors.kernels.triton import pages

    pool = torch.randn(2, 3, 2, 24, 128, generator=torch.Generator().manual_seed(1))
    assert pool[0, 0].numel() * 4 > pages.TILE * 8
    assert torch.equal(pages.gather_slots(pool, torch.tensor([2, 0])), pool[:, [2, 0]])


def test_an_empty_list_copies_nothing() -> None:
    """No slots is a valid list."""
    from sgl_actors.kernels.triton.pages import gather_slots

    pool = make_pool(torch.float32, 16)
    assert gather_slots(pool, torch.zeros(0, dtype=torch.int64)).shape == (3, 0, 2, 2, 16)


def test_what_does_not_fit_is_refused() -> None:
    """Another type, another shape, lists of different lengths or of another type are refused before anything is written."""
    from sgl_actors.kernels.triton.pages import copy_slots, gather_slots, scatter_slots

    pool, slots = make_pool(torch.float32, 16), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="2 slots to read and 1 to write"):
        copy_slots(pool, slots, pool, slots[:1])
    with pytest.raises(ValueError, match="does not fit"):
        copy_slots(pool, slots, pool.half(), slots)
    with pytest.raises(ValueError, match="data of 3 slots for 2"):
        scatter_slots(pool[:, :3], pool, slots)
    with pytest.raises(ValueError, match="int64"):
        gather_slots(pool, slots.int())
    with pytest.raises(ValueError, match="contiguous"):
        gather_slots(pool.transpose(0, 1), slots)
