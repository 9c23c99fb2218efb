"""A model's weights, ready to run: projections that read the same input are fused into one product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgl_actors.kernels.linear import Linear


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer.

    Attributes:
        qkv: [hidden] to [(heads + 2 * kv_heads) * head_dim]: queries, keys, values.
        output: [heads * head_dim] to [hidden].
        gate_up: [hidden] to [2 * intermediate]: gate, then up.
        down: [intermediate] to [hidden].
        query_norm, key_norm: [head_dim], where q and k are normalised (Qwen3).
    """

    attention_norm: torch.Tensor
    qkv: Linear
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class ModelWeights:
    """All of a model; `embedding` is [vocabulary, hidden], `head` maps [hidden] to [vocabulary]."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Linear
