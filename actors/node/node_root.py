"""The root actor of an sgl-actors node: what it does beside supervising (`microkernel.root`).

Messages in: `Reload`, `LoadModel`, `UnloadModel`, `ListModels`. Draining means that the schedulers have nothing left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from sgl_actors.actors.microkernel import Context, Message, Request
from sgl_actors.actors.microkernel.messages import SwapActor
from sgl_actors.actors.microkernel.root import Root
from sgl_actors.actors.microkernel.supervisor import ChildSpec
from sgl_actors.actors.node import reload, stacks
from sgl_actors.actors.node.config import NodeConfig, load
from sgl_actors.actors.node.messages import (
    ListModels,
    LoadedModel,
    LoadModel,
    Models,
    Reload,
    Reloaded,
    UnloadModel,
)
from sgl_actors.actors.node.models import catalogue, resolve
from sgl_actors.actors.node.stacks import STACK, Stacks
from sgl_actors.actors.scheduler.messages import Drain, Drained
from sgl_actors.actors.tokenizer.messages import Deliver, Delivered
from sgl_actors.errors import ConfigError, InvalidRequest, SglActorsError


class NodeRoot(Root):
    """See the module. Config, besides the root's: `node_config`."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._config: NodeConfig = context.config["node_config"]
        model = self._config.to_builtins()["model"] if "worker/0" in self._config.actors else {"path": ""}
        name = model.get("served_name") or Path(model["path"]).stem
        self._stacks = Stacks(LoadedModel(name, "", model["path"], "serving"))
        self._changing = asyncio.Lock()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Handle what only a node is asked; the rest is the root's."""
        match message:
            case Reload():
                self._answer(request, "reload", self._reload())
            case LoadModel():
                self._answer(request, "load", self._load(message))
            case UnloadModel():
                self._answer(request, "unload", self._unload(message.name, message.drain))
            case ListModels():
                return self._stacks.models()
            case _:
                return await super().receive(message, request)
        return None

    def _answer(self, request: Request, what: str, work: Coroutine[Any, Any, Message]) -> None:
        """Do it beside the message loop; one change of the node at a time."""

        async def run() -> None:
            try:
                async with self._changing:
                    answer = await work
            except Exception as error:  # noqa: BLE001 - it is the asker's
                self._not_done(error, request, what)
            else:
                request.reply(answer)

        self.ctx.task(run(), name="change")

    async def drain(self, seconds: float) -> None:
        """Wait until no request is in flight, at most `seconds`."""
        names = [name.partition("scheduler") for name in self.system.names]
        suffixes = [suffix for before, name, suffix in names if name and not before]
        if seconds > 0:
            await asyncio.gather(*(self._drain(suffix, seconds) for suffix in suffixes))

    async def _drain(self, suffix: str, seconds: float) -> None:
        """Have a model finish what it has: first its scheduler, then the tokenizer, which hands the ends out."""
        until = self.ctx.now() + seconds
        try:
            await self.ctx.call(f"scheduler{suffix}", Drain(), Drained, timeout=seconds, control=True)
            left = max(0.001, until - self.ctx.now())
            await self.ctx.call(f"tokenizer{suffix}", Deliver(), Delivered, timeout=left)
        except SglActorsError as error:
            self.log.warning("not all requests finished in time", suffix=suffix, reason=str(error))

    # -- models -------------------------------------------------------------------------------------------

    async def _load(self, message: LoadModel) -> Models:
        """Start a model's actors; it serves once all are up."""
        if not all(name in self._config.actors for name in STACK):
            raise InvalidRequest("this node serves no model, and so cannot load one beside it")
        known = [row.name for row in catalogue() if row.path]
        if message.named and message.path not in known:
            raise InvalidRequest(
                f"model: {message.path!r} is no model on this machine that has a name: {', '.join(known)}",
                param="model",
            )
        found = resolve(message.path)
        row = self._stacks.add(message, found)
        specs = stacks.specs(row, self._config.actors, self._config.to_builtins(), message.memory)
        self.log.info("loading model", name=row.name, path=row.path, suffix=row.suffix)
        try:
            await self.add(*specs)
        except BaseException:
            self._stacks.remove(row)
            raise
        before = self._stacks.rows[0]
        self._stacks.serving(row, first=message.replace)
        self.supervisor.essential = self._stacks.essential
        self.log.info("model loaded", name=row.name, suffix=row.suffix)
        if message.replace and before.state == "serving":
            await self._unload(before.name, UnloadModel("").drain)
        return self._stacks.models()

    async def _unload(self, name: str, drain: float) -> Models:
        """Let a model finish what it has, then end its actors, those that ask before those that are asked."""
        row = self._stacks.unloading(name)
        self.log.info("unloading model", name=row.name, suffix=row.suffix)
        await self._drain(row.suffix, drain)
        for actor in reversed(STACK):
            await self.remove(f"{actor}{row.suffix}")
        self._stacks.remove(row)
        self.supervisor.essential = self._stacks.essential
        self.log.info("model unloaded", name=row.name, suffix=row.suffix)
        return self._stacks.models()

    def group_lost(self, group: str, reason: str) -> None:
        """A model's actors cannot be kept up: it is served no more, the others are."""
        super().group_lost(group, reason)
        self._stacks.lost(group)

    # -- reload -------------------------------------------------------------------------------------------

    async def _reload(self) -> Reloaded:
        """Read node.toml again and carry out what has changed; what fails leaves that actor as it was."""
        if not self._config.file:
            raise ConfigError("this node was started without a node.toml; there is nothing to read again")
        new = await asyncio.to_thread(load, self._config.file, flags=self._config.flags)
        new = self._with_chosen(new)
        plan = reload.plan(self._in_force(), new)
        done = Reloaded(later=plan.later)
        for name in plan.removed:
            await self._attempt(done, name, f"actors.{name} is gone", self.remove(name))
        for change in plan.swapped:
            for suffix in self._suffixes(change.actor):
                name = f"{change.actor}{suffix}"
                await self._attempt(done, name, change.why, self._swap_to(name, change))
        for change in plan.moved:
            for suffix in self._suffixes(change.actor):
                name = f"{change.actor}{suffix}"
                await self._attempt(done, name, change.why, self._move(name, self._spec(change, suffix)))
        for change in plan.added:
            if change.actor in self.supervisor.children:  # added by a reload of which something else failed
                continue
            await self._attempt(done, change.actor, change.why, self.add(self._spec(change, "")))
        if plan.supervisor:
            options, supervisor = new.supervisor, self.supervisor
            supervisor.strategy, supervisor.intensity, supervisor.period = (
                options.strategy,
                options.intensity,
                options.period,
            )
            done.changes.append("supervisor: in force")
        if not done.failed:
            self._config = reload.held(self._config, new)
        self.log.info("reloaded", changed=len(done.changes), later=len(done.later), failed=len(done.failed))
        return done

    def _in_force(self) -> NodeConfig:
        """The configuration with the classes that run, which an operator may have swapped."""
        actors = {
            name: msgspec.structs.replace(spec, class_=self.supervisor.children[name].spec.path)
            if name in self.supervisor.children
            else spec
            for name, spec in self._config.actors.items()
        }
        return msgspec.structs.replace(self._config, actors=actors)

    def _with_chosen(self, new: NodeConfig) -> NodeConfig:
        """A port that was chosen by this node (0 in the file) is no change."""
        if new.gateway.port == 0:
            gateway = msgspec.structs.replace(new.gateway, port=self._config.gateway.port)
            return msgspec.structs.replace(new, gateway=gateway)
        return new

    def _suffixes(self, actor: str) -> list[str]:
        """Of all incarnations of an actor: one per model where it belongs to one."""
        return [row.suffix for row in self._stacks.rows] if actor in STACK else [""]

    def _spec(self, change: reload.Change, suffix: str) -> ChildSpec:
        spec = change.spec
        own = msgspec.structs.replace(spec, process=f"{spec.process}{suffix}")
        known = self._sections(change.actor, suffix)
        for section, values in change.sections.items():
            fixed = {key: known[section][key] for key in reload.FIXED.get(section, ()) if section in known}
            known[section] = {**values, **fixed}
        child = own.child(f"{change.actor}{suffix}", {**known, "options": spec.options})
        return msgspec.structs.replace(child, group=suffix)

    def _sections(self, actor: str, suffix: str) -> dict[str, Any]:
        """What an actor of a model that was loaded later knows beside its process's configuration."""
        settings = self.supervisor.children[f"{actor}{suffix}"].spec.settings if suffix else ""
        found: dict[str, Any] = msgspec.json.decode(settings) if settings else {}
        found.pop("options", None)
        return found

    async def _swap_to(self, name: str, change: reload.Change) -> str:
        spec = self._spec(change, name.removeprefix(change.actor))
        swapped = await self.swap(SwapActor(name, spec.path, spec.settings))
        return f"in place, held for {swapped.held * 1000:.0f} ms" if swapped.in_place else "restarted"

    async def _move(self, name: str, spec: ChildSpec) -> str:
        await self.replace(name, spec)
        return "restarted"

    async def _attempt(
        self, done: Reloaded, name: str, why: str, work: Coroutine[Any, Any, str | None]
    ) -> None:
        try:
            how = await work
        except SglActorsError as error:
            done.failed.append(f"{name} ({why}): {error.message}")
        else:
            done.changes.append(f"{name} ({why}): {how or 'done'}")
