"""What an actor's author sees: the `Actor` base class, its `Context`, and the `Request` it answers.

Guarantees. An actor handles one message at a time. Messages from one sender arrive in the order sent, per lane;
the control lane goes before the data lane. Delivery is at most once. A `call` or `stream` ends in exactly one of:
answer, error raised by the receiver, `ActorDown`, `DeadlineExceeded`, cancelled by the asker.
An exception while a call or stream is handled goes back to its asker and the actor lives on; an exception in a
cast, in `start` or in a task of the actor ends the incarnation, and its supervisor decides. A cast that its receiver refuses
(`InvalidRequest`, `ProtocolError`), or does not know, is counted and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import msgspec
import structlog

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.swap import Snapshot
from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.errors import ProtocolError, SwapFailed

M = TypeVar("M", bound=Message)


class MailboxSpec(msgspec.Struct, frozen=True):
    """How much an actor's mailbox holds per lane and what happens when the data lane is full.

    ``reject``: the sender of a call or stream gets `Overloaded`, a cast becomes a dead letter (counted).
    ``block``: who uses `Context.send` waits until its message has a place; calls, streams and casts are treated as by ``reject``.
    ``latest``: the oldest message of the same type from the same sender gives way.
    """

    capacity: int = 1024
    overflow: Literal["reject", "block", "latest"] = "reject"


class Request(Protocol):
    """One message as its receiver sees it, and the way to answer it.

    A handler that returns a Message answers a call at once. A handler that returns None keeps the request and
    answers it later from anywhere in the actor, exactly once (`reply`, `fail`; for streams `item`* then `end` or `fail`).
    """

    sender: Address
    kind: Literal["cast", "call", "stream"]
    trace: str
    cancelled: bool

    @property
    def remaining(self) -> float | None:
        """Seconds until the asker's deadline, None without one."""

    @property
    def credit(self) -> int:
        """Items that the consumer of this stream is ready to take now."""

    def reply(self, message: Message) -> None:
        """Answer a call. A second answer is ignored and counted."""

    def fail(self, error: BaseException) -> None:
        """End a call or stream with an error."""

    def item(self, message: Message) -> bool:
        """Send one item of a stream and use one credit; False (and nothing sent) without credit."""

    def end(self, message: Message | None = None) -> None:
        """End a stream; `message` is a last item that needs no credit."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call back once if the asker cancels, dies, or the deadline passes."""

    def on_credit(self, callback: Callable[[], None]) -> None:
        """Call back whenever the consumer grants more credit (to flush what waited)."""


class Context(Protocol):
    """An actor's (or an outside client's) window on the kernel."""

    address: Address
    config: Mapping[str, Any]
    log: structlog.stdlib.BoundLogger

    def now(self) -> float:
        """Monotonic seconds."""

    def is_up(self, name: str) -> bool:
        """Whether some incarnation holds `name` now."""

    def peer(self, name: str) -> str:
        """What `name` is called for this actor: with the suffix of its own name, for an actor of a node's second model (``scheduler@b``, ``cache@b``)."""

    def cast(self, to: str | Address, message: Message, *, control: bool = False, trace: str = "") -> None:
        """Send without an answer; never waits.

        A name nobody holds or a dead epoch makes it a dead letter. Raises `Overloaded` when the way there is full.
        """

    async def send(
        self, to: str | Address, message: Message, *, timeout: float = 30.0, trace: str = ""
    ) -> None:
        """`cast` that returns when the message has its place in the mailbox, wherever that is.

        Raises `Overloaded` if it is full (unless it blocks), `DeadlineExceeded` after `timeout` seconds, `ActorDown`.
        """

    async def call(
        self,
        to: str | Address,
        message: Message,
        expect: type[M],
        *,
        timeout: float = 30.0,
        control: bool = False,
        trace: str = "",
    ) -> M:
        """Ask and wait for the answer, of type `expect`.

        Raises what the receiver raised, `ActorDown`, `DeadlineExceeded`, `Overloaded`, or `ProtocolError` for an answer of another type.
        """

    def stream(
        self,
        to: str | Address,
        message: Message,
        *,
        timeout: float = 600.0,
        credit: int = 64,
        trace: str = "",
    ) -> AsyncIterator[Message]:
        """Ask for many items. The iterator raises as `call` does; closing it early (`aclose`) cancels at the source."""

    def monitor(self, address: Address) -> None:
        """Have `Down` delivered once when that incarnation ends (at once if it is over already)."""

    def watch(self, pattern: str) -> None:
        """Have `Up` and `Down` delivered for every name matching ``"worker/*"`` or ``"cache"``, beginning with those that are up."""

    def spawn(self, actor: type[Actor], name: str, config: Mapping[str, Any] | None = None) -> Address:
        """Start a child in this process, monitored; it ends with its parent. Returns before its `start` has run.

        Mail sent to it meanwhile waits in its mailbox.
        """

    def stop(self, address: Address, reason: str = "stopped") -> None:
        """End a child of this actor (its `stop` runs)."""

    def task(self, coroutine: Coroutine[Any, Any, None], *, name: str = "") -> asyncio.Task[None]:
        """Run beside the message loop in the actor's task group; cancelled with the actor; an exception ends the incarnation."""

    def after(self, seconds: float, message: Message) -> Callable[[], None]:
        """Deliver `message` to this actor's control lane later. Returns the function that cancels it."""


class Actor:
    """Base class. Override `start`, `receive`, `stop`, `statistics`; and for a swap in place `settle`, `snapshot`, `restore`, `resume`, `leave` (see `swap`)."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec()

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.log = context.log

    async def start(self) -> None:
        """Get ready; the name is announced as up when this returns. Has the `starting` deadline."""

    async def receive(self, message: Message, request: Request) -> Message | None:  # noqa: ARG002 - for those that override it
        """Handle one message; see `Request` for answering."""
        raise ProtocolError(f"{type(self).__name__} does not take {type(message).__name__}")

    async def stop(self) -> None:
        """Let go of what the incarnation holds. Runs once, also after a crash of `receive`."""

    def statistics(self) -> dict[str, float]:
        """Counters and gauges, collected once a second; names as in the metrics page, without prefix."""
        return {}

    async def settle(self) -> None:
        """Come to rest before a swap: begin nothing new and return when nothing is under way. Messages still come and have to be kept."""

    def snapshot(self) -> Snapshot:
        """All that a successor needs, once `settle` has returned. Only looks: if the swap fails, this actor goes on."""
        raise SwapFailed(f"{type(self).__name__} cannot be swapped in place")

    async def restore(self, snapshot: Snapshot) -> None:  # noqa: ARG002 - for those that override it
        """Take the place of the actor that `snapshot` is of, instead of `start`. Has the `starting` deadline.

        It may refuse by any exception; until it returns, what the handles refer to is still the predecessor's.
        """
        raise SwapFailed(f"{type(self).__name__} cannot take over a running actor")

    def resume(self) -> None:
        """The swap has come to nothing: undo `settle`."""

    async def leave(self) -> None:
        """A successor has taken over: cancel own tasks, and close nothing that was handed to it. `stop` is not called."""
