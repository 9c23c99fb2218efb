"""Actors that cannot take over from another: their `restore` raises, at once or late."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.microkernel import Snapshot
from sgl_actors.actors.programs.actor import ProgramsActor
from sgl_actors.actors.scheduler.actor import SchedulerActor
from sgl_actors.actors.tokenizer.actor import TokenizerActor
from sgl_actors.actors.worker.fake import FakeWorker


async def fail() -> NoReturn:
    await asyncio.sleep(0.01)
    raise RuntimeError("made to fail")


class BrokenWorker(FakeWorker):
    async def restore(self, snapshot: Snapshot) -> None:
        await fail()


class BrokenCache(CacheActor):
    async def restore(self, snapshot: Snapshot) -> None:
        await fail()


class BrokenScheduler(SchedulerActor):
    async def restore(self, snapshot: Snapshot) -> None:
        await fail()


class BrokenTokenizer(TokenizerActor):
    async def restore(self, snapshot: Snapshot) -> None:
        await fail()


class BrokenPrograms(ProgramsActor):
    async def restore(self, snapshot: Snapshot) -> None:
        await fail()
