"""How frames get from one process to another.

The kernel sees one interface; `zmq` is the default, `local` links several kernels of one event loop (tests, and the oracle of the other).

What waits for one peer is bounded twice: in messages, and in bytes (a message may have 64 MB). Replies and control have as much room again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from sgl_actors.errors import InvalidRequest, Overloaded

Frames = list[bytes]
Deliver = Callable[[Frames], int | None]
"""Takes an even number of frames; tells how many messages were none, for who counts them against their sender."""
Lost = Callable[[str], None]

MAX_FRAME = 64 << 20
"""Bytes of one frame; a larger one is not sent, and ends the connection it comes from."""

MOST_BYTES = MAX_FRAME
"""Bytes that wait for one peer at most, unless it is a single message."""


def pack(frames: Frames) -> bytes:
    """Frames as one, each behind its length (4 bytes, little-endian).

    A batch travels as a single frame of the socket: libzmq ends the process if a socket is closed while it is in the middle of a multipart message to a
    peer that is going away, and whoever receives one takes all its parts, however many there are.
    """
    return b"".join([part for frame in frames for part in (len(frame).to_bytes(4, "little"), frame)])


def unpack(raw: bytes) -> Frames:
    """What was packed; `ValueError` if that does not come out even."""
    frames, at, end = list[bytes](), 0, len(raw)
    while at < end:
        begin = at + 4
        at = begin + int.from_bytes(raw[at:begin], "little")
        frames.append(raw[begin:at])
    if at != end or len(frames) % 2:
        raise ValueError(f"{end} bytes are no pairs of frames")
    return frames


class Outbox:
    """Room for what waits for one peer."""

    def __init__(self, endpoint: str, capacity: int) -> None:
        self.endpoint, self.capacity = endpoint, capacity
        self.messages = self.bytes = 0

    def add(self, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """Take room for one message.

        Raises:
            InvalidRequest: the message is longer than `MAX_FRAME`.
            Overloaded: there is none.
        """
        total = self.bytes + len(envelope) + len(payload)
        if self.messages >= self.capacity or total > MOST_BYTES:
            self._check(total, len(payload), 2 if reserved else 1)
        self.messages += 1
        self.bytes = total

    def _check(self, total: int, length: int, factor: int) -> None:
        """See `add`; `factor` is how often the room is there."""
        if length > MAX_FRAME:
            raise InvalidRequest(f"a message of {length} bytes; at most {MAX_FRAME} travel")
        if self.messages >= self.capacity * factor:
            raise Overloaded(f"queue to {self.endpoint} is full ({self.capacity} messages)")
        if self.messages and total > MOST_BYTES * factor:
            raise Overloaded(f"queue to {self.endpoint} is full ({MOST_BYTES} bytes)")

    def take(self, messages: int, size: int) -> None:
        """So many messages, of `size` bytes in all, are on their way."""
        self.messages -= messages
        self.bytes -= size


class Transport(Protocol):
    """Moves (envelope, payload) frame pairs; FIFO per pair of endpoints; may lose, never doubles."""

    endpoint: str

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """Begin to receive; `lost` gets an endpoint under `watch` that broke off."""

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """Queue one message; `reserved` has room of its own.

        Raises:
            Overloaded: the bounded queue to that peer is full.
            InvalidRequest: the message is too long.
        """

    def watch(self, endpoint: str) -> None:
        """Report the loss of this peer; `ActorDown` if it is not there."""

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
        self._waiting: dict[str, Outbox] = {}
        self._watched: set[str] = set()
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """See `Transport.open`."""
        self._deliver, self._lost = deliver, lost
        self._hub.members[self.endpoint] = self

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """See `Transport.send`."""
        waiting = self._waiting.get(endpoint) or self._waiting.setdefault(
            endpoint, Outbox(endpoint, self._capacity)
        )
        waiting.add(envelope, payload, reserved=reserved)
        asyncio.get_running_loop().call_soon(self._hand_over, waiting, envelope, payload)

    def _hand_over(self, waiting: Outbox, envelope: bytes, payload: bytes) -> None:
        waiting.take(1, len(envelope) + len(payload))
        if not waiting.messages:
            self._waiting.pop(waiting.endpoint, None)
        peer = self._hub.members.get(waiting.endpoint)
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
