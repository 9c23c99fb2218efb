"""A gateway over a fake node, by direct ASGI calls or on a loopback port."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
import structlog
from structlog.testing import LogCapture

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.server import Server, bind
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.tenants import Tenants
from tests.gateway.fake_node import FakeNode

MakeService = Callable[..., Service]


@pytest.fixture
def lines() -> LogCapture:
    """Receives the log lines: `entries` holds one dict each."""
    return LogCapture()


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def make_service(node: FakeNode, lines: LogCapture) -> MakeService:
    """Makes a service with other options, another clock, or tenants with their keys."""

    def make(
        options: Options | None = None,
        *,
        ping: float = 15.0,
        now: Callable[[], float] = time.monotonic,
        keys: dict[str, str] | None = None,
    ) -> Service:
        log: structlog.stdlib.BoundLogger = structlog.wrap_logger(None, processors=[lines])
        digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in (keys or {}).items()}
        return Service(
            node,
            options or Options(port=0),
            log=log,
            now=now,
            clock=lambda: 1.7e9,
            tenants=Tenants(digests),
            ping=ping,
        )

    return make


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Calls the application without a socket."""
    async with client_of(service) as client:
        yield client


def client_of(service: Service, key: str = "") -> httpx2.AsyncClient:
    """A client of the application of `service`, with that key."""
    transport = httpx2.ASGITransport(app=build_app(service))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


@pytest.fixture
async def url(service: Service) -> AsyncIterator[str]:
    """The gateway on a free loopback port, stopped at the end."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(build_app(service), service.log)
    await server.open(listener)
    ticking = asyncio.ensure_future(server.main_loop())
    yield f"http://127.0.0.1:{port}"
    ticking.cancel()
    await asyncio.wait([ticking])
    await server.close(listener)
