"""A whole model as it runs on a GPU, every Triton kernel in its place, under the interpreter: against the same model in torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sgl_actors.actors.worker.model import causal_lm
from sgl_actors.actors.worker.model.causal_lm import CausalLM, ForwardBatch
from sgl_actors.actors.worker.model.cuda_graphs import GraphedLM
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.triton import activation, norm, rotary
from sgl_actors.kernels.triton.attention import TritonPlan
from tests.worker.harness import CPU, tiny_config, tiny_model

pytestmark = pytest.mark.interpreted
CONFIG = tiny_config(head_dim=16, windows=(None, 6))


def make_pool() -> KvPool:
    return KvPool(layers=2, pages=64, page_size=1, kv_heads=2, head_dim=16, dtype=torch.float32, device=CPU)


def tokens_of(*rows: tuple[int, int, int]) -> ForwardBatch:
    """Rows of (first slot, tokens before, new tokens), in consecutive slots; token ids follow from the slots."""
    held = [AttentionRow(torch.arange(at, at + before + new), new) for at, before, new in rows]
    positions = torch.cat([torch.arange(before, before + new) for _, before, new in rows])
    slots = torch.cat([row.slots[-row.new :] for row in held])
    return ForwardBatch((slots * 7 + 3) % 97, positions, slots, held)


PASSES = (
    tokens_of((0, 0, 12), (20, 0, 3)),
    tokens_of((0, 12, 1), (20, 3, 1), (40, 0, 5)),
    tokens_of((0, 13, 1), (20, 4, 1), (40, 5, 1)),
    tokens_of((0, 14, 1), (20, 5, 1), (40, 6, 1)),
)
"""Two prompts, decodes beside a third one's prefill, decodes alone."""


@pytest.fixture
def expected() -> list[torch.Tensor]:
    """Hidden states of torch's own operations."""
    model, pool = tiny_model(CONFIG), make_pool()
    return [model.forward(batch, pool) for batch in PASSES]


@pytest.fixture
def model(expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """The same model with the kernels that a GPU takes."""

    def plan(
        rows: list[AttentionRow], *, scale: float, window: int | None, device: torch.device
    ) -> TritonPlan:
        return TritonPlan(rows, scale=scale, window=window)

    monkeypatch.setattr(causal_lm, "rms_norm", norm.rms_norm)
    monkeypatch.setattr(causal_lm, "add_rms_norm", norm.add_rms_norm)
    monkeypatch.setattr(causal_lm, "silu_mul", activation.silu_mul)
    monkeypatch.setattr(causal_lm, "rotate_and_store", rotary.rotate_and_store)
    monkeypatch.setattr(causal_lm, "plan_attention", plan)
    return tiny_model(CONFIG)


def test_the_model_on_its_gpu_kernels_is_torchs_model(model: CausalLM, expected: list[torch.Tensor]) -> None:
    """Prefills, decodes and both mixed, with and without a window, give the same hidden states."""
    pool = make_pool()
    for batch, theirs in zip(PASSES, expected, strict=True):
        assert torch.allclose(model.forward(batch, pool), theirs, atol=1e-4, rtol=1e-4)


def test_graphs_on_the_gpu_kernels_are_torchs_model(model: CausalLM, expected: list[torch.Tensor]) -> None:
    """Decodes alone are padded and replayed over refilled attention tables; a capture that only computes stands for CUDA's."""

    def capture(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        compute()
        return compute

    lm, pool = GraphedLM(model, capture=capture), make_pool()
    for batch, theirs in zip(PASSES, expected, strict=True):
        assert torch.allclose(lm.forward(batch, pool), theirs, atol=1e-4, rtol=1e-4)
    assert (lm.captured, lm.replayed) == (1, 2)
