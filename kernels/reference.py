"""Plain float64 forms of the kernels: slow, obvious, the oracle of their tests."""

from __future__ import annotations

import torch

from sgl_actors.kernels.attention import AttentionRow


def attention(
    query: torch.Tensor,
    pool: torch.Tensor,
    rows: list[AttentionRow],
    *,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Same arguments and result as planning and attending in `attention.py`; float64, one token and head at a time."""
    heads, group = query.shape[1], query.shape[1] // pool.shape[2]
    out = torch.zeros(query.shape, dtype=torch.float64)
    token = 0
    for row in rows:
        length = len(row.slots)
        for position in range(length - row.new, length):
            first = 0 if window is None else max(0, position - window + 1)
            seen = pool[row.slots[first : position + 1]].double()
            for head in range(heads):
                keys, values = seen[:, 0, head // group], seen[:, 1, head // group]
                weights = torch.softmax(keys @ query[token, head].double() * scale, dim=0)
                out[token, head] = weights @ values
            token += 1
    return out.flatten(1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight."""
    wide = x.double()
    return wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight.double()


def rotary(x: torch.Tensor, positions: torch.Tensor, inverse_frequencies: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + head_dim / 2) turned by position * frequency i, for x [tokens, heads, head_dim]."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = positions.double()[:, None, None] * inverse_frequencies.double()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)
