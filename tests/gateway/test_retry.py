"""Asking again: keys, ids of events, and that a stream plus what comes after any of its events is the stream."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import httpx2
import pytest
import structlog
from starlette.datastructures import Headers

from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.retry import MOST_MARKED, Place, Retry
from sgl_actors.actors.gateway.service import Service
from sgl_actors.errors import InvalidRequest
from tests.gateway.chunky_node import ChunkyNode
from tests.gateway.conftest import MakeService, client_of
from tests.gateway.events import events, marked_events
from tests.gateway.fake_node import FakeNode

CALLS = (
    'See <b>: é😀 <tool_call>\n{"name": "add", "arguments": {"a": "}\\"é", "b": [1, {}]}}\n</tool_call>'
    '\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
)
TOOLS = [{"type": "function", "function": {"name": "add"}}]
USER = [{"role": "user", "content": "hi"}]

CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "chat with emoji": (
        "/v1/chat/completions",
        "Grüße 👩‍🚀 aus ÿ\ud7ff😀!",
        {"messages": USER, "max_tokens": 60},
    ),
    "chat with logprobs and usage": (
        "/v1/chat/completions",
        "a😀b",
        {"messages": USER, "max_tokens": 60, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}},
    ),
    "three chats": (
        "/v1/chat/completions",
        None,
        {"messages": USER, "n": 3, "max_tokens": 12, "temperature": 1, "stream_options": {"include_usage": True}},
    ),
    "tool calls": (
        "/v1/chat/completions",
        CALLS,
        {"messages": USER, "tools": TOOLS, "max_tokens": 200, "stream_options": {"include_usage": True}},
    ),
    "tool calls with logprobs, cut off": (
        "/v1/chat/completions",
        CALLS,
        {"messages": USER, "tools": TOOLS, "max_tokens": 70, "logprobs": True},
    ),
    "stop string": (
        "/v1/chat/completions",
        "one STO two STOP three",
        {"messages": USER, "max_tokens": 60, "stop": ["STOP", "O three"]},
    ),
    "held back to the end": ("/v1/completions", "abSTO", {"prompt": "x", "max_tokens": 5, "stop": "STOP"}),
    "half a character at the end": ("/v1/completions", "ab😀", {"prompt": "x", "max_tokens": 4}),
    "echo with logprobs": (
        "/v1/completions",
        "é<|a😀",
        {"prompt": ["ü", "zz"], "echo": True, "logprobs": 2, "max_tokens": 9, "n": 2, "stream_options": {"include_usage": True}},
    ),
    "nothing generated": ("/v1/completions", None, {"prompt": "xy", "echo": True, "max_tokens": 0}),
    "generate": (
        "/generate",
        "a😀 STO b",
        {"text": ["q", "r"], "sampling_params": {"max_new_tokens": 30, "stop": ["STOP"]}, "return_logprob": True, "top_logprobs_num": 1, "logprob_start_len": 0},
    ),
    "one generate": ("/generate", None, {"text": "q", "sampling_params": {"max_new_tokens": 9, "temperature": 1}}),
}  # fmt: skip


def told(path: str, found: list[Any]) -> Any:
    """All that events say, put together; what a client has after them."""
    if path == "/generate":
        last = {event.get("index", 0): event for event in found if event != "[DONE]"}
        for event in last.values():
            event["meta_info"].pop("e2e_latency", None)
        return last, found[-1]
    texts: Any = defaultdict(list)
    for event in found:
        if event == "[DONE]":
            continue
        texts["id"].append(event["id"])
        if event.get("usage"):
            texts["usage"].append(event["usage"])
        for choice in event["choices"]:
            index = choice["index"]
            delta = choice.get("delta") or {"content": choice.get("text", "")}
            texts[index, "role"] += [delta["role"]] if delta.get("role") else []
            texts[index, "text"].append(delta.get("content") or "")
            for call in delta.get("tool_calls") or ():
                function = call["function"]
                head = [call["id"], function["name"]] if "id" in call else []
                texts[index, "call", call["index"]] += head
                texts[index, "arguments", call["index"]].append(function.get("arguments") or "")
            scores = choice.get("logprobs") or {}
            for name, values in scores.items():
                texts[index, name] += values or []
            texts[index, "finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    joined = {
        key: "".join(values) if key[1:2] in (("text",), ("arguments",)) else values
        for key, values in texts.items()
        if key != "id"
    }
    return set(texts["id"]), joined, found[-1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
async def test_a_stream_goes_on_behind_any_of_its_events(name: str, seed: int) -> None:
    """Whatever event was the last that came, it and those before it together with the rest are the whole stream: nothing twice, nothing lost."""
    path, forced, body = CASES[name]
    node = ChunkyNode(seed)
    node.forced = forced
    service = service_over(node)
    async with client_of(service) as client:

        async def stream(last: str | None = None) -> list[tuple[str, Any]]:
            headers = {"Idempotency-Key": "k"} | ({} if last is None else {"Last-Event-ID": last})
            response = await client.post(path, json={**body, "stream": True}, headers=headers)
            assert response.status_code == 200, response.text
            return marked_events(response.text)

        whole = await stream()
        expected = told(path, [event for _, event in whole])
        marks = [mark for mark, _ in whole]
        assert len(set(marks[:-1])) == len(marks) - 1
        for number in range(1, len(whole)):
            rest = await stream(marks[number - 1])
            both = [event for _, event in whole[:number]] + [event for _, event in rest]
            assert told(path, both) == expected, (marks[number - 1], whole[:number], rest)
            assert len(rest) >= 1
            if number == len(whole) - 1:
                assert [event for _, event in rest] == ["[DONE]"]
            second = rest[len(rest) // 2][0]
            again = await stream(second)
            both = [event for _, event in whole[:number] + rest[: len(rest) // 2 + 1] + again]
            if rest[len(rest) // 2][1] != "[DONE]":
                assert told(path, both) == expected, (marks[number - 1], second)


def service_over(node: FakeNode) -> Service:
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        None, processors=[structlog.testing.LogCapture()]
    )
    return Service(node, Options(port=0), log=log, now=lambda: 0.0, clock=lambda: 1.7e9)


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, _, body in CASES.values() if "<" not in str(body)]
)
async def test_without_a_key_nothing_changes(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """Events have no ids, the node's ids differ from request to request, and nothing is kept."""
    for _ in range(2):
        response = await client.post(path, json={**body, "stream": True})
        assert events(response.text)[-1] == "[DONE]"


async def test_ids_and_seeds_come_from_tenant_and_key(make_service: MakeService, node: FakeNode) -> None:
    """The same key of the same tenant gives the same ids and seeds, another one or another's others; an own seed stays."""
    service = make_service(keys={"ann": "a" * 20, "bob": "b" * 20})
    body = {"messages": USER, "max_tokens": 2, "n": 2}

    async def ask(key: str, who: str, **more: Any) -> tuple[Any, list[tuple[str, int | None]]]:
        node.asked.clear()
        async with client_of(service, who * 20) as client:
            headers = {"Idempotency-Key": key, "X-Request-Id": "label"}
            response = await client.post("/v1/chat/completions", json={**body, **more}, headers=headers)
        assert response.status_code == 200
        assert response.headers["x-request-id"] == "label"
        assert [request.known for request in node.asked] == [0, 0]
        return {**response.json(), "usage": None}, sorted(
            (request.id, request.sampling.seed) for request in node.asked
        )

    answer, asked = await ask("k", "a")
    assert await ask("k", "a") == (answer, asked)
    other, by_bob = await ask("k", "b")
    _, by_key = await ask("k2", "a")
    assert len({*asked, *by_bob, *by_key}) == 6
    assert other["id"] != answer["id"]
    assert asked[0][0].startswith(answer["id"])
    assert len({seed for _, seed in asked}) == 2
    _, seeded = await ask("k", "a", seed=5)
    assert [request_id for request_id, _ in seeded] == [request_id for request_id, _ in asked]
    assert seeded[0][1] == 5


async def test_the_same_is_asked_for_again(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Down to the last field, also where the prompt is computed by a request of its own; or the node would take it for another one."""
    for path, body in (
        ("/v1/completions", {"prompt": ["x" * 600, "y"], "n": 2, "echo": True, "logprobs": 1}),
        ("/generate", {"text": ["x", "y"], "sampling_params": {"n": 2, "temperature": 1}}),
    ):
        asked = []
        for _ in range(2):
            node.asked.clear()
            await client.post(path, json=body, headers={"Idempotency-Key": path})
            asked.append(sorted(node.asked, key=lambda request: request.id))
        assert asked[0] == asked[1]
        assert {request.known for request in asked[0]} == {0}
        assert None not in {request.sampling.seed for request in asked[0]}


async def test_a_request_without_a_key_is_not_kept(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """The node is told that nobody comes back for it, and the seed is the node's to draw."""
    await client.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "same"})
    await client.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "same"})
    one, two = node.asked
    assert (one.known, one.sampling.seed) == (-1, None)
    assert one.id != two.id


@pytest.mark.parametrize(
    ("headers", "more", "param"),
    [({"Idempotency-Key": "k"}, {}, "Idempotency-Key"), ({}, {"rid": "k"}, "rid")],
)
async def test_another_body_under_a_live_key_is_refused(
    client: httpx2.AsyncClient, node: FakeNode, headers: dict[str, str], more: dict[str, Any], param: str
) -> None:
    """The message names the key and the parameter; the request that has it goes on."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        first = group.create_task(client.post("/generate", json={"text": "<hold>", **more}, headers=headers))
        await node.holding.wait()
        second = await client.post("/generate", json={"text": "x", **more}, headers=headers)
        node.release.set()
    assert first.result().status_code == 200
    assert second.status_code == 400
    error = second.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_request")
    assert "'k'" in error["message"]


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ("x", "no id of an event"),
        ("1;2", "no id of an event"),
        ("01", "no id of an event"),
        ("-1", "no id of an event"),
        ("1-0", "no id of an event"),
        ("9.u", "no id of an event"),
        ("99999999999999999999", "no id of an event"),
        ("1.1", "tells of 2 choices, the request has 1"),
        ("10", "has 9 output tokens"),
        ("8e", "has 9 output tokens"),
        ("3-9", "there are"),
        ("9e-9", "there are"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": USER})]
)
async def test_a_place_that_is_none_is_a_400(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], last: str, why: str
) -> None:
    """Malformed, of another number of choices, or beyond what there is: the reason is told before any event."""
    headers = {"Idempotency-Key": "k", "Last-Event-ID": last}
    response = await client.post(path, json={**body, "stream": True, "max_tokens": 9}, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == "Last-Event-ID"
    assert why in error["message"]


@pytest.mark.parametrize(
    ("headers", "stream", "param"),
    [
        ({"Last-Event-ID": "1"}, True, "Last-Event-ID"),
        ({"Last-Event-ID": "1", "Idempotency-Key": "k"}, False, "Last-Event-ID"),
        ({"Idempotency-Key": ""}, True, "Idempotency-Key"),
        ({"Idempotency-Key": "x" * 256}, True, "Idempotency-Key"),
        ({"Idempotency-Key": "é"}, True, "Idempotency-Key"),
    ],
)
async def test_headers_that_cannot_be_honoured_are_refused(
    client: httpx2.AsyncClient, headers: dict[str, str], stream: bool, param: str
) -> None:
    """A place without a key or without a stream, and a key that is none, are a 400 each."""
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    response = await client.post("/v1/completions", json={"prompt": "x", "stream": stream}, headers=raw)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_key_aborts_what_has_lost_its_client(make_service: MakeService, node: FakeNode) -> None:
    """By its key a tenant reaches its own requests though no connection is left, and nobody else's."""
    service = make_service(keys={"ann": "a" * 20, "bob": "b" * 20})
    ids: dict[str, str] = {}
    for who in "ab":
        async with client_of(service, who * 20) as client:
            for path, body in (
                ("/generate", {"text": "x", "rid": "k"}),
                ("/v1/chat/completions", {"messages": USER}),
            ):
                await client.post(path, json=body, headers={"Idempotency-Key": "k"})
                ids[who + path] = node.asked[-1].id
            node.cancelled_stems.clear()
            await client.post("/abort_request", json={"rid": "k"})
            found = [
                key
                for key, one in ids.items()
                if one.startswith(tuple(f"{stem}-" for stem in node.cancelled_stems))
            ]
            assert found == [key for key in ids if key[0] == who]


def test_many_choices_have_no_ids() -> None:
    """A stream of so many cannot be resumed, and says so."""
    retry = Retry.of(Headers({"idempotency-key": "k", "last-event-id": "1"}), "t", stream=True)
    with pytest.raises(InvalidRequest, match="cannot be resumed"):
        retry.places(MOST_MARKED + 1)


def test_a_place_reads_back() -> None:
    """What is written as an id is what is read from it."""
    places = [Place(0), Place(12, left=3), Place(7, ended=True), Place(9, ended=True, left=1)]
    text = ".".join(map(str, places))
    assert text == "0.12-3.7e.9e-1"
    retry = Retry.of(Headers({"idempotency-key": "k", "last-event-id": text}), "t", stream=True)
    assert retry.places(4) == (places, False)
    done = Retry.of(Headers({"idempotency-key": "k", "last-event-id": "7e.9e.u"}), "t", stream=True)
    assert done.places(2) == ([Place(7, ended=True), Place(9, ended=True)], True)
