"""Requests that nobody listens to any more, kept for those who may come back for them. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from sgl_actors.errors import ConfigError

T = TypeVar("T")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[actors.tokenizer.options]` of node.toml.

    Attributes:
        keep: seconds that a request goes on whose asker is gone, and that the end of one is kept, if it may be asked for again (`Generate.known`); 0: none is.
        keep_count: most of them.
        keep_bytes: memory that they may take together.
    """

    keep: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    keep_count: Annotated[int, msgspec.Meta(ge=0)] = 1024
    keep_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20


def read_options(config: Mapping[str, Any]) -> Options:
    """From an actor's configuration; `ConfigError` names what is wrong."""
    try:
        return msgspec.convert(config.get("options", {}), Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"actors.tokenizer.options: {error}", param="actors.tokenizer.options") from None


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    until: float
    size: int


class Kept(Generic[T]):
    """Each is here until it is taken out, its time is up, or newer ones need its place: the oldest goes first."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._entries: dict[str, _Entry[T]] = {}  # in the order in which their time is up
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Kept {len(self._entries)}, {self._size} bytes>"

    def add(self, key: str, value: T, size: int, now: float, *, left: float | None = None) -> list[T]:
        """Keep `value`, of about `size` bytes, for the usual time or `left` seconds; return what had to go for it, maybe itself."""
        self.take(key)
        seconds = self._options.keep if left is None else left
        self._entries[key] = _Entry(value, now + seconds, size)
        self._size += size
        if seconds <= 0:
            return self._out([key])
        gone: list[T] = []
        while len(self._entries) > self._options.keep_count or self._size > self._options.keep_bytes:
            gone += self._out([next(iter(self._entries))])
        return gone

    def get(self, key: str) -> T | None:
        """The one of that name."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def keys(self) -> list[str]:
        """Names of all, the oldest first."""
        return [*self._entries]

    def take(self, key: str) -> None:
        """Keep it no longer, if it is here."""
        self._out([key] if key in self._entries else [])

    def left(self, now: float) -> list[tuple[T, float]]:
        """All, and the seconds that each stays."""
        return [(entry.value, max(0.0, entry.until - now)) for entry in self._entries.values()]

    def next(self) -> float | None:
        """When the first one's time is up."""
        return next((entry.until for entry in self._entries.values()), None)

    def expired(self, now: float) -> list[T]:
        """Take out those whose time is up."""
        return self._out([key for key, entry in self._entries.items() if entry.until <= now])

    def _out(self, keys: list[str]) -> list[T]:
        entries = [self._entries.pop(key) for key in keys]
        self._size -= sum(entry.size for entry in entries)
        return [entry.value for entry in entries]
