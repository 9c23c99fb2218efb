"""Paged attention of the native library by itself: one layer, planned and run in one call (the engine's pass keeps its plans)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.cpu.native import (
    KV_FORMATS,
    LANES,
    AttentionStruct,
    Pool,
    RowStruct,
    address,
    required,
)


def paged_attention(
    pool: Pool,
    query: torch.Tensor,
    kv: torch.Tensor,
    rows: Sequence[AttentionRow],
    *,
    scale: float,
    window: int | None = None,
    cascade: bool = True,
    isa: int = -1,
) -> torch.Tensor:
    """Causal attention of every new token over its own sequence, as `sgl_actors.kernels.attention` says.

    A token's result has the same bits as a decode, within a chunk of a prefill, beside other rows, with and without `cascade`, on any number of threads.

    Args:
        pool: threads.
        query: [tokens, heads, head_dim] fp32, rows in their order.
        kv: [slots, 2, kv_heads, head_dim], fp32 or fp16, with the new tokens' keys and values; heads is a multiple of kv_heads.
        rows: their slots are int64.
        scale: factor on the products of queries and keys.
        window: a token sees itself and the `window - 1` tokens before it; None for all before it.
        cascade: read what rows share once for all of them.
        isa: number in `ISAS`, -1 for the best.

    Returns:
        [tokens, heads * head_dim].

    Raises:
        ValueError: shapes do not fit together, or a head's size is not a multiple of eight.
        RuntimeError: without the library.
    """
    tokens, heads, head_dim = query.shape
    kv_heads = kv.shape[2]
    if head_dim % LANES or kv.shape[1] != 2 or kv.shape[3] != head_dim or heads % kv_heads:
        raise ValueError(
            f"queries {tuple(query.shape)} over keys and values {tuple(kv.shape)}: expected [tokens, heads, head_dim] and [slots, 2, kv_heads, head_dim], "
            f"head_dim a multiple of {LANES}, heads one of kv_heads"
        )
    if kv.dtype not in KV_FORMATS:
        raise ValueError(f"keys and values of {kv.dtype}, expected float32 or float16")
    if sum(row.new for row in rows) != tokens or any(not 0 < row.new <= len(row.slots) for row in rows):
        raise ValueError(
            f"rows of {[(len(row.slots), row.new) for row in rows]} (slots, new) for {tokens} queries: expected 0 < new <= slots, and one query each"
        )
    out = torch.empty(tokens, heads * head_dim)
    shape = AttentionStruct(heads, kv_heads, head_dim, window or 0, KV_FORMATS[kv.dtype], scale)
    structs = (RowStruct * len(rows))(
        *(RowStruct(address(row.slots, torch.int64), len(row.slots), row.new) for row in rows)
    )
    required().sgl_attention_forward(
        pool.handle,
        isa,
        ctypes.byref(shape),
        structs,
        len(rows),
        cascade,
        address(query, torch.float32),
        heads * head_dim,
        address(kv),
        address(out),
        heads * head_dim,
    )
    return out
