"""The kernel of one process: hosts cells, routes messages, and keeps its copy of the registry.

Routing rules. A message to this endpoint takes no socket (and no codec, unless `force_codec`). A name resolves to a local cell first, then to
the incarnation that the root announced as up. A message to or from an incarnation that is over is a dead letter; a call gets `ActorDown`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec
import structlog

from sgl_actors.actors.microkernel.actor import Actor, Request
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.cell import Cell, Exit
from sgl_actors.actors.microkernel.control import KERNEL, Accepted, Hello, NameDown, NameUp, PeerDown, PeerUp
from sgl_actors.actors.microkernel.exchange import Incoming, Pending, PendingCall, PendingStream
from sgl_actors.actors.microkernel.mailbox import Put
from sgl_actors.actors.microkernel.record import Recorder
from sgl_actors.actors.microkernel.registry import Registry
from sgl_actors.actors.microkernel.transport import Frames, Transport
from sgl_actors.actors.microkernel.wire import (
    VERSION,
    Down,
    Envelope,
    Fault,
    Kind,
    Message,
    Up,
    decode_envelope,
    decode_message,
    encode,
)
from sgl_actors.errors import ActorDown, InvalidRequest, NodeGone, Overloaded, ProtocolError, SglActorsError

M = TypeVar("M", bound=Message)
_QUESTIONS = (Kind.CALL, Kind.STREAM, Kind.SEND)
_ANSWERS = (Kind.REPLY, Kind.ITEM, Kind.END, Kind.FAULT)

LoggerFactory = Callable[[Address], structlog.stdlib.BoundLogger]

TOMBSTONES = 4096
"""Cancels for ids that have not arrived are remembered up to this many."""

OPEN = 65536
"""Questions from other actors that are open in this process at most."""

WATCHERS = 4096
"""Actors of other processes that monitor one incarnation at most."""


class Outside(Actor):
    """Stands in for code that is no actor (a user's program, the CLI) and only asks."""

    async def receive(self, message: Message, request: Request) -> None:
        """Kernel events are of no use to it."""


class System:
    """See the module. Open it, spawn, close it; all within one event loop.

    Attributes:
        now: monotonic seconds; `clock`, as it was given.
    """

    def __init__(
        self,
        process: str,
        transport: Transport,
        *,
        config: Mapping[str, Any] | None = None,
        logger: LoggerFactory | None = None,
        force_codec: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.process = process
        self.transport = transport
        self.endpoint = transport.endpoint
        self.config: Mapping[str, Any] = config or {}
        self.counters: Counter[str] = Counter()
        self.registry = Registry()
        self.cells: dict[str, Cell] = {}
        self.logger = logger or (
            lambda address: structlog.get_logger(actor=address.name, epoch=address.epoch)
        )
        self.now = clock
        self.on_lost: Callable[[str], None] | None = None
        self.recorders: tuple[Recorder, ...] = ()
        self._force_codec = force_codec
        self._ids = itertools.count(secrets.randbits(40) << 16)
        self._epochs = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._incoming: dict[tuple[str, int], Incoming] = {}
        self._monitors: dict[Address, set[Address]] = {}
        self._tombstones: dict[tuple[str, int], None] = {}
        self._main: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()

    # -- life ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to send and receive."""
        opened = asyncio.Event()

        async def live() -> None:
            async with asyncio.TaskGroup() as self._group:
                opened.set()
                await self._closing.wait()

        self._main = asyncio.get_running_loop().create_task(live(), name=f"kernel {self.process}")
        await opened.wait()
        self.transport.open(self.deliver, self.lost)

    async def close(self) -> None:
        """Stop all cells, the youngest first, then the transport."""
        for cell in reversed(list(self.cells.values())):
            cell.stop("kernel closes")
            await cell.ended.wait()
        self._closing.set()
        if self._main is not None:
            await asyncio.wait([self._main])
        for pending in list(self._pending.values()):
            pending.fail(ActorDown("this kernel has closed"))
        self.transport.close()

    def spawn(
        self,
        actor: type[Actor],
        name: str,
        config: Mapping[str, Any] | None = None,
        *,
        epoch: int = 0,
        parent: Cell | None = None,
        start_timeout: float = 60.0,
        on_ready: Callable[[Address], None] | None = None,
        on_exit: Callable[[Address, Exit], None] | None = None,
    ) -> Cell:
        """Start an actor in this process. `InvalidRequest` if a cell of that name lives here."""
        if name in self.cells:
            raise InvalidRequest(f"{name!r} is running in this process already")
        if self._group is None or self._closing.is_set():
            raise ActorDown("this kernel is not open")
        address = Address(name, epoch or next(self._epochs), self.endpoint)
        cell = Cell(
            self,
            address,
            actor,
            self.config if config is None else config,
            parent=parent,
            start_timeout=start_timeout,
            on_ready=on_ready,
            on_exit=on_exit,
        )
        self.cells[name] = cell
        if parent is not None:
            parent.children[address] = cell
        task = self._group.create_task(cell.run(), name=str(address))
        task.add_done_callback(cell.ended.set)  # also of one that was cancelled before it began
        return cell

    def forget(self, cell: Cell, reason: str) -> None:
        """A cell has ended: fail who waits for it, cancel what it asked for, tell who monitors it."""
        if self.cells.get(cell.address.name) is cell:
            del self.cells[cell.address.name]
        down = ActorDown(f"{cell.address} has ended: {reason}")
        for request in list(cell.requests):
            request.fail(down)
        cell.mailbox.drain()
        for id_, pending in [(i, p) for i, p in self._pending.items() if p.owner is cell]:
            pending.fail(down)
            self._drop_pending(id_, cancel=True)
        self.address_down(cell.address, reason)

    # -- registry -----------------------------------------------------------------------------------------

    @property
    def names(self) -> Mapping[str, Address]:
        """Who holds which name."""
        return self.registry.names

    def name_up(self, address: Address) -> None:
        """The root announces an incarnation as the holder of its name."""
        old = self.names.get(address.name)
        if not self.registry.up(address):
            return
        if old is not None:
            self.address_down(old, "replaced")
        self._tell_watchers(address.name, Up(address))

    def name_down(self, address: Address, reason: str) -> None:
        """The root announces that an incarnation has ended."""
        if self.registry.down(address):
            self._tell_watchers(address.name, Down(address, reason))
        self.address_down(address, reason)

    def address_down(self, address: Address, reason: str) -> None:
        """Fail what waits for that incarnation and tell its monitors."""
        self._fail_pending(lambda to: to == address, ActorDown(f"{address} has ended: {reason}"))
        for watcher in self._monitors.pop(address, ()):
            self._tell_down(watcher, address, reason)

    def _tell_down(self, watcher: Address, address: Address, reason: str) -> None:
        cell = self._cell(watcher) if watcher.endpoint == self.endpoint else None
        if cell is not None:
            cell.tell(Down(address, reason))
        elif watcher.endpoint != self.endpoint:
            envelope = Envelope(VERSION, Kind.DOWN, 0, watcher, address, Down.TAG)
            self._send(envelope, Down(address, reason), reserved=True)

    def _fail_pending(self, concerned: Callable[[Address], bool], error: SglActorsError) -> None:
        for id_, pending in [(i, p) for i, p in self._pending.items() if concerned(p.to)]:
            pending.fail(error)
            self._drop_pending(id_)

    def interrupt(self, error: SglActorsError) -> None:
        """The way to all others broke off for a while: who waits for an answer gets `error`, and may ask again."""
        self._fail_pending(lambda to: to.endpoint != self.endpoint, error)

    def peer_down(self, endpoint: str, error: SglActorsError | None = None) -> None:
        """A process is gone with all that was in it."""
        for address in self.registry.forget_process(endpoint):
            self.name_down(address, "process gone")
        for address in [a for a in self._monitors if a.endpoint == endpoint]:
            self.address_down(address, "process gone")
        for watchers in self._monitors.values():
            watchers -= {watcher for watcher in watchers if watcher.endpoint == endpoint}
        self._fail_pending(
            lambda to: to.endpoint == endpoint, error or ActorDown(f"the process at {endpoint} is gone")
        )
        for key, request in [(k, r) for k, r in self._incoming.items() if k[0] == endpoint]:
            self._incoming.pop(key, None)
            request.cell.requests.discard(request)
            request.cancel()
        self.transport.drop(endpoint)

    def node_down(self) -> None:
        """The root is gone, and with it every process of its node: nothing that is asked for will be answered."""
        self.registry.node_gone = True
        self._fail_pending(lambda to: to.endpoint != self.endpoint, NodeGone("the node has ended"))
        for endpoint in {address.endpoint for address in self.names.values()} - {self.endpoint}:
            self.peer_down(endpoint)

    def lost(self, endpoint: str) -> None:
        """A watched connection broke off."""
        if self.on_lost is not None:
            self.on_lost(endpoint)

    def watch(self, cell: Cell, pattern: str) -> None:
        """See `Context.watch`."""
        if pattern not in cell.watches:
            cell.watches.append(pattern)
        for name, address in self.names.items():
            if fnmatchcase(name, pattern):
                cell.tell(Up(address))

    def _tell_watchers(self, name: str, message: Message) -> None:
        for cell in list(self.cells.values()):
            if any(fnmatchcase(name, pattern) for pattern in cell.watches):
                cell.tell(message)

    def monitor(self, cell: Cell, address: Address) -> None:
        """See `Context.monitor`."""
        here = address.endpoint == self.endpoint
        if self.registry.is_over(address) or (here and self._cell(address) is None):
            cell.tell(Down(address, "no such incarnation"))
            return
        self._monitors.setdefault(address, set()).add(cell.address)
        if not here:
            self._send(Envelope(VERSION, Kind.MONITOR, 0, address, cell.address), None, reserved=True)

    # -- asking -------------------------------------------------------------------------------------------

    def resolve(self, to: str | Address) -> Address:
        """The incarnation meant; `ActorDown` if nobody holds the name or that epoch is over."""
        if isinstance(to, Address):
            if self.registry.is_over(to):
                raise ActorDown(f"{to} has ended")
            return to
        cell = self.cells.get(to)
        return cell.address if cell is not None else self.registry.resolve(to)

    def cast(self, cell: Cell, to: str | Address, message: Message, *, control: bool, trace: str) -> None:
        """See `Context.cast`."""
        try:
            address = self.resolve(to)
        except ActorDown:
            self._dead_letter("unknown receiver", str(to), message.TAG)
            return
        envelope = Envelope(
            VERSION, Kind.CAST, 0, address, cell.address, message.TAG, control=control, trace=trace
        )
        self._send(envelope, message, reserved=control)

    async def send(
        self, cell: Cell, to: str | Address, message: Message, *, timeout: float, trace: str
    ) -> None:
        """See `Context.send`."""
        pending = PendingCall(self.resolve(to), cell, trace)
        id_ = self._ask(Kind.SEND, pending, message, timeout=timeout, control=False)
        try:
            await pending.future
        finally:
            self._drop_pending(id_, cancel=not pending.closed)

    def _ask(
        self,
        kind: Kind,
        pending: Pending,
        message: Message,
        *,
        timeout: float,
        control: bool,
        credit: int = 0,
    ) -> int:
        id_ = next(self._ids)
        self._pending[id_] = pending
        envelope = Envelope(
            VERSION,
            kind,
            id_,
            pending.to,
            pending.owner.address,
            message.TAG,
            control,
            timeout,
            pending.trace,
            credit,
        )
        pending.timer = asyncio.get_running_loop().call_later(timeout, pending.expire)
        try:
            self._send(envelope, message, reserved=control)
        except BaseException:
            self._drop_pending(id_)
            raise
        return id_

    def _drop_pending(self, id_: int, *, cancel: bool = False) -> None:
        pending = self._pending.pop(id_, None)
        if pending is None:
            return
        pending.finish()
        if cancel:
            envelope = Envelope(VERSION, Kind.CANCEL, id_, pending.to, pending.owner.address)
            self._send(envelope, None, reserved=True)

    async def call(
        self,
        cell: Cell,
        to: str | Address,
        message: Message,
        expect: type[M],
        *,
        timeout: float,
        control: bool,
        trace: str,
    ) -> M:
        """See `Context.call`."""
        pending = PendingCall(self.resolve(to), cell, trace)
        id_ = self._ask(Kind.CALL, pending, message, timeout=timeout, control=control)
        try:
            answer = await pending.future
        finally:
            self._drop_pending(id_, cancel=not pending.closed)
        if not isinstance(answer, expect):
            raise ProtocolError(
                f"{pending.to} answered {message.TAG} with {answer.TAG}, expected {expect.TAG}"
            )
        return answer

    async def stream(
        self, cell: Cell, to: str | Address, message: Message, *, timeout: float, credit: int, trace: str
    ) -> AsyncIterator[Message]:
        """See `Context.stream`."""
        pending = PendingStream(self.resolve(to), cell, trace, credit)
        id_ = self._ask(Kind.STREAM, pending, message, timeout=timeout, control=False, credit=credit)
        used = 0
        try:
            while (item := await pending.get()) is not None:
                yield item
                used += 1
                if used * 2 >= credit and not pending.ended:
                    envelope = Envelope(VERSION, Kind.CREDIT, id_, pending.to, cell.address, credit=used)
                    self._send(envelope, None, reserved=True)
                    used = 0
        finally:
            self._drop_pending(id_, cancel=not pending.closed)

    # -- answering ----------------------------------------------------------------------------------------

    def answer(self, request: Incoming, kind: Kind, message: Message | None) -> None:
        """See `exchange.Port`."""
        envelope = Envelope(
            VERSION,
            kind,
            request.envelope.id,
            request.sender,
            request.cell.address,
            "" if message is None else message.TAG,
        )
        if kind != Kind.ITEM:
            self._incoming.pop((request.sender.endpoint, request.envelope.id), None)
            request.cell.requests.discard(request)
        self._send(envelope, message, reserved=True)

    # -- transport ----------------------------------------------------------------------------------------

    def _send(self, envelope: Envelope, message: Message | None, *, reserved: bool) -> None:
        if envelope.to.endpoint == self.endpoint or not envelope.to.endpoint:
            if self._force_codec:
                first, second = encode(envelope, message)
                self.deliver([first, second])
            else:
                self.route(envelope, message)
            return
        first, second = encode(envelope, message)
        if envelope.to.endpoint in self.registry.gone:
            if envelope.kind in _QUESTIONS:
                raise ActorDown(f"the process of {envelope.to} is gone")
            self._dead_letter("process gone", str(envelope.to), envelope.tag)
            return
        try:
            self.transport.send(envelope.to.endpoint, first, second, reserved=reserved)
        except SglActorsError as error:
            if envelope.kind in (Kind.CAST, *_QUESTIONS):
                raise
            self._dead_letter(error.code, str(envelope.to), envelope.tag)
            if envelope.kind in (Kind.REPLY, Kind.ITEM, Kind.END) and not isinstance(error, Overloaded):
                fault = msgspec.structs.replace(envelope, kind=Kind.FAULT, tag=Fault.TAG)
                self._send(fault, Fault.of(error), reserved=True)

    def deliver(self, frames: Frames) -> int:
        """Take frames from the transport. What cannot be decoded is counted and dropped; returns how much that was."""
        before = self.counters["protocol_errors"]
        for index in range(0, len(frames) - 1, 2):
            try:
                envelope = decode_envelope(frames[index])
            except ProtocolError as error:
                self._bad_frame(error)
                continue
            try:
                message = decode_message(envelope.tag, frames[index + 1]) if envelope.tag else None
            except ProtocolError as error:
                self._bad_frame(error)
                self._refuse(envelope, error)
                if envelope.kind in _ANSWERS and (pending := self._pending.get(envelope.id)) is not None:
                    pending.fail(error)
                continue
            try:
                self.route(envelope, message)
            except Exception as error:  # noqa: BLE001 - whatever a peer sends, the pump goes on
                self._bad_frame(error)
        return self.counters["protocol_errors"] - before

    def _bad_frame(self, error: Exception) -> None:
        self.counters["protocol_errors"] += 1
        if self.counters["protocol_errors"] <= 10:
            self.logger(Address(KERNEL, 0, self.endpoint)).warning(
                "bad frame", process=self.process, error=repr(error)[:300]
            )

    def _dead_letter(self, why: str, to: str, tag: str) -> None:
        self.counters["dead_letters"] += 1
        self.logger(Address(KERNEL, 0, self.endpoint)).debug(
            "dead letter", process=self.process, why=why, to=to, tag=tag
        )

    def route(self, envelope: Envelope, message: Message | None) -> None:
        """Hand a decoded message to whom it concerns."""
        kind = envelope.kind
        if kind == Kind.CAST or kind in _QUESTIONS:
            if message is None:
                raise ProtocolError("no payload")
            if envelope.to.name != KERNEL or not self._hear(message):
                self._route_request(envelope, message)
        elif kind in _ANSWERS:
            pending = self._pending.get(envelope.id)
            if pending is None or pending.to.endpoint != envelope.frm.endpoint:
                self.counters["late_answers"] += 1
            else:
                pending.take(kind, message)
        elif kind == Kind.CANCEL:
            request = self._incoming.pop((envelope.frm.endpoint, envelope.id), None)
            if request is None:
                self._tombstones[(envelope.frm.endpoint, envelope.id)] = None
                if len(self._tombstones) > TOMBSTONES:
                    self._tombstones.pop(next(iter(self._tombstones)))
            else:
                request.cell.requests.discard(request)
                request.cancel()
        elif kind == Kind.CREDIT:
            request = self._incoming.get((envelope.frm.endpoint, envelope.id))
            if request is not None and 0 < envelope.credit < 1 << 20:
                request.grant(envelope.credit)
        elif kind == Kind.MONITOR:
            if self._cell(envelope.to) is None:
                down = Down(envelope.to, "no such incarnation")
                self._send(
                    Envelope(VERSION, Kind.DOWN, 0, envelope.frm, envelope.to, Down.TAG), down, reserved=True
                )
            elif len(self._monitors.get(envelope.to, ())) >= WATCHERS:
                raise ProtocolError(f"more than {WATCHERS} monitor {envelope.to}")
            else:
                self._monitors.setdefault(envelope.to, set()).add(envelope.frm)
        elif kind == Kind.DOWN and isinstance(message, Down):
            if message.address.endpoint != envelope.frm.endpoint:
                raise ProtocolError("tells the end of an incarnation that is not its own")
            self.address_down(message.address, message.reason)
        else:
            raise ProtocolError(f"kind {kind}")

    def _hear(self, message: Message) -> bool:
        """Take news of the registry at once, before whatever the same peer sends next; False if it is none."""
        match message:
            case NameUp():
                self.name_up(message.address)
            case NameDown():
                self.name_down(message.address, message.reason)
            case PeerDown():
                self.peer_down(message.endpoint)
            case PeerUp():
                self.registry.back(message.endpoint)
            case _:
                return False
        return True

    def _cell(self, address: Address) -> Cell | None:
        cell = self.cells.get(address.name)
        if cell is None or (address.epoch and cell.address.epoch != address.epoch):
            return None
        return cell

    def _route_request(self, envelope: Envelope, message: Message) -> None:
        returns = isinstance(message, Hello) and message.client  # it was taken for gone
        if self.registry.is_over(envelope.frm) and not returns:
            self._dead_letter("sender's epoch is over", str(envelope.frm), envelope.tag)
            self._tell_gone(envelope)
            return
        cell = self._cell(envelope.to)
        if cell is None or cell.state in ("stopping", "dead"):
            self._dead_letter("no such incarnation", str(envelope.to), envelope.tag)
            self._refuse(envelope, ActorDown(f"{envelope.to} is not running"))
            return
        key = (envelope.frm.endpoint, envelope.id)
        if envelope.kind != Kind.CAST and key in self._tombstones:
            del self._tombstones[key]
            return
        if envelope.kind in (Kind.CALL, Kind.STREAM) and key in self._incoming:
            self.counters["doubled"] += 1
            return
        if len(self._incoming) >= OPEN:
            self._refuse(envelope, Overloaded(f"{OPEN} questions are open in this process"))
            return
        request = Incoming(self, cell, envelope, message)
        sends = envelope.kind == Kind.SEND
        put = cell.mailbox.put(request, control=envelope.control, waits=sends)
        if put is Put.FULL:
            self._dead_letter("mailbox full", str(envelope.to), envelope.tag)
            full = f"mailbox of {cell.address} is full ({cell.mailbox.spec.capacity} messages)"
            self._refuse(envelope, Overloaded(full))
        elif envelope.kind in (Kind.CALL, Kind.STREAM):
            self._incoming[key] = request
            cell.requests.add(request)
        elif sends and put is Put.TAKEN:
            self.accepted(request)

    def _tell_gone(self, envelope: Envelope) -> None:
        """Who asks from an endpoint that is taken for gone is there, and about to be let in again: it is to ask once more, not to wait."""
        if envelope.kind in _QUESTIONS and envelope.frm.endpoint in self.registry.gone:
            fault = Fault.of(ActorDown("this client is taken for gone; ask again"))
            answer = Envelope(VERSION, Kind.FAULT, envelope.id, envelope.frm, envelope.to, Fault.TAG)
            with suppress(SglActorsError):
                self.transport.send(envelope.frm.endpoint, *encode(answer, fault), reserved=True)

    def accepted(self, request: Incoming) -> None:
        """A message sent with `Kind.SEND` has its place in the mailbox: tell the sender."""
        self.answer(request, Kind.REPLY, Accepted())

    def _refuse(self, envelope: Envelope, error: Exception) -> None:
        if envelope.kind in _QUESTIONS:
            answer = Envelope(VERSION, Kind.FAULT, envelope.id, envelope.frm, envelope.to, Fault.TAG)
            self._send(answer, Fault.of(error), reserved=True)
