"""Restarting actors under running programs: all finish, with the same text as undisturbed."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from sgl_actors.actors.microkernel.messages import Done, RestartActor
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions

pytestmark = pytest.mark.model

PROGRAMS = 8
TOKENS = 48


@pytest.mark.parametrize("actor", ["worker/0", "scheduler", "cache", "tokenizer"])
async def test_restart_under_load(node: NodeRecord, actor: str) -> None:
    """While eight requests stream, an actor is restarted: every stream goes on, no token twice, the text as without."""
    handle = await join(node.endpoint)
    context = handle.context("test")
    client = NodeClient(context)
    greedy = SamplingOptions(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    started = asyncio.Event()

    async def run(number: int, label: str) -> list[int]:
        ids: list[int] = []
        request = Generate(
            f"{label}-{actor}-{number}", text=f"Story number {number}: once upon a time", sampling=greedy
        )
        async for chunk in client.generate(request, timeout=90):
            assert chunk.first_index == len(ids)
            ids += chunk.token_ids
            if len(ids) > TOKENS // 4:
                started.set()
        return ids

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(number, "disturbed")) for number in range(PROGRAMS)]
        await started.wait()
        await context.call("root", RestartActor(actor), Done, timeout=60)
    disturbed = [task.result() for task in tasks]
    calm = await asyncio.gather(*(run(number, "calm") for number in range(PROGRAMS)))
    assert [len(ids) for ids in disturbed] == [TOKENS] * PROGRAMS
    assert disturbed == calm
    await handle.close()
    async with httpx2.AsyncClient(base_url=node.url, timeout=30) as http:
        assert (await http.get("/health")).status_code == 200
