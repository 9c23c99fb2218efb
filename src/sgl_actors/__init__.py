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
    from sgl_actors.actors.programs.api_backend import Anthropic, Gemini, OpenAI
    from sgl_actors.actors.programs.mock import Mock
    from sgl_actors.actors.programs.recording import record, replay
    from sgl_actors.actors.programs.runtime import (
        Connection,
        Node,
        connect,
        flush_cache,
        set_default_backend,
        shutdown,
    )
    from sgl_actors.errors import SglActorsError
    from sgl_actors.lang.backends.mock import MockCall, UnscriptedCall
    from sgl_actors.lang.budget import Budget
    from sgl_actors.lang.constraints.values import (
        Pattern,
        choice,
        either,
        integer,
        json,
        number,
        optional,
        regex,
        repeat,
        text,
    )
    from sgl_actors.lang.errors import (
        BodyFailed,
        BranchCancelled,
        BudgetExceeded,
        InvalidPrimitive,
        PrimitiveFailed,
        ProgramChanged,
        ProgramError,
        SpeculationMiss,
        StreamEnded,
        UnknownVariable,
        UnresolvedVariable,
        Unsupported,
        UnsupportedMedia,
    )
    from sgl_actors.lang.finished import FinishedState
    from sgl_actors.lang.function import Function, Program, function
    from sgl_actors.lang.group import ProgramGroup
    from sgl_actors.lang.ir import Slot
    from sgl_actors.lang.patterns import (
        Candidate,
        Judgement,
        NoValidResult,
        Result,
        beam,
        best_of,
        first_valid,
        judge,
        map_,
        normalise,
        race,
        reduce_,
        retry_until,
        tree_search,
        vote,
    )
    from sgl_actors.lang.pending import Ref
    from sgl_actors.lang.primitives import (
        assistant,
        assistant_begin,
        assistant_end,
        gen,
        gen_int,
        gen_string,
        image,
        role,
        select,
        separate_reasoning,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
        video,
    )
    from sgl_actors.lang.react import Reaction, Step, react
    from sgl_actors.lang.results import Usage
    from sgl_actors.lang.state import ProgramState
    from sgl_actors.lang.tools import Call, Observation, Tool, ToolFailed, call_all, tool
    from sgl_actors.lang.trace import Prices, Trace
    from sgl_actors.lang.typed import InvalidValue

__version__ = "0.1.0"

_ROOMS = {
    "sgl_actors.actors.programs.api_backend": ("Anthropic", "Gemini", "OpenAI"),
    "sgl_actors.actors.programs.mock": ("Mock",),
    "sgl_actors.actors.programs.recording": ("record", "replay"),
    "sgl_actors.actors.programs.runtime": (
        "Connection", "Node", "connect", "flush_cache", "set_default_backend", "shutdown",
    ),
    "sgl_actors.errors": ("SglActorsError",),
    "sgl_actors.lang.backends.mock": ("MockCall", "UnscriptedCall"),
    "sgl_actors.lang.budget": ("Budget",),
    "sgl_actors.lang.constraints.values": (
        "Pattern", "choice", "either", "integer", "json", "number", "optional", "regex", "repeat", "text",
    ),
    "sgl_actors.lang.errors": (
        "BodyFailed", "BranchCancelled", "BudgetExceeded", "InvalidPrimitive", "PrimitiveFailed", "ProgramChanged", "ProgramError",
        "SpeculationMiss", "StreamEnded", "UnknownVariable", "UnresolvedVariable", "Unsupported", "UnsupportedMedia",
    ),
    "sgl_actors.lang.finished": ("FinishedState",),
    "sgl_actors.lang.function": ("Function", "Program", "function"),
    "sgl_actors.lang.group": ("ProgramGroup",),
    "sgl_actors.lang.ir": ("Slot",),
    "sgl_actors.lang.patterns": (
        "Candidate", "Judgement", "NoValidResult", "Result", "beam", "best_of", "first_valid", "judge", "map_", "normalise", "race",
        "reduce_", "retry_until", "tree_search", "vote",
    ),
    "sgl_actors.lang.pending": ("Ref",),
    "sgl_actors.lang.primitives": (
        "assistant", "assistant_begin", "assistant_end", "gen", "gen_int", "gen_string", "image", "role", "select",
        "separate_reasoning", "system", "system_begin", "system_end", "user", "user_begin", "user_end", "video",
    ),
    "sgl_actors.lang.react": ("Reaction", "Step", "react"),
    "sgl_actors.lang.results": ("Usage",),
    "sgl_actors.lang.state": ("ProgramState",),
    "sgl_actors.lang.tools": ("Call", "Observation", "Tool", "ToolFailed", "call_all", "tool"),
    "sgl_actors.lang.trace": ("Prices", "Trace"),
    "sgl_actors.lang.typed": ("InvalidValue",),
}  # fmt: skip
_HOME = {name: module for module, names in _ROOMS.items() for name in names}

__all__ = [
    "Anthropic", "BodyFailed", "BranchCancelled", "Budget", "BudgetExceeded", "Call", "Candidate", "Connection",
    "FinishedState", "Function", "Gemini", "InvalidPrimitive", "InvalidValue", "Judgement", "Mock", "MockCall",
    "NoValidResult", "Node", "Observation", "OpenAI", "Pattern", "Prices", "PrimitiveFailed", "Program", "ProgramChanged",
    "ProgramError", "ProgramGroup", "ProgramState", "Reaction", "Ref", "Result", "SglActorsError", "Slot", "SpeculationMiss",
    "Step", "StreamEnded", "Tool", "ToolFailed", "Trace", "UnknownVariable", "UnresolvedVariable", "UnscriptedCall",
    "Unsupported", "UnsupportedMedia", "Usage", "__version__", "assistant", "assistant_begin", "assistant_end", "beam",
    "best_of", "call_all", "choice", "connect", "either", "first_valid", "flush_cache", "function", "gen", "gen_int",
    "gen_string", "image", "integer", "json", "judge", "map_", "normalise", "number", "optional", "race", "react", "record",
    "reduce_", "regex", "repeat", "replay", "retry_until", "role", "select", "separate_reasoning", "set_default_backend",
    "shutdown", "system", "system_begin", "system_end", "text", "tool", "tree_search", "user", "user_begin", "user_end",
    "video", "vote",
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
