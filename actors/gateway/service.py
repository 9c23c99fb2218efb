"""What all routes share: the node, the limits, the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.body import UnknownFields, decode_body, read_body
from sgl_actors.actors.gateway.exchange import Exchange
from sgl_actors.actors.gateway.failures import Failures
from sgl_actors.actors.gateway.gate import VALUE_BYTES, Gate, count_values
from sgl_actors.actors.gateway.memory import available_memory
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.metrics import Metrics
from sgl_actors.actors.gateway.pieces import Pieces
from sgl_actors.actors.gateway.sse import PING_SECONDS, EventStream, EventWriter
from sgl_actors.actors.gateway.tenants import Tenants
from sgl_actors.actors.gateway.upstream import Upstream
from sgl_actors.actors.gateway.view import NodeView
from sgl_actors.actors.node.messages import LoadedModel

S = TypeVar("S", bound=msgspec.Struct)


class Service:
    """One per gateway.

    Attributes:
        node: what is asked.
        options: `[gateway]` of node.toml.
        view: cached facts about the node.
        tenants: who may ask.
        gate: what is in work, and what there is room for.
        failures: who sends wrong keys.
        running: the node's request ids by tenant, the name under which it may abort them, and a number that tells those who share it apart.
        watchers: what writes streams that have no end of their own.
    """

    def __init__(
        self,
        node: Upstream,
        options: Options,
        *,
        log: structlog.stdlib.BoundLogger,
        now: Callable[[], float],
        clock: Callable[[], float],
        tenants: Tenants | None = None,
        name: str = "node",
        facts: dict[str, Any] | None = None,
        ping: float = PING_SECONDS,
        available: Callable[[], int] = available_memory,
    ) -> None:
        self.node, self.options, self.log, self.now, self.clock, self.ping = (
            node,
            options,
            log,
            now,
            clock,
            ping,
        )
        self.tenants = Tenants() if tenants is None else tenants
        self.name = name
        self.facts = facts or {}
        self.started = clock()
        self.view = NodeView(node, now)
        self.metrics = Metrics(name)
        self.pieces = Pieces(node)
        self.unknown = UnknownFields(log)
        self.gate = Gate(options, now, available)
        self.failures = Failures(options.max_wrong_keys, now)
        self.running: dict[tuple[str, str, int], list[str]] = {}
        self.watchers: set[asyncio.Task[Any]] = set()
        self._others: dict[str, Service] = {}

    def follow(self, before: Service) -> None:
        """Go on where another one was: what runs there is counted and can be aborted here, and metrics go on."""
        self.started, self.metrics, self.running, self.watchers = (
            before.started,
            before.metrics,
            before.running,
            before.watchers,
        )
        self.gate, self.failures = before.gate, before.failures
        self.apply_options()

    def apply_options(self) -> None:
        """Have what is shared with a predecessor or successor keep to the options of this one."""
        self.gate.options, self.failures.per_minute = self.options, self.options.max_wrong_keys

    async def serving(self, model: str | None) -> Service:
        """The service of the model that a request names; of the default one if it names none, or one that is not there."""
        for row in (await self.view.models())[1:]:
            if row.state == "serving" and model in (row.name, row.path):
                found = self._others.get(row.suffix)
                if found is None:
                    found = self._others[row.suffix] = self._of(row)
                return found
        return self

    def cancel(self, ids: Iterable[str], *, everything: bool = False, stems: Iterable[str] = ()) -> None:
        """Abort requests by id, of whichever model."""
        for service in (self, *self._others.values()):
            service.node.cancel(ids, everything=everything, stems=stems)

    def _of(self, row: LoadedModel) -> Service:
        """The same books, for another model."""
        other = copy(self)
        other.node = self.node.of(row)
        other.view = NodeView(other.node, self.now, default=False)
        other.pieces = Pieces(other.node)
        return other

    async def read(
        self,
        request: Request,
        cls: type[S],
        unsupported: dict[str, str] | None = None,
        neutral: dict[str, tuple[Any, ...]] | None = None,
    ) -> S:
        """The request's validated body (see `decode_body`)."""
        place = exchange_of(request).place
        assert place is not None
        if self.options.max_memory:
            actors = await self.view.actors()
            self.gate.check_memory(actors.rows if actors is not None else ())
        body = await read_body(request, self.options.max_body, place)
        place.hold(VALUE_BYTES * count_values(body))
        value, unknown = decode_body(body, cls, unsupported or {}, neutral or {})
        if unknown:
            self.unknown.note(request.url.path, unknown, exchange_of(request).trace)
        return value

    def stream(self, request: Request, produce: Callable[[EventWriter], Any]) -> EventStream:
        """A streamed answer written by `produce`."""
        exchange = exchange_of(request)
        return EventStream(produce, trace=exchange.trace, on_error=exchange.fail, ping=self.ping)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it runs, the current task is one that the gateway's stop need not wait for."""
        task = asyncio.current_task()
        assert task is not None
        self.watchers.add(task)
        try:
            yield
        finally:
            self.watchers.discard(task)

    def end_watching(self) -> None:
        """Tell those that watch that the gateway is stopping."""
        for task in self.watchers:
            task.cancel()

    @contextmanager
    def abortable(self, tenant: str, names: Mapping[str, list[str]]) -> Iterator[None]:
        """While it runs, that tenant's `/abort_request` finds the node's request ids by each of `names`; who asks again shares one for a moment."""
        running = {(tenant, name, id(ids)): ids for name, ids in names.items()}
        self.running.update(running)
        try:
            yield
        finally:
            for name in running:
                del self.running[name]


def service_of(request: Request) -> Service:
    """The service that `request` came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def exchange_of(request: Request) -> Exchange:
    """The books of `request`."""
    exchange = request.scope["exchange"]
    assert isinstance(exchange, Exchange)
    return exchange


def reply(value: Any, status: int = 200) -> Response:
    """A JSON answer; `value` is a Struct or plain builtins."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
