"""The C++ library of the CPU kernels: found, loaded and typed. Calls let go of the interpreter.

It is built with the package where a C++ compiler is at hand (`native/`, docs/design/0018). Without it `library()` is None and torch's own operations
serve; so they do where ``SGL_ACTORS_NATIVE=off`` is set.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from enum import IntEnum
from functools import cache

import torch

ABI = 1
"""`SGL_ABI` of the library that these structs belong to; one of another day is not loaded."""
BLOCK = 32
"""Values of one output channel that share a scale."""
LANES = 8
"""A head's size is a multiple of it."""


class Format(IntEnum):
    """How a weight is kept; see `native.h`."""

    F32 = 0
    BF16 = 1
    Q8 = 2
    Q4 = 3
    Q4W = 4


class KvFormat(IntEnum):
    """How keys and values are kept."""

    F32 = 0
    F16 = 1


KV_FORMATS = {torch.float32: KvFormat.F32, torch.float16: KvFormat.F16}
"""By the dtype of the pool."""

KINDS = ("embed", "norm", "qkv", "attention", "output", "gate_up", "down", "head", "rank")
"""Kinds of operation whose time an engine adds up, in the library's order."""

ISAS = ("portable", "avx2", "vnni")
"""Instruction sets, by the library's number."""


class LinearStruct(ctypes.Structure):
    """`sgl_linear`."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("out", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class LayerStruct(ctypes.Structure):
    """`sgl_layer`."""

    _fields_ = [
        ("qkv", LinearStruct),
        ("output", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("window", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class ModelStruct(ctypes.Structure):
    """`sgl_model`."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                "hidden",
                "layers",
                "heads",
                "kv_heads",
                "head_dim",
                "intermediate",
                "vocabulary",
                "kv_format",
            )
        ),
        ("norm_eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("layer", ctypes.POINTER(LayerStruct)),
        ("norm", ctypes.c_void_p),
        ("inverse_frequencies", ctypes.c_void_p),
        ("embedding", LinearStruct),
        ("head", LinearStruct),
    ]


class RowStruct(ctypes.Structure):
    """`sgl_row`."""

    _fields_ = [("slots", ctypes.c_void_p), ("length", ctypes.c_int32), ("count", ctypes.c_int32)]


class AttentionStruct(ctypes.Structure):
    """`sgl_attention`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("heads", "kv_heads", "head_dim", "window", "kv_format")),
        ("scale", ctypes.c_float),
    ]


_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "sgl_abi": (_INT, []),
    "sgl_best_isa": (_INT, []),
    "sgl_pool_new": (_POINTER, [_INT]),
    "sgl_pool_free": (None, [_POINTER]),
    "sgl_packed_bytes": (ctypes.c_size_t, [_INT] * 4),
    "sgl_pack": (None, [_INT] * 4 + [_POINTER] * 4),
    "sgl_unpack_rows": (None, [_INT, ctypes.POINTER(LinearStruct), _POINTER, _INT, _POINTER]),
    "sgl_linear_forward": (
        None,
        [_POINTER, _INT, ctypes.POINTER(LinearStruct), _POINTER, _INT, _POINTER],
    ),
    "sgl_attention_forward": (
        None,
        [
            _POINTER,
            _INT,
            ctypes.POINTER(AttentionStruct),
            ctypes.POINTER(RowStruct),
            _INT,
            _INT,
            _POINTER,
            _LONG,
            _POINTER,
            _POINTER,
            _LONG,
        ],
    ),
    "sgl_engine_new": (_POINTER, [_POINTER, _INT, ctypes.POINTER(ModelStruct)]),
    "sgl_engine_free": (None, [_POINTER]),
    "sgl_engine_forward": (
        None,
        [_POINTER, _POINTER, _LONG, _POINTER, ctypes.POINTER(RowStruct), _INT, _INT, _POINTER],
    ),
    "sgl_engine_logits": (None, [_POINTER, _POINTER, _LONG, _INT, _POINTER]),
    "sgl_engine_timings": (None, [_POINTER, _POINTER, _POINTER]),
    "sgl_engine_events": (_LONG, [_POINTER, _INT, _POINTER, _LONG]),
}


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, None where it was not built or is switched off."""
    if os.environ.get("SGL_ACTORS_NATIVE", "on") == "off":
        return None
    spec = importlib.util.find_spec("sgl_actors.kernels.cpu._native")
    if spec is None or spec.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(spec.origin)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return loaded if loaded.sgl_abi() == ABI else None


def required() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: it is not there.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError(
            "the native CPU kernels are not built: install the package where a C++20 compiler is at hand"
        )
    return loaded


def instruction_set() -> str:
    """The best of `ISAS` that this processor has."""
    return ISAS[required().sgl_best_isa()]


class Pool:
    """Compute threads, the caller's one of them. One thread at a time may use it.

    Raises:
        ValueError: fewer than one.
        RuntimeError: without the library.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"{threads} threads, expected at least 1")
        self._library = required()
        self.threads = threads
        self.handle = self._library.sgl_pool_new(threads)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.sgl_pool_free(self.handle)


def address(tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> int | None:
    """Where a tensor's values lie, for C; None for None.

    Raises:
        ValueError: it is not contiguous, not on the CPU, or not of that dtype.
    """
    if tensor is None:
        return None
    if (
        not tensor.is_contiguous()
        or tensor.device.type != "cpu"
        or (dtype is not None and tensor.dtype != dtype)
    ):
        raise ValueError(
            f"a {tuple(tensor.shape)} tensor of {tensor.dtype} on {tensor.device}, expected contiguous {dtype or 'values'} on the CPU"
        )
    return int(tensor.data_ptr())
