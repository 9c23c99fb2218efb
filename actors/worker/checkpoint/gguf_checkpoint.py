"""A GGUF file as a checkpoint: its names, metadata and layouts translated to Hugging Face's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from sgl_actors.actors.worker.checkpoint.gguf_blocks import decode
from sgl_actors.actors.worker.checkpoint.gguf_file import GgufFile, GgufTensor
from sgl_actors.actors.worker.checkpoint.quantized import Quantized, can_quantize
from sgl_actors.actors.worker.model.config import ModelConfig, Rotary, checked, optional, require
from sgl_actors.errors import CheckpointError

Number = TypeVar("Number", bound=np.generic)

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""`general.architecture`; Mistral and SmolLM2 files say "llama" too."""

ROPE_DIVISORS = "rope_freqs.weight"

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufCheckpoint:
    """See `TensorSource`."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.file = GgufFile(path)
        self._tensors = {
            _hf_name(name): tensor for name, tensor in self.file.tensors.items() if name != ROPE_DIVISORS
        }
        self.sizes = {name: tensor.size for name, tensor in self._tensors.items()}
        self.config = self._read_config()
        self._interleaved = self.file.metadata["general.architecture"] == "llama"

    def read(self, name: str) -> torch.Tensor:
        """See `TensorSource`. llama-arch files store q and k with rotary pairs side by side; that is undone here."""
        values = self.file.read(self._tensors[name])
        if self._is_interleaved(name):
            values = deinterleave(values, self.config.head_dim)
        return torch.from_numpy(values)

    def read_quantized(self, name: str) -> Quantized | None:
        """See `TensorSource`."""
        tensor = self._tensors[name]
        if not can_quantize(tensor.shape):
            return None
        raw = self.file.rows(tensor)
        if self._is_interleaved(name):
            raw = deinterleave(raw, self.config.head_dim)
        return decode(raw, tensor.kind)

    def _is_interleaved(self, name: str) -> bool:
        return self._interleaved and re.search(r"\.[qk]_proj\.", name) is not None

    def _read_config(self) -> ModelConfig:
        data, where = self.file.metadata, self.where
        kind = require(data, "general.architecture", str, where)
        if kind not in ARCHITECTURES:
            raise CheckpointError(
                f"{where}: general.architecture is {kind!r}, supported: {', '.join(ARCHITECTURES)}"
            )
        if optional(data, f"{kind}.expert_count", int, 0, where):
            raise CheckpointError(
                f"{where}: {kind}.expert_count is set: mixtures of experts are not supported"
            )
        hidden = require(data, f"{kind}.embedding_length", int, where)
        heads = require(data, f"{kind}.attention.head_count", int, where)
        layers = require(data, f"{kind}.block_count", int, where)
        head_dim = optional(data, f"{kind}.attention.key_length", int, hidden // max(heads, 1), where)
        turned = optional(data, f"{kind}.rope.dimension_count", int, head_dim, where)
        if turned != head_dim:
            raise CheckpointError(
                f"{where}: {kind}.rope.dimension_count is {turned}, expected the head's {head_dim}"
            )
        window = optional(data, f"{kind}.attention.sliding_window", int, 0, where) or None
        eos = data.get("tokenizer.ggml.eos_token_id")
        config = ModelConfig(
            architecture=ARCHITECTURES[kind],
            vocabulary=self._embedding().shape[0],
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=optional(data, f"{kind}.attention.head_count_kv", int, heads, where),
            head_dim=head_dim,
            intermediate=require(data, f"{kind}.feed_forward_length", int, where),
            context=require(data, f"{kind}.context_length", int, where),
            norm_eps=require(data, f"{kind}.attention.layer_norm_rms_epsilon", float, where),
            tied="lm_head.weight" not in self._tensors,
            rotary=self._rotary(kind),
            windows=(window,) * layers,
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in self._tensors,
            output_bias="model.layers.0.self_attn.o_proj.bias" in self._tensors,
            mlp_bias="model.layers.0.mlp.down_proj.bias" in self._tensors,
            qk_norm="model.layers.0.self_attn.q_norm.weight" in self._tensors,
            eos_ids=(eos,) if isinstance(eos, int) else (),
        )
        return checked(config, where)

    def _embedding(self) -> GgufTensor:
        tensor = self._tensors.get("model.embed_tokens.weight")
        if tensor is None:
            raise CheckpointError(f"{self.where}: tensor 'token_embd.weight' is missing")
        return tensor

    def _rotary(self, kind: str) -> Rotary:
        data, where = self.file.metadata, self.where
        theta = optional(data, f"{kind}.rope.freq_base", float, 10000.0, where)
        scaling = optional(data, f"{kind}.rope.scaling.type", str, "none", where)
        if ROPE_DIVISORS in self.file.tensors:
            divisors = self.file.read(self.file.tensors[ROPE_DIVISORS]).tolist()
            return Rotary(theta, "default", divisors=tuple(divisors))
        if scaling == "none":
            return Rotary(theta)
        if scaling == "linear":
            return Rotary(theta, "linear", require(data, f"{kind}.rope.scaling.factor", float, where))
        raise CheckpointError(f"{where}: {kind}.rope.scaling.type is {scaling!r}, supported: none, linear")


def deinterleave(
    values: np.ndarray[Any, np.dtype[Number]], head_dim: int
) -> np.ndarray[Any, np.dtype[Number]]:
    """Rows of each head from (0, d/2, 1, d/2 + 1, …) back to (0, 1, …): the inverse of convert_hf_to_gguf's `permute`.

    A tensor whose rows are no whole heads is returned as it is; its shape is refused later.
    """
    if values.shape[0] % head_dim:
        return values
    heads = values.shape[0] // head_dim
    return values.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; an unknown one stays as it is and is refused later."""
    if name in _TOP:
        return _TOP[name]
    match = re.fullmatch(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)", name)
    if match is None or match[2] not in _IN_LAYER:
        return name
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"


__all__ = ["ARCHITECTURES", "GgufCheckpoint", "deinterleave"]
