"""The gated activation of the feed-forward block (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import torch


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for `gate_up` [tokens, 2 * width] that holds both side by side; returns [tokens, width]."""
    if gate_up.is_cuda:
        from sgl_actors.kernels.triton import activation

        return activation.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)
