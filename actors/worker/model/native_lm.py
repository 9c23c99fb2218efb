"""The forward pass of the Llama family by the native CPU engine: the same questions as `CausalLM`, one call for all layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sgl_actors.actors.worker.model.causal_lm import HEAD_ROWS, ForwardBatch
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.kernels.cpu.engine import Engine
from sgl_actors.kernels.cpu.native import Format

COMPUTES = {
    Format.F32: "fp32",
    Format.BF16: "bf16",
    Format.Q8: "int8",
    Format.Q4: "int4",
    Format.Q4W: "int4",
}


class NativeLM:
    """A model whose weights are packed for the engine. Stateless between passes: keys and values live in the pool.

    Attributes:
        engine: for its timings and switches.
    """

    def __init__(self, config: ModelConfig, engine: Engine) -> None:
        self.config = config
        self.engine = engine

    @property
    def compute(self) -> str:
        """How the layers' weights are kept."""
        return COMPUTES[self.engine.model.layers[0].gate_up.format]

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def forward(self, batch: ForwardBatch, pool: KvPool) -> torch.Tensor:
        """See `CausalLM.forward`; a row's result does not depend on the others, on chunks, or on what was cached."""
        return self.engine.forward(batch.token_ids, batch.rows, pool.data)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] of `forward` to [rows, vocabulary], fp32."""
        return self.engine.logits(hidden)

    def logits_in_parts(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """`logits`, at most `HEAD_ROWS` rows at a time."""
        for part in hidden.split(HEAD_ROWS):
            yield self.logits(part)
