"""Asking actors that may be restarted meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TypeVar

from sgl_actors.actors.microkernel import Context, Message
from sgl_actors.actors.node.messages import ListModels, Models
from sgl_actors.actors.node.stacks import STACK
from sgl_actors.errors import (
    ActorDown,
    DeadlineExceeded,
    ModelNotFound,
    NodeGone,
    Overloaded,
    RemoteError,
)

RETRY_DELAY = 0.05
"""Seconds between two looks while an actor is being restarted."""

PATIENCE = 60.0
"""Seconds that an actor may be away before who needs it gives up."""

ROOT = "root"
ROOT_TIMEOUT = 5.0
LOOK_AGAIN = 10
"""Looks after which the root is asked whether that model is still served."""

UNREACHABLE = (ActorDown, DeadlineExceeded, Overloaded, RemoteError)
"""What a root that cannot say which models there are answers; the kernels of some tests have none."""

M = TypeVar("M", bound=Message)


class Asker:
    """Asks on behalf of `context`'s owner, one of the node's models.

    Attributes:
        suffix: what the names of that model's actors end with.
    """

    def __init__(self, context: Context, model: str = "") -> None:
        """`model` is the name under which it was loaded; without one, whichever is the default."""
        self.ctx = context
        self.suffix = ""
        self._model = model
        self._found = False

    def at(self, name: str) -> str:
        """What an actor of the model is called; an actor that is nobody's model's is called as it is."""
        return f"{name}{self.suffix}" if name in STACK else name

    async def models(self) -> Models:
        """The models that the node serves."""
        return await self.ctx.call(ROOT, ListModels(), Models, timeout=ROOT_TIMEOUT, control=True)

    async def find_model(self) -> None:
        """Learn what the model's actors are called now.

        Raises:
            ModelNotFound: no model of that name is loaded.
        """
        rows = (await self.models()).rows
        for row in rows:
            if not self._model or self._model in (row.name, row.path):
                self.suffix, self._found = row.suffix, True
                return
        names = ", ".join(row.name for row in rows)
        raise ModelNotFound(f"model {self._model!r} is not served here, but {names}", param="model")

    async def ready(self) -> None:
        """Know where to ask. Without a root that answers, the default model is the first one."""
        if not self._found:
            try:
                await self.find_model()
            except UNREACHABLE:
                if self._model:
                    raise
                self._found = True

    async def ask(
        self, to: str, message: Message, expect: type[M], *, timeout: float = 30.0, control: bool = False
    ) -> M:
        """A call that may be made twice, repeated while its actor is being restarted; `control`: ahead of its mail."""
        deadline = self.ctx.now() + timeout
        await self.ready()
        while True:
            try:
                left = max(0.001, deadline - self.ctx.now())
                return await self.ctx.call(self.at(to), message, expect, timeout=left, control=control)
            except ActorDown as error:
                await self.wait_for(to, error, deadline)

    async def wait_for(self, name: str, error: ActorDown, deadline: float) -> None:
        """Return when somebody is `at` that name again; raise `error` if the node is gone, or after `PATIENCE` seconds."""
        until = min(deadline, self.ctx.now() + PATIENCE)
        looks = 0
        while not isinstance(error, NodeGone) and self.ctx.now() + RETRY_DELAY < until:
            await asyncio.sleep(RETRY_DELAY)
            looks += 1
            if looks % LOOK_AGAIN == 0 and name in STACK:
                with suppress(*UNREACHABLE):
                    await self.find_model()
            if self.ctx.is_up(self.at(name)):
                return
        raise error


class Stream(AsyncIterator[Message]):
    """What `Context.stream` returns: an async generator."""

    async def aclose(self) -> None:
        """Cancel at the source."""
