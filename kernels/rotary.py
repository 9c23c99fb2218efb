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
