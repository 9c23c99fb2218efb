"""What the code needs to know of a model: shapes, rotary embedding, attention windows. Read from config.json or GGUF metadata.

Families differ in few ways, so one description serves them all: Llama (SmolLM2), Mistral (sliding window), Qwen2 (bias on q, k
and v) and Qwen3 (normalised q and k per head, head_dim of its own).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sgl_actors.errors import CheckpointError

T = TypeVar("T", int, float, bool, str)

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding: base, and how the frequencies are stretched for long contexts.

    Attributes:
        theta: base of the frequencies.
        kind: "default", "linear" or "llama3".
        factor: stretch of "linear" and of llama3's low frequencies.
        low, high, original: llama3's borders, in turns over `original` positions.
        divisors: explicit divisor per frequency (a GGUF's `rope_freqs.weight`); wins over `kind`.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    divisors: tuple[float, ...] = ()

    def inverse_frequencies(self, head_dim: int) -> list[float]:
        """head_dim / 2 angles per position, in radians."""
        plain = [self.theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2)]
        if self.divisors:
            return [f / divisor for f, divisor in zip(plain, self.divisors, strict=True)]
        if self.kind == "linear":
            return [f / self.factor for f in plain]
        if self.kind == "llama3":
            return [self._llama3(f) for f in plain]
        return plain

    def _llama3(self, frequency: float) -> float:
        """Llama 3.1's stretch: low frequencies divided by `factor`, high ones kept, those between blended."""
        turns = self.original * frequency / (2 * math.pi)
        if turns < self.low:
            return frequency / self.factor
        if turns > self.high:
            return frequency
        blend = (turns - self.low) / (self.high - self.low)
        return (1 - blend) * frequency / self.factor + blend * frequency


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only model.

    Attributes:
        windows: per layer, how many tokens a token sees (itself included); None for all.
        qkv_bias, output_bias, mlp_bias: which projections have a bias.
        qk_norm: q and k of every head are normalised before the rotary embedding.
        eos_ids: ids that end a generation.
    """

    architecture: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    norm_eps: float
    tied: bool
    rotary: Rotary = field(default_factory=Rotary)
    windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_ids: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """Factor on attention products."""
        return float(self.head_dim**-0.5)

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * itemsize


def require(data: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """`data[key]` of that type; `CheckpointError` naming `where` and the key otherwise."""
    if data.get(key) is None:
        raise CheckpointError(f"{where}: key {key!r} is missing")
    return optional(data, key, kind, kind(), where)


def optional(data: Mapping[str, Any], key: str, kind: type[T], default: T, where: str) -> T:
    """`data[key]` of that type, `default` if absent or null."""
    value = data.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{where}: key {key!r} is {value!r}, expected {kind.__name__}")
    return value


def config_from_hf(data: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a Hugging Face config.json that is decoded already.

    Raises:
        CheckpointError: a key is missing or wrong, or asks for what this code does not do; names `where`.
    """
    names = data.get("architectures")
    architecture = (
        names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""
    )
    if architecture not in FAMILIES:
        raise CheckpointError(f"{where}: architectures is {names!r}, supported: {', '.join(FAMILIES)}")
    _refuse_unsupported(data, where)
    hidden = require(data, "hidden_size", int, where)
    heads = require(data, "num_attention_heads", int, where)
    layers = require(data, "num_hidden_layers", int, where)
    qwen = architecture.startswith("Qwen")
    bias = (
        optional(data, "attention_bias", bool, False, where)
        if not architecture.startswith("Mistral")
        else False
    )
    config = ModelConfig(
        architecture=architecture,
        vocabulary=require(data, "vocab_size", int, where),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=optional(data, "num_key_value_heads", int, heads, where),
        head_dim=optional(data, "head_dim", int, hidden // max(heads, 1), where),
        intermediate=require(data, "intermediate_size", int, where),
        context=require(data, "max_position_embeddings", int, where),
        norm_eps=require(data, "rms_norm_eps", float, where),
        tied=optional(data, "tie_word_embeddings", bool, False, where),
        rotary=_rotary_from_hf(data, where),
        windows=_windows(data, architecture, layers, where),
        qkv_bias=bias or architecture.startswith("Qwen2"),
        output_bias=bias and not architecture.startswith("Qwen2"),
        mlp_bias=optional(data, "mlp_bias", bool, False, where) and not qwen,
        qk_norm=architecture.startswith("Qwen3"),
        eos_ids=eos_ids(data, where),
    )
    return checked(config, where)


def eos_ids(data: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """`eos_token_id` as a tuple: a number, a list of numbers, or absent."""
    value = data.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) for i in ids):
        raise CheckpointError(f"{where}: key 'eos_token_id' is {value!r}, expected token ids")
    return tuple(ids)


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """Return `config` if its numbers fit together, else raise `CheckpointError`."""
    for name in (
        "vocabulary",
        "hidden",
        "layers",
        "heads",
        "kv_heads",
        "head_dim",
        "intermediate",
        "context",
    ):
        if getattr(config, name) < 1:
            raise CheckpointError(f"{where}: {name} is {getattr(config, name)}, expected at least 1")
    if config.heads % config.kv_heads:
        raise CheckpointError(
            f"{where}: {config.heads} attention heads do not share {config.kv_heads} key-value heads evenly"
        )
    if config.head_dim % 2:
        raise CheckpointError(
            f"{where}: head_dim is {config.head_dim}, the rotary embedding needs an even number"
        )
    if config.rotary.divisors and len(config.rotary.divisors) != config.head_dim // 2:
        raise CheckpointError(
            f"{where}: {len(config.rotary.divisors)} rotary divisors, expected {config.head_dim // 2}"
        )
    return config


def _refuse_unsupported(data: Mapping[str, Any], where: str) -> None:
    if data.get("quantization_config"):
        raise CheckpointError(
            f"{where}: quantised safetensors are not supported (quantization_config); use a GGUF file or bf16"
        )
    activation = data.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{where}: hidden_act is {activation!r}, supported: silu")
    partial = data.get("partial_rotary_factor", 1.0)
    if partial not in (None, 1, 1.0):
        raise CheckpointError(f"{where}: partial_rotary_factor is {partial!r}, supported: 1.0")


def _rotary_from_hf(data: Mapping[str, Any], where: str) -> Rotary:
    """`rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5)."""
    scaling = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"{where}: rope_scaling is {scaling!r}, expected an object")
    theta = optional(scaling, "rope_theta", float, optional(data, "rope_theta", float, 10000.0, where), where)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in (None, "default"):
        return Rotary(theta)
    if kind == "linear":
        return Rotary(theta, "linear", require(scaling, "factor", float, where))
    if kind == "llama3":
        return Rotary(
            theta,
            "llama3",
            require(scaling, "factor", float, where),
            require(scaling, "low_freq_factor", float, where),
            require(scaling, "high_freq_factor", float, where),
            require(scaling, "original_max_position_embeddings", int, where),
        )
    raise CheckpointError(
        f"{where}: rope scaling {kind!r} is not supported, supported: default, linear, llama3"
    )


def _windows(data: Mapping[str, Any], architecture: str, layers: int, where: str) -> tuple[int | None, ...]:
    """Sliding window per layer: Mistral's holds for all, Qwen's for those from `max_window_layers` on, if switched on."""
    window = optional(data, "sliding_window", int, 0, where) or None
    if architecture.startswith("Qwen") and not data.get("use_sliding_window"):
        window = None
    if window is None or architecture.startswith("Llama"):
        return (None,) * layers
    kinds = data.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    full = optional(data, "max_window_layers", int, 0, where) if architecture.startswith("Qwen") else 0
    return tuple(None if layer < full else window for layer in range(layers))
