"""sgl-actors: a language for programs that call language models many times, and its runtime.

    import sgl_actors as sgl

    @sgl.function
    async def capital(s, country):
        s += sgl.user(f"What is the capital of {country}?") + sgl.assistant(sgl.gen("answer", max_tokens=16))

    state = await capital.run(country="France")
    state["answer"]

Names are imported on first use, so that `import sgl_actors` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgl_actors.actors.programs.runtime import Connection, Node, connect, shutdown
    from sgl_actors.errors import SglActorsError
    from sgl_actors.lang.errors import (
        BodyFailed,
        InvalidPrimitive,
        PrimitiveFailed,
        ProgramError,
        StreamEnded,
        UnknownVariable,
        UnresolvedVariable,
    )
    from sgl_actors.lang.function import Function, Program, function
    from sgl_actors.lang.primitives import (
        assistant,
        assistant_begin,
        assistant_end,
        gen,
        role,
        select,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
    )
    from sgl_actors.lang.results import Usage
    from sgl_actors.lang.state import FinishedState, ProgramGroup, ProgramState, Ref

__version__ = "0.1.0"

_ROOMS = {
    "sgl_actors.actors.programs.runtime": ("Connection", "Node", "connect", "shutdown"),
    "sgl_actors.errors": ("SglActorsError",),
    "sgl_actors.lang.errors": (
        "BodyFailed", "InvalidPrimitive", "PrimitiveFailed", "ProgramError", "StreamEnded", "UnknownVariable", "UnresolvedVariable",
    ),
    "sgl_actors.lang.function": ("Function", "Program", "function"),
    "sgl_actors.lang.primitives": (
        "assistant", "assistant_begin", "assistant_end", "gen", "role", "select", "system", "system_begin", "system_end",
        "user", "user_begin", "user_end",
    ),
    "sgl_actors.lang.results": ("Usage",),
    "sgl_actors.lang.state": ("FinishedState", "ProgramGroup", "ProgramState", "Ref"),
}  # fmt: skip
_HOME = {name: module for module, names in _ROOMS.items() for name in names}

__all__ = [
    "BodyFailed", "Connection", "FinishedState", "Function", "InvalidPrimitive", "Node", "PrimitiveFailed", "Program",
    "ProgramError", "ProgramGroup", "ProgramState", "Ref", "SglActorsError", "StreamEnded", "UnknownVariable",
    "UnresolvedVariable", "Usage", "__version__", "assistant", "assistant_begin", "assistant_end", "connect", "function",
    "gen", "role", "select", "shutdown", "system", "system_begin", "system_end", "user", "user_begin", "user_end",
]  # fmt: skip


def _default_runtime() -> Any:
    """Where programs run when they are told nothing."""
    from sgl_actors.actors.programs.runtime import default

    return default


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home == "sgl_actors.lang.function":
        from sgl_actors.lang.protocols import install

        install(_default_runtime)
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
