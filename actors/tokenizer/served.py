"""The model that is served, as far as it is known: after a start it is asked for, and requests wait until there is an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.scheduler.messages import DescribeModel, ModelInfo
from sgl_actors.errors import NotReady, SglActorsError

PATIENCE = 30.0
"""Seconds that a request waits for the model to be known; after a restart of the tokenizer alone that takes milliseconds."""
RETRY = 0.1
"""Seconds between two questions to a scheduler that has no worker yet."""


class ServedModel:
    """What the scheduler said last, or its predecessor.

    Attributes:
        info: None until anybody has said anything.
    """

    def __init__(self) -> None:
        self.info: ModelInfo | None = None
        self._known = asyncio.Event()

    def learned(self, info: ModelInfo) -> None:
        """That is it; whoever waits goes on."""
        self.info = info
        self._known.set()

    async def wait(self) -> ModelInfo:
        """What is served, once that is known; `NotReady` after `PATIENCE`."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._known.wait()
        except TimeoutError:
            raise NotReady("no model is loaded yet") from None
        assert self.info is not None
        return self.info

    async def learn(self, ctx: Context, current: Callable[[], bool]) -> None:
        """Ask the scheduler until there is an answer, or another scheduler."""
        while current():
            try:
                info = await ctx.call(ctx.peer("scheduler"), DescribeModel(), ModelInfo, timeout=10.0)
            except SglActorsError as error:
                ctx.log.debug("no model yet", error=error.message)
                await asyncio.sleep(RETRY)
            else:
                self.learned(info)
                return
