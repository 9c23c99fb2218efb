"""Paged attention of a prefill's chunk: many queries over the cached prefix and, causally, over each other.

A work item is a block of consecutive tokens over at most `SPLIT` keys; only where a sequence is longer there are partial results to merge. Tiles of keys
that every query of the block sees are run without a mask, those on the diagonal with one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.attention_tile import (
    FIRST,
    ITEM,
    LAST,
    PARTIAL,
    POSITION,
    SIGNATURE,
    SLOTS,
    TOKEN,
    TOKENS,
    attend_keys,
    choose,
    describe,
    load_queries,
    store_result,
)

SPLIT = 4096
"""Keys of one work item: a long prefix is spread over the processors, at 1/4096 of its products in merging."""

LAUNCHES = {
    "16": {"BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    "32": {"BLOCK_N": 16, "num_warps": 8, "num_stages": 2},
    "amd": {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    "amd32": {"BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
}
"""How it is launched, by the size of the pool's type in bits, and where that is different on AMD; see `choose`."""


@triton.jit
def attend_prefills(
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    query: tl.tensor,
    pool: tl.tensor,
    slots: tl.tensor,
    items: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_heads: tl.tensor,
    factor: tl.tensor,
    window: tl.tensor,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One block of tokens and one key head; items as in `attention_tile`."""
    item = items + tl.program_id(0) * ITEM
    tokens = tl.load(item + TOKENS)
    if tokens == 0:
        return
    kv_head = tl.program_id(1)
    row = tl.minimum(tl.arange(0, BLOCK_M) // GROUP, tokens - 1)
    member = tl.minimum(tl.arange(0, BLOCK_M) % GROUP, SHARED - 1)
    token = tl.load(item + TOKEN) + row
    head = kv_head * SHARED + member
    first = tl.load(item + FIRST)
    last = tl.load(item + LAST)
    position = tl.load(item + POSITION)
    own = slots + tl.load(item + SLOTS)
    keys = pool + kv_head * HEAD_DIM
    to_values = kv_heads * HEAD_DIM
    wanted = load_queries(query, token, head, token_stride, head_stride, HEAD_DIM, BLOCK_D)
    state = (
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], -float("inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )
    whole = first
    if not WINDOW:
        whole += tl.maximum(0, tl.minimum(last, position + 1) - first) // BLOCK_N * BLOCK_N
        state = attend_keys(
            wanted, position + row, state, keys, own, first, whole, slot_stride, to_values, factor, window,
            True, False, False, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    state = attend_keys(
        wanted, position + row, state, keys, own, whole, last, slot_stride, to_values, factor, window,
        False, True, WINDOW, HEAD_DIM, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    store_result(
        state,
        out,
        partials,
        weights,
        tl.load(item + PARTIAL),
        row,
        token,
        head,
        kv_heads * SHARED,
        (tl.arange(0, BLOCK_M) // GROUP < tokens) & (tl.arange(0, BLOCK_M) % GROUP < SHARED),
        HEAD_DIM,
        BLOCK_D,
    )


def choose_launch(dtype: torch.dtype) -> dict[str, Any]:
    """Constants and options of a launch over a pool of `dtype` on this device."""
    return choose(LAUNCHES, dtype)


AHEAD_OF_TIME = describe(
    "attention_prefill",
    attend_prefills,
    LAUNCHES,
    {"WINDOW": False, "BLOCK_M": 128},
    {**SIGNATURE, "window": "i32"},
)
AHEAD_OF_TIME += describe(
    "attention_prefill_window",
    attend_prefills,
    LAUNCHES,
    {"WINDOW": True, "BLOCK_M": 128},
    {**SIGNATURE, "window": "i32"},
)
AHEAD_OF_TIME += describe(
    "attention_prefill_short",
    attend_prefills,
    LAUNCHES,
    {"WINDOW": False, "BLOCK_M": 64},
    {**SIGNATURE, "window": "i32"},
    (("bf16", 128),),
)
