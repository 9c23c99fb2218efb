"""Quantised weights for a GPU in torch: the formats, and the product that is the oracle of the kernels."""

from __future__ import annotations

import pytest
import torch

from sgl_actors.kernels.linear import make_linear
from sgl_actors.kernels.quantized import (
    Format,
    QuantizedLinear,
    QuantizedWeight,
    dequantize,
    from_codes,
    multiply,
    pack_codes,
    quantize_rows,
    quantize_weight,
)


def random_weight(out: int = 24, width: int = 128) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("wanted", "group", "step"),
    [
        (Format.INT8, None, 1 / 127),
        (Format.INT8, 32, 1 / 127),
        (Format.FP8, None, 1 / 8),
        (Format.INT4, None, 1 / 5),
    ],
)
def test_weights_come_back_within_half_a_step(wanted: Format, group: int | None, step: float) -> None:
    """Relative to the greatest magnitude that shares the scale; for 4 bits to the range, which is less than twice that."""
    weight = random_weight()
    kept = quantize_weight(weight, wanted, group)
    size = 32 if wanted is Format.INT4 else group or 128
    greatest = weight.unflatten(1, (-1, size)).abs().amax(-1).repeat_interleave(size, dim=1)
    assert kept.shape == (24, 128)
    assert kept.group == size
    assert ((dequantize(kept) - weight).abs() <= greatest * step / 2 + 1e-3).all()


def test_four_bit_codes_lie_as_in_a_gguf() -> None:
    """Byte j of a block has element j low and element j + 16 high."""
    codes = torch.arange(64).remainder(16).view(1, 64)
    codes[0, 16:32] = 15
    packed = pack_codes(codes)
    assert packed.shape == (1, 32)
    assert packed[0, :16].tolist() == [15 << 4 | low for low in range(16)]
    assert packed[0, 16:].tolist() == [low << 4 | low for low in range(16)]


def test_codes_of_a_checkpoint_are_taken_as_they_are() -> None:
    """Unsigned codes with a minimum become 4 bits, signed ones 8; the values are scale times code plus minimum."""
    codes = torch.randint(0, 16, (3, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    scale, minimum = torch.rand(3, 2), torch.randn(3, 2)
    kept = from_codes(codes, scale, minimum)
    wide = scale.repeat_interleave(32, dim=1), minimum.repeat_interleave(32, dim=1)
    assert kept.format is Format.INT4
    assert torch.equal(dequantize(kept), codes.float() * wide[0] + wide[1])
    signed = from_codes(codes.to(torch.int8) - 8, scale, None)
    assert signed.format is Format.INT8
    assert signed.group == 32
    assert torch.equal(dequantize(signed), (codes.float() - 8) * wide[0])


def test_codes_of_another_kind_are_refused() -> None:
    """Signed codes have no minimum, and wider integers no format."""
    codes = torch.zeros(2, 32, dtype=torch.int8)
    with pytest.raises(ValueError, match="minimum"):
        from_codes(codes, torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match="int32"):
        from_codes(codes.int(), torch.ones(2, 1), None)


@pytest.mark.parametrize("group", [48, 16, 100])
def test_groups_that_do_not_divide_are_refused(group: int) -> None:
    """The error names the group and the width."""
    with pytest.raises(ValueError, match=f"groups of {group} for 128 inputs"):
        quantize_weight(random_weight(), Format.INT8, group)


@pytest.mark.parametrize("wanted", list(Format))
def test_the_product_is_near_the_exact_one(wanted: Format) -> None:
    """Within a few percent of the result's norm, as 8 and 4 bits allow."""
    weight = random_weight()
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    exact = x @ weight.T
    error = multiply(x, quantize_weight(weight, wanted)) - exact
    assert error.norm() / exact.norm() < {Format.INT8: 0.015, Format.FP8: 0.05, Format.INT4: 0.1}[wanted]


def test_a_row_of_zeros_is_zeros() -> None:
    """There is no division by its scale of 0."""
    codes, scale = quantize_rows(torch.zeros(1, 64), Format.INT8, 32)
    assert not codes.any()
    assert not scale.any()


def test_a_quantised_weight_stays_so_in_a_layer() -> None:
    """`make_linear` takes it like any other weight."""
    weight = quantize_weight(random_weight(), Format.INT8)
    layer = make_linear(weight)
    assert isinstance(layer, QuantizedLinear)
    assert layer.weight is weight


def test_a_layer_adds_its_bias_and_may_be_moved() -> None:
    """`QuantizedLinear` is a linear layer like others; its weight follows a device."""
    weight = quantize_weight(random_weight(), Format.INT4)
    x, bias = torch.randn(2, 128), torch.randn(24)
    assert torch.equal(QuantizedLinear(weight, bias)(x), multiply(x, weight) + bias)
    moved = weight.to(torch.device("cpu"))
    assert isinstance(moved, QuantizedWeight)
    assert torch.equal(dequantize(moved), dequantize(weight))
