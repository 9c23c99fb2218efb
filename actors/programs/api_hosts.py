"""Finding the actor of an API model, and waiting for it while it is being restarted."""

from __future__ import annotations

import asyncio
from typing import Final

from sgl_actors.actors.api.messages import ApiInfo, DescribeApi
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.errors import ActorDown, ConfigError, NodeGone

PATIENCE: Final = 60.0
"""Seconds that a node's actor may be away."""
LOOK: Final = 0.05
"""Seconds between two looks for it."""
ROOT: Final = "root"
ROOT_TIMEOUT: Final = 10.0
DESCRIBE_TIMEOUT: Final = 120.0
"""Seconds until the model's actor has said what it is; it may have to import an SDK."""


async def describe(context: Context, address: str) -> ApiInfo:
    """What is known of the model.

    Raises:
        SglActorsError: why it is not.
    """
    return await context.call(address, DescribeApi(), ApiInfo, timeout=DESCRIBE_TIMEOUT)


async def find_api(context: Context, name: str) -> ApiInfo:
    """What is known of a model that the node hosts as ``api/NAME``.

    Raises:
        ConfigError: it hosts none of that name; the message says which it has.
        ActorDown: it is being restarted, for too long.
    """
    rows = (await context.call(ROOT, ListActors(), Actors, timeout=ROOT_TIMEOUT, control=True)).rows
    hosted = [row.address.removeprefix("api/") for row in rows if row.address.startswith("api/")]
    if name not in hosted:
        raise ConfigError(
            f"connect: the node hosts no API model {name!r}; it has {', '.join(hosted) or 'none'}",
            param="api",
        )
    try:
        return await describe(context, f"api/{name}")
    except ActorDown as error:
        await await_actor(context, f"api/{name}", error, context.now() + PATIENCE)
        return await describe(context, f"api/{name}")


async def await_actor(context: Context, address: str, error: ActorDown, until: float) -> None:
    """Return when the actor is up again; raise `error` if it does not come."""
    while not isinstance(error, NodeGone) and context.now() + LOOK < until:
        await asyncio.sleep(LOOK)
        if context.is_up(address):
            return
    raise error
