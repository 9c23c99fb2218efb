"""Rotary position embedding (Su et al., arXiv 2104.09864), half-split layout as in Hugging Face checkpoints."""

from __future__ import annotations

import torch


def rotary_tables(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and signed sine of every position, each [tokens, 1, head_dim], for `apply_rotary`.

    Args:
        positions: [tokens] int64.
        inverse_frequencies: [head_dim / 2] fp32.
        dtype: of the tables; the angles are computed in fp32.
    """
    angles = positions.to(torch.float32)[:, None] * inverse_frequencies[None, :]
    cos, sin = angles.cos(), angles.sin()
    return (
        torch.cat((cos, cos), dim=-1).to(dtype)[:, None, :],
        torch.cat((-sin, sin), dim=-1).to(dtype)[:, None, :],
    )


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
    """Rotate `x` [tokens, heads, head_dim] in place."""
    swapped = torch.roll(x, x.shape[-1] // 2, dims=-1)
    x.mul_(cos).addcmul_(swapped, signed_sin)


def rotate_and_store(
    qkv: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    pool: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Rotate queries and keys of `qkv`, and write keys and values into the pool. Queries are rotated in place; keys may be.

    Args:
        qkv: [tokens, heads + 2 * kv_heads, head_dim]: queries, keys, values.
        rotary: of the tokens, see `rotary_tables`.
        pool: [slots, 2, kv_heads, head_dim] of one layer.
        slots: [tokens] int64, where in the pool; all different. On a GPU -1 is nowhere.
    """
    if qkv.is_cuda:
        from sgl_actors.kernels.triton import rotary as fused

        fused.rotate_and_store(qkv, rotary, pool, slots)
        return
    kv_heads = pool.shape[2]
    apply_rotary(qkv[:, :-kv_heads], *rotary)
    pool.index_copy_(0, slots, qkv[:, -2 * kv_heads :].unflatten(1, (2, kv_heads)))
