"""Constraints on a real node: bad ones over HTTP, and what restarts of the grammar actor and the worker do."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.microkernel.messages import Actors, Done, ListActors, RestartActor
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.lang.constraints.constraint import Constraint

pytestmark = pytest.mark.model


@pytest.fixture
async def client(node: NodeRecord) -> AsyncIterator[NodeClient]:
    handle = await join(node.endpoint)
    yield NodeClient(handle.context("test"))
    await handle.close()


async def statistics(client: NodeClient) -> tuple[int, dict[str, float]]:
    """The grammar actor's epoch, and what it counted a moment ago."""
    actors = await client.ctx.call("root", ListActors(), Actors)
    row = next(row for row in actors.rows if row.address.startswith("grammar"))
    return row.epoch, dict(row.statistics)


@pytest.mark.parametrize(
    ("params", "param", "problem"),
    [
        ({"regex": "(" * 3000 + ")" * 3000}, "regex", "inside each other"),
        ({"regex": "[a&&b]"}, "regex", "no text"),
        ({"json_schema": {"enum": ["x" * (1 << 20)]}}, "json_schema", "at most 65536 are taken"),
        (
            {"json_schema": {"$ref": "https://example.com/schema.json"}},
            "json_schema",
            r"\$ref|https://example",
        ),
        ({"json_schema": {"not": {"type": "string"}}}, "json_schema", "not"),
        (
            {"json_schema": {"type": "integer", "minimum": 5, "maximum": 4}},
            "json_schema",
            "minimum|no text|nothing",
        ),
    ],
)
async def test_a_hostile_constraint_is_a_400(
    node: NodeRecord, params: dict[str, Any], param: str, problem: str
) -> None:
    """It names the field and what is wrong, and the next request is served."""
    async with httpx2.AsyncClient(base_url=node.url, timeout=60) as http:
        response = await http.post("/generate", json={"text": "x", "sampling_params": params})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert re.search(problem, error["message"])
        good = {"regex": "[a-c]{2}", "max_new_tokens": 4}
        response = await http.post("/generate", json={"text": "x", "sampling_params": good})
        assert re.fullmatch("[a-c]{2}", response.json()["text"]), json.dumps(response.json())


@pytest.mark.slow
@pytest.mark.parametrize("restarted", ["grammar", "worker/0"])
async def test_a_restart_is_not_noticed(client: NodeClient, restarted: str) -> None:
    """A constraint that was known before a restart is served after it, with the same text."""
    constraint = Constraint("regex", f"(north|south){restarted[:1]}[0-9]{{3}}")

    async def ask(name: str) -> str:
        sampling = SamplingOptions(max_tokens=16, temperature=0.0, constraint=constraint)
        answer = await client.complete(
            Generate(f"{restarted}-{name}", text="Go", sampling=sampling), timeout=90
        )
        text: str = answer.text
        return text

    before = await ask("before")
    assert re.fullmatch(constraint.source, before)
    epoch, _ = await statistics(client)
    await client.ctx.call("root", RestartActor(restarted), Done, timeout=60)
    assert await ask("after") == before
    assert ((await statistics(client))[0] > epoch) == (restarted == "grammar")
