"""What a node's `programs` actor hands to the class that takes its place in a running node: layout ``programs/1``.

Plain: `ProgramsState`. Handle: ``requests``, the open `RunGraph` requests, which graphs name by index. The streams of the graphs are actors of their own below
the same address and go on meanwhile; whoever takes over asks each root stream for its report (`Finish`) again.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.programs.messages import RunGraph

LAYOUT = "programs/1"


class Announced(msgspec.Struct):
    """A program that runs: in the client at `where`, or in the node. `since` is on the kernel's clock."""

    id: str
    name: str
    since: float
    where: Address | None = None


class Running(msgspec.Struct, frozen=True):
    """A graph whose streams have all their nodes.

    Attributes:
        id: of its program.
        root: its first stream.
        deadline: on the kernel's clock.
        request: whom to tell, an index into ``requests``.
    """

    id: str
    root: Address
    deadline: float
    request: int


class Waiting(msgspec.Struct, frozen=True):
    """A graph that came while the actor settled. `request` is an index into ``requests``."""

    message: RunGraph
    request: int


class ProgramsState(msgspec.Struct, frozen=True):
    """A `programs` actor that drives no graph. The counters are those of its statistics."""

    programs: list[Announced] = []
    graphs: list[Running] = []
    waiting: list[Waiting] = []
    succeeded: int = 0
    failed: int = 0
    unexpected: int = 0
