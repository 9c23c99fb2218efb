"""What happens to the work of a client that leaves, and to one that has to wait: over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from structlog.testing import LogCapture

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.server import Server, bind
from sgl_actors.actors.gateway.service import Service
from tests.gateway.conftest import MakeService, client_of
from tests.gateway.events import events
from tests.gateway.fake_node import FakeNode

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<hold>"}]}),
    ("/v1/completions", {"prompt": "<hold>", "max_tokens": 9}),
    ("/generate", {"text": "<hold>"}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_leaving_aborts_at_once(
    url: str, node: FakeNode, service: Service, path: str, body: dict[str, Any], stream: bool
) -> None:
    """A client that closes its connection has its request aborted, streaming or not; nothing keeps running."""
    async with asyncio.timeout(10):
        async with httpx2.AsyncClient() as client:
            asking = asyncio.ensure_future(client.post(url + path, json={**body, "stream": stream}))
            await node.holding.wait()
            asking.cancel()
            await asyncio.wait([asking])
        await node.aborting.wait()
        while service.running:
            await asyncio.sleep(0.001)
    assert node.aborted == [node.asked[0].id]
    assert node.running == 0


async def test_leaving_aborts_every_choice(url: str, node: FakeNode) -> None:
    """All generations of a request go with its client."""
    async with asyncio.timeout(10):
        async with httpx2.AsyncClient() as client:
            asking = asyncio.ensure_future(
                client.post(url + "/v1/completions", json={"prompt": ["<hold>"] * 4})
            )
            while node.running < 4:
                await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.wait([asking])
        while node.running:
            await asyncio.sleep(0.001)
    assert len(node.aborted) == 4


async def test_leaving_with_more_requests_ahead_aborts(url: str, node: FakeNode, service: Service) -> None:
    """Who has sent a second request before the first was answered is not read any more, and still seen to leave."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = b'{"text": "<hold>"}'
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    async with asyncio.timeout(10):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await node.holding.wait()
        writer.close()
        await node.aborting.wait()
        while service.running:
            await asyncio.sleep(0.001)
    assert node.running == 0


async def test_leaving_is_logged_as_499(url: str, node: FakeNode, lines: LogCapture) -> None:
    """The log line of a request whose client left says so."""
    async with asyncio.timeout(10), httpx2.AsyncClient() as client:
        asking = asyncio.ensure_future(client.post(url + "/generate", json={"text": "<hold>"}))
        await node.holding.wait()
        asking.cancel()
        await asyncio.wait([asking])
        while not any(line.get("status") == 499 for line in lines.entries):
            await asyncio.sleep(0.001)
    noted = [line for line in lines.entries if line["event"] == "http request"]
    assert [(line["status"], line["error"]) for line in noted] == [(499, "client_gone")]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_silence_is_broken_by_comments(
    make_service: MakeService, node: FakeNode, path: str, body: dict[str, Any]
) -> None:
    """A stream in which nothing happens sends comments, and its events stay readable."""
    service = make_service(ping=0.01)
    async with asyncio.timeout(10), client_of(service) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(path, json={**body, "stream": True, "max_tokens": 3}))
        await node.holding.wait()
        await asyncio.sleep(0.2)  # the silence itself is what is tested
        node.release.set()
    text = asking.result().text
    assert text.count(": ping\n\n") >= 2
    assert events(text)[-1] == "[DONE]"


async def test_prefill_is_kept_alive_and_then_fails_in_the_stream(
    make_service: MakeService, node: FakeNode
) -> None:
    """Once a comment has started the response, an error comes as an event instead of a status."""
    service = make_service(Options(port=0), ping=0.01)
    gate = asyncio.Event()
    inner = node.generate

    async def late(request: Any, **kwargs: Any) -> Any:
        await gate.wait()
        async for chunk in inner(request, **kwargs):
            yield chunk

    node.generate = late  # type: ignore[method-assign]
    async with asyncio.timeout(10), client_of(service) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post("/generate", json={"text": "<busy>", "stream": True}))
        await asyncio.sleep(0.2)  # the silence itself is what is tested
        gate.set()
    response = asking.result()
    assert response.status_code == 200
    assert response.text.startswith(": ping")
    assert events(response.text)[-1]["error"]["code"] == "overloaded"


@pytest.mark.parametrize("stream", [False, True])
async def test_stopping_tells_those_who_wait(service: Service, node: FakeNode, stream: bool) -> None:
    """When the gateway stops, requests that outlive the grace time end with not_ready: a 503, or an event in a stream."""
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(build_app(service), service.log, grace=0)
    await server.open(listener)
    async with asyncio.timeout(10), httpx2.AsyncClient() as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(url + "/generate", json={"text": "<hold>", "stream": stream}))
        await node.holding.wait()
        await server.close(listener)
    response = asking.result()
    assert response.status_code == (200 if stream else 503)
    error = events(response.text)[-1]["error"] if stream else response.json()["error"]
    assert error["code"] == "not_ready"
    assert node.running == 0
