"""Actors and messages that the kernel's tests use; importable by child processes."""

from __future__ import annotations

import asyncio
import os
import time
from typing import ClassVar

from sgl_actors.actors.microkernel import Actor, Context, Down, MailboxSpec, Message, Request, Up
from sgl_actors.errors import InvalidRequest


class Say(Message):
    """Echoed by a call; recorded by a cast."""

    text: str
    number: int = 0


class Count(Message):
    """Stream `upto` items."""

    upto: int
    fail_at: int = -1


class Heard(Message):
    """Call, answered by `Words`."""


class Words(Message):
    """What was cast so far."""

    words: list[str]


class Wait(Message):
    """Call that is never answered."""


class Fail(Message):
    """Raises in the receiver."""

    kind: str


class Spawn(Message):
    """Start a child."""

    name: str


class Who(Message):
    """Call, answered by `Words` of [pid, epoch]."""


class Block(Message):
    """Cast that blocks the whole event loop."""

    seconds: float


class Echo(Actor):
    """Answers everything above."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.words: list[str] = []
        self.kept: list[Request] = []
        self.cancelled = 0

    async def receive(self, message: Message, request: Request) -> Message | None:
        match message:
            case Say() if request.kind == "call":
                return Say(message.text, message.number + 1)
            case Say():
                self.words.append(message.text)
            case Heard():
                return Words(list(self.words))
            case Wait():
                self.kept.append(request)
                request.on_cancel(self._count)
            case Fail(kind="typed"):
                raise InvalidRequest("wrong field", param="field")
            case Fail():
                raise RuntimeError("broken")
            case Count():
                self.ctx.task(self._count_up(message, request))
            case Spawn():
                self.ctx.spawn(Echo, message.name)
            case Up():
                self.words.append(f"up {message.address.name}")
            case Down():
                self.words.append(f"down {message.address.name}")
            case Who():
                return Words([str(os.getpid()), str(self.ctx.address.epoch)])
            case Block():
                time.sleep(message.seconds)
        return None

    def _count(self) -> None:
        self.cancelled += 1
        self.words.append("cancelled")

    async def _count_up(self, message: Count, request: Request) -> None:
        room = asyncio.Event()
        request.on_credit(room.set)
        request.on_cancel(room.set)
        for number in range(message.upto):
            if number == message.fail_at:
                request.fail(InvalidRequest("no more"))
                return
            while not request.item(Say("item", number)):
                if request.cancelled:
                    self.words.append("stream cancelled")
                    return
                self.words.append("no credit")
                room.clear()
                await room.wait()
        request.end(Say("end", message.upto))

    def statistics(self) -> dict[str, float]:
        return {"words": float(len(self.words))}


class Broken(Actor):
    """Cannot start."""

    async def start(self) -> None:
        raise RuntimeError("cannot start")


class BlockedStart(Echo):
    """Blocks its event loop while it starts."""

    async def start(self) -> None:
        time.sleep(60)


class SlowStart(Echo):
    """Takes long to start, without blocking."""

    async def start(self) -> None:
        await asyncio.sleep(60)


class Narrow(Echo):
    """A mailbox of two, rejecting."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=2)


class Latest(Echo):
    """A mailbox of two that keeps the latest."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=2, overflow="latest")


class Blocking(Echo):
    """A mailbox of eight whose senders wait."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=8, overflow="block")
