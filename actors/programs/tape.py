"""The file of a recording: read as a whole, and written line by line. Its form is `lang.backends.recording`'s."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from sgl_actors.errors import ConfigError
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.backends.recorded_request import TOKENIZE
from sgl_actors.lang.backends.recording import Header, Line, decode, encode
from sgl_actors.lang.protocols import ApiModel

Mode: TypeAlias = Literal["new", "append", "replace"]


class Tape:
    """The file that is written. Several threads may write to it."""

    def __init__(self, path: str, mode: Mode, *, pieces: bool) -> None:
        self.pieces = pieces
        self._path, self._mode = path, mode
        self._lock = threading.Lock()
        self._header: Header | None = None
        self._capabilities: Capabilities | None = None
        self._number = 0
        self._tokenized: set[str] = set()

    def __repr__(self) -> str:
        return f"<Tape {self._path}: {self._number} requests>"

    def begin(self, header: Header) -> None:
        """Write the header, or check that it fits to the one that is there.

        Raises:
            ConfigError: the file is there already, is none of ours, or has another model's answers.
        """
        with self._lock:
            if self._header is None and self._mode == "append" and Path(self._path).exists():
                self._header, lines = read(self._path)
                self._number = max((line.number + 1 for line in lines), default=0)
                self._tokenized = {line.key for line in lines if line.kind == TOKENIZE}
            if self._header is None:
                self._write(encode(header), "wb" if self._mode == "replace" else "xb")
                self._header = header
            if self._header.of != header.of:
                raise ConfigError(
                    f"record: {self._path} has answers of {self._header.of}, not of {header.of}; name another file, or give mode='replace'"
                )

    def next(self) -> int:
        """Number of a request that begins."""
        with self._lock:
            self._number += 1
            return self._number - 1

    def add(self, line: Line, api: ApiModel | None) -> None:
        """Write a line, with what the model can do if that has changed."""
        with self._lock:
            assert self._header is not None
            if line.kind == TOKENIZE and line.error is None:
                if line.key in self._tokenized:
                    return
                self._tokenized.add(line.key)
            if api is not None and api != self._header.api:
                if line.error is not None or api.capabilities != self._capabilities:
                    line = msgspec.structs.replace(line, capabilities=api.capabilities)
                self._capabilities = api.capabilities
            self._write(encode(line), "ab")

    def _write(self, data: bytes, mode: str) -> None:
        try:
            with open(self._path, mode, opener=_existing if mode == "ab" else None) as file:
                file.write(data)
        except FileExistsError:
            raise taken(self._path) from None
        except OSError as error:
            raise ConfigError(f"record: {self._path} cannot be written: {error.strerror}") from None


def read(path: str) -> tuple[Header, list[Line]]:
    """All of a file.

    Raises:
        ConfigError: it is not there, or is no recording; FILE:LINE and what is wrong.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; sgl.record({path!r}) writes a recording") from None
    return decode(data, path)


def check_path(path: str, mode: Mode) -> None:
    """`ConfigError` for a file that is not to be written to, and for a folder that is not there."""
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"record: {path}: there is no such folder; make it first")
    if mode == "new" and Path(path).exists():
        raise taken(path)
    if mode == "append" and Path(path).exists():
        read(path)


def taken(path: str) -> ConfigError:
    """The file is there, and nobody said what is to become of it."""
    return ConfigError(
        f"record: {path} is there already; give mode='append' to add to it, or mode='replace' to begin anew"
    )


def _existing(path: str, flags: int) -> int:
    """Opens a file only if it is still there: one without a header would be no recording."""
    return os.open(path, flags & ~os.O_CREAT)
