"""Images and videos in prompts: read where they are named, told apart by their first bytes, never by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import IMAGE, VIDEO, Media

MAX_BYTES: Final = {IMAGE: 20 << 20, VIDEO: 200 << 20}
"""Bytes of one image and of one video."""

_SIGNATURES: Final = {
    IMAGE: (
        (0, b"\x89PNG\r\n\x1a\n", "image/png"),
        (0, b"\xff\xd8\xff", "image/jpeg"),
        (0, b"GIF8", "image/gif"),
        (8, b"WEBP", "image/webp"),
        (0, b"BM", "image/bmp"),
    ),
    VIDEO: (
        (4, b"ftyp", "video/mp4"),
        (0, b"\x1a\x45\xdf\xa3", "video/webm"),
        (8, b"AVI ", "video/x-msvideo"),
    ),
}


def load(kind: str, source: object, frames: int = 0) -> Media:
    """An image or a video of a path or of its bytes.

    Raises:
        InvalidPrimitive: no such file, too large, or no known format.
    """
    shown = f"{kind}({source if isinstance(source, str | os.PathLike) else type(source).__name__!r})"
    if isinstance(source, str | os.PathLike):
        try:
            path = Path(source)
            if path.stat().st_size > MAX_BYTES[kind]:
                raise _too_large(kind, shown, path.stat().st_size)
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidPrimitive(f"{shown}: the file cannot be read: {error}", param=kind) from None
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        raise InvalidPrimitive(
            f"{kind}: expected a path or bytes, not {type(source).__name__} {source!r:.80}", param=kind
        )
    if len(data) > MAX_BYTES[kind]:
        raise _too_large(kind, shown, len(data))
    return Media(kind, data, _media_type(kind, shown, data), frames)


def _too_large(kind: str, shown: str, size: int) -> InvalidPrimitive:
    return InvalidPrimitive(f"{shown}: {size:,} bytes; a {kind} has at most {MAX_BYTES[kind]:,}", param=kind)


def _media_type(kind: str, shown: str, data: bytes) -> str:
    for offset, signature, media_type in _SIGNATURES[kind]:
        if data[offset : offset + len(signature)] == signature:
            return media_type
    known = ", ".join(name.rpartition("/")[2] for _, _, name in _SIGNATURES[kind])
    raise InvalidPrimitive(f"{shown}: no known format; {kind}s are {known}", param=kind)
