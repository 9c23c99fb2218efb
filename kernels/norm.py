"""Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467): torch here, Triton's kernels for tensors on a GPU."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension of `x` to unit mean square and scale it by `weight`; a new tensor of `x`'s dtype.

    The mean is taken in fp32. Written out because `torch.rms_norm` is ten times slower on a CPU from a few hundred rows on.
    """
    if x.is_cuda:
        from sgl_actors.kernels.triton import norm

        return norm.rms_norm(x, weight, eps)
    wide = x.float()
    inverse = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight)


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add `delta` to `x` in place, both [rows, width], and return the sum's `rms_norm`: the residual connection and the norm behind it."""
    if x.is_cuda:
        from sgl_actors.kernels.triton import norm

        return norm.add_rms_norm(x, delta, weight, eps)
    x += delta
    return rms_norm(x, weight, eps)
