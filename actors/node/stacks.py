"""The models of a node: each is served by a stack of actors of its own, whose names end with the same suffix.

Plain data: which stacks there are, what their actors are called and how they are specified. `root` starts and ends them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sgl_actors.actors.microkernel.supervisor import ChildSpec
from sgl_actors.actors.node.messages import LoadedModel, LoadModel, Models
from sgl_actors.actors.node.models import Checkpoint
from sgl_actors.actors.node.options import ActorSpec
from sgl_actors.errors import InvalidRequest, ModelNotFound

STACK = ("cache", "worker/0", "scheduler", "grammar", "tokenizer")
"""Actors that belong to one model, in the order in which they start."""
MARK = "@"
MOST = 8
"""Models at a time."""
_NAME = re.compile(r"\S{1,128}")


class Stacks:
    """See the module. The first row is the default model."""

    def __init__(self, first: LoadedModel) -> None:
        self.rows = [first]

    def __repr__(self) -> str:
        return f"<Stacks {', '.join(f'{row.name} {row.state}' for row in self.rows)}>"

    def models(self) -> Models:
        """All of them."""
        return Models(list(self.rows))

    def add(self, message: LoadModel, found: Checkpoint) -> LoadedModel:
        """Enter one that is to be loaded; `InvalidRequest` if its name is taken or there are `MOST` already."""
        name = message.name or found.served_name or found.path.stem
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"a model cannot be called {name!r}: up to 128 characters without spaces; give it a name",
                param="name",
            )
        if message.memory < 0:
            raise InvalidRequest(f"memory: {message.memory} bytes", param="memory")
        if any(row.name == name for row in self.rows):
            raise InvalidRequest(
                f"a model {name!r} is loaded already; give this one another name", param="name"
            )
        if len(self.rows) >= MOST:
            raise InvalidRequest(f"{len(self.rows)} models are loaded, a node takes {MOST}", param="path")
        row = LoadedModel(name, self._suffix(name), str(found.path), "loading")
        self.rows.append(row)
        return row

    def _suffix(self, name: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:32].lower() or "model"
        taken = {row.suffix for row in self.rows}
        numbered = (f"{MARK}{stem}{number or ''}" for number in range(len(taken) + 1))
        return next(suffix for suffix in numbered if suffix not in taken)

    def find(self, name: str) -> LoadedModel:
        """By its name; `ModelNotFound`."""
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        raise ModelNotFound(f"model {name!r} is not loaded; loaded are: {known}", param="model")

    def unloading(self, name: str) -> LoadedModel:
        """Note that it takes no new requests; `InvalidRequest` for the only one that serves."""
        row = self.find(name)
        if row.state != "serving":
            raise InvalidRequest(f"model {name!r} is {row.state}", param="name")
        if not any(other.state == "serving" for other in self.rows if other is not row):
            raise InvalidRequest(
                f"model {name!r} is the only one that serves; load another first, or stop the node",
                param="name",
            )
        return self._set(row, "unloading")

    def serving(self, row: LoadedModel, *, first: bool = False) -> LoadedModel:
        """It takes requests; with `first` it is the default from here on."""
        row = self._set(row, "serving")
        if first:
            self.rows.remove(row)
            self.rows.insert(0, row)
        return row

    def lost(self, suffix: str) -> None:
        """Its actors could not be kept up. One that is being loaded or unloaded is dropped by who does that."""
        for row in self.rows:
            if row.suffix == suffix and row.state == "serving":
                self.remove(row)
                return

    @property
    def essential(self) -> set[str]:
        """Suffixes without which the node cannot go on: that of what is shared, and of the default model."""
        return {"", self.rows[0].suffix}

    def remove(self, row: LoadedModel) -> None:
        """It is gone. If it was the default, the next one that serves is."""
        self.rows.remove(row)
        for other in self.rows:
            if other.state == "serving":
                self.rows.remove(other)
                self.rows.insert(0, other)
                return

    def _set(self, row: LoadedModel, state: str) -> LoadedModel:
        new = msgspec.structs.replace(row, state=state)
        self.rows[self.rows.index(row)] = new
        return new


def specs(
    row: LoadedModel, actors: Mapping[str, ActorSpec], config: Mapping[str, Any], memory: int = 0
) -> list[ChildSpec]:
    """How a model's actors are started: as those of the node's own model are, but for the weights and, if it says so, the KV pool."""
    sections: dict[str, Any] = {
        "model": {**config["model"], "path": row.path, "served_name": row.name},
        "cache": {**config["cache"], **({"memory": memory, "pages": 0} if memory else {})},
    }
    found = []
    for name in STACK:
        spec = actors.get(name)
        if spec is not None:
            own = msgspec.structs.replace(spec, process=f"{spec.process}{row.suffix}")
            child = own.child(f"{name}{row.suffix}", sections)
            found.append(msgspec.structs.replace(child, group=row.suffix))
    return found
