"""What all attention kernels share: queries of one key head over a range of one sequence's keys, with an online softmax.

A tile is M rows of queries: the query heads of one key head (their number rounded up to a power of two, GROUP) for each of M / GROUP
tokens, token by token. Keys and values are fetched from the pool by their slots, BLOCK_N at a time, once for all M rows.
Softmax runs to base 2, its running maximum and sum as in Dao, arXiv 2307.08691, algorithm 1.

A work item is one line of ITEM numbers, int32, named below. Programs have the grid (items, kv_heads).
An item's result is final, or it is a partial one: normalised, with the base-2 logarithm of its weight beside it, for `merge_partials`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import OPTIONS, AheadOfTime
from sgl_actors.kernels.triton.product import product

ITEM = tl.constexpr(8)
"""Columns of the table of work items; the last one is not used."""
TOKEN = tl.constexpr(0)
"""Column: first of its tokens in the flat batch; for a cascade, in the list of members."""
TOKENS = tl.constexpr(1)
"""Column: how many; 0 makes the item do nothing."""
SLOTS = tl.constexpr(2)
"""Column: where the sequence's slots begin in the flat list."""
FIRST = tl.constexpr(3)
"""Column: position of the first key."""
LAST = tl.constexpr(4)
"""Column: position behind the last key."""
POSITION = tl.constexpr(5)
"""Column: position of its first token; the others follow."""
PARTIAL = tl.constexpr(6)
"""Column: number of the partial result of its first token, the others' follow; -1 if the result is final."""

LOG2_E = 1.4426950408889634


@triton.jit
def attend_keys(
    query: tl.tensor,
    positions: tl.tensor,
    state: tl.tuple,
    pool: tl.tensor,
    slots: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    slot_stride: tl.tensor,
    value_offset: tl.tensor,
    factor: tl.tensor,
    window: tl.tensor,
    WHOLE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Take the keys at positions `first` to `last` into `state` = (sums [M, BLOCK_D], largest score [M], weight [M]).

    `pool` points at the head's key in slot 0, `slots` at the sequence's first slot; `factor` is the scale times log2(e). WHOLE: every query sees every
    key, and they are a multiple of BLOCK_N. Otherwise the last tile repeats the last key with no weight. CAUSAL: a query sees no key
    behind its own of `positions` [M]; WINDOW: and none of `window` or more before it.
    """
    total, largest, weight = state
    column = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    for start in range(first, last, BLOCK_N):
        place = start + column
        slot = tl.load(slots + (place if WHOLE else tl.minimum(place, last - 1))).to(tl.int64)
        at_keys = pool + slot[None, :] * slot_stride + depth[:, None]
        at_values = pool + value_offset + slot[:, None] * slot_stride + depth[None, :]
        if HEAD_DIM == BLOCK_D:
            keys = tl.load(at_keys)
            values = tl.load(at_values)
        else:
            keys = tl.load(at_keys, mask=depth[:, None] < HEAD_DIM, other=0.0)
            values = tl.load(at_values, mask=depth[None, :] < HEAD_DIM, other=0.0)
        scores = product(query, keys, tl.zeros([query.shape[0], BLOCK_N], tl.float32)) * factor
        if not WHOLE:
            limit = tl.minimum(positions, last - 1)[:, None] if CAUSAL else last - 1
            scores = tl.where(place[None, :] <= limit, scores, -float("inf"))
            if WINDOW:
                scores = tl.where(place[None, :] > (positions - window)[:, None], scores, -float("inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        base = now if WHOLE else tl.where(now == -float("inf"), 0.0, now)
        shares = tl.exp2(scores - base[:, None])
        shrunk = tl.exp2(largest - base)
        weight = weight * shrunk + tl.sum(shares, 1)
        total = product(shares.to(values.dtype), values, total * shrunk[:, None])
        largest = now
    return total, largest, weight


@triton.jit
def load_queries(
    query: tl.tensor,
    token: tl.tensor,
    head: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """[M, BLOCK_D]: one row for each of `token` and `head` [M]."""
    depth = tl.arange(0, BLOCK_D)
    at = query + (token.to(tl.int64) * token_stride + head * head_stride)[:, None] + depth[None, :]
    if HEAD_DIM == BLOCK_D:
        return tl.load(at)
    return tl.load(at, mask=depth[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def store_result(
    state: tl.tuple,
    out: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    partial: tl.tensor,
    row: tl.tensor,
    token: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    valid: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write a tile to `out` [tokens, heads, HEAD_DIM] if `partial` < 0, else to `partials` [.., heads, HEAD_DIM] and `weights` [.., heads], fp32.

    `row` [M] counts the item's tokens from 0. Rows of the tile that are not `valid` are copies of others. A query that saw no key has the result 0 and the weight -inf.
    """
    total, largest, weight = state
    depth = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (depth < HEAD_DIM)[None, :]
    result = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    if partial < 0:
        line = (token.to(tl.int64) * heads + head)[:, None] * HEAD_DIM
        tl.store(out + line + depth[None, :], result.to(out.dtype.element_ty), mask=mask)
    else:
        number = (partial + row).to(tl.int64) * heads + head
        tl.store(partials + number[:, None] * HEAD_DIM + depth[None, :], result, mask=mask)
        tl.store(weights + number, largest + tl.log2(weight), mask=valid)


def choose(launches: Mapping[str, Mapping[str, int]], dtype: torch.dtype) -> dict[str, Any]:
    """Constants and options of a launch, from those for `"16"` bit types, `"32"` bit, and of either what is different on `"amd"`."""
    chosen = dict(launches["32" if dtype.itemsize == 4 else "16"])
    if torch.version.hip is not None:
        chosen.update(launches["amd" if dtype.itemsize == 2 else "amd32"])
    return {**chosen, "enable_fp_fusion": True}


KINDS = (("bf16", 64), ("bf16", 80), ("bf16", 128), ("fp16", 128), ("fp32", 64))
"""Types and head sizes that are compiled ahead of time."""


def describe(
    name: str,
    kernel: Any,
    launches: Mapping[str, Mapping[str, int]],
    constants: Mapping[str, Any],
    names: Mapping[str, str],
    kinds: tuple[tuple[str, int], ...] = KINDS,
) -> list[AheadOfTime]:
    """`AHEAD_OF_TIME` of one attention kernel for each type and head size in `kinds`, with 4 query heads per key head.

    `names` are the types of its parameters, with `T` for the type of the pool.
    """
    entries = []
    for kind, head_dim in kinds:
        wide = kind == "fp32"
        launch = launches["32" if wide else "16"]
        entries.append(
            AheadOfTime(
                name=f"{name}_{kind}_d{head_dim}",
                kernel=kernel,
                signature={parameter: of.replace("T", kind) for parameter, of in names.items()},
                constants={
                    "SHARED": 4,
                    "GROUP": 4,
                    "HEAD_DIM": head_dim,
                    "BLOCK_D": triton.next_power_of_2(head_dim),
                    "BLOCK_N": launch["BLOCK_N"],
                    **constants,
                },
                hot=not wide,
                options={option: value for option, value in launch.items() if option in OPTIONS},
                overrides={"gfx942": launches["amd32" if wide else "amd"]},
            )
        )
    return entries


SIGNATURE = {
    "out": "*T:16",
    "partials": "*fp32:16",
    "weights": "*fp32:16",
    "query": "*T:16",
    "pool": "*T:16",
    "slots": "*i32:16",
    "items": "*i32:16",
    "token_stride": "i32:16",
    "head_stride": "i32:16",
    "slot_stride": "i32:16",
    "kv_heads": "i32",
    "factor": "fp32",
}
"""Types of the parameters that attention kernels share; T is the pool's."""
