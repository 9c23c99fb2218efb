"""GET and POST /scheduler."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from structlog.testing import LogCapture

from tests.gateway.fake_node import FakeNode

DEFAULTS = {
    "policy": "lpm",
    "overtake": 1024,
    "sharing": True,
    "reuse": True,
    "stall": 3.2,
    "speculation": True,
}


async def test_read_and_switch(client: httpx2.AsyncClient, lines: LogCapture) -> None:
    """A body changes what it names and nothing else; the answer is what is in force; a line says so."""
    assert (await client.get("/scheduler")).json() == DEFAULTS
    changed = await client.post("/scheduler", json={"policy": "hrrn", "sharing": False, "stall": None})
    assert changed.json() == {**DEFAULTS, "policy": "hrrn", "sharing": False}
    assert (await client.post("/scheduler", json={})).json() == changed.json()
    for body in ({"overtake": 0}, {"stall": 0}, {"stall": 1.2}, {"reuse": False}):
        answer = (await client.post("/scheduler", json=body)).json()
        assert answer | body == answer
    (line, *_) = [line for line in lines.entries if line["event"] == "scheduler switched"]
    assert line["policy"] == "hrrn"


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"policy": "lfm"}, "policy", "there are lpm, dfs-weight, fcfs, hrrn"),
        ({"policy": 3}, "policy", "str"),
        ({"overtake": -1}, "overtake", "0"),
        ({"overtake": 1.5}, "overtake", "int"),
        ({"overtake": 10**20}, "overtake", ""),
        ({"stall": 0.5}, "stall", "1.2"),
        ({"stall": 1.19}, "stall", "1.2"),
        ({"stall": -1}, "stall", "1.2"),
        ({"sharing": "yes"}, "sharing", "bool"),
        ({"polcy": "fcfs"}, None, "polcy"),
    ],
)
async def test_what_is_refused(
    client: httpx2.AsyncClient, node: FakeNode, body: dict[str, Any], param: str | None, part: str
) -> None:
    """A wrong value is 400 with its field, and says what there is; a field that there is not is refused, too."""
    response = await client.post("/scheduler", json={"reuse": False, **body})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert part in error["message"]
    assert node.configuration.reuse
