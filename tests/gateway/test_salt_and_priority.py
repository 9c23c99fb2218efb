"""`cache_salt`, `extra_key` and `priority` on their way to the node."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.gateway.fake_node import FakeNode

PATHS: dict[str, dict[str, Any]] = {
    "/generate": {"text": "x", "sampling_params": {"max_new_tokens": 1}},
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "salt", "priority"),
    [
        ({}, "", 0),
        ({"cache_salt": None, "extra_key": None, "priority": None}, "", 0),
        ({"cache_salt": "", "priority": 0}, "", 0),
        ({"cache_salt": "s 1/é", "priority": 1000}, "s 1/é", 1000),
        ({"extra_key": "e", "priority": -1000}, "e", -1000),
        ({"cache_salt": "s", "extra_key": "s"}, "s", 0),
        ({"cache_salt": "x" * 256}, "x" * 256, 0),
    ],
)
async def test_they_reach_the_node(
    client: httpx2.AsyncClient, node: FakeNode, path: str, fields: dict[str, Any], salt: str, priority: int
) -> None:
    """All three routes pass them on; null and the empty salt mean none."""
    response = await client.post(path, json={**PATHS[path], **fields})
    assert response.status_code == 200, response.text
    assert (node.asked[-1].salt, node.asked[-1].priority) == (salt, priority)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"extra_key": "x" * 257}, "extra_key"),
        ({"cache_salt": "a\x1fb"}, "cache_salt"),
        ({"cache_salt": "a\nb"}, "cache_salt"),
        ({"extra_key": "\x7f"}, "extra_key"),
        ({"cache_salt": "\x85"}, "cache_salt"),
        ({"cache_salt": "a", "extra_key": "b"}, "extra_key"),
        ({"cache_salt": 3}, "cache_salt"),
        ({"priority": 1001}, "priority"),
        ({"priority": -1001}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
    ],
)
async def test_what_is_refused(
    client: httpx2.AsyncClient, node: FakeNode, path: str, fields: dict[str, Any], param: str
) -> None:
    """Too long, with control characters (which part namespaces), two different ones, or out of range: 400 with the field."""
    response = await client.post(path, json={**PATHS[path], **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert node.asked == []


async def test_a_salt_per_prompt(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """/generate takes a list with one salt per prompt, as SGLang does."""
    body = {"text": ["x", "y"], "sampling_params": {"max_new_tokens": 1}}
    assert (await client.post("/generate", json={**body, "extra_key": ["a", None]})).status_code == 200
    assert sorted((request.text, request.salt) for request in node.asked) == [("x", "a"), ("y", "")]
    wrong = await client.post("/generate", json={**body, "extra_key": ["a"]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "extra_key")
