"""Weights in the native library's layout, and one linear layer by itself.

`pack_values` keeps floats, `pack_codes` the integers of a quantised matrix (blocks of 32 along a row share a scale). Either layout serves every
instruction set and every number of rows; the codes and scales that come out of `unpack_rows` are those that went in.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import torch

from sgl_actors.kernels.cpu.engine import PackedWeight
from sgl_actors.kernels.cpu.native import BLOCK, Format, Pool, address, required

FLOATS = {torch.float32: Format.F32, torch.bfloat16: Format.BF16}
MOST_CODE = 15
"""Of four bits."""

ALIGNMENT = 64
HUGE_PAGE = 2 << 20
REGION = 64 << 20
"""Bytes asked of the system at a time; what is not written takes no memory."""

Array = np.ndarray[Any, np.dtype[Any]]


class Arena:
    """Memory for packed weights, side by side in huge pages where the system has them.

    A step of one row reads every weight once, so on pages of 4 KiB it waits for the address translation as much as for the memory: huge pages took a
    quarter to a third off. A tensor's memory goes back when all tensors of its region are gone. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._region = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, size: int) -> torch.Tensor:
        """[size] uint8 at a multiple of `ALIGNMENT`, not initialised."""
        with self._lock:
            if self._used + size > self._region.numel():
                self._region, self._used = _region(max(size, REGION)), 0
            begin = self._used
            self._used += -(-size // ALIGNMENT) * ALIGNMENT
            return self._region[begin : begin + size]


def _region(size: int) -> torch.Tensor:
    """Of numpy, since it asks for huge pages where an array is as large as this."""
    whole = torch.from_numpy(np.empty(size + HUGE_PAGE, np.uint8))
    return whole[-whole.data_ptr() % HUGE_PAGE :][:size]


_ARENA = Arena()


def pack_values(weight: torch.Tensor, bias: torch.Tensor | None = None, *, isa: int = -1) -> PackedWeight:
    """Pack [out, in] of fp32 or bf16 as they are; both are computed in fp32.

    Args:
        weight: [out, in], contiguous.
        bias: [out] fp32.
        isa: whose packer, an index into `native.ISAS`; -1 the best.

    Raises:
        ValueError: no matrix, empty, not contiguous, or of another dtype.
        RuntimeError: the native library is not there.
    """
    kept = FLOATS.get(weight.dtype)
    if kept is None:
        raise ValueError(
            f"a weight of {weight.dtype}, the native kernels keep {', '.join(map(str, FLOATS))}: convert it first"
        )
    out, columns = _shape("weight", tuple(weight.shape))
    return _packed(kept, out, columns, address(weight), None, None, bias, isa)


def pack_codes(
    kind: Format,
    codes: Array,
    scale: Array,
    minimum: Array | None = None,
    bias: torch.Tensor | None = None,
    *,
    isa: int = -1,
) -> PackedWeight:
    """Pack a quantised matrix: value = scale * code (+ minimum).

    Args:
        kind: Q8, Q4 or Q4W.
        codes: [out, in]; int8 (Q8), or uint8 0..15.
        scale: [out, in / 32] fp32; for Q8 and Q4 numbers that fp16 holds.
        minimum: for Q4 and Q4W, like `scale`.
        bias: [out] fp32.
        isa: whose packer, an index into `native.ISAS`; -1 the best.

    Raises:
        ValueError: wrong shapes or dtypes, `in` no multiple of 32, a code beyond 15, or a scale that the format does not hold.
        RuntimeError: the native library is not there.
    """
    if kind not in (Format.Q8, Format.Q4, Format.Q4W):
        raise ValueError(f"codes in format {kind!r}, expected Q8, Q4 or Q4W: pack_values takes floats")
    out, columns = _shape("codes", codes.shape)
    if columns % BLOCK:
        raise ValueError(
            f"codes {codes.shape}: {columns} inputs are no multiple of {BLOCK}: keep this weight in fp32"
        )
    _check("codes", codes, np.int8 if kind is Format.Q8 else np.uint8, (out, columns))
    if kind is not Format.Q8 and int(codes.max()) > MOST_CODE:
        raise ValueError(f"a code of {int(codes.max())} in format {kind.name}, expected 0..{MOST_CODE}")
    if (minimum is None) != (kind is Format.Q8):
        raise ValueError(f"format {kind.name} {'has no minimum' if kind is Format.Q8 else 'needs a minimum'}")
    for name, values in (("scale", scale), ("minimum", minimum)):
        if values is not None:
            _check(name, values, np.float32, (out, columns // BLOCK))
            _check_held(name, values, kind)
    return _packed(
        kind,
        out,
        columns,
        codes.ctypes.data,
        scale.ctypes.data,
        None if minimum is None else minimum.ctypes.data,
        bias,
        isa,
    )


def unpack_rows(weight: PackedWeight, rows: torch.Tensor, *, isa: int = -1) -> torch.Tensor:
    """The dequantised rows of a weight, as an embedding reads them.

    Args:
        weight: in any format.
        rows: [n] int64, 0 ≤ row < out.
        isa: whose kernel, as in `pack_values`.

    Returns:
        [n, in] fp32.

    Raises:
        ValueError: a row that is not there.
    """
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < weight.out:
        raise ValueError(f"rows {int(rows.min())} to {int(rows.max())} of a weight with {weight.out}")
    out = torch.empty(rows.numel(), weight.columns)
    required().sgl_unpack_rows(
        isa, ctypes.byref(weight.struct()), address(rows, torch.int64), rows.numel(), address(out)
    )
    return out


def linear(pool: Pool, weight: PackedWeight, x: torch.Tensor, *, isa: int = -1) -> torch.Tensor:
    """The product x W^T + bias. A row's result depends on that row alone, bit for bit, not on how many come with it.

    A quantised weight quantises x too: int8 codes per row and block of 32, scale = max|x| / 127.

    Args:
        pool: the threads.
        weight: in any format.
        x: [rows, in] fp32, contiguous.
        isa: whose kernel, as in `pack_values`.

    Returns:
        [rows, out] fp32.

    Raises:
        ValueError: x of another shape or dtype.
    """
    if x.ndim != 2 or x.shape[1] != weight.columns:
        raise ValueError(f"x {tuple(x.shape)} for a weight [{weight.out}, {weight.columns}]")
    out = torch.empty(x.shape[0], weight.out)
    required().sgl_linear_forward(
        pool.handle, isa, ctypes.byref(weight.struct()), address(x, torch.float32), x.shape[0], address(out)
    )
    return out


def _packed(
    kind: Format,
    out: int,
    columns: int,
    values: int | None,
    scale: int | None,
    minimum: int | None,
    bias: torch.Tensor | None,
    isa: int,
) -> PackedWeight:
    if bias is not None and tuple(bias.shape) != (out,):
        raise ValueError(f"a bias {tuple(bias.shape)} for {out} outputs")
    address(bias, torch.float32)
    native = required()
    data = _ARENA.empty(native.sgl_packed_bytes(isa, kind, out, columns))
    native.sgl_pack(isa, kind, out, columns, values, scale, minimum, address(data))
    return PackedWeight(kind, out, columns, data, bias)


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} {shape}, expected [out, in]")
    return shape[0], shape[1]


def _check(name: str, values: Array, dtype: type[np.generic], shape: tuple[int, int]) -> None:
    if values.dtype != dtype or values.shape != shape or not values.flags.c_contiguous:
        raise ValueError(
            f"{name} {values.shape} of {values.dtype}, expected contiguous {shape} of {np.dtype(dtype)}"
        )


def _check_held(name: str, values: Array, kind: Format) -> None:
    """Scales must come out as they went in."""
    if not np.isfinite(values).all():
        raise ValueError(f"a {name} that is not finite")
    if kind is Format.Q4W:
        return
    with np.errstate(over="ignore"):
        exact = bool((values.astype(np.float16) == values).all())
    if not exact:
        raise ValueError(f"a {name} that fp16 does not hold: round it first, or (4 bits) use format Q4W")
