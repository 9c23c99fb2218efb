"""Both ends of an exchange: what an asker waits on (`PendingCall`, `PendingStream`) and what a receiver answers (`Incoming`)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.wire import MOST_CREDIT, Envelope, Fault, Kind, Message
from sgl_actors.errors import DeadlineExceeded, ProtocolError, SglActorsError

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.cell import Cell

_KINDS: dict[int, Literal["cast", "call", "stream"]] = {
    Kind.CAST: "cast",
    Kind.CALL: "call",
    Kind.STREAM: "stream",
    Kind.SEND: "cast",
}


class Port(Protocol):
    """What an exchange needs of the kernel."""

    def now(self) -> float:
        """Monotonic seconds."""

    def answer(self, request: Incoming, kind: Kind, message: Message | None) -> None:
        """Send an answer to the asker of `request`; any kind but an item ends the exchange."""


class Pending:
    """An exchange that this process has asked for. Ends once; `closed` when it was the other side that ended it."""

    def __init__(self, to: Address, owner: Cell, trace: str) -> None:
        self.to = to
        self.owner = owner
        self.trace = trace
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False
        self.closed = False

    def finish(self) -> None:
        """No answer is awaited any more."""
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()

    def fail(self, error: SglActorsError) -> None:
        """End it with an error."""
        raise NotImplementedError

    def take(self, kind: int, message: Message | None) -> None:
        """Handle an answer."""
        raise NotImplementedError

    def expire(self) -> None:
        """The deadline has passed."""
        self.fail(DeadlineExceeded(f"no answer from {self.to} in time"))


class PendingCall(Pending):
    """Waits for one answer."""

    def __init__(self, to: Address, owner: Cell, trace: str) -> None:
        super().__init__(to, owner, trace)
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def fail(self, error: SglActorsError) -> None:
        """See `Pending.fail`."""
        self.finish()
        if not self.future.done():
            self.future.set_exception(error)

    def take(self, kind: int, message: Message | None) -> None:
        """See `Pending.take`."""
        self.closed = True
        if kind == Kind.FAULT and isinstance(message, Fault):
            self.fail(message.error())
        elif kind == Kind.REPLY and message is not None:
            self.finish()
            if not self.future.done():
                self.future.set_result(message)
        else:
            self.fail(ProtocolError(f"{self.to} answered a call with kind {kind}"))


class PendingStream(Pending):
    """Items waiting for their consumer; never more than it has granted credit for, and the last one.

    Credit is granted only for what has been consumed, so `credit` bounds what waits; a source that sends more ends the stream.
    """

    def __init__(self, to: Address, owner: Cell, trace: str, credit: int = MOST_CREDIT) -> None:
        super().__init__(to, owner, trace)
        self._credit = credit
        self.items: deque[Message] = deque()
        self.error: SglActorsError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: SglActorsError) -> None:
        """Items that came before the error are still delivered."""
        self.finish()
        self.error = error
        self._wake()

    def take(self, kind: int, message: Message | None) -> None:
        """See `Pending.take`."""
        self.closed = kind != Kind.ITEM
        if kind == Kind.FAULT and isinstance(message, Fault):
            self.fail(message.error())
            return
        if kind not in (Kind.ITEM, Kind.END) or (kind == Kind.ITEM and message is None):
            self.fail(ProtocolError(f"{self.to} answered a stream with kind {kind}"))
            return
        if kind == Kind.ITEM and len(self.items) >= self._credit:
            self.fail(ProtocolError(f"{self.to} sent more items than it had credit for ({self._credit})"))
            return
        if message is not None and not self.ended:
            self.items.append(message)
        if kind == Kind.END:
            self.finish()
        self._wake()

    async def get(self) -> Message | None:
        """The next item, None at the end; raises the error that ended the stream."""
        while not self.items:
            if self.error is not None:
                raise self.error
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.items.popleft()


class Incoming:
    """`Request` of the author's side: one message in a mailbox, and the way to answer it."""

    __slots__ = (
        "_on_cancel",
        "_on_credit",
        "_port",
        "answered",
        "cancelled",
        "cell",
        "credit",
        "deadline",
        "envelope",
        "kind",
        "message",
        "sender",
        "trace",
    )

    def __init__(self, port: Port, cell: Cell, envelope: Envelope, message: Message) -> None:
        self._port = port
        self.cell = cell
        self.envelope = envelope
        self.message = message
        self.sender = envelope.frm
        self.kind = _KINDS[envelope.kind]
        self.trace = envelope.trace
        self.deadline = port.now() + envelope.timeout if envelope.timeout else None
        self.credit = envelope.credit
        self.cancelled = False
        self.answered = self.kind == "cast"
        self._on_cancel: list[Callable[[], None]] = []
        self._on_credit: list[Callable[[], None]] = []

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for messages that the `latest` overflow lets replace each other."""
        return (self.sender.name, type(self.message))

    @property
    def remaining(self) -> float | None:
        """See `Request.remaining`."""
        return None if self.deadline is None else self.deadline - self._port.now()

    def reply(self, message: Message) -> None:
        """See `Request.reply`."""
        self._end(Kind.REPLY if self.kind == "call" else Kind.END, message)

    def fail(self, error: BaseException) -> None:
        """See `Request.fail`."""
        self._end(Kind.FAULT, Fault.of(error))

    def item(self, message: Message) -> bool:
        """See `Request.item`."""
        if self.answered or self.cancelled or self.credit <= 0:
            return False
        self.credit -= 1
        self._port.answer(self, Kind.ITEM, message)
        return True

    def end(self, message: Message | None = None) -> None:
        """See `Request.end`."""
        self._end(Kind.END, message)

    def _end(self, kind: Kind, message: Message | None) -> None:
        if not self.answered:
            self.answered = True
            self._port.answer(self, kind, message)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """See `Request.on_cancel`."""
        if self.cancelled:
            callback()
        else:
            self._on_cancel.append(callback)

    def on_credit(self, callback: Callable[[], None]) -> None:
        """See `Request.on_credit`."""
        self._on_credit.append(callback)

    def grant(self, credit: int) -> None:
        """The consumer is ready for more."""
        self.credit = min(self.credit + credit, MOST_CREDIT)
        for callback in self._on_credit:
            callback()

    def cancel(self) -> None:
        """The asker wants no answer any more; none is sent."""
        if self.cancelled or self.answered:
            return
        self.cancelled = self.answered = True
        callbacks, self._on_cancel = self._on_cancel, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self.cell.log.exception("on_cancel failed")
