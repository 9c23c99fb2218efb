"""What the grammar actor understands and answers. The tokenizer asks it before it admits a constrained request, the worker after a restart."""

from __future__ import annotations

from typing import Literal

import msgspec

from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.lang.constraints.constraint import Constraint


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[grammar]` of node.toml.

    Attributes:
        engine: "fsm" compiles what is regular to a compressed automaton and refuses the rest, "llguidance" reads everything
            itself, "auto" takes the automaton where there is one.
        seconds: CPU time of one compilation.
        memory: bytes that compilations may take on top of what their process starts with (node.toml also takes "1GiB").
        kept: results that are kept, errors among them.
        queue: constraints that wait to be compiled; requests with one more are refused.
        nice: how far the compiling process stands back behind others for CPU time, as in nice(1).
    """

    engine: Literal["auto", "fsm", "llguidance"] = "auto"
    seconds: float = 5.0
    memory: int = 1 << 30
    kept: int = 1024
    queue: int = 256
    nice: int = 10


class Compile(Message):
    """Call, answered by `Compiled`. Equal constraints are compiled once, whoever asks and however many at a time.

    Its asker gets `InvalidRequest` if the constraint is wrong in itself, nothing can satisfy it, or compiling it takes more than the limits allow;
    `Overloaded` if too many wait; `NotReady` if it could not be tried.

    Attributes:
        constraint: what to compile.
        prepare: tell the worker before the answer, so that no step has to wait for it. A worker that does not answer in time keeps nobody from the
            answer.
    """

    constraint: Constraint
    prepare: bool = True


class Compiled(Message):
    """A constraint that can be served.

    Attributes:
        engine: "fsm" or "llguidance".
        automaton: what the worker loads (`automaton.Automaton.pack`), empty if llguidance is to read the source. Left out where `prepare` was asked for.
        why: why it is not the FSM, "" if it is.
        seconds: CPU time that it took when it was compiled.
    """

    engine: str
    automaton: bytes = b""
    why: str = ""
    seconds: float = 0.0
