"""One running incarnation of an actor: its mailbox, its task group, and its `Context`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from sgl_actors.actors.microkernel.actor import Actor
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.control import Pulse
from sgl_actors.actors.microkernel.exchange import Incoming
from sgl_actors.actors.microkernel.mailbox import Mailbox, Put
from sgl_actors.actors.microkernel.once import Once
from sgl_actors.actors.microkernel.swap import swap
from sgl_actors.actors.microkernel.wire import VERSION, Down, Envelope, Kind, Message
from sgl_actors.errors import (
    CheckpointError,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ProtocolError,
    SglActorsError,
    SwapFailed,
)

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.system import System

STOP_TIMEOUT = 5.0
"""Seconds an actor's `stop` may take."""

M = TypeVar("M", bound=Message)


class Exit:
    """How an incarnation ended. `normal`: it was told to. `fatal`: a restart cannot help."""

    def __init__(self, reason: str, *, normal: bool = False, fatal: bool = False) -> None:
        self.reason, self.normal, self.fatal = reason, normal, fatal


class Cell:
    """Runs one actor: `start`, then one message at a time, then `stop`."""

    def __init__(
        self,
        system: System,
        address: Address,
        actor: type[Actor],
        config: Mapping[str, Any],
        *,
        parent: Cell | None = None,
        start_timeout: float = 60.0,
        on_ready: Callable[[Address], None] | None = None,
        on_exit: Callable[[Address, Exit], None] | None = None,
    ) -> None:
        self.system = system
        self.address = address
        self.config = config
        self.parent = parent
        self.children: dict[Address, Cell] = {}
        self.mailbox: Mailbox[Incoming] = Mailbox(actor.mailbox, system.accepted)
        self.state = "starting"
        self.progress = 0
        self.busy_since = 0.0
        self.watches: list[str] = []
        self.requests: set[Incoming] = set()
        self.ready, self.ended = Once(), Once()
        self.log: structlog.stdlib.BoundLogger = system.logger(address)
        self.exit = Exit("never ran")
        self.context = CellContext(self)
        self._actor_class = actor
        self.actor: Actor | None = None
        self._start_timeout = start_timeout
        self._on_ready, self._on_exit = on_ready, on_exit
        self._task: asyncio.Task[None] | None = None
        self._stop_reason = ""
        self.group: asyncio.TaskGroup | None = None
        self.turn = asyncio.Lock()
        self.swapping = False

    def __repr__(self) -> str:
        return f"<Cell {self.address} {self.state} mailbox={len(self.mailbox)}>"

    def pulse(self) -> Pulse:
        """Sign of life; an actor whose `statistics` raises reports none."""
        statistics: dict[str, float] = {}
        if self.actor is not None:
            try:
                statistics = {name: float(value) for name, value in self.actor.statistics().items()}
            except Exception as error:  # noqa: BLE001 - an author's counters must not end the kernel's answer
                self.log.warning("statistics failed", error=repr(error))
        busy = self.system.now() - self.busy_since if self.busy_since else 0.0
        return Pulse(
            self.address.name,
            self.address.epoch,
            self.state,
            self.progress,
            len(self.mailbox),
            busy,
            statistics,
        )

    async def run(self) -> None:
        """Live and end. Never raises, except for the cancellation of the whole kernel."""
        self._task = asyncio.current_task()
        if self._stop_reason:
            self.exit = Exit(self._stop_reason, normal=True)
        else:
            try:
                await self._live()
            except asyncio.CancelledError:
                self.exit = Exit(self._stop_reason or "cancelled", normal=True)
            except BaseExceptionGroup as group:
                self.exit = self._diagnose(group)
        self.state = "stopping"
        if self.actor is not None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self.actor.stop()
            except asyncio.CancelledError:
                self.log.warning("stop was interrupted")
            except Exception:
                self.log.exception("stop failed")
        await self._let_go()

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as self.group:
            self.actor = self._actor_class(self.context)
            try:
                async with asyncio.timeout(self._start_timeout):
                    await self.actor.start()
            except TimeoutError:
                raise DeadlineExceeded(f"{self.address} was not ready in {self._start_timeout:g} s") from None
            self.state = "running"
            self.ready.set()
            if self._on_ready is not None:
                self._on_ready(self.address)
            while True:
                request = await self.mailbox.get()
                async with self.turn:
                    await self._handle(request)

    async def _handle(self, request: Incoming) -> None:
        if request.cancelled:
            return
        assert self.actor is not None
        self.busy_since = self.system.now()
        try:
            answer = await self.actor.receive(request.message, request)
        except Exception as error:
            if request.kind == "cast":
                if not isinstance(error, InvalidRequest | ProtocolError):
                    raise
                self.system.counters["refused_casts"] += 1
                self.log.warning(
                    "cast refused", message=type(request.message).__name__, error=repr(error)[:200]
                )
            elif request.answered:
                self.log.exception(
                    "failed after its answer", message=type(request.message).__name__, trace=request.trace
                )
            else:
                asked_again = isinstance(error, SglActorsError) and error.retryable
                (self.log.debug if asked_again else self.log.info)(
                    "request failed",
                    message=type(request.message).__name__,
                    error=repr(error)[:500],
                    trace=request.trace,
                )
                request.fail(error)
        else:
            if answer is not None and request.kind == "call":
                request.reply(answer)
        finally:
            for recorder in self.system.recorders:
                recorder.note(self.address.name, request.message.TAG, self.busy_since, self.system.now())
            self.busy_since = 0.0
            self.progress += 1

    def _diagnose(self, group: BaseExceptionGroup[BaseException]) -> Exit:
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        fatal = isinstance(cause, ConfigError | CheckpointError)
        if fatal:
            self.log.error("cannot run", error=str(cause))
            return Exit(str(cause), fatal=True)
        self.log.error("crashed", exc_info=cause)
        return Exit(f"{type(cause).__name__}: {cause}")

    async def _let_go(self) -> None:
        for child in list(self.children.values()):
            child.stop("parent ended")
        with suppress(
            asyncio.CancelledError
        ):  # the whole kernel ends, the children with it; who waits for this cell must hear of it
            for child in list(self.children.values()):
                await child.ended.wait()
        self.state = "dead"
        self.system.forget(self, self.exit.reason)
        self.ready.set()
        self.ended.set()
        if self.parent is not None:
            self.parent.children.pop(self.address, None)
            self.parent.tell(Down(self.address, self.exit.reason))
        if self._on_exit is not None:
            self._on_exit(self.address, self.exit)

    async def swap(self, actor: type[Actor], config: Mapping[str, Any], timeout: float) -> float:
        """See `swap.swap`. Ends with the incarnation."""
        if self.group is None or self.state != "running" or self._stop_reason:
            raise SwapFailed(f"{self.address} is {self.state}, not running")
        outcome: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                held = await swap(self, actor, config, timeout)
            except asyncio.CancelledError:
                if not outcome.done():
                    outcome.set_exception(SwapFailed(f"{self.address} has ended meanwhile"))
                raise
            except Exception as error:  # noqa: BLE001 - it is the asker's; the actor goes on
                if not outcome.done():
                    outcome.set_exception(error)
            else:
                if not outcome.done():
                    outcome.set_result(held)

        self.group.create_task(run(), name=f"{self.address} swap")
        return await outcome

    def new_context(self, config: Mapping[str, Any]) -> CellContext:
        """A context for an actor that is to take over here."""
        return CellContext(self, config)

    def succeed(self, actor: Actor, context: CellContext, config: Mapping[str, Any]) -> None:
        """Another actor handles the messages from here on."""
        self.context.silence()
        self.actor, self.context, self.config = actor, context, config
        self._actor_class = type(actor)
        self.mailbox.spec = actor.mailbox
        context.established()

    @property
    def actor_class(self) -> type[Actor]:
        """Class of the actor that runs here."""
        return self._actor_class

    def stop(self, reason: str) -> None:
        """End the incarnation; `ended` is set when that is done."""
        if self._stop_reason or self.state in ("stopping", "dead"):
            return
        self._stop_reason = reason
        if self._task is not None:
            self._task.cancel()

    def tell(self, message: Message) -> None:
        """Put a kernel event on the control lane."""
        if self.state in ("starting", "running"):
            envelope = Envelope(VERSION, Kind.CAST, 0, self.address, self.address, message.TAG, control=True)
            if self.mailbox.put(Incoming(self.system, self, envelope, message), control=True) is Put.FULL:
                self.log.error("control lane is full, event lost", message=type(message).__name__)


class CellContext:
    """`Context` of the author's side; see there. With a `config` of its own it is that of an actor on trial: its tasks and timers end if it fails."""

    def __init__(self, cell: Cell, config: Mapping[str, Any] | None = None) -> None:
        self._cell = cell
        self._system = cell.system
        self.address = cell.address
        self.config = cell.config if config is None else config
        self.log = cell.log
        self._silent = False
        self._trial: list[asyncio.Task[None]] | None = None if config is None else []
        self._failure: Exception | None = None

    def silence(self) -> None:
        """Its timers bring nothing any more."""
        self._silent = True

    def established(self) -> None:
        """Its actor is in charge."""
        self._trial = None

    def check(self) -> None:
        """Raise what ended one of the tasks of an actor on trial."""
        if self._failure is not None:
            raise self._failure

    def discard(self) -> None:
        """Its actor has failed to take over: what it began ends."""
        self.silence()
        for task in self._trial or ():
            task.cancel()

    def now(self) -> float:
        """See `Context.now`."""
        return self._system.now()

    def is_up(self, name: str) -> bool:
        """See `Context.is_up`."""
        return name in self._system.cells or name in self._system.names

    def peer(self, name: str) -> str:
        """See `Context.peer`."""
        _, mark, suffix = self.address.name.partition("@")
        return f"{name}{mark}{suffix}"

    def cast(self, to: str | Address, message: Message, *, control: bool = False, trace: str = "") -> None:
        """See `Context.cast`."""
        self._system.cast(self._cell, to, message, control=control, trace=trace)

    async def send(
        self, to: str | Address, message: Message, *, timeout: float = 30.0, trace: str = ""
    ) -> None:
        """See `Context.send`."""
        await self._system.send(self._cell, to, message, timeout=timeout, trace=trace)

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
        """See `Context.call`."""
        return await self._system.call(
            self._cell, to, message, expect, timeout=timeout, control=control, trace=trace
        )

    def stream(
        self,
        to: str | Address,
        message: Message,
        *,
        timeout: float = 600.0,
        credit: int = 64,
        trace: str = "",
    ) -> AsyncIterator[Message]:
        """See `Context.stream`."""
        return self._system.stream(self._cell, to, message, timeout=timeout, credit=credit, trace=trace)

    def monitor(self, address: Address) -> None:
        """See `Context.monitor`."""
        self._system.monitor(self._cell, address)

    def watch(self, pattern: str) -> None:
        """See `Context.watch`."""
        self._system.watch(self._cell, pattern)

    def spawn(self, actor: type[Actor], name: str, config: Mapping[str, Any] | None = None) -> Address:
        """See `Context.spawn`."""
        merged = self.config if config is None else {**self.config, **config}
        return self._system.spawn(actor, name, merged, parent=self._cell).address

    def stop(self, address: Address, reason: str = "stopped") -> None:
        """See `Context.stop`."""
        child = self._cell.children.get(address)
        if child is not None:
            child.stop(reason)

    def task(self, coroutine: Coroutine[Any, Any, None], *, name: str = "") -> asyncio.Task[None]:
        """See `Context.task`."""
        assert self._cell.group is not None
        tried = coroutine if self._trial is None else self._try(coroutine)
        task = self._cell.group.create_task(tried, name=name or f"{self.address} task")
        if self._trial is not None:
            self._trial.append(task)
            task.add_done_callback(lambda _: coroutine.close())  # of one that was cancelled before it began
        return task

    async def _try(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """A task of an actor on trial: while it is, an error is the swap's end, and not the incarnation's."""
        try:
            await coroutine
        except Exception as error:
            if self._trial is None:
                raise
            self._failure = self._failure or error

    def after(self, seconds: float, message: Message) -> Callable[[], None]:
        """See `Context.after`."""
        return asyncio.get_running_loop().call_later(seconds, self._tell, message).cancel

    def _tell(self, message: Message) -> None:
        if not self._silent:
            self._cell.tell(message)
