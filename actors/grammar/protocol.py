"""What the compiling process is told and says: frames of a length (4 bytes, the lowest first) and that many bytes of msgpack.

It is told `SetUp` once and says `Ready`; then each `Job` is answered by `Result`, `Refused` or `Broken`, or by the end of the process.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sgl_actors.lang.constraints.constraint import Constraint

LENGTH: Final = 4
"""Bytes of a frame's length."""
OUT_OF_MEMORY: Final = 3
"""Exit code of a process to which memory was refused."""


class SetUp(msgspec.Struct, frozen=True, array_like=True):
    """The vocabulary (see `engines.Engines`), and how to behave: bytes on top of what the process starts with, and how nice it is."""

    tokenizer: str
    eos_ids: tuple[int, ...]
    size: int
    engine: str
    memory: int
    nice: int


class Job(msgspec.Struct, frozen=True, array_like=True):
    """Compile `constraint` within `seconds` of CPU time."""

    constraint: Constraint
    seconds: float


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Jobs may come."""


class Result(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """As `messages.Compiled`."""

    engine: str
    automaton: bytes
    why: str
    seconds: float


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The constraint is wrong: an `InvalidRequest`."""

    message: str
    param: str | None


class Broken(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The compiler itself failed; for the log."""

    error: str
    traceback: str


Answer = Ready | Result | Refused | Broken


def frame(message: msgspec.Struct) -> bytes:
    """A message as it is written."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH, "little") + body
