"""POST /profile."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.gateway.fake_node import FakeNode


async def test_rows_divide_the_time(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """The defaults are five seconds without a trace; shares add up to 1, in the order of the table."""
    answer = (await client.post("/profile", json={})).json()
    assert node.profiled == [(5.0, False)]
    assert (answer["steps"], answer["tokens"], answer["trace"]) == (2, 2, None)
    assert [row["part"] for row in answer["rows"]] == [
        "qkv",
        "other",
        "hand-over",
        "scheduler",
        "bus",
        "idle",
    ]
    assert sum(row["share"] for row in answer["rows"]) == pytest.approx(1.0)
    assert answer["processes"][0]["process"] == "gateway"


async def test_a_trace_on_request(client: httpx2.AsyncClient) -> None:
    """It has the steps and what was done in them."""
    answer = (await client.post("/profile", json={"seconds": 0.5, "trace": True})).json()
    names = [event["name"] for event in answer["trace"]["traceEvents"] if event["ph"] == "X"]
    assert names == ["step", "qkv", "step"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"seconds": 0}, "seconds"),
        ({"seconds": 61}, "seconds"),
        ({"seconds": "1"}, "seconds"),
        ({"sec": 1}, None),
    ],
)
async def test_what_a_profile_cannot_be(
    client: httpx2.AsyncClient, node: FakeNode, body: dict[str, Any], param: str | None
) -> None:
    """A wrong value is 400 with its field, and nothing is taken."""
    response = await client.post("/profile", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert node.profiled == []
