"""Weights kept in 8 or 4 bits for a GPU, and the product with them: y = x W^T + b.

`INT8` and `FP8` weights are multiplied by activations of the same kind, quantised as they come, with one scale per row and group; `INT4`
weights are turned back into the activations' type within the kernel. So a row's result is the same function of the row, whatever
the number of rows; the order of its sums is not. A CPU has its own formats (`kernels/cpu`); here torch serves as the oracle of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

BLOCK = 32
"""Weights that share a scale and a minimum in `INT4`."""
INT8_MOST = 127.0
FP8_MOST = 448.0
"""The largest finite float8_e4m3fn (Micikevicius et al., arXiv 2209.05433)."""


class Format(IntEnum):
    """How the codes of a weight are to be read."""

    INT8 = 0
    FP8 = 1
    INT4 = 2


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [out, in].

    Attributes:
        format: of the codes.
        codes: INT8: [out, in] int8, -127…127. FP8: [out, in] float8_e4m3fn. INT4: [out, in / 2] uint8; byte j of a block of 16
            holds the code of element j in its low and of element j + 16 in its high half, as in a GGUF's Q4_0 and Q4_1 blocks.
        scale: [out, in / group], group 32 in INT4; fp32 or fp16. Value = scale * code (+ minimum).
        minimum: INT4: like `scale`; None otherwise.
    """

    format: Format
    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out, width = self.codes.shape
        return out, width * 2 if self.format is Format.INT4 else width

    @property
    def group(self) -> int:
        """Weights of a channel that share a scale; all of a channel's where it has but one."""
        scales: int = self.scale.shape[1]
        return self.shape[1] // scales

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on `device`."""
        minimum = None if self.minimum is None else self.minimum.to(device)
        return QuantizedWeight(self.format, self.codes.to(device), self.scale.to(device), minimum)


def from_codes(codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None) -> QuantizedWeight:
    """A weight whose codes are known, as a checkpoint's; nothing is rounded.

    Args:
        codes: [out, in] uint8 0…15 for INT4, int8 for INT8.
        scale: [out, in / group] fp32 or fp16.
        minimum: like `scale`, for uint8 codes; None for none.

    Raises:
        ValueError: codes of another dtype, or int8 with a minimum.
    """
    if codes.dtype == torch.uint8:
        return QuantizedWeight(Format.INT4, pack_codes(codes), scale.contiguous(), minimum)
    if codes.dtype != torch.int8 or minimum is not None:
        given = f"{codes.dtype} codes {'with' if minimum is not None else 'without'} a minimum"
        raise ValueError(f"from_codes: {given}, expected uint8 (4 bit), or int8 without one")
    return QuantizedWeight(Format.INT8, codes.contiguous(), scale.contiguous())


def quantize_weight(weight: torch.Tensor, wanted: Format, group: int | None = None) -> QuantizedWeight:
    """Quantise [out, in] to nearest.

    Args:
        weight: of any floating type.
        wanted: the format.
        group: weights that share a scale: a power of two from 32 on that divides `in`, None for all of a channel's; INT4 always takes 32.

    Raises:
        ValueError: `in` is no multiple of the group, or the group no such power.
    """
    width = weight.shape[1]
    group = BLOCK if wanted is Format.INT4 else group or width
    if width % group or (group != width and (group < BLOCK or group & (group - 1))):
        raise ValueError(
            f"quantize_weight: groups of {group} for {width} inputs, expected a power of two from {BLOCK} on that divides them"
        )
    if wanted is Format.INT4:
        return _quantize_4bit(weight.float())
    codes, scale = quantize_rows(weight, wanted, group)
    return QuantizedWeight(wanted, codes, scale)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes [out, in], 0…15, to the bytes of `QuantizedWeight.codes` [out, in / 2]."""
    low, high = codes.to(torch.uint8).unflatten(1, (-1, 2, BLOCK // 2)).unbind(2)
    return (low | high << 4).flatten(1)


def quantize_rows(x: torch.Tensor, wanted: Format, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 or FP8 codes of [rows, in] and their scales [rows, in / group] fp32: the greatest magnitude of a group becomes the greatest code."""
    grouped = x.float().unflatten(1, (-1, group))
    most = INT8_MOST if wanted is Format.INT8 else FP8_MOST
    scale = grouped.abs().amax(-1) / most
    scaled = grouped * torch.where(scale > 0, 1 / scale, 0)[:, :, None]
    if wanted is Format.INT8:
        codes = torch.floor(scaled + 0.5).clamp(-INT8_MOST, INT8_MOST).to(torch.int8)
    else:
        codes = scaled.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
    return codes.flatten(1), scale


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """[out, in] fp32."""
    if weight.format is not Format.INT4:
        return _widen(weight.codes, weight.scale)
    blocks = weight.codes.unflatten(1, (-1, 1, BLOCK // 2))
    values = _widen(torch.cat((blocks & 15, blocks >> 4), dim=2).flatten(1), weight.scale)
    minimum = weight.minimum
    if minimum is None:
        return values
    return values + minimum.float().repeat_interleave(BLOCK, dim=1)


def multiply(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """[rows, in] to [rows, out] of `x`'s dtype: Triton's kernels on a GPU; torch elsewhere, what they compute, in fp32."""
    if x.is_cuda:
        from sgl_actors.kernels.triton import linear

        return linear.multiply(x, weight)
    if weight.format is not Format.INT4:
        codes, scale = quantize_rows(x, weight.format, weight.group)
        return (_widen(codes, scale) @ dequantize(weight).T).to(x.dtype)
    return (x.float() @ dequantize(weight).T).to(x.dtype)


class QuantizedLinear:
    """A `sgl_actors.kernels.linear.Linear` over a quantised weight."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] to [rows, out]."""
        out = multiply(x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


def _widen(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (codes.float().unflatten(1, (scale.shape[1], -1)) * scale.float()[:, :, None]).flatten(1)


def _quantize_4bit(weight: torch.Tensor) -> QuantizedWeight:
    blocks = weight.unflatten(1, (-1, BLOCK))
    minimum = blocks.amin(-1).half()
    scale = ((blocks.amax(-1) - minimum.float()) / 15).half()
    steps = torch.where(scale > 0, 1 / scale.float(), 0)[:, :, None]
    codes = ((blocks - minimum.float()[:, :, None]) * steps).round().clamp(0, 15)
    return QuantizedWeight(Format.INT4, pack_codes(codes.flatten(1)), scale, minimum)
