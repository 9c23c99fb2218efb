"""Errors as clients see them: status, object, headers; limits; readiness."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import LogCapture

from sgl_actors.actors.gateway.body import decode_body
from sgl_actors.actors.gateway.limits import request_id
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.gateway.openai_types import ChatRequest, CompletionRequest
from sgl_actors.errors import InvalidRequest
from tests.gateway.conftest import MakeService, client_of
from tests.gateway.events import events
from tests.gateway.fake_node import CONTEXT, FakeNode

FAULTS = [
    ("<busy>", 429, "rate_limit_error", "overloaded", True),
    ("<down>", 503, "service_unavailable_error", "not_ready", True),
    ("<slow>", 504, "timeout_error", "deadline_exceeded", False),
    ("<fail>", 500, "server_error", "remote_error", False),
]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error object; asserts that it is complete."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.json() == {"error": error}
    result: dict[str, Any] = error
    return result


@pytest.mark.parametrize(("prompt", "status", "kind", "code", "again"), FAULTS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_faults_of_the_node(
    client: httpx2.AsyncClient,
    path: str,
    stream: bool,
    prompt: str,
    status: int,
    kind: str,
    code: str,
    again: bool,
) -> None:
    """A fault before the first event has its own status even when a stream was asked for; one in the middle is an event."""
    message = [{"role": "user", "content": prompt}]
    body = {"/generate": {"text": prompt}, "/v1/completions": {"prompt": prompt}}.get(
        path, {"messages": message}
    )
    response = await client.post(path, json={**body, "stream": stream})
    if code == "remote_error" and stream:
        assert response.status_code == 200
        *_, error = events(response.text)
        assert (error["error"]["code"], error["error"]["type"]) == (code, kind)
        assert "secret" not in response.text
        return
    assert response.status_code == status
    error = error_of(response)
    assert (error["type"], error["code"]) == (kind, code)
    assert ("retry-after" in response.headers) is again
    assert "secret" not in error["message"]


async def test_too_long_prompts_name_both_numbers(client: httpx2.AsyncClient) -> None:
    """A prompt over the context is 400 context_length_exceeded with both numbers, also for streams."""
    for stream in (False, True):
        response = await client.post(
            "/v1/completions", json={"prompt": "x" * CONTEXT, "max_tokens": 7, "stream": stream}
        )
        assert response.status_code == 400
        error = error_of(response)
        assert error["code"] == "context_length_exceeded"
        assert "7" in error["message"]
        assert str(CONTEXT) in error["message"]


async def test_unexpected_failures_stay_inside(
    client: httpx2.AsyncClient, node: FakeNode, lines: LogCapture
) -> None:
    """An exception that nobody foresaw is a 500 without its text, and is logged with its traceback."""

    def broken(request: Any, **kwargs: Any) -> Any:
        raise ValueError("secret")

    node.generate = broken  # type: ignore[method-assign]
    response = await client.post("/generate", json={"text": "x"})
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.text
    assert any(line.get("exc_info") and line["log_level"] == "error" for line in lines.entries)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b'{"prompt": "\xff\xfe"}', "JSON"),
        (b'{"prompt": "\\ud800"}', "JSON"),
        (b"[1]", "object"),
        (b'"text"', "object"),
        (b'{"prompt": ' + b"[" * 100_000, "JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "JSON"),
    ],
)
async def test_broken_bodies(client: httpx2.AsyncClient, raw: bytes, hint: str) -> None:
    """Bodies that are no UTF-8, no JSON, no object or nested without end are 400."""
    response = await client.post("/v1/completions", content=raw)
    assert response.status_code == 400
    assert hint in error_of(response)["message"]


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_refused_or_decoded(raw: bytes) -> None:
    """Decoding raises InvalidRequest or gives a request, never anything else."""
    for cls in (ChatRequest, CompletionRequest):
        with contextlib.suppress(InvalidRequest):
            assert isinstance(decode_body(raw, cls, {}, {})[0], cls)


@pytest.mark.parametrize("declared", [True, False])
async def test_large_bodies_are_refused_unread(make_service: MakeService, declared: bool) -> None:
    """A body over max_body is 413, whether its length is declared or found out."""

    async def parts() -> Any:
        for _ in range(5):
            yield b'{"a": "' + b"x" * 300

    async with client_of(make_service(Options(port=0, max_body=1000))) as client:
        content: Any = b"x" * 1001 if declared else parts()
        response = await client.post("/generate", content=content)
        assert response.status_code == 413
        assert error_of(response)["code"] == "payload_too_large"
        assert "1000" in error_of(response)["message"]
        assert response.headers["connection"] == "close"
        exact = b'{"text": "' + b"x" * 100 + b'", "sampling_params": {"max_new_tokens": 1}}'
        assert (await client.post("/generate", content=exact.ljust(1000))).status_code == 200


async def test_large_body_over_a_socket_reads_its_answer(url: str) -> None:
    """A client that sends far too much still gets to read the 413."""
    async with httpx2.AsyncClient() as client:
        response = await client.post(url + "/generate", content=b"x" * (9 << 20))
    assert response.status_code == 413


@pytest.mark.parametrize("name", ["fake", "/models/fake.gguf", "default", "", None])
async def test_names_of_the_model(client: httpx2.AsyncClient, name: str | None) -> None:
    """The served name, the path, "default" and no name mean the one model; the answer has the served name."""
    response = await client.post("/v1/completions", json={"model": name, "prompt": "x"})
    assert response.json()["model"] == "fake"


async def test_unknown_model(client: httpx2.AsyncClient) -> None:
    """Any other model is 404 and names what is served."""
    for response in (
        await client.post("/v1/completions", json={"model": "gpt-9", "prompt": "x"}),
        await client.get("/v1/models/gpt-9"),
    ):
        assert response.status_code == 404
        error = error_of(response)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'fake'" in error["message"]


async def test_unknown_routes_and_methods(client: httpx2.AsyncClient) -> None:
    """404 and 405 have the error object, too."""
    assert error_of(await client.get("/v2"))["code"] == "not_found"
    wrong = await client.get("/generate")
    assert wrong.status_code == 405
    assert error_of(wrong)["code"] == "method_not_allowed"


async def test_health_while_starting_and_draining(make_service: MakeService, node: FakeNode) -> None:
    """/health is 503 with the reason until every actor is up and while draining; new work is refused then."""
    now = [0.0]
    node.ready, node.loaded = False, False
    async with client_of(make_service(now=lambda: now[0])) as client:
        response = await client.get("/health")
        assert response.status_code == 503
        assert "worker/0#2 starting" in error_of(response)["message"]
        assert "retry-after" in response.headers
        refused = await client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert node.asked == []
        node.ready = node.loaded = True
        now[0] += 1.1
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/health_generate")).status_code == 200
        assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 200
        node.ready = node.loaded = False
        now[0] += 60
        assert (await client.get("/health")).status_code == 503
        assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 200
        node.draining = True
        now[0] += 1.1
        refused = await client.post("/generate", json={"text": "x"})
        assert refused.status_code == 503
        assert "draining" in error_of(refused)["message"]


async def test_root_is_asked_once_a_second_at_most(make_service: MakeService, node: FakeNode) -> None:
    """Many health checks and requests at once cost one question to the root."""
    now = [0.0]
    async with client_of(make_service(now=lambda: now[0])) as client:
        await asyncio.gather(*(client.get("/health") for _ in range(20)))
        await client.post("/generate", json={"text": "x", "sampling_params": {"max_new_tokens": 1}})
        assert node.roots == 1
        now[0] += 1.1
        await client.get("/health")
        assert node.roots == 2


async def test_request_id_is_the_trace(client: httpx2.AsyncClient, node: FakeNode, lines: LogCapture) -> None:
    """A harmless x-request-id is kept, goes to the node as trace and into the one log line, which holds no prompt."""
    body = {"prompt": "a very secret prompt", "max_tokens": 2}
    response = await client.post("/v1/completions", json=body, headers={"x-request-id": "abc-1.2:3_x"})
    assert response.headers["x-request-id"] == "abc-1.2:3_x"
    assert node.traces == ["abc-1.2:3_x"]
    assert node.asked[0].id.startswith("cmpl-")
    (line,) = [line for line in lines.entries if line["event"] == "http request"]
    assert line["trace"] == "abc-1.2:3_x"
    assert (line["route"], line["status"], line["prompt_length"]) == ("/v1/completions", 200, 20)
    assert (line["prompt_tokens"], line["completion_tokens"], len(line["prompt_hash"])) == (20, 2, 16)
    assert "secret" not in repr(lines.entries)


@pytest.mark.parametrize("offered", ["", "a b", "x" * 129, "../etc", "ünï", "a\nb"])
def test_strange_request_ids_are_replaced(offered: str) -> None:
    """A label that is long or has other characters is replaced by one of our own."""
    own = request_id(offered)
    assert own != offered
    assert own.startswith("req-")
    assert request_id(own) == own


async def test_unknown_fields_are_logged_once(client: httpx2.AsyncClient, lines: LogCapture) -> None:
    """An unknown field is accepted and warned of once, not for every request."""
    for _ in range(3):
        await client.post("/v1/completions", json={"prompt": "x", "colour": "red", "user": "ann"})
    warnings = [line for line in lines.entries if line["log_level"] == "warning"]
    assert [warning["fields"] for warning in warnings] == [["colour"]]
