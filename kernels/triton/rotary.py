"""Rotary embedding and the write into the KV pool in one kernel: queries are turned in place, keys turned into the pool, values copied."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime

TILE = 1024
"""Pairs of dimensions that a program turns at most."""


@triton.jit
def _rotate_and_store_kernel(
    qkv_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    pool_ptr: tl.tensor,
    token_stride: int,
    slot_stride: int,
    heads: int,
    kv_heads: int,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program takes HEADS heads of one token. Head h of a token: a query below `heads`, then the keys, then the values.

    Keys and values of a slot lie in the pool as they do in `qkv`: one after the other.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, BLOCK)
    here = (head < heads + 2 * kv_heads)[:, None] & (pair < HALF)[None, :]
    within = head[:, None] * (2 * HALF) + pair[None, :]
    source = qkv_ptr + token * token_stride + within
    low = tl.load(source, mask=here, other=0.0)
    high = tl.load(source + HALF, mask=here, other=0.0)
    table = token * (2 * HALF) + pair
    cos = tl.load(cos_ptr + table, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + table + HALF, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    turned_low = (low.to(tl.float32) * cos - high.to(tl.float32) * sin).to(low.dtype)
    turned_high = (high.to(tl.float32) * cos + low.to(tl.float32) * sin).to(low.dtype)
    is_query = here & (head < heads)[:, None]
    tl.store(source, turned_low, mask=is_query)
    tl.store(source + HALF, turned_high, mask=is_query)
    slot = tl.load(slots_ptr + token)
    first_kept = tl.where(slot >= 0, heads, heads + 2 * kv_heads)
    is_kept = here & (head >= first_kept)[:, None]
    is_value = (head >= heads + kv_heads)[:, None]
    target = pool_ptr + slot * slot_stride + within - heads * (2 * HALF)
    tl.store(target, tl.where(is_value, low, turned_low).to(pool_ptr.dtype.element_ty), mask=is_kept)
    tl.store(target + HALF, tl.where(is_value, high, turned_high).to(pool_ptr.dtype.element_ty), mask=is_kept)


def rotate_and_store(
    qkv: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    pool: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """See `sgl_actors.kernels.rotary.rotate_and_store`. A slot of -1 is not written: the padding of a captured graph has it."""
    cos, signed_sin = rotary
    tokens, all_heads, head_dim = qkv.shape
    kv_heads = pool.shape[2]
    if qkv.stride(2) != 1 or qkv.stride(1) != head_dim or pool.stride(1) != kv_heads * head_dim:
        raise ValueError(
            "rotate_and_store: the heads of a token and of a slot have to lie one after the other"
        )
    if not tokens:
        return
    half = head_dim // 2
    block = triton.next_power_of_2(half)
    tile = max(1, min(TILE // block, triton.next_power_of_2(all_heads)))
    _rotate_and_store_kernel[(tokens, triton.cdiv(all_heads, tile))](
        qkv,
        cos,
        signed_sin,
        slots,
        pool,
        qkv.stride(0),
        pool.stride(0),
        all_heads - 2 * kv_heads,
        kv_heads,
        HALF=half,
        HEADS=tile,
        BLOCK=block,
        enable_fp_fusion=True,
    )


AHEAD_OF_TIME = [
    AheadOfTime(
        f"rotate_and_store_bf16_d{2 * half}",
        _rotate_and_store_kernel,
        {
            "qkv_ptr": "*bf16:16",
            "cos_ptr": "*bf16:16",
            "sin_ptr": "*bf16:16",
            "slots_ptr": "*i64:16",
            "pool_ptr": "*bf16:16",
            "token_stride": "i32:16",
            "slot_stride": "i32:16",
            "heads": "i32",
            "kv_heads": "i32",
        },
        {"HALF": half, "HEADS": 16, "BLOCK": block},
        hot=True,
    )
    for half, block in ((32, 32), (40, 64), (64, 64))
]
