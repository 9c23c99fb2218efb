"""The routes about the cache: what they show, what they refuse, and how their streams end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.cache.messages import Edge, Event, Exported, Pinned
from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.node.client import namespace_of
from sgl_actors.errors import InvalidRequest
from tests.gateway.fake_node import FakeNode, encode

CHAT = [{"role": "system", "content": "Be brief."}]


def error_of(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_accounting(client: httpx2.AsyncClient) -> None:
    """GET /cache has pages that add up, and the hit rate over all prompt tokens so far."""
    answer = (await client.get("/cache")).json()
    pages = answer["pages"]
    assert pages["total"] == pages["free"] + pages["cached"] + pages["leased"] == 100
    assert (pages["locked"], pages["pinned"], pages["evicted"]) == (5, 3, 8)
    assert (answer["page_size"], answer["tokens"], answer["leases"]) == (4, 120, 2)
    assert (answer["prompt_tokens"], answer["cached_tokens"], answer["hit_rate"]) == (200, 150, 0.75)
    assert answer["pins"] == []


async def test_a_cache_that_is_away_is_503(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Also for the streams, which have not begun yet."""
    node.cache_down = True
    for path in ("/cache", "/cache/events", "/cache/export"):
        assert error_of(await client.get(path), 503)["code"] == "not_ready"


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ({"text": "some prefix"}, encode("some prefix")),
        ({"input_ids": [1, 2, 3]}, [1, 2, 3]),
        ({"messages": CHAT}, encode("[system]Be brief.")),
    ],
)
async def test_pin(
    client: httpx2.AsyncClient, node: FakeNode, prompt: dict[str, Any], ids: list[int]
) -> None:
    """A prefix in any form is computed without output, and the answer says what is held; a chat ends without a generation prompt."""
    answer = (await client.post("/cache/pin", json={**prompt, "ttl": 60, "name": "mine"})).json()
    assert answer == {
        "name": "mine",
        "tenant": "default",
        "cache_salt": "",
        "tokens": len(ids),
        "held": len(ids) * 2 // 3,
        "expires_in": 59.5,
    }
    assert (node.asked[-1].input_ids, node.asked[-1].sampling.max_tokens) == (ids, 0)
    assert (await client.get("/cache/pins")).json() == {"pins": [answer]}
    gone = await client.delete("/cache/pin/mine")
    assert gone.json() == {"unpinned": [answer]}
    assert (await client.get("/cache/pins")).json() == {"pins": []}
    error = error_of(await client.delete("/cache/pin/mine"), 404)
    assert (error["code"], error["param"]) == ("pin_not_found", "name")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ttl": 5}, "text"),
        ({"ttl": 5, "text": "x", "input_ids": [1]}, "text"),
        ({"ttl": 5, "text": ""}, "text"),
        ({"ttl": 5, "input_ids": []}, "input_ids"),
        ({"ttl": 5, "input_ids": [257]}, "input_ids"),
        ({"ttl": 5, "messages": []}, "messages"),
        ({"ttl": 5, "messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"text": "x"}, "ttl"),
        ({"text": "x", "ttl": 0}, "ttl"),
        ({"text": "x", "ttl": 0.5}, "ttl"),
        ({"text": "x", "ttl": -1}, "ttl"),
        ({"text": "x", "ttl": 1e9}, "ttl"),
        ({"text": "x", "ttl": "10m"}, "ttl"),
        ({"text": "x", "ttl": 5, "name": ""}, "name"),
        ({"text": "x", "ttl": 5, "name": "a/b"}, "name"),
        ({"text": "x", "ttl": 5, "name": ".."}, "name"),
        ({"text": "x", "ttl": 5, "name": "a\n"}, "name"),
        ({"text": "x", "ttl": 5, "name": "x" * 65}, "name"),
        ({"text": "x", "ttl": 5, "cache_salt": "a\x1fb"}, "cache_salt"),
        ({"text": "x", "ttl": 5, "cache_salt": "x" * 257}, "cache_salt"),
        ({"text": "x", "tttl": 5, "ttl": 5}, None),
    ],
)
async def test_pins_that_are_refused(
    client: httpx2.AsyncClient, node: FakeNode, body: dict[str, Any], param: str | None
) -> None:
    """Each wrong value is 400 with the field it is about; a field that there is not is no silent wish."""
    error = error_of(await client.post("/cache/pin", json=body))
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert (node.asked, node.held) == ([], [])


@pytest.mark.parametrize("prompt", [{"text": "x"}, {"input_ids": [1]}, {"messages": CHAT}])
async def test_a_pin_that_is_too_large_names_the_field_of_the_prefix(
    client: httpx2.AsyncClient, node: FakeNode, prompt: dict[str, Any]
) -> None:
    """What the cache calls the key is a field of the body here."""

    async def refuse(*given: Any, **options: Any) -> Any:
        raise InvalidRequest("too large", param="key")

    node.pin = refuse  # type: ignore[method-assign]
    error = error_of(await client.post("/cache/pin", json={**prompt, "ttl": 5}))
    assert (error["message"], error["param"]) == ("too large", next(iter(prompt)))


async def test_unpin_ends_the_pin_of_that_salt_alone(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Pins of one name and different salts are different pins; what the query says wrong is 400, and ends none."""
    node.held = [Pinned("p", namespace_of("default", salt), 1, 1, 9.0) for salt in ("", "a", "b")]
    for wrong, param in (
        ("salt=a", "salt"),
        ("cache_salt=a&cache_salt=b", "cache_salt"),
        ("cache_salt=%1f", "cache_salt"),
    ):
        assert error_of(await client.delete(f"/cache/pin/p?{wrong}"))["param"] == param
    assert error_of(await client.delete("/cache/pin/p?cache_salt=c"), 404)["param"] == "name"
    assert len(node.held) == 3
    assert (await client.delete("/cache/pin/p?cache_salt=a")).json()["unpinned"][0]["cache_salt"] == "a"
    assert len((await client.delete("/cache/pin/p")).json()["unpinned"]) == 1
    assert [pin.namespace for pin in node.held] == [namespace_of("default", "b")]


async def test_a_prefix_that_cannot_be_computed_is_not_pinned(
    client: httpx2.AsyncClient, node: FakeNode
) -> None:
    """The node's own error is the answer."""
    long = await client.post("/cache/pin", json={"text": "x" * 3000, "ttl": 5})
    assert error_of(long)["code"] == "context_length_exceeded"
    assert error_of(await client.post("/cache/pin", json={"text": "<busy>", "ttl": 5}), 429)
    assert node.held == []


async def test_leaving_while_a_pin_is_computed_cancels_it(url: str, node: FakeNode) -> None:
    """As with any generation."""
    inner = node.pin

    async def slow(*given: Any, **options: Any) -> Any:
        node.holding.set()
        try:
            await node.release.wait()
        finally:
            node.aborting.set()
        return await inner(*given, **options)

    node.pin = slow  # type: ignore[method-assign]
    async with asyncio.timeout(10), httpx2.AsyncClient() as client:
        asking = asyncio.ensure_future(client.post(url + "/cache/pin", json={"text": "x", "ttl": 5}))
        await node.holding.wait()
        asking.cancel()
        await node.aborting.wait()
        await asyncio.wait([asking])


HISTORY = [
    Event("cleared"),
    Event("stored", "default", b"\x01" * 32, b"\x02" * 32, [5, 6]),
    Event("removed", namespace_of("default", "s"), b"\x01" * 32, b"\x02" * 32),
]


async def stream(client: httpx2.AsyncClient, node: FakeNode, headers: dict[str, str]) -> str:
    node.release.set()
    response = await client.get("/cache/events", headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    return response.text


async def test_events(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Each change is an event in JSON with hex digests; the last of a batch carries the id to come back with."""
    node.history = HISTORY
    text = await stream(client, node, {})
    retry, *blocks = [block for block in text.split("\n\n") if block]
    assert retry == "retry: 1000"
    assert [block.split("\n")[0] for block in blocks if block.startswith("id:")] == ["id: 7-2", "id: 7-3"]
    data = [json.loads(block.split("data: ")[1]) for block in blocks]
    assert data[0] == {"kind": "cleared"}
    assert data[1] == {
        "kind": "stored",
        "tenant": "default",
        "digest": "01" * 32,
        "parent": "02" * 32,
        "token_ids": [5, 6],
    }
    assert (data[2]["kind"], data[2]["cache_salt"], "token_ids" in data[2]) == ("removed", "s", False)
    assert node.subscribed == [None]


async def test_events_go_on_after_the_last_id(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """`Last-Event-ID` is passed on as incarnation and number; what is no such id is 400."""
    node.history = HISTORY
    text = await stream(client, node, {"last-event-id": "7-2"})
    assert text.count("data: ") == 1
    assert node.subscribed == [(7, 2)]
    for wrong in ("7", "7-", "a-b", "-1-2", "7-2-3", "9" * 40 + "-1"):
        response = await client.get("/cache/events", headers={"last-event-id": wrong})
        assert error_of(response)["param"] == "Last-Event-ID"


async def test_leaving_ends_the_subscription(url: str, node: FakeNode) -> None:
    """A client that goes away is forgotten by the cache, too."""
    node.history = HISTORY
    async with asyncio.timeout(10), httpx2.AsyncClient() as client:
        async with client.stream("GET", url + "/cache/events") as response:
            async for line in response.aiter_lines():
                if line.startswith("id: 7-3"):
                    break
        await node.aborting.wait()


async def test_a_gateway_that_stops_does_not_wait_for_those_who_watch(
    url: str, service: Service, node: FakeNode
) -> None:
    """Their streams end at once, and say why."""
    node.history = HISTORY
    async with (
        asyncio.timeout(10),
        httpx2.AsyncClient() as client,
        client.stream("GET", url + "/cache/events") as response,
    ):
        lines = response.aiter_lines()
        async for line in lines:
            if line.startswith("id: 7-3"):
                break
        service.end_watching()
        rest = [line async for line in lines if "error" in line]
    assert [json.loads(line.removeprefix("data: "))["error"]["code"] for line in rest] == ["not_ready"]
    assert node.aborting.is_set()
    assert not service.watchers


async def test_export(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """JSON lines, parents first; token ids only when asked for; an empty cache is an empty answer."""
    empty = await client.get("/cache/export")
    assert (empty.status_code, empty.text) == (200, "")
    assert empty.headers["content-type"].startswith("application/x-ndjson")
    node.edges = [Edge("default", 0, -1, [1, 2], 1, 4), Edge(namespace_of("default", "s"), 1, -1, [3])]
    first, second = [json.loads(line) for line in (await client.get("/cache/export")).text.splitlines()]
    assert first == {
        "tenant": "default",
        "cache_salt": "",
        "number": 0,
        "parent": -1,
        "tokens": 2,
        "locks": 1,
        "hits": 4,
    }
    assert (second["cache_salt"], second["tokens"]) == ("s", 1)
    full = (await client.get("/cache/export?tokens=true")).text.splitlines()
    assert [json.loads(line)["token_ids"] for line in full] == [[1, 2], [3]]
    salted = (await client.get("/cache/export?cache_salt=s")).text.splitlines()
    assert len(salted) == 1
    assert error_of(await client.get("/cache/export?tokens=maybe"))["param"] == "tokens"
    assert error_of(await client.get("/cache/export?token=true"))["param"] == "token"
    assert error_of(await client.get("/cache/export?cache_salt=%00"))["param"] == "cache_salt"


async def test_an_export_that_breaks_off_says_so(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Its last line is the error: nobody takes a part for the whole."""
    node.edges, node.broken_export = [Edge("default", 0, -1, [1])], True
    *lines, last = (await client.get("/cache/export")).text.splitlines()
    assert len(lines) == 1
    assert json.loads(last)["error"]["code"] == "remote_error"


async def test_an_export_is_no_faster_than_its_reader(service: Service, node: FakeNode) -> None:
    """Nothing is gathered in the gateway: while the client does not read, the cache is asked for no more."""
    given = sent = 0
    reading = asyncio.Event()

    async def endless(namespace: str | None = None) -> AsyncIterator[Exported]:
        nonlocal given
        while True:
            given += 1
            yield Exported([Edge("default", given, -1, [1])])

    async def send(message: Any) -> None:
        nonlocal sent
        sent += bool(message.get("body"))
        if sent > 3:
            await reading.wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    node.export = endless  # type: ignore[method-assign]
    scope = {
        "type": "http", "method": "GET", "path": "/cache/export", "raw_path": b"/cache/export", "root_path": "",
        "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http", "server": ("gateway", 80),
    }  # fmt: skip
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(build_app(service)(scope, receive, send))
        for _ in range(1000):
            await asyncio.sleep(0)
        task.cancel()
        assert (sent, given) == (4, 4)
        reading.set()
