"""What a runner asks of a model: `CausalLM` and `NativeLM` answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from sgl_actors.actors.worker.model.causal_lm import ForwardBatch
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.kv_pool import KvPool


class LanguageModel(Protocol):
    """Stateless between passes: keys and values live in the pool. One thread at a time."""

    @property
    def config(self) -> ModelConfig:
        """Its shapes."""

    @property
    def compute(self) -> str:
        """How weights are kept and multiplied: "fp32", "int8", "int4", "bfloat16"."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    def forward(self, batch: ForwardBatch, pool: KvPool) -> torch.Tensor:
        """Run all layers; writes the new tokens' keys and values. Returns [tokens, hidden] before the final norm."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] of `forward` to [rows, vocabulary], fp32."""

    def logits_in_parts(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """`logits`, a bounded number of rows at a time."""
