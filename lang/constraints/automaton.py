"""A constraint as a deterministic automaton over the bytes of UTF-8, and the text that it forces.

States are numbers, 0 is the start. Bytes that no state tells apart share a class. From every state an accepting one can be reached, so whoever follows
the transitions never comes to a dead end.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

DEAD = -1
"""In a table: no such transition."""

_Table = np.ndarray[Any, np.dtype[np.int32]]
_Classes = np.ndarray[Any, np.dtype[np.uint8]]
_Flags = np.ndarray[Any, np.dtype[np.bool_]]


_SMALL = 1 << 15
"""With fewer states, a cell of a packed table has two bytes."""


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    states: int
    classes: bytes
    table: bytes
    accepting: bytes


@dataclass(frozen=True, eq=False)
class Automaton:
    """See the module.

    Attributes:
        classes: [256] uint8, the class of each byte.
        table: [states, classes] int32, the next state or `DEAD`.
        accepting: [states] bool, whether the output may end there.
    """

    classes: _Classes
    table: _Table
    accepting: _Flags

    def __repr__(self) -> str:
        return f"<Automaton {len(self.accepting)} states, {self.table.shape[1]} classes>"

    def pack(self) -> bytes:
        """As bytes, for `unpack`."""
        count = len(self.accepting)
        table = self.table.astype(np.int16 if count < _SMALL else np.int32)
        packed = _Packed(
            count, self.classes.tobytes(), zlib.compress(table.tobytes(), 1), self.accepting.tobytes()
        )
        return msgspec.msgpack.encode(packed)

    @classmethod
    def unpack(cls, data: bytes) -> Automaton:
        """The automaton that was packed."""
        packed = msgspec.msgpack.decode(data, type=_Packed)
        cell = np.int16 if packed.states < _SMALL else np.int32
        return cls(
            np.frombuffer(packed.classes, np.uint8),
            np.frombuffer(zlib.decompress(packed.table), cell).astype(np.int32).reshape(packed.states, -1),
            np.frombuffer(packed.accepting, np.bool_),
        )

    def step(self, state: int, data: bytes) -> int:
        """The state after `data`, or `DEAD`."""
        classes, table = self.classes, self.table
        for byte in data:
            if state == DEAD:
                break
            state = int(table[state, classes[byte]])
        return state

    def matches(self, text: str) -> bool:
        """Whether `text`, as a whole, is allowed; false for a text that is no valid Unicode."""
        try:
            state = self.step(0, text.encode())
        except UnicodeEncodeError:
            return False
        return state != DEAD and bool(self.accepting[state])
