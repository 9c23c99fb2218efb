"""A bounded mailbox with two lanes: control goes before data.

The kernel puts, one actor takes. `put` never waits; what happens when a lane is full is decided by `MailboxSpec`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Generic, Protocol, TypeVar

from sgl_actors.actors.microkernel.actor import MailboxSpec

CONTROL_ROOM = 4
"""The control lane holds this many times the data lane: it carries replies' and supervision's own credit."""


class Keyed(Protocol):
    """What the `latest` overflow compares."""

    @property
    def key(self) -> tuple[object, ...]:
        """Messages with an equal key replace each other."""


T = TypeVar("T", bound=Keyed)


class Put(Enum):
    """What became of a message."""

    TAKEN = "taken"
    FULL = "full"
    WAITING = "waiting"
    """It gets a place when one is free; `on_place` is called with it then. Only ``block``, only for who waits."""


class Mailbox(Generic[T]):
    """FIFO per lane. One consumer.

    Lanes are lists: an empty deque takes 760 bytes, which programs that wait have no use for, and taking the first of a full lane costs
    less than a microsecond.
    """

    def __init__(self, spec: MailboxSpec, on_place: Callable[[T], None] = lambda _: None) -> None:
        self.spec = spec
        self._on_place = on_place
        self._waiting: list[T] = []
        self.dropped = 0
        self._control: list[T] = []
        self._data: list[T] = []
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._control) + len(self._data) + len(self._waiting)

    def put(self, item: T, *, control: bool, waits: bool = False) -> Put:
        """Take `item`, or say that its lane is full. A sender that `waits` is told by `on_place`."""
        if control:
            if len(self._control) >= CONTROL_ROOM * self.spec.capacity:
                self.dropped += 1
                return Put.FULL
            self._control.append(item)
        else:
            if len(self._data) >= self.spec.capacity and not self._make_room(item):
                if waits and self.spec.overflow == "block" and len(self._waiting) < self.spec.capacity:
                    self._waiting.append(item)
                    return Put.WAITING
                self.dropped += 1
                return Put.FULL
            self._data.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return Put.TAKEN

    def _make_room(self, item: T) -> bool:
        if self.spec.overflow != "latest":
            return False
        for index, old in enumerate(self._data):
            if old.key == item.key:
                del self._data[index]
                self.dropped += 1
                return True
        return False

    async def get(self) -> T:
        """Wait for the next item, control lane first."""
        while True:
            if self._control:
                return self._control.pop(0)
            if self._data:
                item = self._data.pop(0)
                if self._waiting:
                    self._data.append(self._waiting.pop(0))
                    self._on_place(self._data[-1])
                return item
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def drain(self) -> list[T]:
        """Take everything out (the actor has ended)."""
        rest = [*self._control, *self._data, *self._waiting]
        self._control.clear()
        self._data.clear()
        self._waiting.clear()
        return rest
