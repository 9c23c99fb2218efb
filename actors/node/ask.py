"""Asking actors that may be restarted meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from sgl_actors.actors.microkernel import Context, Message
from sgl_actors.errors import ActorDown, NodeGone

RETRY_DELAY = 0.05
"""Seconds between two looks while an actor is being restarted."""

PATIENCE = 60.0
"""Seconds that an actor may be away before who needs it gives up."""

M = TypeVar("M", bound=Message)


class Asker:
    """Asks on behalf of `context`'s owner."""

    def __init__(self, context: Context) -> None:
        self.ctx = context

    async def ask(
        self, to: str, message: Message, expect: type[M], *, timeout: float = 30.0, control: bool = False
    ) -> M:
        """A call that may be made twice, repeated while its actor is being restarted; `control`: ahead of its mail."""
        deadline = self.ctx.now() + timeout
        while True:
            try:
                left = max(0.001, deadline - self.ctx.now())
                return await self.ctx.call(to, message, expect, timeout=left, control=control)
            except ActorDown as error:
                await self.wait_for(to, error, deadline)

    async def wait_for(self, name: str, error: ActorDown, deadline: float) -> None:
        """Return when somebody holds `name` again; raise `error` if the node is gone, or after `PATIENCE` seconds."""
        until = min(deadline, self.ctx.now() + PATIENCE)
        while not isinstance(error, NodeGone) and self.ctx.now() + RETRY_DELAY < until:
            await asyncio.sleep(RETRY_DELAY)
            if self.ctx.is_up(name):
                return
        raise error


class Stream(AsyncIterator[Message]):
    """What `Context.stream` returns: an async generator."""

    async def aclose(self) -> None:
        """Cancel at the source."""
