"""Where the schemas within a JSON schema stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from sgl_actors.lang.constraints.grammar import Declined

SCHEMAS: Final = ("items", "additionalItems", "additionalProperties")
"""Keywords whose value is a schema; that of ``items`` may also be a list of them."""
_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties")


def parts(schema: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside of one that stands at the JSON pointer `at`, with their own pointers; definitions are none."""
    yield from _named(schema, _MAPS, at)
    for key in (*_LISTS, *SCHEMAS):
        found = schema.get(key)
        if isinstance(found, list):
            yield from ((f"{at}/{key}/{number}", part) for number, part in enumerate(found))
        elif found is not None:
            yield f"{at}/{key}", found


def definitions(schema: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """The definitions directly inside of one, with their pointers."""
    return _named(schema, ("$defs", "definitions"), at)


def _named(schema: dict[str, Any], keys: tuple[str, ...], at: str) -> Iterator[tuple[str, Any]]:
    for key in keys:
        found = schema.get(key)
        if isinstance(found, dict):
            for name, part in found.items():
                yield f"{at}/{key}/{name.replace('~', '~0').replace('/', '~1')}", part


def place(root: Any, reference: str) -> Any:
    """What stands where a reference (``#`` or ``#/…``) points to; raises Declined if that is nowhere."""
    found = root
    for part in unquote(reference[1:]).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise Declined(f"$ref: nothing stands at {reference[:64]}")
    return found
