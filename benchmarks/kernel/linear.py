"""Linear layers of the native library, by format and rows, beside torch's fp32 and its dynamically quantised int8 (fbgemm).

Every case goes through as many different weights as do not fit into the caches, so that they come from memory as in a model; the time is that of
one weight, with the call from Python and the quantisation of the activations. Shapes by default: gate and up of a 135M Llama, and its vocabulary head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.kernel.limits import Call, Cases, Limits, medians
from sgl_actors.kernels.cpu.engine import PackedWeight
from sgl_actors.kernels.cpu.native import BLOCK, Format, Pool
from sgl_actors.kernels.cpu.packing import Arena, linear, pack_codes, pack_values

SHAPES = ((3072, 576), (49152, 576))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
HEAD_ROWS = 64
"""Most rows of a shape as wide as a vocabulary."""
WIDE = 16384
COLD_BYTES = 80 << 20
"""Weights of a case together: more than a last-level cache holds."""

Layer = Callable[[torch.Tensor], object]


def run(
    limits: Limits,
    *,
    threads: int,
    rounds: int,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
) -> Cases:
    """One case per shape, number of rows and kernel.

    Args:
        limits: of this machine.
        threads: of our pool; torch's is as it is.
        rounds: how often each case is measured, alternately.
        shapes: [out, in] of the weights.
        rows: numbers of rows of activations.

    Yields:
        Microseconds per weight, GB/s of its bytes, GOP/s, and shares: of the read bandwidth (`share_read`), of the fp32 matrix product (`share_sgemm`),
        of fbgemm's time for the same (`share_fbgemm`: above 1 is faster).
    """
    pool = Pool(threads)
    for out, width in shapes:
        kernels = _kernels(pool, out, width)
        for count in rows:
            if out >= WIDE and count > HEAD_ROWS:
                continue
            x = torch.randn(count, width)
            calls: dict[str, Call] = {
                name: partial(_through, layers, x) for name, (layers, _) in kernels.items()
            }
            seconds = {name: taken / len(kernels[name][0]) for name, taken in medians(calls, rounds).items()}
            for name, taken in seconds.items():
                size = kernels[name][1]
                rate = 2 * out * width * count / taken
                yield {
                    "kernel": "linear",
                    "weight": name,
                    "out": out,
                    "in": width,
                    "rows": count,
                    "us": round(taken * 1e6, 1),
                    "gb_s": round(size / taken / 1e9, 2),
                    "gop_s": round(rate / 1e9, 1),
                    "share_read": round(size / taken / limits.read, 3),
                    "share_sgemm": round(rate / limits.sgemm, 3),
                    "share_fbgemm": round(seconds["fbgemm"] / taken, 3),
                }


def _through(layers: Sequence[Layer], x: torch.Tensor) -> None:
    for layer in layers:
        layer(x)


def _kernels(pool: Pool, out: int, width: int) -> dict[str, tuple[list[Layer], int]]:
    """By name: layers of different weights, and the bytes of one."""
    values = torch.randn(out, width)
    packed = [_random(kind, values) for kind in Format]
    kernels: dict[str, tuple[list[Layer], int]] = {
        weight.format.name.lower(): (
            [partial(linear, pool, one) for one in _copies(weight)],
            weight.data.nbytes,
        )
        for weight in packed
    }
    floats = _count(values.nbytes)
    kernels["torch fp32"] = (
        [partial(torch.nn.functional.linear, weight=values.clone()) for _ in range(floats)],
        values.nbytes,
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # torch is going to drop its quantised tensors; fbgemm has no other door
        codes = torch.quantize_per_tensor(values, float(values.abs().max()) / 127, 0, torch.qint8)
    prepack, product = torch.ops.quantized.linear_prepack, torch.ops.quantized.linear_dynamic
    kernels["fbgemm"] = (
        [partial(_swapped, product, prepack(codes, None)) for _ in range(_count(codes.numel()))],
        codes.numel(),
    )
    return kernels


def _swapped(product: Callable[..., object], weight: object, x: torch.Tensor) -> object:
    return product(x, weight)


def _count(size: int) -> int:
    return -(-COLD_BYTES // size)


def _copies(weight: PackedWeight) -> list[PackedWeight]:
    """The same values at different addresses."""
    arena = Arena()
    places = [arena.empty(weight.data.numel()) for _ in range(_count(weight.data.nbytes))]
    return [
        PackedWeight(weight.format, weight.out, weight.columns, place.copy_(weight.data)) for place in places
    ]


def _random(kind: Format, values: torch.Tensor) -> PackedWeight:
    if kind in (Format.F32, Format.BF16):
        return pack_values(values if kind is Format.F32 else values.bfloat16())
    out, width = values.shape
    random = np.random.default_rng(0)
    scale = np.full((out, width // BLOCK), 1 / 64, np.float32)
    if kind is Format.Q8:
        return pack_codes(kind, random.integers(-127, 128, (out, width), np.int8), scale)
    return pack_codes(kind, random.integers(0, 16, (out, width), np.uint8), scale, -scale)
