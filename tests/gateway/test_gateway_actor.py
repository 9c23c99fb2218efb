"""The actor: binding, serving, stopping."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import structlog
from structlog.testing import LogCapture

from sgl_actors.actors.gateway.actor import GatewayActor
from sgl_actors.actors.gateway.messages import Describe, Listening
from sgl_actors.actors.gateway.server import bind
from sgl_actors.actors.microkernel import Address, Context, Message, Request
from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.actors.scheduler.messages import DescribeModel
from sgl_actors.errors import ActorDown, ConfigError
from tests.gateway.fake_node import INFO


class FakeContext:
    """As much of a `Context` as the gateway's life needs; the root answers, nobody else is there."""

    def __init__(self, group: asyncio.TaskGroup, **gateway: Any) -> None:
        self.address = Address("gateway", 1)
        self.config = {"gateway": gateway, "node": {"name": "test"}}
        self.log = structlog.wrap_logger(None, processors=[LogCapture()])
        self.tasks: list[asyncio.Task[None]] = []
        self._group = group

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def task(self, coroutine: Coroutine[Any, Any, None], *, name: str = "") -> None:
        self.tasks.append(self._group.create_task(coroutine, name=name))

    async def call(self, to: str, message: Message, expect: type[Message], **options: Any) -> Message:
        if isinstance(message, ListActors):
            return Actors([], ready=True)
        if isinstance(message, DescribeModel):
            return INFO
        raise ActorDown(f"{to} is not here")


@asynccontextmanager
async def running(**gateway: Any) -> AsyncIterator[GatewayActor]:
    """A started gateway; as in the kernel, its tasks end before its `stop`."""
    async with asyncio.TaskGroup() as group:
        context = FakeContext(group, **gateway)
        actor = GatewayActor(cast("Context", context))
        await actor.start()
        yield actor
        for task in context.tasks:
            task.cancel()
    await actor.stop()


def descriptors() -> int:
    """Open file descriptors of this process; 0 where they cannot be counted."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


async def test_serves_until_stopped() -> None:
    """After start the port answers, Describe says which, and after stop it is free again, with no descriptor left."""
    before = descriptors()
    async with running(port=0) as actor:
        listening = await actor.receive(Describe(), cast("Request", None))
        assert isinstance(listening, Listening)
        assert listening.url == f"http://127.0.0.1:{listening.port}"
        async with httpx2.AsyncClient() as client:
            response = await client.get(listening.url + "/health")
            assert response.status_code == 200
            assert response.headers["x-request-id"]
            assert "server" not in response.headers
            assert actor.statistics()["http_connections"] == 1
            assert actor.statistics()["http_port"] == listening.port
    bind("127.0.0.1", listening.port).close()
    assert actor.statistics() == {}
    assert descriptors() <= before


async def test_port_in_use_is_a_config_error() -> None:
    """A second gateway on the same port says which port and fails in start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with asyncio.TaskGroup() as group:
            actor = GatewayActor(cast("Context", FakeContext(group, port=port)))
            with pytest.raises(ConfigError, match=f"port {port} is in use"):
                await actor.start()
        await actor.stop()


def test_unknown_host_is_a_config_error() -> None:
    """An address that is none of this machine's is named."""
    with pytest.raises(ConfigError, match=r"gateway\.host"):
        bind("203.0.113.7", 0)


async def test_stop_cuts_idle_connections() -> None:
    """stop closes kept-alive connections and does not wait for them."""
    async with running(port=0) as actor:
        url = actor.listening().url
        client = httpx2.AsyncClient()
        await client.get(url + "/version")
    async with asyncio.timeout(2):
        with pytest.raises(httpx2.TransportError):
            await client.get(url + "/version")
        await client.aclose()
