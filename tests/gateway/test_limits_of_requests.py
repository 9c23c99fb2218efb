"""How much one request may ask for: every bound that a stranger meets, with what it answers."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from sgl_actors.actors.gateway import limits
from sgl_actors.actors.gateway.app import ROUTES
from sgl_actors.actors.gateway.errors import LONGEST_MESSAGE
from tests.gateway.fake_node import FakeNode

CHAT = "/v1/chat/completions"
TURN = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}


def image(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [TURN] * (limits.MAX_MESSAGES + 1)}, "messages"),
        (CHAT, {"messages": [TURN], "tools": [TOOL] * (limits.MAX_TOOLS + 1)}, "tools"),
        (CHAT, {"messages": [TURN], "tools": [{"type": "function", "function": {"name": "f", "description": "x" * limits.MAX_TOOLS_SIZE}}]}, "tools"),
        (CHAT, {"messages": [TURN], "n": 129}, "n"),
        (CHAT, {"messages": [TURN], "top_logprobs": limits.MAX_CHAT_TOP_LOGPROBS + 1, "logprobs": True}, "top_logprobs"),
        (CHAT, {"messages": [TURN], "max_tokens": 1 << 31}, "max_tokens"),
        (CHAT, {"messages": [TURN], "stop": ["x"] * (limits.MAX_STOPS + 1)}, "stop"),
        (CHAT, {"messages": [TURN], "stop": "x" * (limits.MAX_STOP_LENGTH + 1)}, "stop"),
        (CHAT, {"messages": [TURN], "stop_token_ids": [1] * (limits.MAX_STOP_IDS + 1)}, "stop_token_ids"),
        (CHAT, {"messages": [TURN], "logit_bias": {str(n): 1 for n in range(limits.MAX_BIASES + 1)}}, "logit_bias"),
        (CHAT, {"messages": [TURN], "logit_bias": {"1": 101}}, "logit_bias[...]"),
        (CHAT, {"messages": [TURN], "guided_choice": ["x"] * (limits.MAX_CHOICES + 1)}, "guided_choice"),
        (CHAT, {"messages": [TURN], "cache_salt": "x" * (limits.MAX_SALT + 1)}, "cache_salt"),
        (CHAT, {"messages": [TURN], "chat_template": "{{ 1 }}"}, "chat_template"),
        (CHAT, {"messages": [TURN], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        (CHAT, image("http://169.254.169.254/latest/meta-data"), "messages[0].content[0]"),
        (CHAT, image("http://127.0.0.1:30000/health"), "messages[0].content[0]"),
        (CHAT, image("https://example.com/cat.png"), "messages[0].content[0]"),
        (CHAT, image("file:///etc/passwd"), "messages[0].content[0]"),
        (CHAT, image("data:image/png;base64,AAAA"), "messages[0].content[0]"),
        ("/generate", {"text": "x", "image_data": "http://10.0.0.1/x.png"}, "image_data"),
        ("/generate", {"text": "x", "video_data": ["x"]}, "video_data"),
        ("/generate", {"text": "x", "input_embeds": [[0.1]]}, "input_embeds"),
        ("/generate", {"text": "x", "sampling_params": {"n": 129}}, "n"),
        ("/generate", {"text": "x", "rid": "x" * 129}, "rid"),
        ("/v1/completions", {"prompt": ["x"] * 129}, "prompt"),
        ("/v1/completions", {"prompt": ["x"] * 100, "n": 100}, "n"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 3000}, None),
        ("/v1/completions", {"prompt": "x" * 3000, "max_tokens": 1}, None),
        ("/tokenize", {"prompt": ["x"] * 1025}, "prompt"),
        ("/cache/pin", {"text": "x", "ttl": 1e9}, "ttl"),
    ],
)  # fmt: skip
async def test_what_is_too_much_is_refused_by_name(
    client: httpx2.AsyncClient, node: FakeNode, path: str, body: dict[str, Any], param: str | None
) -> None:
    """400 with the field; nothing is fetched, decoded or computed, and nothing runs on."""
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert node.running == 0


@pytest.mark.parametrize("field", ["metadata", "tools", "json_schema", "response_format", "messages"])
@pytest.mark.parametrize("depth", [900, 100_000])
async def test_deep_nesting_is_refused(client: httpx2.AsyncClient, field: str, depth: int) -> None:
    """Brackets inside of brackets end as 400, or as an answer where the field is not looked at."""
    body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "%s": %s1%s}'
    response = await client.post(CHAT, content=body % (field.encode(), b"[" * depth, b"]" * depth))
    assert response.status_code == (200 if field == "metadata" and depth < 1000 else 400)


async def test_an_answer_does_not_repeat_at_length_what_it_refuses(client: httpx2.AsyncClient) -> None:
    """A message is bounded, however long the value that it is about."""
    response = await client.post("/v1/completions", json={"prompt": "x", "model": "m" * 100_000})
    assert response.status_code == 404
    assert len(response.json()["error"]["message"]) <= LONGEST_MESSAGE


def test_every_route_that_changes_something_is_known() -> None:
    """Whose business each is: of every tenant within what is its own, or of the admin. A new route has to be put into one of the two."""
    tenants = {
        CHAT,
        "/v1/completions",
        "/generate",
        "/tokenize",
        "/detokenize",
        "/abort_request",
        "/cache/pin",
        "/cache/pin/{name}",
    }
    admins = {"/flush_cache", "/scheduler", "/profile", "/models/load", "/models/unload"}
    changing = {route.path for route in ROUTES if (route.methods or set()) - {"GET", "HEAD"}}
    assert changing == tenants | admins
