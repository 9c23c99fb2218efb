"""GGUF's quantised blocks as codes, scales and minimums, without dequantising (layouts: github.com/ggml-org/ggml, src/ggml-common.h).

The values are those of `gguf.quants.dequantize`, bit for bit but for the sign of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sgl_actors.actors.worker.checkpoint.quantized import BLOCK, Floats, Quantized

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_NIBBLES = np.uint32(0x0F0F0F0F)
_CHUNK = 4096
"""Blocks unpacked at a time: they and their codes stay in a core's cache."""


def decode(raw: Bytes, kind: GGMLQuantizationType) -> Quantized | None:
    """The codes of a matrix.

    Args:
        raw: [out, bytes of a row] uint8.
        kind: of its blocks.

    Returns:
        None for a type that is not kept as it is (or Q8_0 with a code of -128, which no encoder writes).
    """
    if kind not in _DECODERS:
        return None
    blocks = np.ascontiguousarray(raw).reshape(-1, GGML_QUANT_SIZES[kind][1])
    return _DECODERS[kind](blocks, raw.shape[0])


def _q4_0(blocks: Bytes, rows: int) -> Quantized:
    scale = _halves(blocks, 0).reshape(rows, -1)
    codes = _unpack(blocks, 2).reshape(rows, -1)
    return _narrowest(codes, scale, scale * np.float32(-8))


def _q4_1(blocks: Bytes, rows: int) -> Quantized:
    scale, minimum = _halves(blocks, 0).reshape(rows, -1), _halves(blocks, 2).reshape(rows, -1)
    return Quantized("q4", _unpack(blocks, 4).reshape(rows, -1), scale, minimum)


def _q8_0(blocks: Bytes, rows: int) -> Quantized | None:
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).reshape(rows, -1)
    if codes.min() < -127:
        return None
    return Quantized("q8", codes, _halves(blocks, 0).reshape(rows, -1))


def _q4_k(blocks: Bytes, rows: int) -> Quantized:
    """256 weights: two fp16 factors, eight 6-bit scales and minimums in 12 bytes, four runs of 32 bytes with two blocks each."""
    factors, packed = blocks[:, 4:16], blocks[:, 16:]
    low, middle, high = factors[:, 0:4], factors[:, 4:8], factors[:, 8:12]
    scale = np.concatenate([low & 63, high & 15 | low >> 2 & 48], axis=1)
    minimum = np.concatenate([middle & 63, high >> 4 | middle >> 2 & 48], axis=1)
    codes = np.empty((len(blocks), 4, 2, BLOCK), np.uint8)
    for begin, end in _chunks(len(blocks)):
        runs = packed[begin:end].reshape(-1, 4, BLOCK)
        np.bitwise_and(runs, 15, out=codes[begin:end, :, 0])
        np.right_shift(runs, 4, out=codes[begin:end, :, 1])
    return Quantized(
        "q4w",
        codes.reshape(rows, -1),
        (_halves(blocks, 0)[:, None] * scale.astype(np.float32)).reshape(rows, -1),
        -(_halves(blocks, 2)[:, None] * minimum.astype(np.float32)).reshape(rows, -1),
    )


_DECODERS: dict[GGMLQuantizationType, Callable[[Bytes, int], Quantized | None]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q8_0: _q8_0,
}


def _unpack(blocks: Bytes, begin: int) -> Bytes:
    """[blocks, 32] codes from 16 bytes at `begin`: low nibbles are the first half, high ones the second."""
    words = blocks[:, begin:].reshape(-1).view(np.uint32).reshape(-1, 4)  # a copy, which makes them aligned
    codes = np.empty((len(blocks), 8), np.uint32)
    for first, last in _chunks(len(blocks)):
        for word in range(4):
            part = words[first:last, word]
            np.bitwise_and(part, _NIBBLES, out=codes[first:last, word])
            np.bitwise_and(part >> np.uint32(4), _NIBBLES, out=codes[first:last, 4 + word])
    return codes.view(np.uint8)


def _halves(blocks: Bytes, begin: int) -> Floats:
    """The fp16 number at byte `begin` of every block, as fp32."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view(np.float16)[:, 0].astype(np.float32)


def _narrowest(codes: Bytes, scale: Floats, minimum: Floats) -> Quantized:
    """Of kind "q4" if fp16 holds every minimum."""
    with np.errstate(over="ignore"):
        fits = bool((minimum.astype(np.float16).astype(np.float32) == minimum).all())
    return Quantized("q4" if fits else "q4w", codes, scale, minimum)


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + _CHUNK, count)) for begin in range(0, count, _CHUNK))


__all__ = ["decode"]
