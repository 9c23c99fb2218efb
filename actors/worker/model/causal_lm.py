"""The forward pass of the Llama family over a flat batch of tokens. torch only, no framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.model.weights import LayerWeights, ModelWeights
from sgl_actors.kernels.activation import silu_mul
from sgl_actors.kernels.attention import AttentionPlan, AttentionRow, plan_attention
from sgl_actors.kernels.norm import add_rms_norm, rms_norm
from sgl_actors.kernels.rotary import rotary_tables, rotate_and_store

HEAD_ROWS = 64
"""Rows of logits made at once where many are wanted (prompt log probabilities): bounds memory to that many vocabularies."""

Plans = Mapping[int | None, AttentionPlan]
"""One pass's attention, by window."""


@dataclass(frozen=True)
class ForwardBatch:
    """One pass: the new tokens of all rows one after the other.

    Attributes:
        token_ids: [tokens] int64.
        positions: [tokens] int64, place of each token in its sequence.
        slots: [tokens] int64, where their keys and values go.
        rows: in the same order.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    rows: list[AttentionRow]


class CausalLM:
    """Weights, and what is computed with them. Stateless between passes: keys and values live in the pool."""

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights
        self._frequencies = torch.tensor(
            config.rotary.inverse_frequencies(config.head_dim),
            dtype=torch.float32,
            device=weights.embedding.device,
        )

    @property
    def compute(self) -> str:
        """The dtype of the weights; "fp32" for float32."""
        dtype = self.weights.embedding.dtype
        return "fp32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    def forward(self, batch: ForwardBatch, pool: KvPool) -> torch.Tensor:
        """Run all layers; writes the new tokens' keys and values.

        Returns:
            [tokens, hidden] before the final norm; `logits` takes rows of it.
        """
        return self.run_layers(batch, self.plan(batch.rows), pool)

    def plan(self, rows: list[AttentionRow]) -> Plans:
        """Attention over `rows`, for each window that the layers have."""
        return {
            window: plan_attention(rows, scale=self.config.scale, window=window, device=self.device)
            for window in set(self.config.windows)
        }

    def run_layers(self, batch: ForwardBatch, plans: Plans, pool: KvPool) -> torch.Tensor:
        """`forward` with plans that are made; reads nothing of `batch.rows`."""
        config = self.config
        x = torch.nn.functional.embedding(batch.token_ids, self.weights.embedding)
        rotary = rotary_tables(batch.positions, self._frequencies, x.dtype)
        added: torch.Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            normed = _add_and_norm(x, added, layer.attention_norm, config.norm_eps)
            attended = self._attention(
                index, layer, normed, rotary, batch.slots, plans[config.windows[index]], pool
            )
            normed = add_rms_norm(x, attended, layer.mlp_norm, config.norm_eps)
            added = layer.down(silu_mul(layer.gate_up(normed)))
        return x if added is None else x.add_(added)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] of `forward` to [rows, vocabulary], fp32."""
        normed = rms_norm(hidden, self.weights.norm, self.config.norm_eps)
        return self.weights.head(normed).float()

    def logits_in_parts(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """`logits`, at most `HEAD_ROWS` rows at a time."""
        for part in hidden.split(HEAD_ROWS):
            yield self.logits(part)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        plan: AttentionPlan,
        pool: KvPool,
    ) -> torch.Tensor:
        heads, kv_heads = self.config.heads, self.config.kv_heads
        qkv = layer.qkv(x).view(len(x), heads + 2 * kv_heads, self.config.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            qkv[:, :heads] = rms_norm(qkv[:, :heads], layer.query_norm, self.config.norm_eps)
            qkv[:, heads : heads + kv_heads] = rms_norm(
                qkv[:, heads : heads + kv_heads], layer.key_norm, self.config.norm_eps
            )
        rotate_and_store(qkv, rotary, pool.layer(index), slots)
        return layer.output(plan.attend(qkv[:, :heads], pool.layer(index)))


def _add_and_norm(
    x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """What the layer before has to add goes into `x` here, in one kernel with the norm."""
    return rms_norm(x, weight, eps) if added is None else add_rms_norm(x, added, weight, eps)
