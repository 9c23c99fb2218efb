"""Putting the JSON schema of a value into the larger one of a form (`lang.forms`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Final
from urllib.parse import unquote

DEFINED: Final = ("$defs", "definitions")
_DROPPED: Final = frozenset({"$schema", "$id", "id", "x-guidance", *DEFINED})
"""Of a whole schema only."""
_MAPS: Final = ("properties", "patternProperties", *DEFINED)
_VALUES: Final = ("const", "enum", "default", "examples", "x-guidance")
LONGEST: Final = 64
"""Characters of a key: some APIs take no more."""
_OTHER: Final = re.compile(r"[^A-Za-z0-9_.-]")


def unique(name: str, taken: Collection[str]) -> str:
    """A name in letters, digits, ``_``, ``.`` and ``-``, which all APIs take as a key, that is not taken.

    >>> unique("größe", {"gr__e"})
    'gr__e_2'
    """
    plain = _OTHER.sub("_", name)[:LONGEST]
    found, number = plain, 2
    while found in taken:
        end = f"_{number}"
        found, number = plain[: LONGEST - len(end)] + end, number + 1
    return found


def nested(schema: Any, key: str, definitions: dict[str, Any]) -> Any:
    """A schema as that of the property `key`: its definitions are added to `definitions`, its references lead to where things stand now."""
    if not isinstance(schema, dict):
        return {}
    names: dict[tuple[str, str], str] = {}
    for group in DEFINED:
        for name in schema.get(group, {}):
            names[group, name] = name if name not in definitions else unique(name, definitions)
            definitions[names[group, name]] = None

    def moved(reference: str) -> str:
        if reference != "#" and not reference.startswith("#/"):
            return reference
        group, name, *rest = [*reference[1:].split("/")[1:], "", ""]
        plain = unquote(name).replace("~1", "/").replace("~0", "~")
        if (group, plain) not in names:
            return f"#/properties/{key}{reference[1:]}"
        new = names[group, plain]
        return "/".join(["#/$defs", name if new == plain else new, *rest[:-2]])

    for (group, name), new in names.items():
        definitions[new] = _moved(schema[group][name], moved)
    return _moved({name: value for name, value in schema.items() if name not in _DROPPED}, moved)


def _moved(schema: Any, moved: Callable[[str], str]) -> Any:
    if isinstance(schema, list):
        return [_moved(part, moved) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            found[key] = moved(value)
        elif key in _MAPS and isinstance(value, dict):
            found[key] = {name: _moved(part, moved) for name, part in value.items()}
        else:
            found[key] = value if key in _VALUES else _moved(value, moved)
    return found
