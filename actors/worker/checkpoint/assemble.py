"""The tensors of a checkpoint -> the fused weights of torch's model. The same for every file format."""

from __future__ import annotations

import torch

from sgl_actors.actors.worker.checkpoint.reader import EMBEDDING, HEAD, NORM, CheckpointReader, Progress
from sgl_actors.actors.worker.checkpoint.source import TensorSource
from sgl_actors.actors.worker.model.weights import LayerWeights, ModelWeights
from sgl_actors.kernels.linear import Linear, make_linear


def assemble(
    source: TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    threads: int = 1,
    progress: Progress | None = None,
) -> ModelWeights:
    """Read everything, check shapes, convert, fuse, and pack for the device. See `load_model`."""
    with CheckpointReader(source, threads=threads, progress=progress) as reader:
        return _Assembly(reader, dtype, device).build()


class _Assembly:
    """One load."""

    def __init__(self, reader: CheckpointReader, dtype: torch.dtype, device: torch.device) -> None:
        self.reader = reader
        self.dtype = dtype
        self.device = device

    def build(self) -> ModelWeights:
        embedding = self._tensor(EMBEDDING)
        head = make_linear(embedding if self.reader.config.tied else self._tensor(HEAD))
        norm = self._tensor(NORM)
        return ModelWeights(embedding, tuple(map(self._layer, self.reader.layers())), norm, head)

    def _layer(self, prefix: str) -> LayerWeights:
        normed = self.reader.config.qk_norm
        return LayerWeights(
            attention_norm=self._tensor(prefix + "input_layernorm.weight"),
            qkv=self._linear(prefix, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output=self._linear(prefix, "self_attn.o_proj"),
            mlp_norm=self._tensor(prefix + "post_attention_layernorm.weight"),
            gate_up=self._linear(prefix, "mlp.gate_proj", "mlp.up_proj"),
            down=self._linear(prefix, "mlp.down_proj"),
            query_norm=self._tensor(prefix + "self_attn.q_norm.weight") if normed else None,
            key_norm=self._tensor(prefix + "self_attn.k_norm.weight") if normed else None,
        )

    def _linear(self, prefix: str, *names: str) -> Linear:
        full = [f"{prefix}{name}.weight" for name in names]
        bias = self.reader.bias(*full)
        return make_linear(self._tensor(*full), None if bias is None else self._convert(bias))

    def _tensor(self, *names: str) -> torch.Tensor:
        return self._convert(self.reader.tensor(*names))

    def _convert(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)
