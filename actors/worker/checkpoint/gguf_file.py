"""The GGUF container (github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little endian): metadata and a table of tensors.

Read by our own few lines: `gguf.GGUFReader` takes 2.9 s for the default model, as it makes numpy views of each of 100,000
vocabulary strings; this takes 0.1 s and checks every length against the file's end. Dequantisation is the `gguf` package's.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from sgl_actors.actors.worker.checkpoint.quantized import Floats
from sgl_actors.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ROW_BLOCKS = 256
"""Blocks per row given to `dequantize`, which goes through 16 rows at a time: fewer calls, and still within a core's cache."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the table: `shape` in torch's order (rows first), `start` and `size` in bytes of the file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


class GgufFile:
    """An open file.

    Attributes:
        metadata: values by key; arrays are tuples.
        tensors: by name in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        self._at = 0
        if self._data[:4] != MAGIC:
            raise CheckpointError(
                f"{path}: starts with {bytes(self._data[:4])!r}, expected a GGUF file ({MAGIC!r})"
            )
        self._at = 4
        version = self._number("I")
        if version not in VERSIONS:
            raise CheckpointError(f"{path}: GGUF version {version}, expected one of {VERSIONS}")
        count, keys = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        self.tensors = self._table(count)

    def read(self, tensor: GgufTensor) -> Floats:
        """Decode to fp32 in `tensor.shape`.

        Raises:
            CheckpointError: the `gguf` package cannot decode its type.
        """
        raw = np.frombuffer(self._data, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        try:
            if tensor.kind == GGMLQuantizationType.F32:
                values = raw.view(np.float32).copy()
            elif tensor.kind == GGMLQuantizationType.F16:
                values = raw.view(np.float16).astype(np.float32)
            else:
                block_bytes = GGML_QUANT_SIZES[tensor.kind][1]
                row = gcd(tensor.size // block_bytes, ROW_BLOCKS) * block_bytes
                values = dequantize(raw.reshape(-1, row), tensor.kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name!r} is of type {tensor.kind.name}, which is not supported"
            ) from None
        return values.reshape(tensor.shape)

    def rows(self, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a matrix as they are: [rows, bytes of a row], a view of the file."""
        raw = np.frombuffer(self._data, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        return raw.reshape(tensor.shape[0], -1)

    def _table(self, count: int) -> dict[str, GgufTensor]:
        entries: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name = self._string()
            shape = tuple(self._number("Q") for _ in range(self._number("I")))[::-1]
            entries.append((name, shape, self._number("I"), self._number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise CheckpointError(
                f"{self.path}: general.alignment is {alignment!r}, expected a positive number"
            )
        begin = -(-self._at // alignment) * alignment
        return {name: self._entry(name, shape, kind, begin + offset) for name, shape, kind, offset in entries}

    def _entry(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
        try:
            quantization = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            raise CheckpointError(f"{self.path}: tensor {name!r} is of the unknown type {kind}") from None
        elements = prod(shape)
        if not shape or not elements or shape[-1] % block:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has shape {shape}, which {quantization.name} cannot hold"
            )
        size = elements // block * block_bytes
        if start + size > len(self._data):
            raise CheckpointError(
                f"{self.path}: truncated: tensor {name!r} ends at byte {start + size}, the file has {len(self._data)}"
            )
        return GgufTensor(name, quantization, shape, start, size)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise CheckpointError(
                f"{self.path}: metadata value of the unknown type {kind} before byte {self._at}"
            )
        item, count = self._number("I"), self._number("Q")
        if item in _SCALARS:
            if count > len(self._data):
                raise self._truncated()
            layout = struct.Struct(f"<{count}{_SCALARS[item]}")
            return layout.unpack(self._bytes(layout.size))
        return tuple(self._value(item) for _ in range(count))

    def _number(self, layout: str) -> Any:
        reader = struct.Struct("<" + layout)
        return reader.unpack(self._bytes(reader.size))[0]

    def _string(self) -> str:
        return self._bytes(self._number("Q")).decode("utf-8", "replace")

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise self._truncated()
        data = self._data[self._at : end]
        self._at = end
        return data

    def _truncated(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: truncated: the header goes on after its {len(self._data)} bytes"
        )
