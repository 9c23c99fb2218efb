"""The forward pass of the Llama family over a flat batch of tokens. torch only, no framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.model.weights import LayerWeights, ModelWeights
from sgl_actors.kernels.activation import silu_mul
from sgl_actors.kernels.attention import AttentionPlan, AttentionRow, plan_attention
from sgl_actors.kernels.norm import rms_norm
from sgl_actors.kernels.rotary import apply_rotary, rotary_tables

HEAD_ROWS = 64
"""Rows of logits made at once where many are wanted (prompt log probabilities): bounds memory to that many vocabularies."""


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

    def forward(self, batch: ForwardBatch, pool: KvPool) -> torch.Tensor:
        """Run all layers; writes the new tokens' keys and values.

        Returns:
            [tokens, hidden] before the final norm; `logits` takes rows of it.
        """
        config = self.config
        x = torch.nn.functional.embedding(batch.token_ids, self.weights.embedding)
        cos, sin = rotary_tables(batch.positions, self._frequencies, x.dtype)
        plans = {
            window: plan_attention(batch.rows, scale=config.scale, window=window)
            for window in set(config.windows)
        }
        for index, layer in enumerate(self.weights.layers):
            normed = rms_norm(x, layer.attention_norm, config.norm_eps)
            x += self._attention(
                index, layer, normed, (cos, sin), batch.slots, plans[config.windows[index]], pool
            )
            normed = rms_norm(x, layer.mlp_norm, config.norm_eps)
            x += layer.down(silu_mul(layer.gate_up(normed)))
        return x

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
        apply_rotary(qkv[:, : heads + kv_heads], *rotary)
        pool.write(index, slots, qkv[:, heads:].unflatten(1, (2, kv_heads)))
        return layer.output(plan.attend(qkv[:, :heads], pool.layer(index)))
