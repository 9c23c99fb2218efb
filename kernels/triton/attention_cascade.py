"""Attention of several rows over keys they share: the prefix of a fork is read once for all its branches.

The queries of the rows that share a split's keys are gathered into one tile, so a key that would be read once per row is read once per
tile (Juravsky et al., "Hydragen", arXiv 2402.05099; "cascade inference" in FlashInfer). Every row sees all of them: only splits that lie
before the first new token, and within the window of the last, are shared. What follows is each row's own; `merge_partials` puts them together by their weights.
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

LAUNCHES = {
    "16": {"BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
    "32": {"BLOCK_N": 16, "num_warps": 4, "num_stages": 2},
    "amd": {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    "amd32": {"BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
}
"""How it is launched, by the size of the pool's type in bits, and where that is different on AMD; see `choose`."""


@triton.jit
def attend_shared(
    partials: tl.tensor,
    weights: tl.tensor,
    query: tl.tensor,
    pool: tl.tensor,
    slots: tl.tensor,
    items: tl.tensor,
    members: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    slot_stride: tl.tensor,
    kv_heads: tl.tensor,
    factor: tl.tensor,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One split of one group and key head; items as in `attention_tile`, their tokens listed in `members`, always partial."""
    item = items + tl.program_id(0) * ITEM
    tokens = tl.load(item + TOKENS)
    if tokens == 0:
        return
    kv_head = tl.program_id(1)
    row = tl.minimum(tl.arange(0, BLOCK_M) // GROUP, tokens - 1)
    member = tl.minimum(tl.arange(0, BLOCK_M) % GROUP, SHARED - 1)
    token = tl.load(members + tl.load(item + TOKEN) + row)
    head = kv_head * SHARED + member
    wanted = load_queries(query, token, head, token_stride, head_stride, HEAD_DIM, BLOCK_D)
    state = (
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], -float("inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )
    state = attend_keys(
        wanted,
        row,
        state,
        pool + kv_head * HEAD_DIM,
        slots + tl.load(item + SLOTS),
        tl.load(item + FIRST),
        tl.load(item + LAST),
        slot_stride,
        kv_heads * HEAD_DIM,
        factor,
        0,
        True,
        False,
        False,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
    )
    store_result(
        state,
        partials,
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


_PARAMETERS = {**{name: of for name, of in SIGNATURE.items() if name != "out"}, "members": "*i32:16"}

AHEAD_OF_TIME = describe("attention_cascade", attend_shared, LAUNCHES, {"BLOCK_M": 64}, _PARAMETERS)
AHEAD_OF_TIME += describe(
    "attention_cascade_few", attend_shared, LAUNCHES, {"BLOCK_M": 16}, _PARAMETERS, (("bf16", 128),)
)
