"""The cache actor. It owns the radix tree, the page table, leases and pins; the KV itself lies in the worker.

In: `Reset`, `Grant`, `Commit` and a `Match` that touches from the scheduler, its only writer, which becomes the owner with its
first `Reset`; `Match`, `Flush`, `Inspect`, `Pin`, `Unpin`, `ListPins`, `Subscribe`, `Export` from anyone. Out: answers only.
Until the first `Reset` there are no pages.

When the owner goes down, its leases end: what they had committed stays in the tree, evictable. When the cache itself
crashes, everything is forgotten, pins too; the scheduler sees it go, resets worker and cache under a new epoch and computes
anew what its requests still need.

Another class can take its place while leases are out (`handover`): no page changes hands. What it does not understand or must not do as a cast, it counts, and goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from functools import partial
from uuid import uuid4

import msgspec

from sgl_actors.actors.cache.core import RadixCache, Totals
from sgl_actors.actors.cache.events import EventLog, Subscription
from sgl_actors.actors.cache.export import snapshot
from sgl_actors.actors.cache.handover import LAYOUT, CacheState
from sgl_actors.actors.cache.messages import (
    CheckAccounts,
    Commit,
    ExpirePins,
    Export,
    Exported,
    Flush,
    Grant,
    Granted,
    Inspect,
    ListPins,
    Match,
    Matched,
    Options,
    Pin,
    Pinned,
    Pins,
    Pool,
    Reset,
    Subscribe,
    Unpin,
)
from sgl_actors.actors.cache.pins import PinBoard
from sgl_actors.actors.microkernel import (
    Actor,
    Address,
    Context,
    Down,
    MailboxSpec,
    Message,
    Request,
    Snapshot,
)
from sgl_actors.errors import ConfigError, InvalidRequest, Overloaded, ProtocolError, SglActorsError

CHECK_PERIOD = 30.0
"""Seconds between two looks at the sum of the accounts."""
MOST_PAGES = 1 << 26
"""Pages of a pool at most: the list of the free ones takes 40 bytes for each."""
MOST_READERS = 16
"""Subscriptions at most, and exports at most: each may hold what the tree was when it began."""


class CacheActor(Actor):
    """See the module."""

    mailbox = MailboxSpec(capacity=8192)
    """The scheduler, with one question at a time and one `Commit` per step, has the control lane to itself."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = _options(context)
        self.epoch = 0
        self.core = RadixCache(0, 1, self.options.eviction, PinBoard(self.options.pinned))
        self.log_of_events = EventLog(self.options.events, secrets.randbits(53))
        self._owner: Address | None = None
        self._subscribers: dict[Request, Subscription] = {}
        self._exports: dict[Request, Iterator[Exported]] = {}
        self._idle_checks = 0
        self._cancel_expiry: Callable[[], None] | None = None
        self._cancel_check: Callable[[], None] | None = None
        self._refused = 0
        self._stale = 0
        self._repairs = 0

    async def start(self) -> None:
        """Begin the periodic check."""
        self._await_check()

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        now, readers = self.ctx.now(), self._subscribers
        state = CacheState(
            self.epoch,
            self.core.contents(now),
            self.log_of_events.state,
            self.log_of_events.revision,
            self._owner,
            [subscription.place for subscription in readers.values()],
            self._totals(),
        )
        return Snapshot.of(LAYOUT, state, readers=list(readers), exports=list(self._exports.items()))

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on where another left off."""
        state = snapshot.read(LAYOUT, CacheState)
        board = PinBoard(self.options.pinned)
        self.core = RadixCache.taken(state.contents, self.ctx.now(), self.options.eviction, board)
        self.epoch, self._owner = state.epoch, state.owner
        log = self.log_of_events
        log.follow(self.core.tree, state.revision)
        log.resume(state.events)
        self._count_on(state.counters)
        if self._owner is not None:
            self.ctx.monitor(self._owner)
        self._report_yielded()
        self._await_expiry()
        self._await_check()
        for request, place in zip(snapshot.handles.get("readers", ()), state.readers, strict=False):
            self._read_on(request, Subscription(log, place))
        for request, rows in snapshot.handles.get("exports", ()):
            self._export_on(request, rows)

    async def leave(self) -> None:
        """A successor answers from here on, subscriptions and exports too."""
        self._subscribers.clear()
        self._exports.clear()
        for cancel in (self._cancel_check, self._cancel_expiry):
            if cancel is not None:
                cancel()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Handle one message; see the module."""
        try:
            answer = self._handle(message, request)
        except SglActorsError as error:
            if request.kind != "cast":
                raise
            self._refused += 1
            self.log.debug("message refused", kind=type(message).__name__, why=str(error))
            return None
        for subscriber in list(self._subscribers):
            self._tell(subscriber)
        return answer

    def _handle(self, message: Message, request: Request) -> Message | None:
        match message:
            case Grant():
                return self._grant(message, request.sender)
            case Commit():
                self._commit(message, request.sender)
            case Match():
                return self._match(message, request.sender)
            case Reset():
                return self._reset(message, request.sender)
            case Flush():
                self.core.flush()
                return self._pool()
            case Inspect():
                return self._pool()
            case Pin():
                return self._pin(message)
            case Unpin():
                self.core.pins.unpin(message.namespace, message.names)
                self._await_expiry()
                return Pins(self.core.pins.rows(message.namespace, self.ctx.now()))
            case ListPins():
                return Pins(self.core.pins.rows(message.namespace, self.ctx.now()))
            case ExpirePins():
                self._expire()
            case Subscribe():
                self._subscribe(message, request)
            case Export():
                self._export(message, request)
            case CheckAccounts():
                self._check()
            case Down():
                if message.address == self._owner:
                    self._owner = None
                    self.log.info("owner down", leases=self.core.release_all(), reason=message.reason)
            case _:
                raise ProtocolError(f"the cache does not take {type(message).__name__}")
        return None

    def statistics(self) -> dict[str, float]:
        """Pages by state, and totals since the start."""
        core = self.core
        return {
            "pages": core.total,
            "pages_free": core.free,
            "pages_cached": core.cached,
            "pages_leased": core.leased,
            "pages_locked": core.locked,
            "pages_pinned": core.pins.held,
            "leases": core.leases,
            "pins": core.pins.count,
            "nodes": core.tree.nodes,
            "namespaces": core.tree.namespaces,
            "subscribers": len(self._subscribers),
            "events_total": self.log_of_events.number,
            **{f"{name}_total": count for name, count in self._totals().items()},
        }

    def _totals(self) -> dict[str, int]:
        """What only grows."""
        return {
            **asdict(self.core.counters),
            "yielded_pins": self.core.pins.yielded_total,
            "stale_messages": self._stale,
            "refused_messages": self._refused,
            "repairs": self._repairs,
        }

    def _count_on(self, totals: dict[str, int]) -> None:
        """Begin with the totals of a predecessor; what happened in taking over is added."""
        for field in fields(Totals):
            setattr(self.core.counters, field.name, totals.get(field.name, 0))
        self.core.pins.yielded_total += totals.get("yielded_pins", 0)
        self._stale = totals.get("stale_messages", 0)
        self._refused = totals.get("refused_messages", 0)
        self._repairs = totals.get("repairs", 0)

    # -- the owner ----------------------------------------------------------------------------------------

    def _reset(self, message: Reset, sender: Address) -> Pool:
        if message.pages < 1 or message.page_size < 1:
            raise InvalidRequest(
                f"a pool of {message.pages} pages of {message.page_size} tokens holds nothing"
            )
        if message.pages > MOST_PAGES:
            raise InvalidRequest(f"a pool of {message.pages} pages: more than {MOST_PAGES} are too many")
        counters, pins = self.core.counters, self.core.pins
        self.epoch = message.epoch
        self.core = RadixCache(message.pages, message.page_size, self.options.eviction, pins)
        self.core.counters = counters
        self.log_of_events.follow(self.core.tree, message.revision)
        self._report_yielded()
        if sender != self._owner:
            self._owner = sender
            self.ctx.monitor(sender)
        self.log.info(
            "pool reset", pool_epoch=message.epoch, pages=message.pages, page_size=message.page_size
        )
        return self._pool()

    def _grant(self, message: Grant, sender: Address) -> Granted:
        """Pages for what leads and fits; none for another epoch, whose answer names the one that is."""
        if sender != self._owner:
            self._refused += 1
            raise InvalidRequest(f"{sender} does not own the pool, {self._owner} does")
        if message.epoch != self.epoch:
            self._stale += 1
            return Granted(self.epoch, [])
        leases, more = self.core.serve(message.wants, message.more)
        self._report_yielded()
        return Granted(self.epoch, leases, more)

    def _match(self, message: Match, sender: Address) -> Matched:
        if message.touch and sender != self._owner:
            self._refused += 1
            raise InvalidRequest(
                f"{sender} does not own the pool, {self._owner} does: ask without touch", param="touch"
            )
        return Matched(self.core.match(message.probes, message.touch))

    def _commit(self, message: Commit, sender: Address) -> None:
        if sender != self._owner:
            self._refused += 1
            return
        if message.epoch != self.epoch:
            self._stale += 1
            return
        for entry in message.entries:
            if not self.core.commit(entry):
                self.log.warning("commit refused", lease=entry.lease, bytes=len(entry.key))

    def _check(self) -> None:
        for problem in self.core.check(full=False):
            self._repairs += 1
            self.log.error("accounts wrong", problem=problem)
            self.core.repair()
        self._rest_events()
        self._await_check()

    def _await_check(self) -> None:
        """Have exactly one timer for the next check."""
        if self._cancel_check is not None:
            self._cancel_check()
        self._cancel_check = self.ctx.after(CHECK_PERIOD, CheckAccounts())

    def _pool(self) -> Pool:
        core = self.core
        return Pool(
            epoch=self.epoch,
            total=core.total,
            page_size=core.page_size,
            free=core.free,
            cached=core.cached,
            leased=core.leased,
            locked=core.locked,
            tokens=core.cached * core.page_size,
            leases=core.leases,
            pinned=core.pins.held,
            evicted=core.counters.evicted_pages,
        )

    # -- pins ---------------------------------------------------------------------------------------------

    def _pin(self, message: Pin) -> Pinned:
        wish = message if message.name else msgspec.structs.replace(message, name=uuid4().hex[:12])
        pinned = self.core.pins.pin(wish, self.ctx.now())
        self._await_expiry()
        return pinned

    def _expire(self) -> None:
        for pin in self.core.pins.expire(self.ctx.now()):
            self.log.info("pin expired", pin=pin.name, tenant=pin.namespace.partition("\x1f")[0])
        self._await_expiry()

    def _await_expiry(self) -> None:
        """Have exactly one timer, for the pin that ends next."""
        if self._cancel_expiry is not None:
            self._cancel_expiry()
            self._cancel_expiry = None
        at = self.core.pins.next_expiry()
        if at is not None:
            self._cancel_expiry = self.ctx.after(max(0.0, at - self.ctx.now()), ExpirePins())

    def _report_yielded(self) -> None:
        for pin in self.core.pins.yielded:
            self.log.warning("pin gave way", pin=pin.name, tenant=pin.namespace.partition("\x1f")[0])
        self.core.pins.yielded.clear()

    # -- readers ------------------------------------------------------------------------------------------

    def _subscribe(self, message: Subscribe, request: Request) -> None:
        _require_stream(request, message, len(self._subscribers))
        log = self.log_of_events
        log.start()
        same = message.incarnation in (None, log.incarnation)
        self._read_on(request, Subscription(log, message.since if same else -1))

    def _read_on(self, request: Request, subscription: Subscription) -> None:
        self._subscribers[request] = subscription
        request.on_cancel(partial(self._forget, request))
        request.on_credit(partial(self._tell, request))

    def _tell(self, request: Request) -> None:
        """Send what there is, as far as the reader has given credit."""
        subscription = self._subscribers.get(request)
        while subscription is not None and request.credit > 0 and (events := subscription.next()) is not None:
            request.item(events)

    def _forget(self, request: Request) -> None:
        self._subscribers.pop(request, None)
        self._exports.pop(request, None)

    def _rest_events(self) -> None:
        """Stop recording at the second check without a subscriber: one that comes back sooner can read on."""
        self._idle_checks = 0 if self._subscribers else self._idle_checks + 1
        if self._idle_checks > 1 and self.log_of_events.recording:
            self.log_of_events.stop()

    def _export(self, message: Export, request: Request) -> None:
        _require_stream(request, message, len(self._exports))
        self._export_on(request, snapshot(self.core.tree, message.namespace).exported())
        self._hand_over(request)

    def _export_on(self, request: Request, rows: Iterator[Exported]) -> None:
        self._exports[request] = rows
        request.on_cancel(partial(self._forget, request))
        request.on_credit(partial(self._hand_over, request))

    def _hand_over(self, request: Request) -> None:
        rows = self._exports.get(request)
        while rows is not None and request.credit > 0:
            page = next(rows, None)
            if page is None:
                del self._exports[request]
                request.end()
                return
            request.item(page)


def _options(context: Context) -> Options:
    options = msgspec.convert(context.config.get("cache", {}), Options)
    if not 0 <= options.pinned < 1:
        raise ConfigError(
            f"[cache] pinned: a share of the pool from 0 to below 1, not {options.pinned}", param="pinned"
        )
    if options.events < 1:
        raise ConfigError(f"[cache] events: at least 1, not {options.events}", param="events")
    return options


def _require_stream(request: Request, message: Message, readers: int) -> None:
    if request.kind != "stream":
        raise InvalidRequest(f"{type(message).__name__} is answered by a stream, not a {request.kind}")
    if readers >= MOST_READERS:
        raise Overloaded(f"{readers} readers are at it, and no more may be: retry when one has ended")
