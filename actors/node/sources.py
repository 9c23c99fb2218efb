"""Where configuration values come from: node.toml, the environment, flags. Text in, settings with their origin out.

Order of strength: flag > environment > file > default (the default is the absence of a setting).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sgl_actors.errors import ConfigError

ENV_PREFIX = "SGL_ACTORS_"
ACTORS = "actors"
TENANTS = "tenants"

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_KEY = re.compile(rf"^\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_HEADER = re.compile(rf"^\s*\[\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]")
_SYNTAX_LINE = re.compile(r"\(at line (\d+), column \d+\)")


@dataclass(frozen=True)
class Setting:
    """One value, before it is checked.

    Attributes:
        path: ``("scheduler", "max_batch")`` or ``("actors", "worker/0", "process")``.
        value: as TOML has it, or text from the environment or a flag.
        origin: ``"node.toml:7"``, ``"environment SGL_ACTORS_SCHEDULER__MAX_BATCH"``, ``"flag"``.
        is_text: `value` is text that has yet to be read as the field's type.
        typed: how a person spelt the setting where that says it all (``"--port"``); "" for origin and key.
    """

    path: tuple[str, ...]
    value: Any
    origin: str
    is_text: bool = False
    typed: str = ""

    @property
    def key(self) -> str:
        """The path as people write it, without quotes: ``actors.worker/0.process``."""
        return ".".join(self.path)


def from_file(text: str, name: str) -> list[Setting]:
    """Settings of a node.toml; `ConfigError` with the line for text that is no TOML."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX_LINE.search(str(error))
        last = text.count("\n") + 1
        raise ConfigError(
            f"{name}:{found[1] if found else last} {_SYNTAX_LINE.sub('', str(error)).strip()}"
        ) from None
    lines = line_index(text)
    return [Setting(path, value, f"{name}:{_line_of(path, lines)}") for path, value in _flatten(data)]


def from_environment(
    environ: Mapping[str, str], names: Mapping[tuple[str, str], str] | None = None
) -> list[Setting]:
    """Settings of `SGL_ACTORS_SECTION__KEY` variables.

    The name of an actor or tenant is in capitals, with all but letters and digits as `_`: `SGL_ACTORS_ACTORS__WORKER_0__PROCESS`;
    `names` maps (section, that spelling in lower case) to the name.
    """
    known = names or {}
    settings = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        path = tuple(variable.removeprefix(ENV_PREFIX).lower().split("__"))
        if path[0] == TENANTS:
            path = (TENANTS, "__".join(path[1:]))
        if len(path) > 1:
            path = (path[0], known.get((path[0], path[1]), path[1]), *path[2:])
        settings.append(Setting(path, value, f"environment {variable}", is_text=True))
    return settings


def from_flags(flags: Mapping[str, str], typed: Mapping[str, str] | None = None) -> list[Setting]:
    """Settings of flags, given as ``{"gateway.port": "8000"}``; `typed` has the flag of a key: ``{"gateway.port": "--port"}``."""
    spelt = typed or {}
    return [
        Setting(split_key(key), value, "flag", is_text=True, typed=spelt.get(key, ""))
        for key, value in flags.items()
    ]


def split_key(key: str) -> tuple[str, ...]:
    """Split ``section.key``; an actor's name may hold dots: all between the first and the last."""
    section, _, rest = key.partition(".")
    if section == ACTORS and "." in rest:
        name, _, field = rest.rpartition(".")
        return section, name, field
    return (section, rest) if rest else (section,)


def environment_spelling(name: str) -> str:
    """How the name of an actor or tenant is spelt within a variable, in lower case."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def line_index(text: str) -> dict[tuple[str, ...], int]:
    """Line numbers, from 1, of every table header and key; text inside multi-line strings is skipped."""
    index: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    inside: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if inside is not None:
            inside = None if line.count(inside) % 2 else inside
            continue
        if header := _HEADER.match(line):
            table = _parts(header[1])
            index.setdefault(table, number)
        elif key := _KEY.match(line):
            index.setdefault((*table, *_parts(key[1])), number)
        inside = next((quote for quote in ('"""', "'''") if line.count(quote) % 2), None)
    return index


def _parts(dotted: str) -> tuple[str, ...]:
    """Split a TOML key at its dots and take the quotes off."""
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))


def _line_of(path: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> int:
    """Line of a key, or of the nearest table around it (an inline table stands on its key's line)."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _flatten(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every key of the file: two levels deep, three below `[actors]`. Values that are no table yield themselves."""
    for section, table in data.items():
        if not isinstance(table, dict):
            yield (section,), table
            continue
        if section != ACTORS:
            yield from (((section, key), value) for key, value in table.items())
            if not table:
                yield (section,), table
            continue
        for name, spec in table.items():
            if isinstance(spec, dict) and spec:
                yield from (((section, name, key), value) for key, value in spec.items())
            else:
                yield (section, name), spec
