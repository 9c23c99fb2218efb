"""What a node's root understands. Its name is ``root``."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.wire import Message


class ListActors(Message):
    """Call, answered by `Actors`."""


class ActorRow(msgspec.Struct, frozen=True):
    """One supervised actor, or a client's. `mailbox` counts waiting messages, `rss` is bytes of its process."""

    address: str
    state: str
    epoch: int
    restarts: int
    mailbox: int
    pid: int
    rss: int
    process: str = ""
    statistics: dict[str, float] = {}


class Actors(Message):
    """All actors, in the order they were started; `kernels` is what the kernel of each process counts."""

    rows: list[ActorRow]
    ready: bool
    draining: bool = False
    uptime: float = 0.0
    kernels: dict[str, dict[str, float]] = {}


class RestartActor(Message):
    """Call, answered by `Done` when the new incarnation is up; `InvalidRequest` for an unknown name."""

    name: str


class SwapActor(Message):
    """Call, answered by `Swapped`: put another class in the place of a running actor; `SwapFailed` if it goes on as it was.

    Attributes:
        name: which actor.
        path: ``"module:Class"`` or the name of an entry point; "" for the class it has (new settings).
        settings: JSON of the sections of configuration that change for it; "" for none.
        restart: end it and start a new incarnation with that class, instead of handing over in place.
    """

    name: str
    path: str = ""
    settings: str = ""
    restart: bool = False


class Swapped(Message):
    """The class has taken over.

    Attributes:
        in_place: the incarnation went on; if not, a new one was started.
        held: seconds in which the actor handled no message.
        path: the class, as it was asked for.
    """

    in_place: bool
    held: float
    path: str


class StopNode(Message):
    """Call, answered by `Done` at once; the node drains for `drain` seconds at most (its own setting if negative) and ends."""

    drain: float = -1.0


class Done(Message):
    """It happened."""
