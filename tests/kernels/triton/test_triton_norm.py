"""RMS normalisation and its fusion with the residual sum against torch, under the interpreter."""

from __future__ import annotations

import pytest
import torch

from sgl_actors.kernels import norm as oracle
from sgl_actors.kernels.triton import norm

pytestmark = pytest.mark.interpreted
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal up to two units in the last place of the dtype, at magnitudes of a few."""
    return bool(
        torch.allclose(ours.double(), theirs.double(), rtol=2 * torch.finfo(ours.dtype).eps, atol=1e-5)
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 576), (37, 100)])
def test_the_norm_agrees_with_torch(rows: int, width: int, dtype: torch.dtype) -> None:
    """Any number of rows, and widths that are no power of two."""
    torch.manual_seed(rows)
    x, weight = (torch.randn(rows, width) * 3).to(dtype), torch.rand(width).to(dtype)
    ours = norm.rms_norm(x, weight, 1e-5)
    assert ours.dtype == dtype
    assert close(ours, oracle.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_heads_within_a_wider_tensor_are_normed(head_dim: int, dtype: torch.dtype) -> None:
    """A slice of the heads of q, k and v, as Qwen3 norms them; what is beside it does not count."""
    torch.manual_seed(0)
    qkv, weight = torch.randn(5, 7, head_dim).to(dtype), torch.rand(head_dim).to(dtype)
    ours = norm.rms_norm(qkv[:, 2:5], weight, 1e-6)
    assert ours.is_contiguous()
    assert close(ours, oracle.rms_norm(qkv[:, 2:5].contiguous(), weight, 1e-6))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (19, 96)])
def test_the_residual_sum_goes_into_x_and_is_normed(rows: int, width: int, dtype: torch.dtype) -> None:
    """The sum is rounded to the dtype before it is normed, as torch's; the interpreter rounds bf16 down, not to nearest."""
    torch.manual_seed(rows)
    x, delta, weight = (
        torch.randn(rows, width).to(dtype),
        torch.randn(rows, width).to(dtype),
        torch.rand(width),
    )
    theirs = x.clone()
    expected = oracle.add_rms_norm(theirs, delta, weight.to(dtype), 1e-5)
    ours = norm.add_rms_norm(x, delta, weight.to(dtype), 1e-5)
    assert close(x, theirs) if dtype == torch.bfloat16 else torch.equal(x, theirs)
    assert torch.allclose(ours.double(), expected.double(), rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_no_rows_are_no_work() -> None:
    """An empty batch gives an empty result."""
    assert norm.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5).shape == (0, 8)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """The error says what was given."""
    with pytest.raises(ValueError, match=r"x is \[2, 8\] and delta \[3, 8\]"):
        norm.add_rms_norm(torch.ones(2, 8), torch.ones(3, 8), torch.ones(8), 1e-5)
    with pytest.raises(ValueError, match="strides"):
        norm.rms_norm(torch.ones(8, 2).T, torch.ones(8), 1e-5)
