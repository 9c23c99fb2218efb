"""Checks settings against the sections' Structs: unknown keys, types, ranges, with suggestions."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.gateway.messages import Options as GatewayOptions
from sgl_actors.actors.grammar.messages import Options as GrammarOptions
from sgl_actors.actors.microkernel.plugins import GROUP
from sgl_actors.actors.node.options import (
    BRIDGE,
    DEFAULT_ACTORS,
    LEAST_STALL,
    OPTIONAL_ACTORS,
    ActorSpec,
    NodeOptions,
    SupervisorOptions,
)
from sgl_actors.actors.node.peers import check_node, resolve_peers
from sgl_actors.actors.node.sources import ACTORS, TENANTS, Setting
from sgl_actors.actors.node.tenants import check_tenant, digest_key
from sgl_actors.actors.scheduler.messages import Options as SchedulerOptions
from sgl_actors.actors.worker.messages import JUMP
from sgl_actors.actors.worker.messages import Options as ModelOptions
from sgl_actors.errors import ConfigError

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeOptions,
    "model": ModelOptions,
    "cache": CacheOptions,
    "scheduler": SchedulerOptions,
    "grammar": GrammarOptions,
    "gateway": GatewayOptions,
    "supervisor": SupervisorOptions,
}

_Count = Annotated[int, Meta(ge=1)]
_AnyCount = Annotated[int, Meta(ge=0)]
_AnyTokens = Annotated[int, Meta(ge=0, lt=1 << 31)]
_Seconds = Annotated[float, Meta(gt=0)]
_SomeSeconds = Annotated[float, Meta(ge=0)]
_Share = Annotated[float, Meta(ge=0, le=0.9)]
_Name = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", description="letters, digits, dot, dash, underscore")
]

RANGES: dict[str, Any] = {
    "node.name": _Name,
    "node.log_size": Annotated[int, Meta(ge=4096)],
    "node.drain": _SomeSeconds,
    "model.path": Annotated[str, Meta(min_length=1)],
    "model.compute": Literal["auto", "fp32", "int8", "int4"],
    "model.kv": Literal["auto", "float32", "float16"],
    "model.dtype": Literal["auto", "float32", "bfloat16", "float16"],
    "model.device": Annotated[
        str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)\Z", description="auto, cpu, cuda or cuda:N")
    ],
    "model.threads": _AnyCount,
    "model.nice": Annotated[int, Meta(ge=0, le=19)],
    "model.context": _AnyCount,
    "cache.page_size": _Count,
    "cache.memory": _Count,
    "cache.pages": _AnyCount,
    "cache.pinned": _Share,
    "cache.events": Annotated[int, Meta(ge=1, le=1 << 24)],
    "scheduler.overtake": _AnyTokens,
    "scheduler.stall": Annotated[float, Meta(ge=0)],
    "scheduler.max_batch": _Count,
    "scheduler.chunk": _Count,
    "scheduler.queue": _Count,
    "scheduler.timeout": _Seconds,
    "scheduler.speculation_tokens": Annotated[int, Meta(ge=1, le=JUMP)],
    "grammar.seconds": Annotated[float, Meta(ge=0.01)],
    "grammar.memory": Annotated[int, Meta(ge=1 << 20)],
    "grammar.kept": _AnyCount,
    "grammar.queue": _Count,
    "grammar.nice": Annotated[int, Meta(ge=0, le=19)],
    "gateway.host": Annotated[str, Meta(min_length=1)],
    "gateway.port": Annotated[int, Meta(ge=0, le=65535)],
    "gateway.max_body": _Count,
    "gateway.max_choices": _Count,
    "gateway.timeout": _Seconds,
    "supervisor.intensity": _AnyCount,
    "supervisor.period": _Seconds,
    "actors.*.shutdown": _SomeSeconds,
    "actors.*.start_timeout": _Seconds,
}
"""What a field's type alone does not say."""

GAPS = {"scheduler.stall": (0.0, LEAST_STALL)}
"""Keys whose values between the two numbers make no sense; both of them do."""

SIZES = frozenset(
    {
        "node.log_size", "cache.memory", "grammar.memory", "gateway.max_body", "gateway.max_held", "gateway.max_headers",
        "gateway.max_memory", "gateway.reserve",
    }
)  # fmt: skip
"""Keys in bytes, which also take "1GiB"."""

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}
"""What the checker calls a type, and what people call it."""
ROOT = "root"
_ACTOR_NAME = re.compile(r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*\Z")
_TYPE = re.compile(r"`(\w+)`")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")


class Draft:
    """A configuration in the making: settings are added from weak to strong, then checked as a whole."""

    def __init__(self, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
        """Keys of tenants are looked up in `environ`, and as files from `folder` on."""
        self._environ, self._folder = environ or {}, folder or Path()
        self._settings: dict[tuple[str, ...], Setting] = {}
        self._problems: list[str] = []

    @property
    def origins(self) -> dict[str, str]:
        """Where each value that is set came from, by key."""
        return {setting.key: setting.origin for setting in self._settings.values()}

    def is_text(self, key: str) -> bool:
        """Whether the value in force came from a flag or the environment."""
        return any(setting.is_text for setting in self._settings.values() if setting.key == key)

    def tenant_names(self) -> list[str]:
        """Those added so far."""
        return [path[1] for path in self._settings if path[0] == TENANTS and len(path) > 1]

    def actor_names(self) -> list[str]:
        """The default actors and those added so far, in starting order."""
        added = (path[1] for path in self._settings if path[0] == ACTORS and len(path) > 1)
        return list(dict.fromkeys((*DEFAULT_ACTORS, *added)))

    def add(self, settings: Iterable[Setting]) -> None:
        """Take settings that override the ones added before."""
        self._settings.update((setting.path, setting) for setting in settings)

    def check(self) -> dict[str, Any]:
        """Return the values by section, complete for `actors`, otherwise only what is set.

        Raises:
            ConfigError: every problem found, one per line.
        """
        values: dict[str, dict[str, Any]] = {section: {} for section in (*SECTIONS, TENANTS)}
        specs: dict[str, dict[str, Any]] = {name: {} for name in self.actor_names()}
        for setting in self._settings.values():
            target = specs if setting.path[0] == ACTORS else values
            try:
                checked = self._value(setting)
            except ConfigError as error:
                self._problems.append(error.message)
                continue
            if checked is not None:
                where, field, value = checked
                target[where][field] = value
        self._check_listen(values["node"], specs)
        actors = {name: self._actor(name, spec) for name, spec in specs.items()}
        self._check_tenants(values[TENANTS])
        if self._problems:
            raise ConfigError("\n".join(self._problems))
        return {**values, ACTORS: {name: spec for name, spec in actors.items() if spec.pop("enabled")}}

    def _value(self, setting: Setting) -> tuple[str, str, Any] | None:
        """Return (section or actor, field, checked value) of one setting, None for an empty table."""
        section, *rest = setting.path
        if section == TENANTS:
            return self._tenant(setting)
        if not rest and section not in (*SECTIONS, ACTORS) and not isinstance(setting.value, dict):
            raise problem(setting, "a key outside any section", elsewhere=_anywhere(section))
        if section != ACTORS and section not in SECTIONS:
            raise problem(setting, f"unknown section [{section}]", section, (*SECTIONS, TENANTS, ACTORS))
        struct = ActorSpec if section == ACTORS else SECTIONS[section]
        if len(rest) != (2 if section == ACTORS else 1):
            if setting.value == {}:
                return None
            name = setting.key if section != ACTORS or rest else f"{ACTORS}.NAME"
            raise problem(setting, f"expected a table [{name}] with key = value lines")
        where, field = (section, rest[0]) if section != ACTORS else (rest[0], rest[1])
        fields = {info.encode_name: info.type for info in msgspec.structs.fields(struct)}
        if field not in fields:
            raise problem(setting, "unknown key", field, fields, _elsewhere(field))
        pattern = f"{ACTORS}.*.{field}" if section == ACTORS else setting.key
        value = _convert(setting, RANGES.get(pattern, fields[field]), is_size=pattern in SIZES)
        return where, field, self._with_keys(setting, value)

    def _with_keys(self, setting: Setting, value: Any) -> Any:
        """Files of keys are looked for from where the setting stands; of peers' only what is in them goes on from here."""
        folder = Path() if setting.is_text else self._folder
        try:
            if setting.key == "node.key" and value:
                return str((folder / Path(value).expanduser()).absolute())
            if setting.key == "node.peers":
                return msgspec.to_builtins(resolve_peers(value, folder))
        except ConfigError as error:
            raise problem(setting, error.message) from None
        return value

    def _check_listen(self, node: Mapping[str, Any], specs: dict[str, dict[str, Any]]) -> None:
        """Whoever listens on tcp has keys, and the bridge is there for nothing else."""
        listen = self._settings.get(("node", "listen"))
        if node.get("listen") and listen is not None:
            specs.setdefault(BRIDGE, {})
            try:
                check_node(node)
            except ConfigError as error:
                self._problems.append(problem(listen, error.message).message)
        elif BRIDGE in specs:
            setting = next(one for path, one in self._settings.items() if path[:2] == (ACTORS, BRIDGE))
            self._problems.append(problem(setting, "the bridge needs [node] listen").message)

    def _tenant(self, setting: Setting) -> tuple[str, str, str] | None:
        """Return (section, name, digest of the key), None for an empty table."""
        if len(setting.path) != 2:
            if setting.value == {}:
                return None
            raise problem(setting, "expected a table [tenants] with name = key lines")
        name = setting.path[1]
        try:
            check_tenant(name)
            return (
                TENANTS,
                name,
                digest_key(setting.value, self._environ, Path() if setting.is_text else self._folder),
            )
        except ConfigError as error:
            raise problem(setting, error.message) from None

    def _check_tenants(self, digests: Mapping[str, str]) -> None:
        """Every tenant has a key of its own, and a table that is there has somebody in it."""
        owners: dict[str, str] = {}
        for name, digest in ((name, digest) for name, text in digests.items() for digest in text.split()):
            other = owners.setdefault(digest, name)
            if other != name:
                setting = self._settings[TENANTS, name]
                self._problems.append(problem(setting, f"the same key as {TENANTS}.{other}").message)
        empty = self._settings.get((TENANTS,))
        if empty is not None and not self.tenant_names() and empty.value == {}:
            why = "nobody could use the node; add a name = key line, or leave the table out"
            self._problems.append(problem(empty, why).message)

    def _actor(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Complete one actor's spec with its defaults."""
        default = DEFAULT_ACTORS.get(name) or OPTIONAL_ACTORS.get(name)
        if default is None and "class" not in spec:
            origin = next(s.origin for path, s in self._settings.items() if path[:2] == (ACTORS, name))
            setting = Setting((ACTORS, name), None, origin)
            lacks = "an actor of your own needs a class"
            self._problems.append(problem(setting, lacks, name, DEFAULT_ACTORS).message)
        elif "class" in spec:
            setting = self._settings[ACTORS, name, "class"]
            reserved = name == ROOT or not _ACTOR_NAME.match(name)
            if why := f"{name!r} cannot be an actor's name" if reserved else find_class(spec["class"]):
                self._problems.append(problem(setting, why).message)
        whole = msgspec.to_builtins(default) if default else {"enabled": True}
        whole |= spec
        whole["process"] = whole.get("process") or name
        return whole


def parse_size(text: str) -> int | None:
    """Bytes of "512", "1GiB" or "1.5 MB"; None for anything else. Fractions of a byte are dropped."""
    found = _SIZE.match(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    return None if found is None or unit is None else int(float(found[1]) * unit)


def find_class(spec: str) -> str | None:
    """Why that class cannot be loaded, None if its module, or the entry point of that name, is there. Only a module's parents are imported."""
    if ":" not in spec:
        known = entry_points(group=GROUP).names
        near = get_close_matches(spec, known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        return (
            None
            if spec in known
            else f"expected package.module:Class or the name of an installed plugin, got {spec!r}{hint}"
        )
    module, _, name = spec.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return f"expected package.module:Class, got {spec!r}"
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        found = None
    return None if found else f"no module {module}"


def problem(
    setting: Setting, why: str, given: str = "", known: Iterable[str] = (), elsewhere: str | None = None
) -> ConfigError:
    """The error for one setting, with a suggestion if `given` resembles something `known`."""
    near = get_close_matches(given, list(known), n=1)
    hint = near[0] if near else elsewhere
    where = setting.typed or f"{setting.origin} {setting.key}"
    return ConfigError(f"{where}: {why}" + (f", did you mean {hint}?" if hint else ""))


def _elsewhere(field: str) -> str | None:
    """The full key of a field that lives in another section."""
    return next(
        (f"{section}.{field}" for section, struct in SECTIONS.items() if field in struct.__struct_fields__),
        None,
    )


def _anywhere(field: str) -> str | None:
    """The full key of the field, of any section, that resembles `field` most."""
    fields = [name for struct in SECTIONS.values() for name in struct.__struct_fields__]
    near = get_close_matches(field, fields, n=1)
    return _elsewhere(near[0]) if near else None


def _convert(setting: Setting, kind: Any, *, is_size: bool) -> Any:
    """Read and check one value."""
    value = setting.value
    if setting.is_text and not _is_textual(kind):
        value = _from_text(value)
    if is_size and isinstance(value, str):
        size = parse_size(value)
        if size is None:
            raise problem(setting, f'expected bytes or a size like "1GiB", got {value!r}')
        value = size
    if isinstance(value, float) and not math.isfinite(value):
        raise problem(setting, f"expected a finite number, got {value}")
    try:
        return _beyond(setting, msgspec.convert(value, kind))
    except msgspec.ValidationError as error:
        choices = _choices(kind)
        if choices and isinstance(value, str):
            raise problem(setting, f"expected {_listed(choices)}, got {value!r}", value, choices) from None
        raise problem(setting, _why(kind, str(error), value)) from None


def _beyond(setting: Setting, value: Any) -> Any:
    """`value`, unless it lies in the gap of its key."""
    if setting.key in GAPS:
        low, high = GAPS[setting.key]
        if low < value < high:
            raise problem(setting, f"expected {low:g} or a number >= {high:g}, got {value!r}")
    return value


def _why(kind: Any, message: str, value: Any) -> str:
    """Put the message of msgspec into our words."""
    metas = (
        [meta for meta in get_args(kind)[1:] if isinstance(meta, Meta)]
        if get_origin(kind) is Annotated
        else []
    )
    expected = metas[0].description if metas and isinstance(value, str) and metas[0].description else None
    text = f"expected {expected}" if expected else _TYPE.sub(_in_words, message).split(", got ")[0]
    return f"{text[0].lower()}{text[1:]}, got {value!r}"


def _in_words(found: re.Match[str]) -> str:
    """The name of a type as people say it."""
    return WORDS.get(found[1], found[1])


def _is_textual(kind: Any) -> bool:
    return _bare(kind) is str or bool(_choices(kind))


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _from_text(text: str) -> Any:
    """A flag's or variable's text as the TOML value it looks like, else as it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
