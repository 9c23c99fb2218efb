"""How every process of ours that has a parent begins: first of all it is bound to that parent's life, then it imports what it is to run.

Kept free of imports, so that the time in which a parent may die unnoticed is that of starting Python. `PR_SET_PDEATHSIG` (prctl(2)) has the operating system
send SIGKILL when the parent ends in any way; the parent is checked once more after setting it, for the moment before.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Final

PR_SET_PDEATHSIG: Final = 1
BEGIN: Final = "from sgl_actors.actors.child import begin; begin()"


def command(module: str, function: str = "main") -> list[str]:
    """Command line of a process that runs a function of a module, and ends when this process does. What it gives back is the exit code."""
    return [sys.executable, "-c", BEGIN, str(os.getpid()), module, function]


def die_with_parent(parent: int) -> None:
    """Have the operating system kill this process when `parent` dies; ends it at once if that has happened."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def begin() -> None:
    """Run what `command` says."""
    parent, module, function = sys.argv[1:]
    die_with_parent(int(parent))
    sys.modules["rich"] = None  # type: ignore[assignment]
    # structlog imports it wherever it is, for terminals: a third of the time until a process says hello
    loaded = import_module(module)
    del sys.modules["rich"]
    sys.exit(getattr(loaded, function)())
