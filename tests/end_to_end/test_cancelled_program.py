"""A program that is cancelled gives back what it held."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import sgl_actors as sgl
from sgl_actors.actors.cache.messages import Inspect, Pool
from tests.conftest import start_node, stop_node
from tests.end_to_end.slow_worker import STEP

BRANCHES = 27
PATIENCE = 30.0
"""Seconds until the test gives up; what is measured is in steps."""


@sgl.function
async def tree(s: sgl.ProgramState, writing: asyncio.Event) -> None:
    """27 live branches, three levels deep; says when the last one writes."""
    s += "Three plans, three ways each, three checks of each. "
    groups = [s.fork(3)]
    for _ in range(2):
        groups = [branch.fork(3) for group in groups for branch in group]
    for number, branch in enumerate(branch for group in groups for branch in group):
        branch += f"Branch {number}:" + sgl.gen("x", max_tokens=4000, ignore_eos=True)
    async for _ in branch.text_iter("x"):
        writing.set()


async def test_a_cancelled_program_gives_back_slots_and_leases(tmp_path: Path) -> None:
    """27 branches generate; after the cancellation nothing is leased within a few steps, and the pages stay cached."""
    worker = "actors.worker/0.class=tests.end_to_end.slow_worker:SlowWorker"
    process, record = start_node(tmp_path, worker, "scheduler.max_batch=32")
    try:
        async with sgl.connect(record.endpoint) as backend:
            opened = await backend.open()
            context = opened.handle.context("test")

            async def until(leases: int) -> Pool:
                async with asyncio.timeout(PATIENCE):
                    while (pool := await context.call("cache", Inspect(), Pool)).leases != leases:
                        await asyncio.sleep(STEP / 10)
                return pool

            writing = asyncio.Event()
            task = asyncio.ensure_future(tree.run(writing, backend=backend))
            async with asyncio.timeout(PATIENCE):
                await writing.wait()
            assert (await until(BRANCHES)).leased > BRANCHES
            task.cancel()
            began = time.monotonic()
            pool = await until(0)
            took = time.monotonic() - began
            assert took < 10 * STEP, took
            assert pool.leased == 0
            assert pool.cached > 4 * BRANCHES
            await asyncio.wait([task])
            assert task.cancelled()
    finally:
        assert stop_node(process) == 0
