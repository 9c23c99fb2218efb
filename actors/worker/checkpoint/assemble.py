"""Named tensors of a checkpoint -> the fused weights of a model. The same for every file format: names are Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.weights import LayerWeights, ModelWeights
from sgl_actors.errors import CheckpointError
from sgl_actors.kernels.linear import Linear, make_linear

Progress = Callable[[int, int], None]
"""Called with bytes read so far, and bytes in all."""

LAYERS_AHEAD = 3
"""Layers being decoded ahead of the one that is packed: bounds what is held twice."""

IGNORED = ("rotary_emb.inv_freq", "attention.bias", "masked_bias")
"""Ends of names of buffers that old checkpoints carry and nobody needs."""


class TensorSource(Protocol):
    """An open checkpoint.

    Attributes:
        where: file or folder, for messages.
        config: what its configuration says.
        sizes: bytes of every tensor in the file, by Hugging Face name.
    """

    where: str
    config: ModelConfig
    sizes: dict[str, int]

    def read(self, name: str) -> torch.Tensor:
        """One tensor of `sizes`, in Hugging Face layout and any float dtype.

        Raises:
            CheckpointError: it cannot be decoded.
        """


def assemble(
    source: TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    threads: int = 1,
    progress: Progress | None = None,
) -> ModelWeights:
    """Read everything, check shapes, convert, fuse, and pack for the device. See `load_model`."""
    return _Assembly(source, dtype, device, threads, progress).build()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration has, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocabulary, config.hidden),
        "model.norm.weight": (config.hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocabulary, config.hidden)
    for layer in range(config.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()}
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    projections = {
        "self_attn.q_proj": (queries, config.hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, config.hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, config.hidden, config.qkv_bias),
        "self_attn.o_proj": (config.hidden, queries, config.output_bias),
        "mlp.gate_proj": (config.intermediate, config.hidden, config.mlp_bias),
        "mlp.up_proj": (config.intermediate, config.hidden, config.mlp_bias),
        "mlp.down_proj": (config.hidden, config.intermediate, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (config.hidden,),
        "post_attention_layernorm.weight": (config.hidden,),
    }
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    for name, (rows, columns, bias) in projections.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    return shapes


class _Assembly:
    """One load.

    A pool of threads decodes tensors ahead; torch works in the calling thread alone, since every further thread would start
    a team of compute threads of its own.
    """

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.device = device
        self.threads = threads
        self.progress = progress
        self.shapes = expected_shapes(source.config)
        self.jobs: dict[str, Future[torch.Tensor]] = {}
        self.done = 0
        self.total = sum(source.sizes.get(name, 0) for name in self.shapes)
        self._check_names()

    def build(self) -> ModelWeights:
        config = self.source.config
        with ThreadPoolExecutor(self.threads, thread_name_prefix="load") as self.pool:
            try:
                self._decode_ahead(name for name in self.shapes if not name.startswith("model.layers."))
                for layer in range(LAYERS_AHEAD):
                    self._decode_layer(layer)
                embedding = self._read("model.embed_tokens.weight")
                head = make_linear(embedding if config.tied else self._read("lm_head.weight"))
                norm = self._read("model.norm.weight")
                layers = []
                for layer in range(config.layers):
                    self._decode_layer(layer + LAYERS_AHEAD)
                    layers.append(self._layer(layer))
            finally:
                self.pool.shutdown(cancel_futures=True)
        return ModelWeights(embedding, tuple(layers), norm, head)

    def _decode_layer(self, layer: int) -> None:
        self._decode_ahead(f"model.layers.{layer}.{name}" for name in _layer_shapes(self.source.config))

    def _decode_ahead(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.shapes:
                self.jobs[name] = self.pool.submit(self.source.read, name)

    def _layer(self, index: int) -> LayerWeights:
        prefix = f"model.layers.{index}."
        config = self.source.config
        return LayerWeights(
            attention_norm=self._read(prefix + "input_layernorm.weight"),
            qkv=self._fused(prefix, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output=self._fused(prefix, "self_attn.o_proj"),
            mlp_norm=self._read(prefix + "post_attention_layernorm.weight"),
            gate_up=self._fused(prefix, "mlp.gate_proj", "mlp.up_proj"),
            down=self._fused(prefix, "mlp.down_proj"),
            query_norm=self._read(prefix + "self_attn.q_norm.weight") if config.qk_norm else None,
            key_norm=self._read(prefix + "self_attn.k_norm.weight") if config.qk_norm else None,
        )

    def _fused(self, prefix: str, *names: str) -> Linear:
        """Projections of the same input as one, stacked in that order."""
        weight = torch.cat([self._read(f"{prefix}{name}.weight") for name in names])
        biases = [
            self._read(f"{prefix}{name}.bias") for name in names if f"{prefix}{name}.bias" in self.shapes
        ]
        return make_linear(weight, torch.cat(biases) if biases else None)

    def _read(self, name: str) -> torch.Tensor:
        """The decoded tensor, converted; its source is let go, so that only what is decoded ahead is held twice."""
        tensor = self.jobs.pop(name).result()
        if tuple(tensor.shape) != self.shapes[name]:
            raise CheckpointError(
                f"{self.source.where}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {self.shapes[name]}"
            )
        self.done += self.source.sizes[name]
        if self.progress is not None:
            self.progress(self.done, self.total)
        return tensor.to(device=self.device, dtype=self.dtype)

    def _check_names(self) -> None:
        """Nothing missing; and nothing that this family's code would silently leave out."""
        missing = [name for name in self.shapes if name not in self.source.sizes]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise CheckpointError(f"{self.source.where}: tensor {missing[0]!r} is missing{more}")
        for name in self.source.sizes:
            if (
                name in self.shapes
                or name.endswith(IGNORED)
                or (name == "lm_head.weight" and self.source.config.tied)
            ):
                continue
            raise CheckpointError(
                f"{self.source.where}: tensor {name!r} has no place in a {self.source.config.architecture}"
            )
