"""What the root of an sgl-actors node understands beside what every root does (`microkernel.messages`)."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.wire import Message


class Reload(Message):
    """Call, answered by `Reloaded`: read node.toml again and put into force what can change while the node runs.

    `ConfigError` if the file is wrong, and then nothing changes.
    """


class Reloaded(Message):
    """What has been done, and what waits for the node's next start or has failed: a line each, for people."""

    changes: list[str] = []
    later: list[str] = []
    failed: list[str] = []


class LoadModel(Message):
    """Call, answered by `Models` once the model serves: load one beside those that are there.

    Attributes:
        path: as `[model] path`: a name that `sgl-actors models` lists, a .gguf file or a folder.
        name: what requests call it; "" for its own name.
        replace: it becomes the default; the one that was gets no new requests, finishes those it has, and is unloaded.
        memory: bytes of its KV pool; 0 for as much as `[cache] memory` says.
        named: refuse what is no name of a model on this machine (who asks from outside names no files).
    """

    path: str
    name: str = ""
    replace: bool = False
    memory: int = 0
    named: bool = False


class UnloadModel(Message):
    """Call, answered by `Models` once it is gone: no new requests, those it has finish within `drain` seconds, then its actors end.

    `ModelNotFound` for a name that is not loaded; `InvalidRequest` for the only one.
    """

    name: str
    drain: float = 600.0


class ListModels(Message):
    """Call, answered by `Models`."""


class LoadedModel(msgspec.Struct, frozen=True, array_like=True):
    """One model that is loaded.

    Attributes:
        name: what requests call it.
        suffix: what its actors' names end with: "" or ``"@…"``.
        path: file or folder of its weights.
        state: "loading", "serving" or "unloading".
    """

    name: str
    suffix: str
    path: str
    state: str


class Models(Message):
    """Models in the order in which they were loaded, the default one first."""

    rows: list[LoadedModel]
