"""Model files: a GGUF file or a Hugging Face folder in, a configuration and weights out.

Only data is read: no pickles (`torch.load`), no code that comes with a model. Whatever is missing, cut off or not understood
raises `CheckpointError` that names the file and what was expected.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sgl_actors.actors.worker.checkpoint.assemble import assemble
from sgl_actors.actors.worker.checkpoint.assemble_native import assemble_native
from sgl_actors.actors.worker.checkpoint.folder import FolderCheckpoint
from sgl_actors.actors.worker.checkpoint.gguf_checkpoint import GgufCheckpoint
from sgl_actors.actors.worker.checkpoint.reader import Compute, Progress
from sgl_actors.actors.worker.checkpoint.source import TensorSource
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.native_lm import NativeLM
from sgl_actors.errors import CheckpointError
from sgl_actors.kernels.cpu.engine import Engine


def open_checkpoint(path: str | Path) -> TensorSource:
    """Open a model for reading and check its table of contents; no weights are read yet.

    Raises:
        CheckpointError: no such file, not a model, of an unsupported kind, or cut off.
    """
    path = Path(path)
    if path.is_dir():
        return FolderCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, expected a .gguf file or a folder with config.json")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: name the folder that holds it together with config.json")
    return GgufCheckpoint(path)


def load_model(
    path: str | Path | TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    threads: int = 1,
    progress: Progress | None = None,
) -> CausalLM:
    """Read a model, fuse and pack its weights.

    Args:
        path: a .gguf file, a Hugging Face folder, or either opened.
        dtype: to convert weights to.
        device: where they go.
        threads: to dequantise with.
        progress: called with (bytes read, bytes in all) after every layer.

    Raises:
        CheckpointError: see `open_checkpoint`; a tensor is missing, of another shape, or of no use to this family.
    """
    source = open_checkpoint(path) if isinstance(path, (str, Path)) else path
    weights = assemble(source, dtype=dtype, device=device, threads=threads, progress=progress)
    return CausalLM(source.config, weights)


def load_native_model(
    path: str | Path | TensorSource,
    *,
    compute: Compute = "auto",
    kv_dtype: torch.dtype = torch.float32,
    threads: int = 1,
    progress: Progress | None = None,
) -> NativeLM:
    """Read a model for the native CPU engine.

    Args:
        path: a .gguf file, a Hugging Face folder, or either opened.
        compute: how matrices are kept.
        kv_dtype: of keys and values in the pool: fp32 or fp16.
        threads: to decode with, and of the engine.
        progress: called with (bytes read, bytes in all) after every tensor.

    Raises:
        CheckpointError: see `load_model`; or a matrix cannot be kept that way.
        RuntimeError: the native library is not there.
    """
    source = open_checkpoint(path) if isinstance(path, (str, Path)) else path
    model = assemble_native(source, compute=compute, threads=threads, progress=progress)
    return NativeLM(source.config, Engine(model, threads=threads, kv_dtype=kv_dtype))


__all__ = [
    "CheckpointError",
    "Compute",
    "ModelConfig",
    "Progress",
    "TensorSource",
    "load_model",
    "load_native_model",
    "open_checkpoint",
]
