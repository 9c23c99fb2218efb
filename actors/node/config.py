"""node.toml: what a node consists of and how each part is set.

Every value is checked where it enters; a wrong one raises `ConfigError`, one line per problem, each reading
``file:line key: why, did you mean …``. Values come from flag > environment > file > default, and each knows its origin.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.gateway.messages import Options as GatewayOptions
from sgl_actors.actors.grammar.messages import Options as GrammarOptions
from sgl_actors.actors.node.models import is_packaged, resolve
from sgl_actors.actors.node.options import DEFAULT_ACTORS, ActorSpec, NodeOptions, SupervisorOptions
from sgl_actors.actors.node.sources import (
    ACTORS,
    TENANTS,
    environment_spelling,
    from_environment,
    from_file,
    from_flags,
)
from sgl_actors.actors.node.tenants import HIDDEN
from sgl_actors.actors.node.validation import Draft
from sgl_actors.actors.scheduler.messages import Options as SchedulerOptions
from sgl_actors.actors.worker.messages import Options as ModelOptions
from sgl_actors.errors import CheckpointError, ConfigError

DEFAULT = "default"
"""Origin of a value that nobody set."""


class NodeConfig(msgspec.Struct, frozen=True):
    """A whole, checked configuration.

    Attributes:
        tenants: SHA-256 of each one's key by name; without any there is no authentication.
        actors: the enabled ones, in the order in which they start; `process` is filled in.
        file: the node.toml it came from, "" without one.
        origins: where each value came from, by its key (``"scheduler.max_batch"``).
        flags: values by key, as text, that override the file.
    """

    node: NodeOptions = NodeOptions()
    model: ModelOptions = ModelOptions()
    cache: CacheOptions = CacheOptions()
    scheduler: SchedulerOptions = SchedulerOptions()
    grammar: GrammarOptions = GrammarOptions()
    gateway: GatewayOptions = GatewayOptions()
    supervisor: SupervisorOptions = SupervisorOptions()
    tenants: dict[str, str] = {}
    actors: dict[str, ActorSpec] = {}
    file: str = ""
    origins: dict[str, str] = {}
    flags: dict[str, str] = {}

    @property
    def runtime_dir(self) -> Path:
        """Folder of the node's record and sockets (see `make_runtime_dir`)."""
        return Path(self.node.runtime_dir)

    @property
    def log_dir(self) -> Path:
        """Folder of the log files."""
        return Path(self.node.log_dir)

    def to_builtins(self) -> dict[str, Any]:
        """What actors get as `ctx.config`: plain dicts by section, `model.path` as an absolute path.

        Raises:
            CheckpointError: the model's file or folder is not there or is no checkpoint.
        """
        data = self._sections()
        found = resolve(self.model.path)
        data["model"]["path"] = str(found.path)
        data["model"]["served_name"] = self.model.served_name or found.served_name
        return data

    def check_model(self, typed: Mapping[str, str] | None = None) -> None:
        """See that the model is there and is one that can be loaded; `typed` as in `load`.

        Raises:
            ConfigError: it is not; the message says where its name came from.
        """
        key = "model.path"
        origin = self.origins.get(key)
        where = (typed or {}).get(key) or (f"{origin} {key}" if origin else key)
        try:
            resolve(self.model.path)
        except CheckpointError as error:
            raise ConfigError(f"{where}: {error.message}", param=key) from None

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (key, value, origin) of every value, in the order of the file's sections; keys of tenants are hidden."""
        for section, values in self._sections().items():
            for key, value in _leaves(section, values):
                yield key, HIDDEN if section == TENANTS else value, self.origins.get(key, DEFAULT)

    def _sections(self) -> dict[str, Any]:
        data: dict[str, Any] = msgspec.to_builtins(self)
        del data["file"], data["origins"], data["flags"]
        return data


def load(
    path: str | Path | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    typed: Mapping[str, str] | None = None,
) -> NodeConfig:
    """Read and check a configuration.

    Args:
        path: node.toml; None for defaults, environment and flags only.
        flags: values by key, as text: ``{"gateway.port": "8000", "actors.worker/0.process": "engine"}``.
        environ: variables instead of this process's own.
        typed: what people typed for a key of `flags`, for messages: ``{"gateway.port": "--port"}``.

    Raises:
        ConfigError: the file cannot be read, or values are wrong; all problems found, one per line.
    """
    environ = os.environ if environ is None else environ
    draft = Draft(environ, None if path is None else Path(path).absolute().parent)
    if path is not None:
        draft.add(from_file(_read(Path(path)), str(path)))
    spellings = {(ACTORS, environment_spelling(name)): name for name in draft.actor_names()}
    spellings |= {(TENANTS, environment_spelling(name)): name for name in draft.tenant_names()}
    draft.add(from_environment(environ, spellings))
    draft.add(from_flags(flags or {}, typed))
    values = draft.check()
    _fill_folders(values, environ)
    if path is not None and "path" in values["model"] and not draft.is_text("model.path"):
        values["model"]["path"] = _beside(Path(path), values["model"]["path"])
    config = msgspec.convert(values, NodeConfig)
    return msgspec.structs.replace(
        config,
        file="" if path is None else str(Path(path).absolute()),
        origins=draft.origins,
        flags=dict(flags or {}),
    )


def default_runtime_dir(name: str = "node", environ: Mapping[str, str] | None = None) -> Path:
    """Folder of the node called `name`: below $XDG_RUNTIME_DIR/sgl-actors, else below /tmp/sgl-actors-<uid>."""
    return runtime_base(environ) / name


def runtime_base(environ: Mapping[str, str] | None = None) -> Path:
    """Folder that holds the runtime folders of all of this user's nodes."""
    environ = os.environ if environ is None else environ
    if base := environ.get("XDG_RUNTIME_DIR"):
        return Path(base).absolute() / "sgl-actors"
    return Path(tempfile.gettempdir()) / f"sgl-actors-{os.getuid()}"


def make_runtime_dir(path: Path) -> Path:
    """Create a runtime folder with mode 0700 and return it.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else (a folder below /tmp can be planted).
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        raise ConfigError(f"node.runtime_dir: {error.strerror}: {path}") from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise ConfigError(f"node.runtime_dir: {path} is not a folder of this user")
    path.chmod(0o700)
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line} not UTF-8 (byte {error.start})") from None


def _fill_folders(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Make the node's folders absolute, with their defaults."""
    node = values["node"]
    runtime = node.get("runtime_dir") or default_runtime_dir(node.get("name", NodeOptions().name), environ)
    node["runtime_dir"] = str(Path(runtime).expanduser().absolute())
    node["log_dir"] = str(
        Path(node.get("log_dir") or Path(node["runtime_dir"]) / "logs").expanduser().absolute()
    )


def _beside(file: Path, model: str) -> str:
    """A relative model path in a node.toml counts from that file's folder; names of models stay as they are."""
    path = file.absolute().parent / model
    return str(path) if path.exists() and not is_packaged(model) else model


def _leaves(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


__all__ = [
    "DEFAULT",
    "DEFAULT_ACTORS",
    "ActorSpec",
    "NodeConfig",
    "NodeOptions",
    "SupervisorOptions",
    "default_runtime_dir",
    "load",
    "make_runtime_dir",
    "runtime_base",
]
