"""The line of the user's program that is being run: errors name it."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import traceback
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

from sgl_actors.errors import ProgramError
from sgl_actors.lang.results import describe

_PACKAGE: Final = str(Path(__file__).parent.parent)
_LOOP: Final = str(Path(asyncio.__file__).parent)
_STANDARD: Final = ("<frozen ", sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_INSTALLED: Final = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
"""May lie below the standard library's folder; what is there may be somebody's program."""

asked_at: ContextVar[str] = ContextVar("asked_at", default="")
"""Where another thread asked, for what the loop does in its name."""

E = TypeVar("E", bound=ProgramError)


def caller() -> str:
    """FILE:LINE of the innermost code outside of this package and Python's own library that led here; "" if there is none."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - there is no public way that costs less than a millisecond
    while frame is not None and not frame.f_code.co_filename.startswith(_LOOP):
        if _is_program(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return asked_at.get()


def placed(error: E, program: str) -> E:
    """The same error, whose message begins with its program and the line that raised it, unless it does so already."""
    if not error.message.startswith("program "):
        text = describe(error.message, program, "", "", "", raised_at(error))
        error.args = (text, *error.args[1:])
    return error


def raised_at(error: BaseException) -> str:
    """FILE:LINE of the innermost code of the program, rather than of a library, that `error` has passed; "" if there is none."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    program = [place for place in frames if _is_program(place[0])]
    own = [place for place in program if not place[0].startswith(_INSTALLED)] or program
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def _is_program(file: str) -> bool:
    if file.startswith(_PACKAGE):
        return False
    return file.startswith(_INSTALLED) or not file.startswith(_STANDARD)
