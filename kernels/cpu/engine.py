"""A whole forward pass of a Llama-family model in one call of the native library.

What is computed for a token depends on that token and those it sees alone, bit for bit: not on the batch, the chunks of its prompt, what was
cached, or the number of threads (docs/design/0018).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.cpu.native import (
    KINDS,
    KV_FORMATS,
    LANES,
    Format,
    LayerStruct,
    LinearStruct,
    ModelStruct,
    Pool,
    RowStruct,
    address,
    required,
)

EVENTS = 1 << 18
"""Most events handed over at once."""


@dataclass(frozen=True)
class PackedWeight:
    """A linear layer's weight [out, columns] in the library's layout.

    Attributes:
        data: uint8, as `packing` made it.
        bias: [out] fp32 or None.
    """

    format: Format
    out: int
    columns: int
    data: torch.Tensor
    bias: torch.Tensor | None = None

    def struct(self) -> LinearStruct:
        """For C; holds no reference."""
        return LinearStruct(
            int(self.format),
            self.out,
            self.columns,
            0,
            address(self.data, torch.uint8),
            address(self.bias, torch.float32),
        )


@dataclass(frozen=True)
class EngineLayer:
    """One decoder layer: norms [hidden] (and [head_dim] of queries and keys, or None) in fp32; `window` 0 sees all tokens."""

    attention_norm: torch.Tensor
    qkv: PackedWeight
    output: PackedWeight
    mlp_norm: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    window: int = 0

    def struct(self) -> LayerStruct:
        """For C; holds no reference."""
        norms = (self.attention_norm, self.mlp_norm, self.query_norm, self.key_norm)
        return LayerStruct(
            self.qkv.struct(),
            self.output.struct(),
            self.gate_up.struct(),
            self.down.struct(),
            *(address(norm, torch.float32) for norm in norms),
            self.window,
            0,
        )


@dataclass(frozen=True)
class EngineModel:
    """All that a pass needs.

    Attributes:
        inverse_frequencies: [head_dim / 2] fp32, of the rotary embedding.
        embedding: [vocabulary, hidden]; may be the same as `head`.
        scale: factor on the products of queries and keys.
    """

    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    scale: float
    embedding: PackedWeight
    layers: Sequence[EngineLayer]
    norm: torch.Tensor
    head: PackedWeight
    inverse_frequencies: torch.Tensor

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.embedding.columns


class Engine:
    """Runs passes over a pool of threads of its own; one thread at a time may use it.

    Raises:
        RuntimeError: the native library is not there.
        ValueError: keys and values of another dtype than fp32 or fp16; heads of a size that is no multiple of `LANES`.
    """

    def __init__(
        self, model: EngineModel, *, threads: int, kv_dtype: torch.dtype = torch.float32, isa: int = -1
    ) -> None:
        if kv_dtype not in KV_FORMATS:
            raise ValueError(f"keys and values of {kv_dtype}, expected {', '.join(map(str, KV_FORMATS))}")
        if model.head_dim % LANES:
            raise ValueError(f"head_dim {model.head_dim}, the native attention needs a multiple of {LANES}")
        self.model = model
        self.kv_dtype = kv_dtype
        self.cascade = True
        self._library = required()
        self._pool = Pool(threads)
        self._layers = (LayerStruct * len(model.layers))(*(layer.struct() for layer in model.layers))
        struct = ModelStruct(
            model.hidden,
            len(model.layers),
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.layers[0].down.columns,
            model.head.out,
            int(KV_FORMATS[kv_dtype]),
            model.norm_eps,
            model.scale,
            self._layers,
            address(model.norm, torch.float32),
            address(model.inverse_frequencies, torch.float32),
            model.embedding.struct(),
            model.head.struct(),
        )
        self._handle = self._library.sgl_engine_new(self._pool.handle, isa, ctypes.byref(struct))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.sgl_engine_free(self._handle)

    @property
    def threads(self) -> int:
        """Compute threads."""
        return self._pool.threads

    def forward(
        self, token_ids: torch.Tensor, rows: Sequence[AttentionRow], pool: torch.Tensor
    ) -> torch.Tensor:
        """Run all layers over the new tokens of `rows`; their keys and values are written into `pool`.

        Args:
            token_ids: [tokens] int64, the rows' new tokens one after the other.
            rows: in that order; their slots include the new tokens'.
            pool: [layers, slots, 2, kv_heads, head_dim] of the engine's `kv_dtype`.

        Returns:
            [tokens, hidden] fp32 before the final norm; `logits` takes rows of it.

        Raises:
            ValueError: a token that is not in the embedding, or rows that are not of these tokens.
        """
        if (
            len(token_ids)
            and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.model.embedding.out
        ):
            raise ValueError(
                f"tokens {int(token_ids.min())} to {int(token_ids.max())} of an embedding of {self.model.embedding.out}"
            )
        if sum(row.new for row in rows) != len(token_ids) or any(row.new > len(row.slots) for row in rows):
            raise ValueError(
                f"rows of {[(len(row.slots), row.new) for row in rows]} (slots, new) for {len(token_ids)} tokens"
            )
        hidden = torch.empty(len(token_ids), self.model.hidden)
        packed = (RowStruct * len(rows))(
            *(RowStruct(address(row.slots, torch.int64), len(row.slots), row.new) for row in rows)
        )
        self._library.sgl_engine_forward(
            self._handle,
            address(pool, self.kv_dtype),
            pool.stride(0) * pool.itemsize,
            address(token_ids, torch.int64),
            packed,
            len(rows),
            int(self.cascade),
            address(hidden),
        )
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] of `forward` to [rows, vocabulary] fp32; the greatest of each row are exact products of the kept weights in fp32."""
        hidden = hidden.contiguous()
        out = torch.empty(len(hidden), self.model.head.out)
        self._library.sgl_engine_logits(
            self._handle, address(hidden, torch.float32), hidden.stride(0), len(hidden), address(out)
        )
        return out

    def timings(self) -> dict[str, float]:
        """Seconds spent so far in each of `KINDS`."""
        seconds, calls = np.zeros(len(KINDS)), np.zeros(len(KINDS), np.int64)
        self._library.sgl_engine_timings(self._handle, seconds.ctypes.data, calls.ctypes.data)
        return dict(zip(KINDS, seconds.tolist(), strict=True))

    def events(self, on: bool) -> list[tuple[str, int, int]]:
        """What was recorded since the last call: (kind, start, duration), nanoseconds of the monotonic clock; go on recording if `on`."""
        buffer = np.empty((EVENTS, 3), np.int64)
        count = self._library.sgl_engine_events(self._handle, int(on), buffer.ctypes.data, EVENTS)
        return [(KINDS[kind], start, duration) for kind, start, duration in buffer[:count].tolist()]
