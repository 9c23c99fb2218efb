"""silu(gate) * up on a GPU, one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime

BLOCK = 1024


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr: tl.tensor, out_ptr: tl.tensor, width: int, row_stride: int, BLOCK: tl.constexpr
) -> None:
    """A program takes BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = column < width
    start = gate_up_ptr + row * row_stride
    gate = tl.load(start + column, mask=here, other=0.0).to(tl.float32)
    up = tl.load(start + width + column, mask=here, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + column, gated.to(out_ptr.dtype.element_ty), mask=here)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `sgl_actors.kernels.activation.silu_mul`; computed in fp32 throughout and rounded once."""
    if gate_up.ndim != 2 or gate_up.shape[1] % 2 or gate_up.stride(1) != 1:
        raise ValueError(
            f"silu_mul: gate_up is {list(gate_up.shape)}, expected [tokens, 2 * width], rows contiguous"
        )
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        _silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](
            gate_up, out, width, gate_up.stride(0), BLOCK=BLOCK, enable_fp_fusion=True
        )
    return out


AHEAD_OF_TIME = [
    AheadOfTime(
        "silu_mul_bf16",
        _silu_mul_kernel,
        {"gate_up_ptr": "*bf16:16", "out_ptr": "*bf16:16", "width": "i32:16", "row_stride": "i32:16"},
        {"BLOCK": BLOCK},
        hot=True,
    )
]
