"""Weights kept as small integers. Blocks of 32 along a row share a scale; 4-bit ones a minimum too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Codes = np.ndarray[Any, np.dtype[np.uint8]] | np.ndarray[Any, np.dtype[np.int8]]
Kind = Literal["q4", "q4w", "q8"]

BLOCK = 32
"""Weights that share a scale."""
_CHUNK = 1 << 16
"""Weights quantised at a time, so that what is made on the way stays in a core's cache."""


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] whose values are `scale * code + minimum`: the fp32 product, then the fp32 sum.

    Attributes:
        kind: "q4": codes 0..15, scale and minimum are fp16 numbers; "q4w": the same, but fp16 does not hold them; "q8": codes -127..127, scale is
            an fp16 number, no minimum.
        codes: [out, in] uint8 (4 bit) or int8 (8 bit).
        scale: [out, in / 32] fp32.
        minimum: [out, in / 32] fp32, or None.
    """

    kind: Kind
    codes: Codes
    scale: Floats
    minimum: Floats | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return tuple(self.codes.shape)

    def dequantize(self) -> Floats:
        """[out, in] fp32."""
        values = self.codes.reshape(*self.scale.shape, BLOCK) * self.scale[..., None]
        if self.minimum is not None:
            values += self.minimum[..., None]
        return values.reshape(self.shape)


def can_quantize(shape: Sequence[int]) -> bool:
    """Whether a tensor is a matrix of whole blocks."""
    return len(shape) == 2 and shape[1] % BLOCK == 0


def quantize_q8(values: Floats) -> Quantized:
    """To the nearest of 255 levels, symmetric about 0, per block (as Q8_0, but rounded by the fp16 scale that is kept).

    Args:
        values: [out, in], see `can_quantize`.

    Raises:
        ValueError: a value is not finite, or beyond fp16's greatest times 127.
    """
    codes = np.empty(values.shape, np.int8)
    scale = np.empty((values.shape[0], values.shape[1] // BLOCK), np.float32)
    for blocks, to, kept in _chunks(values, codes, scale):
        kept[:] = _half(np.abs(blocks).max(axis=1) / np.float32(127))
        to[:] = np.rint(blocks * _inverse(kept)[:, None]).clip(-127, 127)
    return Quantized("q8", codes, scale)


def quantize_q4(values: Floats) -> Quantized:
    """To the nearest of 16 levels between each block's least and greatest value. Lossy: about 3 % of a block's range at most.

    Args:
        values: [out, in], see `can_quantize`.

    Raises:
        ValueError: a value is not finite, or beyond fp16's range.
    """
    codes = np.empty(values.shape, np.uint8)
    scale = np.empty((values.shape[0], values.shape[1] // BLOCK), np.float32)
    minimum = np.empty_like(scale)
    for blocks, to, kept, least in _chunks(values, codes, scale, minimum):
        least[:] = _half(blocks.min(axis=1))
        kept[:] = _half((blocks.max(axis=1) - least) / np.float32(15))
        to[:] = np.rint((blocks - least[:, None]) * _inverse(kept)[:, None]).clip(0, 15)
    return Quantized("q4", codes, scale, minimum)


def stack(parts: Sequence[Quantized]) -> Quantized:
    """Matrices over the same input as one, in that order. 4 bit with 8 bit becomes 8 bit: those of 4 bit are quantised once more."""
    if len(parts) == 1:
        return parts[0]
    kinds = {part.kind for part in parts}
    if len(kinds) > 1 and "q8" in kinds:
        parts = [part if part.kind == "q8" else quantize_q8(part.dequantize()) for part in parts]
    kind: Kind = "q8" if "q8" in kinds else "q4w" if "q4w" in kinds else "q4"
    least = [part.minimum for part in parts if part.minimum is not None]
    return Quantized(
        kind,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(least) if least else None,
    )


def _chunks(values: Floats, *others: np.ndarray[Any, Any]) -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
    """`values` and the codes as [blocks, 32], the others as [blocks], a part at a time; views, where memory is in order."""
    wide = [array.reshape(-1, BLOCK) for array in (np.ascontiguousarray(values), others[0])]
    arrays: list[np.ndarray[Any, Any]] = [*wide, *(other.reshape(-1) for other in others[1:])]
    step = _CHUNK // BLOCK
    for begin in range(0, len(arrays[0]), step):
        yield tuple(array[begin : begin + step] for array in arrays)


def _half(values: Floats) -> Floats:
    """The nearest fp16 numbers, as fp32."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: Floats = values.astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError("weights that are not finite, or too great for an fp16 scale; fp32 holds them")
    return rounded


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where that is 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)


__all__ = [
    "BLOCK",
    "Codes",
    "Floats",
    "Kind",
    "Quantized",
    "can_quantize",
    "quantize_q4",
    "quantize_q8",
    "stack",
]
