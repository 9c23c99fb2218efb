"""A KV pool much too small for what is asked at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sgl_actors.actors.cache.messages import Inspect, Pool
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import Sampling
from tests.conftest import start_node, stop_node

PROGRAMS = 64
PROMPT, SHORT, LONG = 40, 8, 120
"""Tokens. Each program's first output stops early, so that the second turns out longer than expected."""
PAGES = 2 * (PROMPT + SHORT + LONG)
VOCABULARY = 49152


async def test_many_programs_in_a_pool_of_two_requests(tmp_path: Path) -> None:
    """64 programs of two gens each, where the pool holds two requests: all finish with what they asked for, and the accounts are intact."""
    process, record = start_node(
        tmp_path, "actors.worker/0.class=sgl_actors.actors.worker.fake:FakeWorker", f"cache.pages={PAGES}"
    )
    try:
        handle = await join(record.endpoint)
        context = handle.context("test")
        client = NodeClient(context)

        async def program(number: int) -> None:
            prompt = [3 + number, *range(100, 100 + PROMPT - 1)]
            for turn, length in enumerate((SHORT, LONG)):
                stop = complete(prompt, Sampling(0), length, VOCABULARY)[-1]
                expected = complete(prompt, Sampling(0, end_ids=(stop,)), LONG, VOCABULARY)
                sampling = SamplingOptions(
                    max_tokens=LONG,
                    temperature=0.0,
                    ignore_eos=True,
                    stop_token_ids=(stop,),
                )
                request = Generate(f"p{number}-{turn}", input_ids=prompt, sampling=sampling)
                chunk = await client.complete(request, timeout=120)
                assert chunk.token_ids == expected
                prompt = prompt + chunk.token_ids

        await asyncio.gather(*(program(number) for number in range(PROGRAMS)))
        pool = await context.call("cache", Inspect(), Pool, timeout=10)
        assert pool.free + pool.cached + pool.leased == pool.total == PAGES
        assert (pool.leased, pool.leases, pool.locked) == (0, 0, 0)
        await handle.close()
    finally:
        assert stop_node(process) == 0
