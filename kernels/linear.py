"""Matrix products with weights that do not change: y = x W^T + b.

On a CPU in fp32 the weight is re-packed once into oneDNN's blocked layout. One packing serves every number of rows and is
two to three times as fast as `torch.nn.functional.linear` at the batch sizes of decoding (numbers in docs/design/0003).
"""

from __future__ import annotations

from typing import Protocol

import torch

from sgl_actors.kernels.quantized import QuantizedLinear, QuantizedWeight

PACKING_ROWS = 16
"""Number of rows the packed layout is chosen for; measured best from 2 to 512 rows and as good as any at 1."""


class Linear(Protocol):
    """A fixed weight [out, in] and an optional bias [out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] to [rows, out]."""


class PlainLinear:
    """torch's own product, for any device and dtype."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] to [rows, out]."""
        return torch.nn.functional.linear(x, self.weight, self.bias)


class PackedLinear:
    """oneDNN's product over a re-packed copy of the weight; fp32 on a CPU. The plain weight may be freed afterwards."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKING_ROWS)  # noqa: SLF001
        self.bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] to [rows, out]."""
        out: torch.Tensor = self._product(x, self.packed, self.bias, "none", [], "")
        return out


def can_pack(weight: torch.Tensor) -> bool:
    """Whether `PackedLinear` takes this weight here."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def make_linear(weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None = None) -> Linear:
    """The fastest product that this device and dtype have; of a quantised weight the one that keeps it so."""
    if isinstance(weight, QuantizedWeight):
        return QuantizedLinear(weight, bias)
    return PackedLinear(weight, bias) if can_pack(weight) else PlainLinear(weight, bias)
