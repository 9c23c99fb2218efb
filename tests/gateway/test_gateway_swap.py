"""Another class in the place of a running gateway: no connection breaks, no request fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.gateway.actor import GatewayActor
from sgl_actors.actors.gateway.upstream import Upstream
from sgl_actors.actors.microkernel import Context, Snapshot
from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.errors import SwapFailed
from tests.gateway.events import events
from tests.gateway.fake_node import FakeNode

HOLD = {"prompt": "<hold>", "max_tokens": 5}


class Gateway(GatewayActor):
    """Asks the fake node of its configuration."""

    def connect(self, context: Context) -> Upstream:
        node: FakeNode = context.config["fake"]
        return node


class Other(Gateway):
    """A successor."""


class Hesitant(Gateway):
    """Takes everything over and fails then."""

    async def restore(self, snapshot: Snapshot) -> None:
        await super().restore(snapshot)
        raise RuntimeError("on second thoughts")


class Unwilling(Gateway):
    """Does not even begin."""

    async def restore(self, snapshot: Snapshot) -> None:
        del snapshot
        raise RuntimeError("no")


def configured(node: FakeNode, **gateway: Any) -> dict[str, Any]:
    return {"gateway": {"port": 0, **gateway}, "node": {"name": "test"}, "fake": node}


@asynccontextmanager
async def running(node: FakeNode, **gateway: Any) -> AsyncIterator[tuple[Cell, str]]:
    """A gateway in a kernel of its own, and its URL."""
    system = System("here", LocalTransport(LocalHub(), "local://here"))
    await system.open()
    cell = system.spawn(Gateway, "gateway", configured(node, **gateway))
    await cell.ready.wait()
    assert isinstance(cell.actor, GatewayActor)
    yield cell, cell.actor.listening().url
    await system.close()


async def exchange(cell: Cell, new: type[Gateway], node: FakeNode, **gateway: Any) -> None:
    await cell.swap(new, configured(node, **gateway), 5.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_running_requests_end_on_the_old_and_new_ones_begin_on_the_new(stream: bool) -> None:
    """A request that has begun goes on where it began; the next one on the same connection is answered by the successor, which counts both."""
    old, new = FakeNode(), FakeNode()
    async with running(old) as (cell, url), httpx2.AsyncClient(base_url=url, timeout=10) as client:
        await client.get("/version")
        asking = asyncio.ensure_future(client.post("/v1/completions", json={**HOLD, "stream": stream}))
        await old.holding.wait()
        await exchange(cell, Other, new)
        assert type(cell.actor) is Other
        assert (
            await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        ).status_code == 200
        assert (len(old.asked), len(new.asked)) == (1, 1)
        old.release.set()
        answer = await asking
        assert answer.status_code == 200
        text = "".join(e["choices"][0]["text"] for e in events(answer.text)[:-1]) if stream else answer.json()["choices"][0]["text"]  # fmt: skip
        assert len(text) == 5
        metrics = (await client.get("/metrics")).text
        assert 'http_responses_total{route="/v1/completions",status="200"} 2.0' in metrics
        assert cell.actor.service.gate.requests == 0


async def test_a_running_request_can_be_aborted_at_the_successor() -> None:
    """What began before the swap has its name also after it."""
    old, new = FakeNode(), FakeNode()
    async with running(old) as (cell, url), httpx2.AsyncClient(base_url=url, timeout=10) as client:
        asking = asyncio.ensure_future(client.post("/generate", json={"text": "<hold>", "rid": "mine"}))
        await old.holding.wait()
        await exchange(cell, Other, new)
        assert (await client.post("/abort_request", json={"rid": "mine"})).status_code == 200
        assert old.asked[0].id in new.cancelled[0][0]
        old.release.set()
        assert (await asking).status_code == 200


@pytest.mark.parametrize("successor", [Hesitant, Unwilling])
async def test_a_successor_that_fails_leaves_everything_as_it_was(successor: type[Gateway]) -> None:
    """The old gateway goes on with its application, its limits and its connections."""
    old, new = FakeNode(), FakeNode()
    async with running(old, max_requests=7) as (cell, url), httpx2.AsyncClient(base_url=url) as client:
        await client.get("/version")
        before = cell.actor
        with pytest.raises(SwapFailed):
            await exchange(cell, successor, new, max_requests=1)
        assert cell.actor is before
        assert (
            await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        ).status_code == 200
        assert (len(old.asked), len(new.asked)) == (1, 0)
        assert isinstance(before, GatewayActor)
        assert before.service.gate.options.max_requests == 7


async def test_new_settings_are_in_force_after_a_swap() -> None:
    """Limits of requests and of connections change; another port takes a restart, and the message says so."""
    node = FakeNode()
    async with running(node) as (cell, url), httpx2.AsyncClient(base_url=url) as client:
        await exchange(cell, Other, node, max_body=100, max_headers=2000)
        body = {"prompt": "x" * 200, "max_tokens": 1}
        assert (await client.post("/v1/completions", json=body)).status_code == 413
        assert (await client.get("/version", headers={"x": "y" * 3000})).status_code == 431
        with pytest.raises(SwapFailed, match="restart"):
            await exchange(cell, Other, node, port=12345)


async def test_many_swaps_under_load_fail_no_request() -> None:
    """Clients that keep asking, with streams and without, see nothing of it; the port is free after the last one has stopped."""
    node = FakeNode()
    answered = 0
    async with running(node) as (cell, url), httpx2.AsyncClient(base_url=url, timeout=10) as client:
        done = asyncio.Event()

        async def ask(number: int) -> None:
            nonlocal answered
            while not done.is_set():
                body = {"prompt": f"{number}", "max_tokens": 3, "stream": bool(number % 2)}
                response = await client.post("/v1/completions", json=body)
                assert response.status_code == 200
                assert not body["stream"] or events(response.text)[-1] == "[DONE]"
                answered += 1

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(ask(number))
            for _ in range(30):
                await exchange(cell, Other, node)
                seen = answered
                while answered < seen + 3:
                    await asyncio.sleep(0.001)
            done.set()
        actor = cell.actor
        assert isinstance(actor, GatewayActor)
        assert actor.statistics()["http_requests"] == 0
    assert node.running == 0
