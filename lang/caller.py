"""The line of the user's program that is being run: errors name it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Final

_PACKAGE: Final = str(Path(__file__).parent.parent)


def caller() -> str:
    """FILE:LINE of the innermost code outside of this package that led here; "" if there is none."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - there is no public way that costs less than a millisecond
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
