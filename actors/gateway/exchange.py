"""One HTTP request and its answer, as log and metrics see it; and the door that every request comes through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.gateway.errors import ClientGone, error_response, status_of
from sgl_actors.actors.gateway.limits import request_id
from sgl_actors.actors.gateway.metrics import Metrics
from sgl_actors.actors.gateway.tenants import NOBODY, OPEN, Tenant, Tenants
from sgl_actors.errors import NotReady, SglActorsError

QUIET = frozenset({"/health", "/metrics"})
"""Routes that monitors poll; their lines are for debugging only."""


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
    """

    trace: str
    began: float
    tenant: Tenant = NOBODY
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


class Door:
    """Outermost middleware: gives each request its id and tenant, answers with its errors, counts it, logs one line."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        log: structlog.stdlib.BoundLogger,
        metrics: Metrics,
        tenants: Tenants,
        now: Callable[[], float],
    ) -> None:
        self._app, self._log, self._metrics, self._tenants, self._now = app, log, metrics, tenants, now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Only the server's own end cancels it: then those who have no answer yet get a 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(request_id(headers.get("x-request-id")), self._now())
        scope["exchange"] = exchange

        async def outgoing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = exchange.trace
                exchange.status = message["status"]
            await send(message)

        self._metrics.running.inc()
        try:
            if scope["path"] not in OPEN:
                exchange.tenant = self._tenants.identify(headers)
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
                self._log.exception("request failed", trace=exchange.trace)
            if exchange.status:
                raise
            await error_response(error, exchange.trace)(scope, receive, outgoing)
        finally:
            self._metrics.running.dec()
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, Route) else "other"
        self._metrics.responses.labels(path, str(exchange.status)).inc()
        say = self._log.debug if path in QUIET and exchange.status == 200 else self._log.info
        say(
            "http request",
            trace=exchange.trace,
            method=scope["method"],
            route=path,
            status=exchange.status,
            seconds=round(self._now() - exchange.began, 6),
            **exchange.facts(),
        )
