"""Reads the key-value header of a GGUF file (versions 2 and 3, little-endian) and nothing else.

`gguf.GGUFReader` also visits every tensor and wraps every string in numpy: 4 s for the default model, where a
start-up second counts. This reads the same header in 0.1 s. Layout: ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from sgl_actors.errors import CheckpointError

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_metadata(path: Path, prefix: str = "") -> dict[str, Value]:
    """Return the header's values whose key starts with `prefix`.

    Raises:
        CheckpointError: no such file, not a GGUF file, an unknown version, or a header that is cut off or broken.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data).read(prefix)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a GGUF file: {error}") from None
    except (struct.error, IndexError, KeyError):
        raise CheckpointError(f"{path}: the GGUF header is cut off or broken") from None


class _Header:
    """A cursor over the mapped file; raises ValueError, IndexError, KeyError or struct.error for a broken one."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def read(self, prefix: str) -> dict[str, Value]:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF")
        self.position = 4
        (version,) = self.unpack("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; versions 2 and 3 are known")
        _tensors, count = self.unpack("QQ")
        values = {}
        for _ in range(count):
            key = self.string()
            (kind,) = self.unpack("I")
            value = self.value(kind)
            if key.startswith(prefix):
                values[key] = value
        return values

    def unpack(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.unpack(_SCALARS[kind])[0]
        item, count = self.unpack("IQ")
        if count > len(self.data):
            raise IndexError(count)
        if item == _STRING:
            return [self.string() for _ in range(count)]
        return list(self.unpack(f"{count}{_SCALARS[item]}"))

    def string(self) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.position)
        start = self.position + 8
        end = start + length
        if end > len(self.data):
            raise IndexError(end)
        self.position = end
        return self.data[start:end].decode("utf-8", "replace")
