"""The one matrix product of all kernels: operands in their own type, sums in fp32."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run under Triton's interpreter in this process."""


@triton.jit
def product(a: tl.tensor, b: tl.tensor, total: tl.tensor) -> tl.tensor:
    """`total` [m, n] fp32 + `a` [m, k] times `b` [k, n]; fp32 operands are not rounded.

    The interpreter computes with the bit patterns of bf16 as if they were integers, so there the operands are widened first: the products of two
    bf16 numbers are exact in fp32 either way.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")
