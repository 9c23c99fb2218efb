"""Paged decode attention, split over the keys (Dao et al., "Flash-Decoding", 2023), and the merge of partial results.

A sequence's keys are cut at fixed positions, every `SPLIT`, whatever the batch; so plain decodes give the same bits alone and among others (docs/design/0020).
Rows of a few new tokens (a decode with its drafts) are a tile of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime
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

SPLIT = 256
"""Keys of one work item. Its partial result in fp32 takes, for each query head, 1/256 of the bytes of the 16-bit keys and values that were read."""

MERGED = 16
"""Partial results that the merge reads at once."""

LAUNCHES = {
    "16": {"BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
    "32": {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    "amd": {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    "amd32": {"BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
}
"""How it is launched, by the size of the pool's type in bits, and where that is different on AMD; see `choose`."""


@triton.jit
def attend_decodes(
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
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One split of one row and key head; items as in `attention_tile`.

    SHARED query heads use one key head; GROUP is that rounded up. CAUSAL and WINDOW are needed only where a row
    has several tokens: for one, the split's borders are all that hides a key.
    """
    item = items + tl.program_id(0) * ITEM
    tokens = tl.load(item + TOKENS)
    if tokens == 0:
        return
    kv_head = tl.program_id(1)
    row = tl.minimum(tl.arange(0, BLOCK_M) // GROUP, tokens - 1)
    member = tl.minimum(tl.arange(0, BLOCK_M) % GROUP, SHARED - 1)
    token = tl.load(item + TOKEN) + row
    head = kv_head * SHARED + member
    wanted = load_queries(query, token, head, token_stride, head_stride, HEAD_DIM, BLOCK_D)
    state = (
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], -float("inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )
    state = attend_keys(
        wanted,
        tl.load(item + POSITION) + row,
        state,
        pool + kv_head * HEAD_DIM,
        slots + tl.load(item + SLOTS),
        tl.load(item + FIRST),
        tl.load(item + LAST),
        slot_stride,
        kv_heads * HEAD_DIM,
        factor,
        window,
        False,
        CAUSAL,
        WINDOW,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
    )
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


@triton.jit
def merge_partials(
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    merges: tl.tensor,
    numbers: tl.tensor,
    heads: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """One token and head: its partial results, weighted; the grid is (merges, heads).

    `merges` [.., 4] int32: the token, and its partial results' numbers at `numbers[begin:end]`; nothing is done where they are none.
    """
    merge = merges + tl.program_id(0) * 4
    head = tl.program_id(1)
    begin = tl.load(merge + 1)
    end = tl.load(merge + 2)
    if begin == end:
        return
    depth = tl.arange(0, BLOCK_D)
    column = tl.arange(0, BLOCK_P)
    largest = -float("inf")
    for start in range(begin, end, BLOCK_P):
        there = start + column < end
        number = tl.load(numbers + start + column, mask=there, other=0).to(tl.int64) * heads + head
        largest = tl.maximum(largest, tl.max(tl.load(weights + number, mask=there, other=-float("inf")), 0))
    total = tl.zeros([BLOCK_D], tl.float32)
    weight = 0.0
    for start in range(begin, end, BLOCK_P):
        there = start + column < end
        number = tl.load(numbers + start + column, mask=there, other=0).to(tl.int64) * heads + head
        share = tl.exp2(tl.load(weights + number, mask=there, other=-float("inf")) - largest)
        at = partials + number[:, None] * HEAD_DIM + depth[None, :]
        part = tl.load(at, mask=there[:, None] & (depth < HEAD_DIM)[None, :], other=0.0)
        total += tl.sum(part * share[:, None], 0)
        weight += tl.sum(share, 0)
    line = out + (tl.load(merge).to(tl.int64) * heads + head) * HEAD_DIM
    tl.store(line + depth, (total / weight).to(out.dtype.element_ty), mask=depth < HEAD_DIM)


def choose_launch(dtype: torch.dtype) -> dict[str, Any]:
    """Constants and options of a launch over a pool of `dtype` on this device."""
    return choose(LAUNCHES, dtype)


AHEAD_OF_TIME = describe(
    "attention_decode",
    attend_decodes,
    LAUNCHES,
    {"CAUSAL": False, "WINDOW": False, "BLOCK_M": 16},
    {**SIGNATURE, "window": "i32"},
)
AHEAD_OF_TIME += describe(
    "attention_drafts",
    attend_decodes,
    LAUNCHES,
    {"CAUSAL": True, "WINDOW": True, "BLOCK_M": 32},
    {**SIGNATURE, "window": "i32"},
)
AHEAD_OF_TIME += [
    AheadOfTime(
        name=f"attention_merge_{kind}_d{head_dim}",
        kernel=merge_partials,
        signature={
            "out": f"*{kind}:16",
            "partials": "*fp32:16",
            "weights": "*fp32:16",
            "merges": "*i32:16",
            "numbers": "*i32:16",
            "heads": "i32",
        },
        constants={"HEAD_DIM": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim), "BLOCK_P": MERGED},
        hot=True,
        options={"num_warps": 1},
    )
    for kind, head_dim in (("bf16", 64), ("bf16", 80), ("bf16", 128), ("fp32", 64))
]
