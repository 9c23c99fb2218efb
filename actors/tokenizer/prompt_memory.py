"""Texts whose canonical ids are known, found by what a new text begins with.

Who asks does not matter, only the content: the next call of a program finds its last one, a branch finds its parent's and its siblings', a
chat finds its earlier turns, whatever connection it comes over. Tenants and salts are apart: how long a prompt takes tells nothing of
other people's.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from sgl_actors.actors.tokenizer.retokenise import shared

TEXTS = 1024
"""Texts remembered at most."""
BYTES = 16 << 20
"""Bytes of text remembered at most; their ids take about as much again."""


class Key(NamedTuple):
    """A text in its namespace."""

    tenant: str
    salt: str
    text: bytes


class PromptMemory:
    """A sorted list: the text that shares most with a new one stands beside the new one's place, so it is found by bisection.

    No remembered text is the beginning of another in its namespace: a text that goes on takes the place of what it goes on from.
    """

    def __init__(self, texts: int = TEXTS, size: int = BYTES) -> None:
        self._texts, self._bytes = texts, size
        self._sorted: list[Key] = []
        self._ids: OrderedDict[Key, array[int]] = OrderedDict()  # the least recently used first
        self._held = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def __repr__(self) -> str:
        return f"<PromptMemory of {len(self._sorted)} texts, {self._held} bytes>"

    def closest(self, key: Key) -> tuple[bytes, Sequence[int]]:
        """The text of the same namespace that shares the longest beginning with this one, and its ids; empty without any."""
        beside = [other for other in self._neighbours(key) if shared(other.text, key.text)]
        if not beside:
            return b"", ()
        best = max(beside, key=lambda other: shared(other.text, key.text))
        self._ids.move_to_end(best)
        return best.text, self._ids[best]

    def keep(self, key: Key, ids: Sequence[int]) -> None:
        """Remember the ids of a text, unless it is too long; the least recently used texts give way."""
        if len(key.text) > self._bytes:
            return
        for other in self._neighbours(key):
            if other.text.startswith(key.text):
                self._ids.move_to_end(other)
                return
            if key.text.startswith(other.text):
                self._drop(other)
        self._sorted.insert(bisect_left(self._sorted, key), key)
        self._ids[key] = array("i", ids)
        self._held += len(key.text)
        while len(self._sorted) > self._texts or self._held > self._bytes:
            self._drop(next(iter(self._ids)))

    def _neighbours(self, key: Key) -> list[Key]:
        """What stands before and after its place, as far as it is of its namespace."""
        place = bisect_left(self._sorted, key)
        return [other for other in self._sorted[max(0, place - 1) : place + 1] if other[:2] == key[:2]]

    def _drop(self, key: Key) -> None:
        del self._ids[key]
        del self._sorted[bisect_left(self._sorted, key)]
        self._held -= len(key.text)
