"""What all routes share: the node, the limits, the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.body import UnknownFields, decode_body, read_body
from sgl_actors.actors.gateway.exchange import Exchange
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.metrics import Metrics
from sgl_actors.actors.gateway.pieces import Pieces
from sgl_actors.actors.gateway.sse import PING_SECONDS, EventStream, EventWriter
from sgl_actors.actors.gateway.tenants import Tenants
from sgl_actors.actors.gateway.upstream import Upstream
from sgl_actors.actors.gateway.view import NodeView
from sgl_actors.errors import InvalidRequest

S = TypeVar("S", bound=msgspec.Struct)


class Service:
    """One per gateway.

    Attributes:
        node: what is asked.
        options: `[gateway]` of node.toml.
        view: cached facts about the node.
        tenants: who may ask.
        running: the node's request ids by tenant and the name under which it may abort them.
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
        self.running: dict[tuple[str, str], list[str]] = {}
        self.watchers: set[asyncio.Task[Any]] = set()

    async def read(
        self,
        request: Request,
        cls: type[S],
        unsupported: dict[str, str] | None = None,
        neutral: dict[str, tuple[Any, ...]] | None = None,
    ) -> S:
        """The request's validated body (see `decode_body`)."""
        body = await read_body(request, self.options.max_body)
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
        """While it runs, that tenant's `/abort_request` finds the node's request ids by each of `names`."""
        for name in names:
            if (tenant, name) in self.running:
                raise InvalidRequest(f"rid: {name!r} is running already", param="rid")
        self.running.update({(tenant, name): ids for name, ids in names.items()})
        try:
            yield
        finally:
            for name in names:
                del self.running[tenant, name]


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
