"""silu(gate) * up against torch, under the interpreter."""

from __future__ import annotations

import pytest
import torch

from sgl_actors.kernels import activation as oracle
from sgl_actors.kernels.triton import activation

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (3, 40), (2, 1025)])
def test_the_gate_agrees_with_torch(rows: int, width: int, dtype: torch.dtype) -> None:
    """Ragged widths; torch rounds silu(gate) to the dtype before the product, the kernel only after it."""
    torch.manual_seed(rows)
    x = (torch.randn(rows, 2 * width) * 4).to(dtype)
    expected = oracle.silu_mul(x.float())
    ours = activation.silu_mul(x)
    assert ours.dtype == dtype
    assert torch.allclose(ours.float(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_large_gates_do_not_overflow() -> None:
    """silu goes to 0 on the left and to the gate itself on the right."""
    x = torch.tensor([[-80.0, 90.0, 2.0, 3.0]])
    assert torch.allclose(activation.silu_mul(x), torch.tensor([[0.0, 270.0]]), atol=1e-6)


def test_an_odd_width_is_refused() -> None:
    """There is no gate and up of the same width in it."""
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        activation.silu_mul(torch.ones(1, 3))
