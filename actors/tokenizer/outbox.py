"""What is on its way to the scheduler: submissions, and orders about what was submitted before. One lane, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from sgl_actors.actors.microkernel import Address, Context
from sgl_actors.actors.scheduler.messages import Abort, Sequence, Stop, Submit
from sgl_actors.errors import Overloaded

RETRY = 0.1
"""Seconds between two attempts to send to a scheduler that takes no mail."""

Spawn = Callable[[Coroutine[Any, Any, None], str], None]
"""Runs a task of that name until the actor ends or a successor takes over."""


class Outbox:
    """Submissions of one turn of the loop go together; those that the scheduler has no room for are refused, orders wait for room.

    Attributes:
        scheduler: the incarnation that is up; None: nothing is submitted.
        submissions: not sent yet.
        orders: not sent yet.
        at_once: do not wait for the end of the turn.
    """

    def __init__(
        self, ctx: Context, spawn: Spawn, refused: Callable[[list[Sequence], Overloaded], None]
    ) -> None:
        self.scheduler: Address | None = None
        self.submissions: list[Sequence] = []
        self.orders: deque[Stop | Abort] = deque()
        self.at_once = False
        self._ctx = ctx
        self._spawn = spawn
        self._refused = refused
        self._flush: asyncio.Handle | None = None

    def point(self, scheduler: Address | None) -> None:
        """Another scheduler, or none: what was meant for the last one means nothing to it."""
        self.scheduler = scheduler
        self.submissions.clear()
        self.orders.clear()

    def submit(self, sequence: Sequence) -> None:
        """Send with all others of this turn of the loop; while no scheduler is up nothing is."""
        if self.scheduler is None:
            return
        self.submissions.append(sequence)
        if self.at_once:
            self.send()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self.send)

    def take_back(self, request: str) -> bool:
        """Do not submit it; whether that was in time."""
        waiting = [sequence for sequence in self.submissions if sequence.id != request]
        found = len(waiting) < len(self.submissions)
        self.submissions = waiting
        return found

    def send(self) -> None:
        """Send what is to be submitted."""
        self.close()
        sequences, self.submissions = self.submissions, []
        if not sequences:
            return
        try:
            self._ctx.cast(self._ctx.peer("scheduler"), Submit(sequences), control=True)
        except Overloaded as error:
            self._refused(sequences, error)

    def order(self, message: Stop | Abort) -> None:
        """Cast to the scheduler after all that was submitted and ordered before; waits for room in the background."""
        self.send()
        self.orders.append(message)
        if len(self.orders) == 1 and not self._send_orders():
            self._ctx.log.warning("scheduler takes no mail", order=type(message).__name__)
            self._spawn(self._order_later(self.scheduler), "order")

    def close(self) -> None:
        """Do not send by itself what has been gathered."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None

    def _send_orders(self) -> bool:
        """Send what there is room for; whether that was all."""
        while self.orders:
            try:
                self._ctx.cast(self._ctx.peer("scheduler"), self.orders[0], control=True)
            except Overloaded:
                return False
            self.orders.popleft()
        return True

    async def _order_later(self, scheduler: Address | None) -> None:
        """Until all are sent, or that scheduler and all its requests are gone."""
        while scheduler is not None and scheduler == self.scheduler:
            await asyncio.sleep(RETRY)
            if scheduler == self.scheduler and self._send_orders():
                return
