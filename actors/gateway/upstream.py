"""The node as the gateway sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from sgl_actors.actors.cache.messages import Events, Exported, Pinned, Pool
from sgl_actors.actors.microkernel.messages import Actors, ListActors
from sgl_actors.actors.node.client import NodeClient, NodeProfile
from sgl_actors.actors.node.messages import LoadedModel, LoadModel, Models, UnloadModel
from sgl_actors.actors.scheduler.messages import Configuration, Flushed
from sgl_actors.actors.tokenizer.messages import (
    Cancel,
    Chunk,
    Generate,
    Texts,
    TokenIds,
    Tokenize,
    TokenizerInfo,
)
from sgl_actors.actors.worker.messages import ModelInfo

ROOT = "root"
CHANGE_TIMEOUT = 1300.0
"""Seconds that loading a model, and draining the one that it replaces, may take."""
ROOT_TIMEOUT = 0.5
"""Seconds the root has to say how the actors are."""


class Upstream(Protocol):
    """What the routes need of a node; tests put a fake here. Errors are those of `NodeClient`."""

    def generate(self, request: Generate, *, timeout: float = ..., trace: str = ...) -> AsyncIterator[Chunk]:
        """Chunks up to the one with `finish`; it is an async generator, closing it aborts at the source."""

    async def complete(self, request: Generate, *, timeout: float = ..., trace: str = ...) -> Chunk:
        """Everything as one chunk."""

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """Ids of a text or a rendered chat."""

    async def detokenize(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str:
        """Text of ids."""

    async def pieces(self, token_ids: list[int]) -> Texts:
        """Text and bytes of each id by itself."""

    async def model(self) -> ModelInfo:
        """What the node serves."""

    async def tokenizer(self) -> TokenizerInfo:
        """Special tokens and the chat template."""

    def cancel(self, ids: Iterable[str], *, everything: bool = ..., stems: Iterable[str] = ...) -> None:
        """Abort requests by id, and those of HTTP requests with these ids; unknown ids are no error."""

    async def actors(self) -> Actors:
        """How all actors are."""

    async def models(self) -> Models:
        """The models that are served, the default one first."""

    async def change_models(self, change: LoadModel | UnloadModel) -> Models:
        """Load or unload one; the answer comes when that is done."""

    def use(self, suffix: str) -> None:
        """Ask the model whose actors' names end so."""

    def of(self, row: LoadedModel) -> Upstream:
        """The same node, to be asked that model."""

    async def flush(self) -> Flushed:
        """Empty the prefix cache unless requests run."""

    async def cache(self) -> Pool:
        """Page accounting."""

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = ...,
        tenant: str = ...,
        salt: str = ...,
        timeout: float = ...,
        trace: str = ...,
    ) -> Pinned:
        """Compute a prefix and keep it."""

    async def pins(self) -> list[Pinned]:
        """Everybody's."""

    async def unpin(self, pins: Sequence[Pinned]) -> None:
        """Let go of them."""

    def events(self, since: tuple[int, int] | None = ...) -> AsyncIterator[Events]:
        """What the cache stores and removes; an async generator without end."""

    def export(self, namespace: str | None = ...) -> AsyncIterator[Exported]:
        """What is cached; an async generator."""

    async def configure(
        self,
        *,
        policy: str | None = ...,
        overtake: int | None = ...,
        sharing: bool | None = ...,
        reuse: bool | None = ...,
        stall: float | None = ...,
        speculation: bool | None = ...,
    ) -> Configuration:
        """Change how requests are ordered; tells what is in force."""

    async def profile(self, seconds: float, *, slices: bool = ...) -> NodeProfile:
        """Where its time goes for so long."""


class NodeUpstream(NodeClient):
    """The real node."""

    def cancel(self, ids: Iterable[str], *, everything: bool = False, stems: Iterable[str] = ()) -> None:
        """See `Upstream.cancel`."""
        self.ctx.cast(self.at("tokenizer"), Cancel(list(ids), everything, list(stems)), control=True)

    async def change_models(self, change: LoadModel | UnloadModel) -> Models:
        """See `Upstream.change_models`."""
        return await self.ctx.call(ROOT, change, Models, timeout=CHANGE_TIMEOUT)

    def use(self, suffix: str) -> None:
        """See `Upstream.use`."""
        self.suffix = suffix

    def of(self, row: LoadedModel) -> Upstream:
        """See `Upstream.of`."""
        other = NodeUpstream(self.ctx, row.name)
        other.use(row.suffix)
        return other

    async def actors(self) -> Actors:
        """See `Upstream.actors`."""
        return await self.ctx.call(ROOT, ListActors(), Actors, timeout=ROOT_TIMEOUT, control=True)
