"""One HTTP request and its answer, as log and metrics see it; and the door that every request comes through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.gateway.errors import ClientGone, error_response, status_of
from sgl_actors.actors.gateway.failures import Failures
from sgl_actors.actors.gateway.gate import Gate, Pass
from sgl_actors.actors.gateway.limits import request_id
from sgl_actors.actors.gateway.metrics import Metrics
from sgl_actors.actors.gateway.tenants import NOBODY, OPEN, Tenant, Tenants, key_of
from sgl_actors.errors import NotReady, SglActorsError, Unauthorized

QUIET = frozenset({"/health", "/metrics"})
"""Routes that monitors poll; their lines are for debugging only."""
ALWAYS = OPEN | QUIET | {"/abort_request"}
"""Routes that are answered also when no further request is taken."""


@dataclass(slots=True)
class Exchange:
    """What is noted about a request on its way. No prompt text: only its length and hash.

    Attributes:
        trace: the request id, which all actors put into their lines about it.
        began: monotonic seconds.
        tenant: whose request it is.
        status: of the answer; 499 when the client left first.
        error: code of the error that it ended with.
        request: id of the generation in the node, "" without one.
        place: its place among the requests in work; None if it was not let in.
    """

    trace: str
    began: float
    tenant: Tenant = NOBODY
    place: Pass | None = None
    status: int = 0
    error: str = ""
    request: str = ""
    prompts: int = 0
    prompt_length: int = 0
    prompt_hash: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def fail(self, error: BaseException) -> None:
        """Note what it ended with."""
        self.error = error.code if isinstance(error, SglActorsError) else type(error).__name__

    def facts(self) -> dict[str, str | int]:
        """What the log line says beyond route and status; empty facts are left out."""
        facts: dict[str, str | int] = {
            "tenant": self.tenant.name if self.tenant.name != DEFAULT else "",
            "request": self.request,
            "prompts": self.prompts,
            "prompt_length": self.prompt_length,
            "prompt_hash": self.prompt_hash,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "error": self.error,
        }
        return {name: value for name, value in facts.items() if value}


class Books(Protocol):
    """What the door needs of the service."""

    log: structlog.stdlib.BoundLogger
    metrics: Metrics
    tenants: Tenants
    failures: Failures
    gate: Gate
    now: Callable[[], float]


class Door:
    """Outermost middleware: gives each request its id and tenant, lets it in if there is room, answers with its errors, counts it, logs one line."""

    def __init__(self, app: ASGIApp, *, books: Books) -> None:
        self._app, self._books = app, books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Only the server's own end cancels it: then those who have no answer yet get a 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        books = self._books
        headers = Headers(scope=scope)
        exchange = Exchange(request_id(headers.get("x-request-id")), books.now())
        scope["exchange"] = exchange

        async def outgoing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = exchange.trace
                exchange.status = message["status"]
            await send(message)

        books.metrics.running.inc()
        try:
            if scope["path"] not in OPEN:
                exchange.tenant = self._identify(scope, headers)
            exchange.place = books.gate.enter(always=scope["path"] in ALWAYS)
            await self._app(scope, receive, outgoing)
        except ClientGone:
            exchange.status, exchange.error = 499, "client_gone"
        except asyncio.CancelledError:
            stopping = NotReady("the gateway is stopping")
            exchange.fail(stopping)
            if exchange.status:
                raise
            await error_response(stopping)(scope, receive, outgoing)
        except Exception as error:
            exchange.fail(error)
            if status_of(error) == 500:
                books.log.exception("request failed", trace=exchange.trace)
            if exchange.status:
                raise
            await error_response(error, exchange.trace, retry=books.gate.retry)(scope, receive, outgoing)
        finally:
            if exchange.place is not None:
                exchange.place.close()
            books.metrics.running.dec()
            self._note(scope, exchange)

    def _identify(self, scope: Scope, headers: Headers) -> Tenant:
        """Whose request it is; who sends wrong keys is slowed down."""
        books, address = self._books, (scope.get("client") or ("",))[0]
        if not books.tenants:
            return Tenant()
        books.failures.check(address)
        try:
            return books.tenants.identify(headers)
        except Unauthorized:
            if key_of(headers):
                books.failures.note(address)
            raise

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else "other"
        books = self._books
        books.metrics.responses.labels(path, str(exchange.status)).inc()
        say = books.log.debug if path in QUIET and exchange.status == 200 else books.log.info
        say(
            "http request",
            trace=exchange.trace,
            method=scope["method"],
            route=path,
            status=exchange.status,
            seconds=round(books.now() - exchange.began, 6),
            **exchange.facts(),
        )
