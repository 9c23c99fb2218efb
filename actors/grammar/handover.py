"""What a grammar actor hands to the class that takes its place in a running node: layout ``grammar/1``.

Plain: `GrammarState`. Handles: ``requests``, the open `Compile` requests that its waiters name by index; ``host``, a `host.CompilerHost`, and ``job``, the future
of a `protocol.Result` that it works on (None if nothing is being compiled). A class that compiles in its own way closes the host, and compiles the first
of `waiting` itself.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.grammar.messages import Compiled
from sgl_actors.actors.microkernel import Address
from sgl_actors.lang.constraints.constraint import Constraint

LAYOUT = "grammar/1"


class Waiter(msgspec.Struct, frozen=True, array_like=True):
    """Somebody who waits: an index into ``requests``, and whether the worker is to be told before the answer."""

    request: int
    prepare: bool


class Waiting(msgspec.Struct, frozen=True):
    """A constraint that is to be compiled, and who waits for it."""

    constraint: Constraint
    waiters: list[Waiter]


class Kept(msgspec.Struct, frozen=True):
    """What is known of a constraint: `compiled`, or why it is refused.

    Attributes:
        refusal, param: of the `InvalidRequest`.
    """

    constraint: Constraint
    compiled: Compiled | None = None
    refusal: str = ""
    param: str | None = None


class Preparing(msgspec.Struct, frozen=True):
    """A constraint that the worker has not confirmed, and who waits for that; to be told again."""

    constraint: Constraint
    compiled: Compiled
    waiters: list[Waiter]


class GrammarState(msgspec.Struct, frozen=True):
    """A grammar actor that begins no compilation.

    Attributes:
        engine: that results were made with (`[grammar] engine`).
        waiting: in order of compilation; with a ``job`` the first is the one that is compiled.
        kept: the least recently asked for first.
        offenders: digest of a constraint that ended the compiler, and how often.
        preparing: see `Preparing`.
        worker: the incarnation that was told what is in `told`.
        told: the one told first comes first.
        counters: of its statistics, without prefix and suffix.
        seconds: CPU time of compilations.
    """

    engine: str
    waiting: list[Waiting] = []
    kept: list[Kept] = []
    offenders: list[tuple[bytes, int]] = []
    preparing: list[Preparing] = []
    worker: Address | None = None
    told: list[Constraint] = []
    counters: dict[str, int] = {}
    seconds: float = 0.0
