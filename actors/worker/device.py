"""From options to a runner: device, kernels, dtypes, threads, context and the size of the KV pool are settled here."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.worker.checkpoint import (
    Compute,
    Progress,
    load_model,
    load_native_model,
    open_checkpoint,
)
from sgl_actors.actors.worker.messages import ModelInfo, Options
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.cuda_graphs import GraphedLM
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.model.native_lm import NativeLM
from sgl_actors.actors.worker.runner import ModelRunner
from sgl_actors.errors import ConfigError
from sgl_actors.kernels.cpu import native
from sgl_actors.kernels.cpu.native import LANES

COMPUTES: tuple[Compute, ...] = ("auto", "fp32", "int8", "int4")
"""What `compute` may be; "auto" leaves every weight as the file keeps it, as far as the native kernels take it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_runner(
    model: Options, cache: CacheOptions, *, progress: Progress | None = None
) -> tuple[ModelRunner, ModelInfo]:
    """Load `model.path` and set up its pool. To be called in the thread that will run the steps.

    Raises:
        CheckpointError: see `load_model`.
        ConfigError: a dtype, device, context or pool size that cannot be.
    """
    device = choose_device(model.device)
    threads = model.threads or count_cores()
    source = open_checkpoint(model.path)
    compute = choose_compute(model, device, source.config)
    loaded: CausalLM | GraphedLM | NativeLM
    if compute is None:
        exact = model.compute == "fp32" and model.dtype == "auto"
        dtype = choose_dtype("float32" if exact else model.dtype, device)
        torch.set_num_threads(threads)
        loaded = load_model(source, dtype=dtype, device=device, threads=threads, progress=progress)
        if model.cuda_graphs and device.type == "cuda":
            loaded = GraphedLM(loaded)
    else:
        dtype = choose_kv(model.kv)
        torch.set_num_threads(1)
        loaded = load_native_model(
            source, compute=compute, kv_dtype=dtype, threads=threads, progress=progress
        )
    config = loaded.config
    context = choose_context(model.context, config)
    pages = count_pages(cache, config, dtype)
    pool = KvPool(
        layers=config.layers,
        pages=pages,
        page_size=cache.page_size,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=device,
    )
    info = ModelInfo(
        served_name=model.served_name or Path(model.path).name.removesuffix(".gguf"),
        path=model.path,
        architecture=config.architecture,
        context=context,
        vocabulary=config.vocabulary,
        eos_ids=config.eos_ids,
        pages=pages,
        page_size=cache.page_size,
        bytes_per_token=config.kv_bytes(dtype.itemsize),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        threads=threads,
        compute=loaded.compute,
        deterministic=compute is not None,
        kernels=name_kernels(compute, device),
    )
    return ModelRunner(loaded, pool, context=context), info


def count_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> torch.device:
    """The named device; "auto" takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"[model] device: {name!r} is no device, expected auto, cpu, cuda or cuda:N"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"[model] device: {name!r} is not supported, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"[model] device: {name!r}, but torch sees no GPU here")
    return device


def choose_compute(model: Options, device: torch.device, config: ModelConfig) -> Compute | None:
    """One of `COMPUTES` for the native kernels; None where torch's own serve: on a GPU, without the library, for odd heads, or when another dtype is asked for.

    Raises:
        ConfigError: what is asked for is not to be had here.
    """
    wanted = next((name for name in COMPUTES if name == model.compute), None)
    if wanted is None:
        raise ConfigError(f"[model] compute: {model.compute!r}, expected {', '.join(COMPUTES)}")
    if wanted == "fp32" and model.dtype not in ("auto", "float32"):
        raise ConfigError(f"[model] compute: 'fp32' and dtype {model.dtype!r} exclude each other")
    missing = ""
    if device.type != "cpu":
        missing = "for CPUs alone"
    elif native.library() is None:
        missing = "for the native kernels, which are not built: reinstall where a C++20 compiler is at hand"
    elif config.head_dim % LANES:
        missing = f"for heads of a multiple of {LANES}, not {config.head_dim}"
    elif wanted == "auto" and model.dtype not in ("auto", "float32"):
        missing = f"for fp32 and quantised weights, not for dtype {model.dtype!r}"
    if not missing:
        return "fp32" if wanted == "auto" and model.dtype == "float32" else wanted
    if wanted in ("int8", "int4"):
        raise ConfigError(f"[model] compute: {wanted!r} is {missing}")
    if model.kv != "auto":
        raise ConfigError(f"[model] kv: {model.kv!r} is {missing}")
    if model.deterministic:
        raise ConfigError(f"[model] deterministic: is {missing}")
    return None


def name_kernels(compute: Compute | None, device: torch.device) -> str:
    """For `ModelInfo.kernels`."""
    if compute is not None:
        return native.instruction_set()
    return "torch" if device.type == "cpu" else "triton"


def choose_kv(name: str) -> torch.dtype:
    """The named type of keys and values for the native kernels."""
    if name == "auto":
        return torch.float32
    if name not in ("float32", "float16"):
        raise ConfigError(f"[model] kv: {name!r}, expected auto, float32, float16")
    return DTYPES[name]


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named compute type; "auto" is fp32 on a CPU and bf16 on a GPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ConfigError(f"[model] dtype: {name!r}, expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_context(wanted: int, config: ModelConfig) -> int:
    """What the options ask for, within what the checkpoint states; 0 for all of it."""
    if wanted > config.context:
        raise ConfigError(f"[model] context: {wanted} is more than the model's {config.context}")
    return wanted or config.context


def count_pages(cache: CacheOptions, config: ModelConfig, dtype: torch.dtype) -> int:
    """`cache.pages`, or as many pages as fit into `cache.memory` bytes."""
    if cache.page_size < 1:
        raise ConfigError(f"[cache] page_size: {cache.page_size}, expected at least 1")
    page_bytes = cache.page_size * config.kv_bytes(dtype.itemsize)
    pages = cache.pages or cache.memory // page_bytes
    if pages < 1:
        raise ConfigError(f"[cache] memory: {cache.memory} bytes hold no page of {page_bytes} bytes")
    return pages
