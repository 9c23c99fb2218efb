"""How much HTTP may be in work at once: requests, bytes of their bodies, memory of the machine. Who comes when it is full hears when to come again.

It refuses before anything is read or computed. Bodies count by what they take once decoded, while their request is in work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sgl_actors.actors.gateway.errors import later
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.microkernel.messages import ActorRow
from sgl_actors.errors import InvalidRequest, Overloaded

MAX_VALUES = 1 << 20
"""Values in one JSON body."""
VALUE_BYTES = 64
"""Bytes that a JSON value takes once decoded, about: an empty list or object, or an integer and its place in a list."""
SMALL = 64 << 10
"""Bytes of a body for which there is always room where its request is always taken."""
MEASURED = 0.5
"""Seconds for which a measurement of the machine's memory is believed."""
MEMORY_RETRY = 5.0
"""Seconds after which to come again when memory is short."""
DRAINS = 8
"""Bodies that are thrown away at once; where there are more, their connections just end."""
SHORTEST_RETRY, LONGEST_RETRY = 1.0, 30.0
SMOOTHING = 0.1
"""Weight of the newest request in the mean time that requests take."""


class Gate:
    """Counts what is in work.

    Args:
        options: `[gateway]` of node.toml.
        now: monotonic seconds.
        available: bytes of memory that the machine has to give.

    Attributes:
        requests: in work.
        held: bytes of their bodies.
        refused: how many were sent away.
        drains: bodies that are being thrown away.
    """

    def __init__(self, options: Options, now: Callable[[], float], available: Callable[[], int]) -> None:
        self.options = options
        self.requests = self.held = self.refused = self.drains = 0
        self._now, self._available = now, available
        self._seconds = SHORTEST_RETRY
        self._measured_at, self._free = float("-inf"), 0

    def __repr__(self) -> str:
        return f"<Gate requests={self.requests} held={self.held} refused={self.refused}>"

    @property
    def retry(self) -> float:
        """Seconds after which a place should be free: about what a request takes these days."""
        return min(max(self._seconds, SHORTEST_RETRY), LONGEST_RETRY)

    def enter(self, *, always: bool = False) -> Pass:
        """Begin a request; one that is `always` taken finds room for a small body, too.

        Raises:
            Overloaded: too many are in work, or memory is short.
        """
        if always:
            self.requests += 1
            return Pass(self, self._now(), free=SMALL)
        if self.requests >= self.options.max_requests:
            raise self._later(
                f"{self.requests} requests are in work, the most that this gateway takes ([gateway] max_requests)"
            )
        if self.options.reserve and self._free_memory() < self.options.reserve:
            raise self._later("the machine is short of memory ([gateway] reserve)", MEMORY_RETRY)
        self.requests += 1
        return Pass(self, self._now())

    def check_memory(self, actors: Iterable[ActorRow]) -> None:
        """Raise `Overloaded` if the processes of the actors take more than `max_memory` together."""
        most = self.options.max_memory
        if most and sum({row.pid: row.rss for row in actors}.values()) > most:
            raise self._later("the node takes as much memory as it may ([gateway] max_memory)", MEMORY_RETRY)

    def check_room(self, size: int) -> None:
        """Raise `Overloaded` if a body of `size` bytes finds no room."""
        if self.held + size > self.options.max_held:
            raise self._later(
                f"bodies of {self.held} bytes are in work, the most is {self.options.max_held} ([gateway] max_held)"
            )

    def leave(self, held: int, began: float, *, counts: bool) -> None:
        """End a request, which `counts` for the mean time."""
        self.requests -= 1
        self.held -= held
        if counts:
            self._seconds += SMOOTHING * (self._now() - began - self._seconds)

    def _later(self, why: str, seconds: float | None = None) -> Overloaded:
        self.refused += 1
        return later(why, self.retry if seconds is None else seconds)

    def _free_memory(self) -> int:
        now = self._now()
        if now - self._measured_at > MEASURED:
            self._measured_at, self._free = now, self._available()
        return self._free


class Pass:
    """A request's place, and the room that its body takes."""

    def __init__(self, gate: Gate, began: float, *, free: int = 0) -> None:
        self._gate, self._began, self._held, self._free = gate, began, 0, free

    def expect(self, size: int) -> None:
        """Raise `Overloaded` if that much more finds no room now."""
        if self._held + size > self._free:
            self._gate.check_room(size)

    def hold(self, size: int) -> None:
        """Take room for `size` bytes, until `close`; raises `Overloaded` if there is none."""
        self.expect(size)
        self._gate.held += size
        self._held += size

    @contextmanager
    def draining(self) -> Iterator[bool]:
        """Whether the rest of a body may be read to be thrown away, while that is done."""
        self._gate.drains += 1
        try:
            yield self._gate.drains <= DRAINS
        finally:
            self._gate.drains -= 1

    def close(self) -> None:
        """Give back what it holds."""
        self._gate.leave(self._held, self._began, counts=not self._free)


def count_values(body: bytes) -> int:
    """How many JSON values `body` has at most: commas and brackets within texts count, too.

    Raises:
        InvalidRequest: too many to be decoded.
    """
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > MAX_VALUES:
        raise InvalidRequest(f"the body has about {values} values, at most {MAX_VALUES} are decoded")
    return values
