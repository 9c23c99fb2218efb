"""How frames get from one process to another.

The kernel sees one interface; `zmq` is the default, `local` links several kernels of one event loop (tests, and the oracle of the other).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from sgl_actors.errors import Overloaded

Frames = list[bytes]
Deliver = Callable[[Frames], None]
Lost = Callable[[str], None]


class Transport(Protocol):
    """Moves (envelope, payload) frame pairs; FIFO per pair of endpoints; may lose, never doubles."""

    endpoint: str

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """Begin to receive. `deliver` gets an even number of frames; `lost` an endpoint under `watch` that broke off."""

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """Queue one message. Raises `Overloaded` when the bounded queue to that peer is full; `reserved` has room of its own."""

    def watch(self, endpoint: str) -> None:
        """Report the loss of this peer."""

    def drop(self, endpoint: str) -> None:
        """Forget a peer that is known to be gone, and what is queued for it."""

    def close(self) -> None:
        """Stop; give queued replies a moment."""


class LocalHub:
    """Links the `LocalTransport`s of one event loop."""

    def __init__(self) -> None:
        self.members: dict[str, LocalTransport] = {}


class LocalTransport:
    """Frames handed over within one event loop, through a bounded queue per peer."""

    def __init__(self, hub: LocalHub, endpoint: str, capacity: int = 4096) -> None:
        self.endpoint = endpoint
        self._hub = hub
        self._capacity = capacity
        self._waiting: dict[str, int] = {}
        self._watched: set[str] = set()
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """See `Transport.open`."""
        self._deliver, self._lost = deliver, lost
        self._hub.members[self.endpoint] = self

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """See `Transport.send`."""
        waiting = self._waiting.get(endpoint, 0)
        if waiting >= self._capacity * (2 if reserved else 1):
            raise Overloaded(f"queue to {endpoint} is full ({self._capacity} messages)")
        self._waiting[endpoint] = waiting + 1
        asyncio.get_running_loop().call_soon(self._hand_over, endpoint, envelope, payload)

    def _hand_over(self, endpoint: str, envelope: bytes, payload: bytes) -> None:
        self._waiting[endpoint] -= 1
        peer = self._hub.members.get(endpoint)
        if peer is not None and peer._deliver is not None:  # noqa: SLF001 - the same class
            peer._deliver([envelope, payload])  # noqa: SLF001

    def watch(self, endpoint: str) -> None:
        """See `Transport.watch`."""
        self._watched.add(endpoint)

    def drop(self, endpoint: str) -> None:
        """See `Transport.drop`."""
        self._watched.discard(endpoint)

    def close(self) -> None:
        """Leave the hub; the others learn of it."""
        self._hub.members.pop(self.endpoint, None)
        for member in self._hub.members.values():
            if self.endpoint in member._watched and member._lost is not None:  # noqa: SLF001
                member._lost(self.endpoint)  # noqa: SLF001
