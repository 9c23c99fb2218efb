"""Keys, tenants, and what one tenant cannot see or do of another's."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx2
import pytest
from structlog.testing import LogCapture

from sgl_actors.actors.cache.messages import Edge, Pinned
from sgl_actors.actors.gateway.app import ROUTES
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.tenants import OPEN
from sgl_actors.actors.node.client import namespace_of
from tests.gateway.conftest import MakeService, client_of
from tests.gateway.events import events
from tests.gateway.fake_node import FakeNode

KEYS = {"alice": "alice-key", "bob": "bob-key-b", "admin": "admin-key"}
ONE = {"max_new_tokens": 1}


@pytest.fixture
def guarded(make_service: MakeService) -> Service:
    """A gateway with three tenants."""
    return make_service(keys=KEYS)


async def call(service: Service, who: str, method: str, path: str, **options: Any) -> httpx2.Response:
    async with client_of(service, KEYS.get(who, who)) as client:
        return await client.request(method, path, **options)


def routed() -> list[tuple[str, str]]:
    """Every path and method there is, with something for its parameters."""
    return [
        (route.path.replace("{name:path}", "x").replace("{name}", "x"), method)
        for route in ROUTES
        for method in sorted(route.methods or ())
        if route.path not in OPEN
    ]


@pytest.mark.parametrize(("path", "method"), [*routed(), ("/nothing", "GET")])
async def test_every_route_but_the_open_ones_wants_a_key(
    guarded: Service, node: FakeNode, path: str, method: str
) -> None:
    """Without a key or with a wrong one it is 401 with the OpenAI error and how to authenticate, and nothing reaches the node."""
    for who in ("", "alice-keY", "alice-key-and-more"):
        response = await call(guarded, who, method, path, json={})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            error = response.json()["error"]
            assert (error["type"], error["code"], error["param"]) == ("authentication_error", "unauthorized", None)  # fmt: skip
            assert "alice" not in error["message"]
    assert (node.asked, node.cancelled, node.subscribed) == ([], [], [])


async def test_open_routes_want_none(guarded: Service) -> None:
    """Whether the node is up, which release it is and how it is asked may be known."""
    for path in OPEN:
        assert (await call(guarded, "", "GET", path)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer alice-key"},
        {"authorization": "bearer   alice-key "},
        {"x-api-key": "alice-key"},
        {"authorization": "Basic abc", "x-api-key": "alice-key"},
    ],
)
async def test_ways_to_send_a_key(guarded: Service, node: FakeNode, headers: dict[str, str]) -> None:
    """As a bearer token, as OpenAI's clients do, or as x-api-key; the tenant goes to the node."""
    body = {"text": "x", "sampling_params": ONE}
    response = await call(guarded, "", "POST", "/generate", json=body, headers=headers)
    assert response.status_code == 200
    assert node.asked[-1].tenant == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer"},
        {"authorization": "alice-key"},
        {"authorization": "Bearer alice-key bob-key-b"},
        {"authorization": "Bearer wrong", "x-api-key": "alice-key"},
        {"x-api-key": "ünïcödé"},
    ],
)
async def test_what_is_no_key(guarded: Service, headers: dict[str, str]) -> None:
    """A header of another form is no key, and a wrong bearer token is not made good by another header."""
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    assert (await call(guarded, "", "GET", "/v1/models", headers=raw)).status_code == 401


async def test_without_tenants_nobody_is_asked(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """One tenant, default, which may do everything; a key that somebody sends all the same does not matter."""
    headers = {"authorization": "Bearer whatever"}
    body = {"text": "x", "sampling_params": ONE}
    assert (await client.post("/generate", json=body, headers=headers)).status_code == 200
    assert node.asked[-1].tenant == "default"
    assert (await client.post("/flush_cache")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "x" * 600, "sampling_params": {"max_new_tokens": 1, "n": 2}}),
        ("/v1/completions", {"prompt": "x" * 600, "max_tokens": 1, "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 600}], "max_tokens": 1, "n": 2}),
    ],
)  # fmt: skip
async def test_every_generation_is_the_tenant_s(
    guarded: Service, node: FakeNode, path: str, body: dict[str, Any]
) -> None:
    """Also the request that computes a long prompt for several choices, and the health check."""
    assert (await call(guarded, "bob", "POST", path, json=body)).status_code == 200
    assert (await call(guarded, "bob", "GET", "/health_generate")).status_code == 200
    assert len(node.asked) == 4
    assert {request.tenant for request in node.asked} == {"bob"}


async def test_a_tenant_hits_its_own_prefixes_only(guarded: Service, node: FakeNode) -> None:
    """The same prompt hits for the same tenant, with the same salt; otherwise it misses."""

    async def cached(who: str, **fields: Any) -> int:
        body = {"text": "a shared prompt", "sampling_params": ONE, **fields}
        answer = (await call(guarded, who, "POST", "/generate", json=body)).json()
        count: int = answer["meta_info"]["cached_tokens"]
        return count

    assert await cached("alice") == 0
    assert await cached("alice") > 0
    assert await cached("bob") == 0
    assert await cached("alice", cache_salt="s") == 0
    assert await cached("alice", extra_key="s") > 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/flush_cache", None),
        ("POST", "/abort_request", {"abort_all": True}),
        ("POST", "/scheduler", {"policy": "fcfs"}),
        ("POST", "/profile", {"seconds": 1}),
        ("GET", "/cache/events", None),
    ],
)
async def test_what_concerns_all_is_the_admin_s(
    guarded: Service, node: FakeNode, method: str, path: str, body: Any
) -> None:
    """Another tenant gets 403 with a type of its own, and nothing happens; the admin may."""
    node.release.set()
    refused = await call(guarded, "alice", method, path, json=body)
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "forbidden")
    assert "'admin'" in error["message"]
    assert (node.cancelled, node.subscribed, node.configuration.policy) == ([], [], "lpm")
    assert node.profiled == []
    assert (await call(guarded, "admin", method, path, json=body)).status_code == 200


async def start(service: Service, node: FakeNode, group: asyncio.TaskGroup, who: str, rid: str) -> Any:
    node.holding.clear()
    body = {"text": "<hold>", "rid": rid, "sampling_params": {"max_new_tokens": 9}}
    task = group.create_task(call(service, who, "POST", "/generate", json=body))
    await node.holding.wait()
    return task


async def test_another_s_request_cannot_be_aborted(guarded: Service, node: FakeNode) -> None:
    """Two tenants may use the same rid; each aborts its own, another's counts as unknown, the admin aborts any."""

    async def abort(who: str, rid: str) -> None:
        response = await call(guarded, who, "POST", "/abort_request", json={"rid": rid})
        assert (response.status_code, response.json()) == (200, {"success": True})

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        alice = await start(guarded, node, group, "alice", "job")
        bob = await start(guarded, node, group, "bob", "job")
        again = await start(guarded, node, group, "bob", "other")
        await abort("alice", "other")
        await abort("alice", node.asked[1].id)
        assert node.cancelled == []
        await abort("alice", "job")
        ((ids, everything),) = node.cancelled
        assert node.asked[0].id in ids
        assert node.asked[1].id not in ids
        assert not everything
        assert (await alice).json()["meta_info"]["finish_reason"]["type"] == "abort"
        await abort("admin", "job")
        assert (await bob).json()["meta_info"]["finish_reason"]["type"] == "abort"
        node.release.set()
        assert (await again).json()["meta_info"]["finish_reason"]["type"] == "length"
    assert guarded.running == {}


async def test_pins_and_exports_show_the_tenant_s_own(guarded: Service, node: FakeNode) -> None:
    """A tenant lists, removes and exports what is its own; the admin everything."""
    spaces = ["alice", namespace_of("alice", "s"), "bob", "alice2"]
    node.held = [Pinned(f"p{index}", space, 3, 3, 1.0) for index, space in enumerate(spaces)]
    node.edges = [Edge(space, index, -1, [index]) for index, space in enumerate(spaces)]

    async def seen(who: str, query: str = "") -> tuple[list[str], list[str], list[str]]:
        pins = (await call(guarded, who, "GET", "/cache/pins")).json()["pins"]
        also = (await call(guarded, who, "GET", "/cache")).json()["pins"]
        assert also == pins
        export = await call(guarded, who, "GET", f"/cache/export{query}")
        lines = [line.split('"tenant":"')[1].split('"')[0] for line in export.text.splitlines()]
        return [pin["name"] for pin in pins], [pin["tenant"] for pin in pins], lines

    assert await seen("alice") == (["p0", "p1"], ["alice", "alice"], ["alice"])
    assert await seen("alice", "?cache_salt=s") == (["p0", "p1"], ["alice", "alice"], ["alice"])
    assert await seen("bob", "?cache_salt=s") == (["p2"], ["bob"], [])
    assert (await seen("admin"))[0] == ["p0", "p1", "p2", "p3"]
    assert (await seen("admin"))[2] == ["alice", "alice", "bob", "alice2"]
    hidden = await call(guarded, "alice", "DELETE", "/cache/pin/p2")
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "pin_not_found")
    assert len(node.held) == 4
    assert (await call(guarded, "alice", "DELETE", "/cache/pin/p1")).status_code == 404
    assert (await call(guarded, "alice", "DELETE", "/cache/pin/p1?cache_salt=s")).status_code == 200
    assert (await call(guarded, "alice", "DELETE", "/cache/pin/p2?tenant=bob")).status_code == 403
    assert (await call(guarded, "admin", "DELETE", "/cache/pin/p2")).status_code == 404
    assert (await call(guarded, "admin", "DELETE", "/cache/pin/p2?tenant=bob")).status_code == 200
    assert [pin.name for pin in node.held] == ["p0", "p3"]


async def test_a_pin_is_the_tenant_s(guarded: Service, node: FakeNode) -> None:
    """What `POST /cache/pin` computes and holds is in the tenant's namespace, with its salt."""
    body = {"text": "abc", "ttl": 60, "cache_salt": "s"}
    answer = (await call(guarded, "bob", "POST", "/cache/pin", json=body)).json()
    assert (answer["tenant"], answer["cache_salt"]) == ("bob", "s")
    assert (node.asked[-1].tenant, node.asked[-1].salt) == ("bob", "s")
    assert [pin.namespace for pin in node.held] == [namespace_of("bob", "s")]


async def test_logs_name_the_tenant_and_no_key(guarded: Service, lines: LogCapture) -> None:
    """The line of a request says whose it was; keys, right or wrong, are in no line."""
    await call(guarded, "alice", "GET", "/v1/models")
    await call(guarded, "a-wrong-key", "GET", "/v1/models")
    noted = [line for line in lines.entries if line["event"] == "http request"]
    assert [(line["status"], line.get("tenant")) for line in noted] == [(200, "alice"), (401, None)]
    assert noted[1]["error"] == "unauthorized"
    for key in (*KEYS.values(), "a-wrong-key"):
        assert key not in repr(lines.entries)


async def test_streams_of_two_tenants_side_by_side(guarded: Service, node: FakeNode) -> None:
    """Streams carry the tenant as whole answers do."""
    body = {"prompt": "x", "max_tokens": 3, "stream": True}
    answers = await asyncio.gather(
        *(call(guarded, who, "POST", "/v1/completions", json=body) for who in ("alice", "bob"))
    )
    assert [events(answer.text)[-1] for answer in answers] == ["[DONE]", "[DONE]"]
    assert sorted(request.tenant for request in node.asked) == ["alice", "bob"]


def test_namespaces_never_meet() -> None:
    """No tenant and salt have the namespace of others."""
    pairs = list(itertools.product(["a", "a.b", "b"], ["", "a", "b", ".b"]))
    assert len({namespace_of(*pair) for pair in pairs}) == len(pairs)
