"""RMS normalisation on a GPU, alone and fused with the residual sum before it.

One program takes a tile of whole rows: each is read once and written once, so the time is that of the bytes (docs/design/0020).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime

TILE = 4096
"""Elements that a program holds at least; short rows (heads) share one."""


@triton.jit
def _rms_norm_kernel(
    x_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: int,
    inner: int,
    outer_stride: int,
    inner_stride: int,
    eps: float,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Row r of `x` begins at (r // inner) * outer_stride + (r % inner) * inner_stride; `delta` and `out` are contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    here = (row < rows)[:, None] & (column < WIDTH)[None, :]
    from_x = (row // inner).to(tl.int64) * outer_stride + (row % inner) * inner_stride
    x_at = x_ptr + from_x[:, None] + column[None, :]
    flat = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    x = tl.load(x_at, mask=here, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + flat, mask=here, other=0.0).to(tl.float32)
        summed = x.to(x_ptr.dtype.element_ty)
        tl.store(x_at, summed, mask=here)
        x = summed.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    normed = (x * inverse[:, None]).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + flat, (normed * weight[None, :]).to(out_ptr.dtype.element_ty), mask=here)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `sgl_actors.kernels.norm.rms_norm`; `x` may be a slice of heads, [tokens, heads, head_dim], of a wider tensor."""
    return _launch(x, None, weight, eps)


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `sgl_actors.kernels.norm.add_rms_norm`; `delta` is contiguous."""
    if x.shape != delta.shape:
        raise ValueError(
            f"add_rms_norm: x is {list(x.shape)} and delta {list(delta.shape)}, expected the same"
        )
    return _launch(x, delta.contiguous(), weight, eps)


def _launch(x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if x.ndim not in (2, 3) or x.stride(-1) != 1:
        raise ValueError(
            f"rms_norm: x has {x.ndim} dimensions and strides {x.stride()}, expected 2 or 3, the last contiguous"
        )
    width, inner = x.shape[-1], x.shape[1] if x.ndim == 3 else 1
    rows = x.shape[0] * inner
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    block = triton.next_power_of_2(width)
    tile = max(1, min(TILE // block, triton.next_power_of_2(rows)))
    _rms_norm_kernel[(triton.cdiv(rows, tile),)](
        x,
        x if delta is None else delta,
        weight,
        out,
        rows,
        inner,
        x.stride(0),
        x.stride(1) if x.ndim == 3 else 0,
        eps,
        ADD=delta is not None,
        WIDTH=width,
        ROWS=tile,
        BLOCK=block,
        num_warps=_warps(tile * block),
        enable_fp_fusion=True,
    )
    return out


def _warps(elements: int) -> int:
    """At most 16 elements a thread, as long as a program can have that many threads."""
    return max(4, min(16, elements // 512))


_SIGNATURE = {
    "x_ptr": "*bf16:16",
    "delta_ptr": "*bf16:16",
    "weight_ptr": "*bf16:16",
    "out_ptr": "*bf16:16",
    "rows": "i32",
    "inner": "i32",
    "outer_stride": "i32:16",
    "inner_stride": "i32:16",
    "eps": "fp32",
}
AHEAD_OF_TIME = [
    AheadOfTime(
        "add_rms_norm_bf16_4096",
        _rms_norm_kernel,
        _SIGNATURE,
        {"ADD": True, "WIDTH": 4096, "ROWS": 1, "BLOCK": 4096},
        hot=True,
        options={"num_warps": 8},
    ),
    AheadOfTime(
        "rms_norm_bf16_heads_d128",
        _rms_norm_kernel,
        _SIGNATURE,
        {"ADD": False, "WIDTH": 128, "ROWS": 32, "BLOCK": 128},
        hot=True,
        options={"num_warps": 8},
    ),
]
