"""The tensors of a checkpoint -> the weights of the native CPU engine, packed as codes where they are kept as such."""

from __future__ import annotations

import torch

from sgl_actors.actors.worker.checkpoint.quantized import Kind, Quantized
from sgl_actors.actors.worker.checkpoint.reader import (
    EMBEDDING,
    HEAD,
    NORM,
    CheckpointReader,
    Compute,
    Progress,
)
from sgl_actors.actors.worker.checkpoint.source import TensorSource
from sgl_actors.kernels.cpu.engine import EngineLayer, EngineModel, PackedWeight
from sgl_actors.kernels.cpu.native import Format
from sgl_actors.kernels.cpu.packing import FLOATS, pack_codes, pack_values

FORMATS: dict[Kind, Format] = {"q4": Format.Q4, "q4w": Format.Q4W, "q8": Format.Q8}


def assemble_native(
    source: TensorSource, *, compute: Compute, threads: int = 1, progress: Progress | None = None
) -> EngineModel:
    """Read everything, check shapes, fuse and pack. See `load_native_model`."""
    with CheckpointReader(source, compute=compute, threads=threads, progress=progress) as reader:
        return _build(reader)


def _build(reader: CheckpointReader) -> EngineModel:
    config = reader.config
    embedding = _linear(reader, EMBEDDING)
    return EngineModel(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        norm_eps=config.norm_eps,
        scale=config.scale,
        embedding=embedding,
        head=embedding if config.tied else _linear(reader, HEAD),
        norm=_floats(reader.tensor(NORM)),
        layers=[
            _layer(reader, prefix, window)
            for prefix, window in zip(reader.layers(), config.windows, strict=True)
        ],
        inverse_frequencies=torch.tensor(
            config.rotary.inverse_frequencies(config.head_dim), dtype=torch.float32
        ),
    )


def _layer(reader: CheckpointReader, prefix: str, window: int | None) -> EngineLayer:
    normed = reader.config.qk_norm
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return EngineLayer(
        attention_norm=_floats(reader.tensor(prefix + "input_layernorm.weight")),
        qkv=_linear(reader, *(f"{attention}{name}_proj.weight" for name in "qkv")),
        output=_linear(reader, attention + "o_proj.weight"),
        mlp_norm=_floats(reader.tensor(prefix + "post_attention_layernorm.weight")),
        gate_up=_linear(reader, mlp + "gate_proj.weight", mlp + "up_proj.weight"),
        down=_linear(reader, mlp + "down_proj.weight"),
        query_norm=_floats(reader.tensor(attention + "q_norm.weight")) if normed else None,
        key_norm=_floats(reader.tensor(attention + "k_norm.weight")) if normed else None,
        window=window or 0,
    )


def _linear(reader: CheckpointReader, *names: str) -> PackedWeight:
    weight, bias = reader.matrix(*names), reader.bias(*names)
    bias = None if bias is None else _floats(bias)
    if isinstance(weight, Quantized):
        return pack_codes(FORMATS[weight.kind], weight.codes, weight.scale, weight.minimum, bias)
    return pack_values((weight if weight.dtype in FLOATS else weight.float()).contiguous(), bias)


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().contiguous()


__all__ = ["assemble_native"]
