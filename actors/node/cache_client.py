"""The client's side of the cache: accounting, pins, what is in it, what happens in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

import msgspec
from msgspec import UNSET, UnsetType

from sgl_actors.actors.cache.messages import (
    Edge,
    Events,
    Export,
    Exported,
    Inspect,
    ListPins,
    Pinned,
    Pins,
    Pool,
    Subscribe,
    Unpin,
)
from sgl_actors.actors.microkernel.messages import Actors
from sgl_actors.actors.node.ask import PATIENCE, Asker, Stream
from sgl_actors.actors.node.stacks import MARK
from sgl_actors.errors import ActorDown, DeadlineExceeded

SUBSCRIPTION = 600.0
"""Seconds after which a subscription to events is made anew, from where it was."""

EXPORT_CREDIT = 4
"""Messages of an export that may be under way."""

SEPARATOR = "\x1f"


def namespace_of(tenant: str, salt: str = "") -> str:
    """The cache's namespace of a tenant's requests with that salt."""
    return f"{tenant}{SEPARATOR}{salt}" if salt else tenant


def split_namespace(namespace: str) -> tuple[str, str]:
    """(tenant, salt) of a namespace."""
    tenant, _, salt = namespace.partition(SEPARATOR)
    return tenant, salt


def prompt_counts(actors: Actors | None, suffix: str | None = None) -> tuple[int, int]:
    """(prompt tokens of all requests admitted so far, how many of them came from the cache), as the scheduler counts.

    `suffix`: of the one model that is meant; without it, of all.
    """
    prompt = cached = 0
    for row in actors.rows if actors is not None else ():
        name, mark, rest = row.address.partition("#")[0].partition(MARK)
        if name == "scheduler" and suffix in (None, mark + rest):
            prompt += int(row.statistics.get("prompt_tokens_total", 0))
            cached += int(row.statistics.get("cached_tokens_total", 0))
    return prompt, cached


class CachedEdge(msgspec.Struct, frozen=True):
    """A line of an export: one edge of the tree.

    Attributes:
        number: counts up from 0, parents first.
        parent: number of the edge that this one continues, -1 for none.
        tokens: how many it holds; which ones only if asked for.
        locks: requests and pins that keep it.
        hits: requests that it was of use to.
    """

    tenant: str
    cache_salt: str
    number: int
    parent: int
    tokens: int
    locks: int
    hits: int
    token_ids: list[int] | UnsetType = UNSET


def describe_edge(edge: Edge, *, with_tokens: bool) -> CachedEdge:
    """An edge as a line of an export shows it."""
    tenant, salt = split_namespace(edge.namespace)
    ids = edge.token_ids if with_tokens else UNSET
    return CachedEdge(tenant, salt, edge.number, edge.parent, len(edge.token_ids), edge.locks, edge.hits, ids)


class CacheClient(Asker):
    """Asks the cache."""

    async def cache(self) -> Pool:
        """Page accounting of the cache."""
        return await self.ask("cache", Inspect(), Pool)

    async def pins(self) -> list[Pinned]:
        """Everybody's pins that have not expired, oldest first."""
        return (await self.ask("cache", ListPins(), Pins)).pins

    async def unpin(self, pins: Sequence[Pinned]) -> None:
        """Let go of pins; those that are gone already are no error."""
        for pin in pins:
            await self.ask("cache", Unpin([pin.name], pin.namespace), Pins)

    async def export(self, namespace: str | None = None) -> AsyncIterator[Exported]:
        """What is cached in one namespace, or in all, edge by edge.

        Raises:
            ActorDown: the cache went down meanwhile; what came so far is of no use.
        """
        await self.ready()
        stream = cast("Stream", self.ctx.stream(self.at("cache"), Export(namespace), credit=EXPORT_CREDIT))
        async with aclosing(stream):
            async for message in stream:
                yield cast("Exported", message)

    async def events(self, since: tuple[int, int] | None = None) -> AsyncIterator[Events]:
        """What the cache stores and removes, without end, also over its restarts.

        Args:
            since: incarnation and number of the last message that is known, unless that number was -1. Without it, or where what
                came after is not kept any more, the events begin with "cleared" and all there is.
        """
        incarnation, number = since or (None, -1)
        await self.ready()
        while True:
            try:
                wish = Subscribe(number, incarnation)
                stream = cast("Stream", self.ctx.stream(self.at("cache"), wish, timeout=SUBSCRIPTION))
                async with aclosing(stream):
                    async for message in stream:
                        batch = cast("Events", message)
                        if batch.number >= 0:
                            incarnation, number = batch.incarnation, batch.number
                        yield batch
            except DeadlineExceeded:
                continue
            except ActorDown as error:
                await self.wait_for("cache", error, self.ctx.now() + PATIENCE)
