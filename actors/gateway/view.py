"""What the gateway remembers about the node, so that not every request asks: readiness, and the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sgl_actors.actors.gateway.upstream import Upstream
from sgl_actors.actors.microkernel.messages import Actors
from sgl_actors.actors.node.messages import LoadedModel
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import ActorDown, DeadlineExceeded, ModelNotFound, NotReady, Overloaded

ACTORS_FRESH = 1.0
"""Seconds for which the root's answer is believed that every actor is up."""
STARTING_FRESH = 0.05
"""The same while one is not: who waits for the node is not kept waiting longer than it takes."""
MODELS_FRESH = 0.5
"""Seconds for which the root's list of models is believed."""
MODEL_FRESH = 30.0
"""Seconds for which the model is not asked for again; an older answer still serves while the worker is away."""

UNREACHABLE = (ActorDown, DeadlineExceeded, NotReady, Overloaded)


class NodeView:
    """Cached facts. `now` is a monotonic clock in seconds."""

    def __init__(self, node: Upstream, now: Callable[[], float], *, default: bool = True) -> None:
        """`default`: it is about whichever model is the node's default one."""
        self._node, self._now, self._default = node, now, default
        self._models: list[LoadedModel] = []
        self._models_at = float("-inf")
        self._actors: Actors | None = None
        self._actors_at = float("-inf")
        self._actors_lock = asyncio.Lock()
        self._model: ModelInfo | None = None
        self._model_at = float("-inf")

    async def actors(self) -> Actors | None:
        """The root's list, at most `ACTORS_FRESH` old (`STARTING_FRESH` until all are up); None when the root does not answer."""
        async with self._actors_lock:
            up = self._actors is not None and self._actors.ready
            if self._now() - self._actors_at > (ACTORS_FRESH if up else STARTING_FRESH):
                try:
                    self._actors = await self._node.actors()
                except UNREACHABLE:
                    self._actors = None
                self._actors_at = self._now()
            return self._actors

    async def check_ready(self) -> None:
        """Raise `NotReady` with the reason unless every actor is up and the node is not draining."""
        actors = await self.actors()
        if actors is None:
            raise NotReady("the node's root does not answer")
        if actors.draining:
            raise NotReady("the node is draining")
        if not actors.ready:
            rows = ", ".join(f"{row.address} {row.state}" for row in actors.rows)
            raise NotReady(f"not every actor is up: {rows or 'none has started'}")
        if self._model is None:
            await self.model()

    async def admit(self) -> ModelInfo:
        """The model, for a request that may begin now.

        A node that has been up once takes requests while one of its actors is being restarted: they wait for it.

        Raises:
            NotReady: draining, or never been up so far.
        """
        actors = await self.actors()
        if actors is not None and actors.draining:
            raise NotReady("the node is draining")
        if self._model is None and actors is not None and not actors.ready:
            await self.check_ready()
        return await self.model()

    async def models(self) -> list[LoadedModel]:
        """What the root says is served, at most `MODELS_FRESH` old, the default one first; what it said last if it does not answer."""
        if self._now() - self._models_at > MODELS_FRESH:
            self._models_at = self._now()
            try:
                rows = (await self._node.models()).rows
            except UNREACHABLE:
                return self._models
            if self._default and rows and self._models and rows[0].suffix != self._models[0].suffix:
                self._model = None
            if self._default and rows:
                self._node.use(rows[0].suffix)
            self._models = rows
        return self._models

    async def model(self) -> ModelInfo:
        """What the node serves, also while its worker is being restarted; `NotReady` before it was ever up."""
        if self._default:
            await self.models()
        if self._model is None or self._now() - self._model_at > MODEL_FRESH:
            try:
                self._model = await self._node.model()
            except UNREACHABLE as error:
                if self._model is None:
                    raise NotReady(f"the model is not loaded yet: {error}") from None
            self._model_at = self._now()
        return self._model


def check_model(asked: str | None, info: ModelInfo) -> None:
    """Refuse a request for another model.

    The served name, the model's path, "default" and no name at all mean the default one.
    """
    if asked not in (None, "", "default", info.served_name, info.path):
        raise ModelNotFound(f"model: {asked!r} is not served here, {info.served_name!r} is", param="model")
