"""Rotary embedding fused with the write into the pool against torch, under the interpreter."""

from __future__ import annotations

import pytest
import torch

from sgl_actors.kernels import reference
from sgl_actors.kernels import rotary as oracle
from sgl_actors.kernels.triton import rotary

pytestmark = pytest.mark.interpreted
HEADS, KV_HEADS, SLOTS = 6, 2, 40


def tables(positions: torch.Tensor, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = torch.tensor([10000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    return oracle.rotary_tables(positions, frequencies, dtype)


TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype"),
    [
        pytest.param(
            tokens, head_dim, dtype, marks=[] if head_dim == 80 or dtype == TYPES[1] else pytest.mark.slow
        )
        for tokens in (1, 5)
        for head_dim in (64, 80, 128)
        for dtype in TYPES
    ],
    ids=str,
)
def test_queries_turn_in_place_and_keys_and_values_go_to_their_slots(
    tokens: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Each within the dtype's rounding of torch's; values and every other slot bit for bit."""
    torch.manual_seed(tokens)
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, head_dim).to(dtype)
    pool = torch.randn(SLOTS, 2, KV_HEADS, head_dim).to(dtype)
    positions, slots = torch.arange(tokens) * 13, torch.randperm(SLOTS)[:tokens]
    turning = tables(positions, head_dim, dtype)
    theirs, theirs_pool = qkv.clone(), pool.clone()
    oracle.rotate_and_store(theirs, turning, theirs_pool, slots)
    values = qkv[:, HEADS + KV_HEADS :].clone()
    rotary.rotate_and_store(qkv, turning, pool, slots)
    atol = 4 * torch.finfo(dtype).eps
    assert torch.allclose(qkv[:, :HEADS].float(), theirs[:, :HEADS].float(), atol=atol, rtol=atol)
    assert torch.allclose(pool[slots, 0].float(), theirs_pool[slots, 0].float(), atol=atol, rtol=atol)
    assert torch.equal(pool[slots, 1], values)
    others = torch.ones(SLOTS, dtype=torch.bool)
    others[slots] = False
    assert torch.equal(pool[others], theirs_pool[others])


def test_the_angles_are_those_of_the_positions() -> None:
    """Against the float64 reference, which knows no tables."""
    qkv, pool = torch.randn(4, HEADS + 2 * KV_HEADS, 16), torch.zeros(SLOTS, 2, KV_HEADS, 16)
    positions = torch.tensor([0, 1, 7, 300])
    frequencies = torch.tensor([10000.0 ** (-2 * i / 16) for i in range(8)])
    expected = reference.rotary(qkv, positions, frequencies)
    rotary.rotate_and_store(
        qkv, oracle.rotary_tables(positions, frequencies, torch.float32), pool, torch.arange(4)
    )
    assert torch.allclose(qkv[:, :HEADS].double(), expected[:, :HEADS], atol=1e-4)
    assert torch.allclose(pool[:4, 0].double(), expected[:, HEADS : HEADS + KV_HEADS], atol=1e-4)


def test_slot_minus_one_is_nowhere() -> None:
    """The padding of a captured graph writes nothing, its neighbours do."""
    qkv, pool = torch.randn(3, HEADS + 2 * KV_HEADS, 8), torch.zeros(SLOTS, 2, KV_HEADS, 8)
    rotary.rotate_and_store(qkv, tables(torch.zeros(3), 8, torch.float32), pool, torch.tensor([4, -1, 9]))
    assert pool.flatten(1).any(dim=1).nonzero()[:, 0].tolist() == [4, 9]


def test_the_pool_may_have_another_dtype() -> None:
    """Keys and values are rounded to the pool's."""
    qkv, pool = (
        torch.randn(2, HEADS + 2 * KV_HEADS, 8),
        torch.zeros(SLOTS, 2, KV_HEADS, 8, dtype=torch.float16),
    )
    values = qkv[:, HEADS + KV_HEADS :].clone()
    rotary.rotate_and_store(qkv, tables(torch.zeros(2), 8, torch.float32), pool, torch.tensor([0, 1]))
    assert torch.equal(pool[:2, 1], values.half())


def test_scattered_heads_are_refused() -> None:
    """The kernel counts on the heads of a token lying one after the other."""
    qkv = torch.randn(8, HEADS + 2 * KV_HEADS, 2).transpose(0, 2)
    with pytest.raises(ValueError, match="one after the other"):
        rotary.rotate_and_store(
            qkv, tables(torch.zeros(2), 8, torch.float32), torch.zeros(4, 2, KV_HEADS, 8), torch.arange(2)
        )
