"""Products with quantised weights against torch on the same codes, under the interpreter."""

from __future__ import annotations

import pytest
import torch

from sgl_actors.kernels import quantized
from sgl_actors.kernels.quantized import Format, quantize_weight
from sgl_actors.kernels.triton import linear, tuning

pytestmark = pytest.mark.interpreted
TYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL: tuning.Tile = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4}


def make_case(
    wanted: Format, rows: int, dtype: torch.dtype, group: int | None = None
) -> tuple[torch.Tensor, quantized.QuantizedWeight]:
    """70 channels of 160 inputs: neither a whole number of tiles."""
    generator = torch.Generator().manual_seed(rows)
    weight = quantize_weight(torch.randn(70, 160, generator=generator), wanted, group)
    return torch.randn(rows, 160, generator=generator).to(dtype), weight


def check(ours: torch.Tensor, x: torch.Tensor, weight: quantized.QuantizedWeight) -> None:
    """Equal to torch's fp32 result up to the rounding of the dtype, and what bf16 and fp16 lose of 4-bit weights that are dequantised to them."""
    expected = quantized.multiply(x.float(), weight)
    lost = torch.finfo(x.dtype).eps if x.dtype != torch.float32 else 1e-6
    terms = (x.float().abs() @ quantized.dequantize(weight).abs().T).max()
    assert ours.dtype == x.dtype
    assert torch.allclose(ours.float(), expected, rtol=lost, atol=float(terms) * lost)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("wanted", [Format.INT8, Format.FP8])
def test_eight_bit_products_agree_with_torch(
    wanted: Format, group: int | None, rows: int, dtype: torch.dtype
) -> None:
    """The matrix-vector kernel and the tiles, per channel and per group, with ragged edges."""
    x, weight = make_case(wanted, rows, dtype, group)
    check(run(x, weight, SMALL if rows > 1 else linear.guess_tile(wanted, 1, grouped=True)), x, weight)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 19])
def test_four_bit_products_agree_with_torch(rows: int, dtype: torch.dtype) -> None:
    """Codes with a scale and a minimum, dequantised within the kernel."""
    x, weight = make_case(Format.INT4, rows, dtype)
    check(run(x, weight, SMALL if rows > 1 else linear.guess_tile(Format.INT4, 1, grouped=True)), x, weight)


def test_four_bit_codes_need_no_minimum() -> None:
    """A weight without one is scale times code."""
    x, weight = make_case(Format.INT4, 3, torch.float32)
    bare = quantized.QuantizedWeight(Format.INT4, weight.codes, weight.scale)
    check(run(x, bare, SMALL), x, bare)
    check(run(x[:1], bare, linear.guess_tile(Format.INT4, 1, grouped=True)), x[:1], bare)


def test_native_and_emulated_fp8_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning codes into fp16 loses nothing."""
    x, weight = make_case(Format.FP8, 5, torch.float32)
    emulated = run(x, weight, SMALL)
    monkeypatch.setattr(linear, "has_native_fp8", lambda device: True)
    assert torch.allclose(run(x, weight, SMALL), emulated, atol=1e-5)


@pytest.mark.parametrize("wanted", list(Format))
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_any_number_of_rows_finds_a_tile(rows: int, wanted: Format) -> None:
    """`multiply` chooses, as a layer calls it."""
    x, weight = make_case(wanted, rows, torch.float32)
    check(linear.multiply(x, weight), x, weight)


def test_every_fp8_code_is_read_and_written() -> None:
    """All 254 finite codes are their own quantisation, and their neighbours' middles go to the even one: torch's codes, bit for bit."""
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).float()
    positive = values[codes < 128]
    middles = (positive[1:] + positive[:-1]) / 2
    x = torch.cat((values, middles, -middles, torch.zeros(512 - len(values) - 2 * len(middles))))[None]
    ours, scale = linear.quantize_rows(x, Format.FP8, 512)
    expected, _ = quantized.quantize_rows(x, Format.FP8, 512)
    assert scale.item() == 1
    assert torch.equal(ours.view(torch.float8_e4m3fn).float(), expected.float())


@pytest.mark.parametrize("wanted", [Format.INT8, Format.FP8])
@pytest.mark.parametrize("group", [32, 160])
def test_rows_are_quantised_as_torch_does(wanted: Format, group: int) -> None:
    """Scales agree bit for bit, codes but for the rounding of the factor; a row of zeros has scale 0."""
    x = torch.randn(7, 160, generator=torch.Generator().manual_seed(5))
    x[2] = 0
    ours, scale = linear.quantize_rows(x, wanted, group)
    expected, expected_scale = quantized.quantize_rows(x, wanted, group)
    assert torch.allclose(scale, expected_scale, rtol=1e-6)
    assert torch.equal(ours.view(expected.dtype).float(), expected.float())
    assert not ours[2].any()


def test_rows_that_do_not_fit_are_refused() -> None:
    """The error names the width that is expected."""
    x, weight = make_case(Format.INT8, 2, torch.float32)
    with pytest.raises(ValueError, match=r"expected \[rows, 160\]"):
        linear.multiply(x[:, 1:], weight)


def test_no_rows_are_no_work() -> None:
    """An empty batch gives an empty result."""
    x, weight = make_case(Format.INT4, 2, torch.float32)
    assert linear.multiply(x[:0], weight).shape == (0, 70)


def run(x: torch.Tensor, weight: quantized.QuantizedWeight, tile: tuning.Tile) -> torch.Tensor:
    out = torch.empty(len(x), weight.shape[0], dtype=x.dtype)
    linear.launch(x, weight, out, tile)
    return out
