"""What program streams and the node's `programs` actor understand and answer."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.lang.graph import Graph
from sgl_actors.lang.ir import AnyNode, SamplingArgs
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.results import Failure, Outcome


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[programs]` of node.toml.

    Attributes:
        limit: most graphs running at a time; more are refused with `overloaded`.
        timeout: most seconds that one graph may take.
    """

    limit: int = 256
    timeout: float = 3600.0


# -- to a stream --------------------------------------------------------------------------------------------


class Append(Message):
    """Call, answered by `Appended`: add nodes to the stream. They are numbered from 0 on, over all appends."""

    nodes: list[AnyNode]


class Appended(Message):
    """Addresses of the children of every `Fork` among the nodes, in order; `failure` instead if the stream has failed."""

    children: list[list[Address]] = []
    failure: Failure | None = None


class Begin(Message):
    """Cast by the parent: start with this prompt and these variables; with a `failure`, fail.

    Attributes:
        computed: leading characters of the prompt's text whose KV the node has computed.
        adapters: of the variables; see `Outcome`.
    """

    prompt: Prompt
    variables: dict[str, Any] = {}
    failure: Failure | None = None
    computed: int = 0
    adapters: dict[str, str] = {}


class Read(Message):
    """Call, answered by `Value` once the last node before `position` that defines `name` is done."""

    name: str
    position: int
    meta: bool = False


class Result(Message):
    """Call, answered by `Value`: what node `number`, a `Join`, collected."""

    number: int


class Value(Message):
    """A value, or why there is none.

    Attributes:
        adapters: what makes values of texts: of the value itself under "", of a dictionary's by their names.
        failures: of a join that keeps them, by the number of the branch.
    """

    value: Any = None
    failure: Failure | None = None
    adapters: dict[str, str] = {}
    failures: dict[int, Failure] = {}


class Drop(Message):
    """Cast: do nothing more, nor have children do it; what is being done is given up."""

    reason: str = ""


class Snapshot(Message):
    """Call, answered by `Report` once all nodes appended before are done."""


class Finish(Message):
    """Call, answered by `Report` once all nodes and all children are done."""


class Branch(Message):
    """Call, answered by `Report`: outcome of child `index` of the fork numbered `fork`, after its join."""

    fork: int
    index: int


class Report(Message):
    """What a stream holds."""

    outcome: Outcome


class Peek(Message):
    """Call on the control lane, answered by `Tail` at once."""


class Tail(Message):
    """End of the prompt, with what is still to come in braces."""

    text: str


class Listen(Message):
    """Stream of `Piece`: the next variable `name` of this stream while it is being written (all of it, if it is there already).

    "" is the whole prompt, as it grows until the stream's end.
    """

    name: str


class Piece(Message):
    """New text of it."""

    text: str


# -- to the node's `programs` actor -------------------------------------------------------------------------


class RunGraph(Message):
    """Call, answered by `Report`: run a recorded program in the node.

    Attributes:
        graph: nodes per stream.
        name: for views and logs.
        seed: of its samples.
        sampling: defaults for its gens.
        timeout: seconds it may take.
        priority, cache_salt, fork_hint: see `RunOptions`.
    """

    graph: Graph
    name: str = "graph"
    seed: int = 0
    sampling: SamplingArgs = SamplingArgs()
    timeout: float = 600.0
    priority: int = 0
    cache_salt: str = ""
    fork_hint: bool = True


class ProgramStarted(Message):
    """Cast by a client's runtime: a program runs there."""

    id: str
    name: str


class ProgramEnded(Message):
    """Cast: it is over; `error` is the code of what ended it, empty if it succeeded."""

    id: str
    error: str = ""


class ListPrograms(Message):
    """Call, answered by `Programs`."""


class ProgramRow(msgspec.Struct, frozen=True):
    """One running program; `where` is "node" or the client it runs in."""

    id: str
    name: str
    where: str
    seconds: float


class Programs(Message):
    """What runs now, and how many have ended since the actor started."""

    rows: list[ProgramRow]
    succeeded: int = 0
    failed: int = 0
