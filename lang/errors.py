"""What goes wrong in a program. All are `ProgramError`s: mend the program (or its input) and run it again."""

from __future__ import annotations

from sgl_actors.errors import ProgramError, SglActorsError, UnknownVariable

__all__ = [
    "BodyFailed", "InvalidPrimitive", "PrimitiveFailed", "ProgramError", "StreamEnded", "UnknownVariable",
    "UnresolvedVariable", "cause_of",
]  # fmt: skip


class InvalidPrimitive(ProgramError):
    """A primitive was written in a way that has no meaning: empty choices, a role inside a role, `s += None`."""

    code = "invalid_primitive"
    status = 400


class UnresolvedVariable(ProgramError):
    """A variable was used as a value before it was awaited. Write `await s["name"]`; the message names the line."""

    code = "unresolved_variable"


class StreamEnded(ProgramError):
    """Something was appended to a stream that has been joined, or whose program is over. Fork anew instead."""

    code = "stream_ended"


class PrimitiveFailed(ProgramError):
    """A gen, select, fork or join failed. `__cause__` is what the node said; it tells whether retrying helps."""

    code = "primitive_failed"


class BodyFailed(ProgramError):
    """The program's own code raised. `__cause__` is what it raised."""

    code = "body_failed"


def cause_of(error: BaseException) -> SglActorsError | None:
    """The error of our family that `error` was raised from, if any: its `retryable` tells whether to try again."""
    cause = error.__cause__
    return cause if isinstance(cause, SglActorsError) else None
