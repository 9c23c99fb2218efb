"""Finding a running node and asking its root."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.messages import (
    Actors,
    Done,
    ListActors,
    RestartActor,
    StopNode,
    SwapActor,
    Swapped,
)
from sgl_actors.actors.node.config import default_runtime_dir, load
from sgl_actors.actors.node.messages import Reload, Reloaded
from sgl_actors.actors.node.record import NodeRecord, find_node
from sgl_actors.errors import ActorDown, DeadlineExceeded

ROOT = "root"
ASK_TIMEOUT = 5.0
RESTART_TIMEOUT = 660.0
"""Longer than an actor may take to start."""
RELOAD_TIMEOUT = 1800.0
"""Several actors may be started, one after the other."""
GRACE = 30.0
"""Seconds that a node gets, after its drain, to end its processes."""
OWN_DRAIN = -1.0
"""What a node understands as the drain of its own configuration."""
LONGEST_DRAIN = 3600.0
"""Seconds that a node may take for a drain that we do not know."""
POLL = 0.05


def find(name: str | None, config: Path | None) -> NodeRecord:
    """The running node with that name, of that node.toml (or environment), or the only one; `NotReady` if there is none."""
    if name is not None:
        return find_node(default_runtime_dir(name))
    settings = load(config)
    placed = settings.origins.get("node.runtime_dir") is not None
    return find_node(settings.runtime_dir if placed or config is not None else None)


@asynccontextmanager
async def client(record: NodeRecord) -> AsyncIterator[Context]:
    """A context of our own in that node, for as long as the block runs."""
    from sgl_actors.actors.node.embedded import join

    handle = await join(record.endpoint)
    try:
        yield handle.context("cli")
    finally:
        await handle.close()


async def list_actors(record: NodeRecord) -> Actors:
    """The node's actors; the root itself is none of them."""
    async with client(record) as context:
        return await context.call(ROOT, ListActors(), Actors, timeout=ASK_TIMEOUT)


async def restart_actor(record: NodeRecord, actor: str) -> None:
    """Restart an actor and wait until it is up; `InvalidRequest` for a name that the node does not have."""
    async with client(record) as context:
        await context.call(ROOT, RestartActor(actor), Done, timeout=RESTART_TIMEOUT)


async def swap_actor(
    record: NodeRecord, actor: str, path: str, options: Mapping[str, str], *, restart: bool = False
) -> Swapped:
    """Have another class take an actor's place; `options` are the class's own, none for those that the actor has.

    Raises:
        SwapFailed: the actor goes on as it was.
        ConfigError: the node finds no such class.
        InvalidRequest: there is no such actor.
    """
    settings = msgspec.json.encode({"options": options}).decode() if options else ""
    async with client(record) as context:
        ask = SwapActor(actor, path, settings, restart)
        return await context.call(ROOT, ask, Swapped, timeout=RESTART_TIMEOUT)


async def reload_node(record: NodeRecord) -> Reloaded:
    """Have the node read its node.toml again; `ConfigError` if that is wrong, and then nothing has changed."""
    async with client(record) as context:
        return await context.call(ROOT, Reload(), Reloaded, timeout=RELOAD_TIMEOUT)


async def stop_node(record: NodeRecord, drain: float | None = None) -> None:
    """Stop the node and wait for the end of its root process; `DeadlineExceeded` if it does not end.

    Args:
        record: the node.
        drain: seconds that running requests get; None for what the node's own configuration says.
    """
    async with client(record) as context:
        with suppress(ActorDown):  # it may be faster than its answer
            await context.call(
                ROOT, StopNode(OWN_DRAIN if drain is None else drain), Done, timeout=ASK_TIMEOUT
            )
    patience = (LONGEST_DRAIN if drain is None else drain) + GRACE
    deadline = asyncio.get_running_loop().time() + patience
    while record.alive:
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(
                f"node {record.name!r} (process {record.pid}) has not ended after {patience:g} s"
            )
        await asyncio.sleep(POLL)
