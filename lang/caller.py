"""The line of the user's program that is being run: errors name it."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

from sgl_actors.errors import ProgramError
from sgl_actors.lang.results import describe

_PACKAGE: Final = str(Path(__file__).parent.parent)
_LOOP: Final = str(Path(asyncio.__file__).parent)
_LIBRARIES: Final = ("<frozen ", *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Where code lies that is nobody's program: contextlib calls what a `with` block begins."""

E = TypeVar("E", bound=ProgramError)


def caller() -> str:
    """FILE:LINE of the innermost code outside of this package that led here; "" if there is none."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - there is no public way that costs less than a millisecond
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, *_LIBRARIES)):
        if frame.f_code.co_filename.startswith(_LOOP):
            return ""
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def placed(error: E, program: str) -> E:
    """The same error, whose message begins with its program and the line that raised it, unless it does so already."""
    if not error.message.startswith("program "):
        text = describe(error.message, program, "", "", "", raised_at(error))
        error.args = (text, *error.args[1:])
    return error


def raised_at(error: BaseException) -> str:
    """FILE:LINE of the innermost code outside of this package that `error` has passed; "" if there is none."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [f"{file}:{line}" for file, line in frames if not file.startswith((_PACKAGE, *_LIBRARIES))]
    return outside[-1] if outside else ""
