"""The small kernels against their float64 reference."""

from __future__ import annotations

import pytest
import torch

from sgl_actors.kernels import reference
from sgl_actors.kernels.activation import silu_mul
from sgl_actors.kernels.linear import PackedLinear, PlainLinear, can_pack, make_linear
from sgl_actors.kernels.norm import rms_norm
from sgl_actors.kernels.rotary import apply_rotary, rotary_tables


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (5, 3, 8)])
def test_rms_norm_agrees_with_the_reference(shape: tuple[int, ...]) -> None:
    """The last dimension is normalised, whatever comes before it."""
    torch.manual_seed(0)
    x, weight = torch.randn(shape) * 3, torch.rand(shape[-1])
    assert torch.allclose(rms_norm(x, weight, 1e-5).double(), reference.rms_norm(x, weight, 1e-5), atol=1e-5)


def test_rms_norm_keeps_the_dtype_and_the_input() -> None:
    """A bf16 input gives a bf16 result and is not changed."""
    x = torch.randn(3, 16).bfloat16()
    before = x.clone()
    assert rms_norm(x, torch.ones(16).bfloat16(), 1e-5).dtype == torch.bfloat16
    assert torch.equal(x, before)


def test_rotary_agrees_with_the_reference() -> None:
    """Pairs of half-split dimensions are turned by their angle, far positions included."""
    torch.manual_seed(0)
    frequencies = torch.tensor([10000.0 ** (-i / 8) for i in range(8)])
    positions = torch.tensor([0, 1, 5, 4000, 8191])
    x = torch.randn(5, 3, 16)
    expected = reference.rotary(x, positions, frequencies)
    apply_rotary(x, *rotary_tables(positions, frequencies, torch.float32))
    assert torch.allclose(x.double(), expected, atol=2e-3)
    assert torch.allclose(x[:3].double(), expected[:3], atol=1e-6)


def test_rotary_works_on_a_slice_of_a_wider_tensor() -> None:
    """Heads beyond the slice stay as they are."""
    x = torch.randn(4, 5, 8)
    before = x.clone()
    frequencies = torch.ones(4)
    apply_rotary(x[:, :3], *rotary_tables(torch.arange(4), frequencies, torch.float32))
    assert torch.equal(x[:, 3:], before[:, 3:])
    assert torch.allclose(
        x[:, :3].double(), reference.rotary(before[:, :3], torch.arange(4), frequencies), atol=1e-5
    )


def test_silu_mul_gates_the_second_half_by_the_first() -> None:
    """silu(gate) * up, with gate and up side by side."""
    x = torch.randn(6, 10)
    gate, up = x[:, :5].double(), x[:, 5:].double()
    assert torch.allclose(silu_mul(x).double(), gate * torch.sigmoid(gate) * up, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 130])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_linear_agrees_with_the_plain_one(rows: int, has_bias: bool) -> None:
    """The packed weight gives the exact product, for any number of rows."""
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(70, 33), torch.randn(70), torch.randn(rows, 33)
    if not can_pack(weight):
        pytest.skip("this torch has no oneDNN packing")
    expected = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    ours = PackedLinear(weight, bias if has_bias else None)(x)
    assert torch.allclose(ours.double(), expected, atol=1e-4)


def test_other_dtypes_use_the_plain_product() -> None:
    """Only fp32 weights are packed."""
    assert isinstance(make_linear(torch.randn(4, 4).bfloat16()), PlainLinear)
