"""What the kernels of a node's processes say to each other and to the root."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.wire import Message

KERNEL = "@"
"""Name of the kernel's own actor in every process."""


class Hello(Message):
    """Call to the root from a process that has started, or from a client that joins; answered by `Table`.

    `process` is the name given by the root, or for a client one of its own; `client` tells which.
    """

    process: str
    endpoint: str
    pid: int
    client: bool = False


class Table(Message):
    """All names that are up."""

    names: list[Address]


class NameUp(Message):
    """Broadcast by the root: this incarnation holds its name from now on."""

    address: Address


class NameDown(Message):
    """Broadcast by the root: this incarnation has ended."""

    address: Address
    reason: str


class PeerDown(Message):
    """Broadcast by the root: the process at `endpoint` is gone, with every actor in it."""

    endpoint: str


class PeerUp(Message):
    """Broadcast by the root: the client at `endpoint`, which was taken for gone, has said hello again. What it had asked for before is cancelled."""

    endpoint: str


class StartActor(Message):
    """Cast from the root to a process: start `path` (see `plugins.load_class`) as `name`. `settings` is JSON, laid over the process's configuration."""

    name: str
    epoch: int
    path: str
    timeout: float
    settings: str = ""


class SwapClass(Message):
    """Call from the root to a process, answered by `ClassSwapped`; `SwapFailed` if the actor goes on as it was."""

    name: str
    epoch: int
    path: str
    timeout: float
    settings: str = ""


class ClassSwapped(Message):
    """Whether another actor has taken the place; if not, the classes have not both their half of the protocol, and nothing has happened.

    `held` is how long no message was handled, in seconds.
    """

    in_place: bool
    held: float = 0.0


class StopActor(Message):
    """Cast from the root: end one actor."""

    name: str
    epoch: int
    reason: str


class ActorReady(Message):
    """Cast to the root: `start` has returned."""

    address: Address


class ActorExit(Message):
    """Cast to the root: an incarnation has ended.

    `normal`: it was told to. `fatal`: a restart cannot help (configuration, checkpoint).
    """

    address: Address
    reason: str
    normal: bool = False
    fatal: bool = False


class Ping(Message):
    """Call from the root, control lane; answered by `Pong` from the process's own loop."""


class Pulse(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One actor's sign of life. `progress` counts handled messages; `busy` is how long it has been in the current one."""

    name: str
    epoch: int
    state: str
    progress: int
    mailbox: int
    busy: float
    statistics: dict[str, float] = {}


class Pong(Message):
    """Pulses of all actors of a process, and the kernel's counters."""

    pulses: list[Pulse]
    counters: dict[str, float] = {}


class Terminate(Message):
    """Cast from the root: stop all actors in reverse order, then exit."""

    reason: str


class Accepted(Message):
    """Answer of a kernel to `Context.send`: the message has its place in the mailbox."""
