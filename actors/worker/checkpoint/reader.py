"""Reading a checkpoint for whoever builds a model of it: tensors are decoded by a pool of threads some layers ahead, checked and stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch

from sgl_actors.actors.worker.checkpoint.quantized import (
    Floats,
    Quantized,
    can_quantize,
    quantize_q4,
    quantize_q8,
    stack,
)
from sgl_actors.actors.worker.checkpoint.source import TensorSource
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with bytes read so far, and bytes in all."""

Compute = Literal["fp32", "auto", "int8", "int4"]
"""How matrices are wanted: dequantised; as the file has them, with 8 bits for what it keeps in more; with 8 bits; with 4 (but 8 for embedding and head)."""

LAYERS_AHEAD = 3
"""Layers being decoded ahead of the one that is packed: bounds what is held twice."""

IGNORED = ("rotary_emb.inv_freq", "attention.bias", "masked_bias")
"""Ends of names of buffers that old checkpoints carry and nobody needs."""

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_LAYERS = "model.layers."


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration has, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocabulary, config.hidden),
        NORM: (config.hidden,),
    }
    if not config.tied:
        shapes[HEAD] = (config.vocabulary, config.hidden)
    for layer in range(config.layers):
        shapes |= {f"{_LAYERS}{layer}.{name}": shape for name, shape in _layer_shapes(config).items()}
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


class CheckpointReader:
    """Hands out every tensor of a model once: first those outside of the layers, then `layers()` one after the other.

    To be used in a `with`. Only the pool's threads decode; torch works in the calling thread alone, since every further thread would start a team of
    compute threads of its own. What is handed out is let go of, so that only what is decoded ahead is held twice.

    Args:
        source: the open checkpoint.
        compute: how matrices are wanted.
        threads: to decode with.
        progress: called after every tensor that was handed out.

    Raises:
        CheckpointError: a tensor is missing, or of no use to this family.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        compute: Compute = "fp32",
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.source = source
        self.config = source.config
        self._compute = compute
        self._progress = progress
        self._shapes = expected_shapes(source.config)
        self._in_layer = tuple(_layer_shapes(source.config))
        self._jobs: dict[str, Future[torch.Tensor | Quantized]] = {}
        self._done = 0
        self._total = sum(source.sizes.get(name, 0) for name in self._shapes)
        self._check_names()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="load")

    def __enter__(self) -> Self:
        self._decode_ahead(name for name in self._shapes if not name.startswith(_LAYERS))
        for layer in range(LAYERS_AHEAD):
            self._decode_layer(layer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def layers(self) -> Iterator[str]:
        """The prefix of each layer's names, in order."""
        for layer in range(self.config.layers):
            self._decode_layer(layer + LAYERS_AHEAD)
            yield f"{_LAYERS}{layer}."

    def tensor(self, *names: str) -> torch.Tensor:
        """A tensor's values in the file's float dtype (fp32 of codes); those of several, stacked in that order.

        Raises:
            CheckpointError: one cannot be decoded, or has another shape.
        """
        parts = [self._take(name) for name in names]
        values = [
            torch.from_numpy(part.dequantize()) if isinstance(part, Quantized) else part for part in parts
        ]
        return values[0] if len(values) == 1 else torch.cat(values)

    def matrix(self, *names: str) -> torch.Tensor | Quantized:
        """Matrices of the same input as one [out, in], stacked in that order.

        Returns:
            Codes; or values in the file's float dtype, if those are wanted or rows are no whole blocks.

        Raises:
            CheckpointError: one cannot be decoded, or has another shape.
        """
        if self._is_quantized(names[0]):
            return stack([part for part in map(self._take, names) if isinstance(part, Quantized)])
        return self.tensor(*names)

    def bias(self, *names: str) -> torch.Tensor | None:
        """The biases that stand beside these matrices, stacked; None if the model has none.

        Raises:
            CheckpointError: one cannot be decoded, or has another shape.
        """
        found = [name.removesuffix("weight") + "bias" for name in names]
        there = [name for name in found if name in self._shapes]
        return self.tensor(*there) if there else None

    def _is_quantized(self, name: str) -> bool:
        """Whether a matrix is read as codes: the same for all of one input."""
        return self._compute != "fp32" and can_quantize(self._shapes[name])

    def _decode_layer(self, layer: int) -> None:
        self._decode_ahead(f"{_LAYERS}{layer}.{name}" for name in self._in_layer)

    def _decode_ahead(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._shapes:
                self._jobs[name] = self._pool.submit(self._decode, name)

    def _decode(self, name: str) -> torch.Tensor | Quantized:
        """In a thread of the pool."""
        if not self._is_quantized(name):
            return self.source.read(name)
        found = self.source.read_quantized(name)
        four = self._compute == "int4" and name.startswith(_LAYERS)
        if found is not None and (self._compute == "auto" or (found.kind == "q8") != four):
            return found
        values = found.dequantize() if found is not None else _floats(self.source.read(name))
        try:
            return quantize_q4(values) if four else quantize_q8(values)
        except ValueError as error:
            raise CheckpointError(
                f"{self.source.where}: tensor {name!r} has {error} (compute = 'fp32')"
            ) from None

    def _take(self, name: str) -> torch.Tensor | Quantized:
        found = self._jobs.pop(name).result()
        if tuple(found.shape) != self._shapes[name]:
            raise CheckpointError(
                f"{self.source.where}: tensor {name!r} has shape {tuple(found.shape)}, expected {self._shapes[name]}"
            )
        self._done += self.source.sizes[name]
        if self._progress is not None:
            self._progress(self._done, self._total)
        return found

    def _check_names(self) -> None:
        """Nothing missing; and nothing that this family's code would silently leave out."""
        missing = [name for name in self._shapes if name not in self.source.sizes]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise CheckpointError(f"{self.source.where}: tensor {missing[0]!r} is missing{more}")
        for name in self.source.sizes:
            if name in self._shapes or name.endswith(IGNORED) or (name == HEAD and self.config.tied):
                continue
            raise CheckpointError(
                f"{self.source.where}: tensor {name!r} has no place in a {self.config.architecture}"
            )


def _floats(tensor: torch.Tensor) -> Floats:
    """fp32 values, without one of torch's operations: those would start compute threads."""
    if tensor.dtype != torch.bfloat16:
        values: Floats = tensor.numpy().astype(np.float32, copy=False)
        return values
    wide = tensor.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    wide <<= 16
    floats: Floats = wide.view(np.float32)
    return floats


__all__ = [
    "EMBEDDING",
    "HEAD",
    "NORM",
    "CheckpointReader",
    "Compute",
    "Progress",
    "expected_shapes",
]
