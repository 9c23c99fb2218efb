"""Actors for the tests of swaps: a counter with open requests and a task, its successors, and some that cannot take over."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from sgl_actors.actors.microkernel import Actor, Context, Message, Request, Snapshot
from sgl_actors.errors import InvalidRequest


class Add(Message):
    """Call, answered by `Sum` of all that was added; a cast adds, too."""

    number: int


class Sum(Message):
    """The sum so far, and which version of the class says so."""

    total: int
    version: int


class Later(Message):
    """Call, answered by `Sum` at the next `Release`."""


class Release(Message):
    """Cast: answer all that wait."""


class Tick(Message):
    """Cast by the counter's own timer."""


class State(msgspec.Struct, frozen=True):
    """Layout ``counter/1``."""

    total: int


class Counter(Actor):
    """Version 1."""

    version = 1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.total = 0
        self.waiting: list[Request] = []
        self.settled = self.left = False
        self.work: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.total = int(self.ctx.config.get("options", {}).get("start", 0))

    async def receive(self, message: Message, request: Request) -> Message | None:
        match message:
            case Add():
                self.total += message.number
                return Sum(self.total, self.version)
            case Later():
                self.waiting.append(request)
            case Release():
                waiting, self.waiting = self.waiting, []
                for one in waiting:
                    one.reply(Sum(self.total, self.version))
            case Tick():
                self.total += 1000
            case _:
                raise InvalidRequest("what is that?")
        return None

    async def settle(self) -> None:
        self.settled = True

    def snapshot(self) -> Snapshot:
        return Snapshot.of("counter/1", State(self.total), waiting=self.waiting)

    async def restore(self, snapshot: Snapshot) -> None:
        self.total = snapshot.read("counter/1", State).total
        self.waiting = snapshot.handle("waiting", list)

    def resume(self) -> None:
        self.settled = False

    async def leave(self) -> None:
        self.left = True


class Better(Counter):
    """Version 2; knows how much is on its account by its options."""

    version = 2

    async def restore(self, snapshot: Snapshot) -> None:
        await super().restore(snapshot)
        self.total += int(self.ctx.config.get("options", {}).get("bonus", 0))


class Broken(Counter):
    """Raises while it restores, after having begun something."""

    async def restore(self, snapshot: Snapshot) -> None:
        self.ctx.task(self._for_ever(), name="of a failure")
        self.ctx.after(0.0, Tick())
        raise RuntimeError("restore is broken")

    async def _for_ever(self) -> None:
        await asyncio.Event().wait()


class Faulty(Counter):
    """A task that it began ends with an error while it restores."""

    async def restore(self, snapshot: Snapshot) -> None:
        await self.ctx.task(self._fault(), name="of a failure")
        await super().restore(snapshot)

    async def _fault(self) -> None:
        raise RuntimeError("task is broken")


class Slow(Counter):
    """Never has restored."""

    async def restore(self, snapshot: Snapshot) -> None:
        await asyncio.Event().wait()


class Restless(Counter):
    """Never comes to rest."""

    async def settle(self) -> None:
        await asyncio.Event().wait()


class OtherLayout(Counter):
    """Reads what nobody writes."""

    async def restore(self, snapshot: Snapshot) -> None:
        snapshot.read("counter/7", State)


class Plain(Actor):
    """Knows nothing of swaps; answers as a counter that is always at 0."""

    async def receive(self, message: Message, request: Request) -> Message | None:
        return Sum(0, 0) if isinstance(message, Add) else None


class Unborn(Plain):
    """Raises when it starts."""

    async def start(self) -> None:
        raise RuntimeError("cannot start")


def parts(cell: Any) -> tuple[int, bool]:
    """Tasks of an actor's group that run, and whether the actor is settled."""
    return len(cell.group._tasks), cell.actor.settled
