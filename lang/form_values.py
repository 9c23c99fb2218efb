"""JSON answers to a form (`lang.forms`): reading them without loss, and writing their values as a constrained model would have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from sgl_actors.lang.constraints.constraint import JSON_FORM
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.schema_places import place

Separators: TypeAlias = tuple[str, str]
"""Between items, and between a key and its value."""
SPACED: Final = (str(JSON_FORM["item_separator"]), str(JSON_FORM["key_separator"]))
"""Those of `JSON_FORM`."""
COMPACT: Final = (",", ":")
"""Those of a schema that asks for no white space."""
_LISTS: Final = ("anyOf", "oneOf", "allOf")


class Number(str):
    """A number, as it was written: 1.50 does not become 1.5."""

    __slots__ = ()


def read_json(text: str) -> Any:
    """The value of a JSON text, with a `Number` for each number.

    Raises:
        ValueError: it is none, or says one key of an object twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(
        text,
        strict=False,
        object_pairs_hook=_object,
        parse_int=Number,
        parse_float=Number,
        parse_constant=_refuse,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} stands there twice"
        )
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def write_json(value: Any, separators: Separators = SPACED) -> str:
    """A value as JSON, in one line."""
    item, colon = separators
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{write_json(key)}{colon}{write_json(one, separators)}" for key, one in value.items())
        return f"{{{item.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{item.join(write_json(one, separators) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)


def ordered(value: Any, schema: Any) -> Any:
    """The same value with the keys of its objects in the order in which a schema names them, as a constrained model writes them; some APIs sort them."""
    return _ordered(value, [schema], schema)


def _ordered(value: Any, schemas: Sequence[Any], root: Any) -> Any:
    known = _flat(schemas, root)
    if isinstance(value, list):
        lists = [found["prefixItems"] for found in known if isinstance(found.get("prefixItems"), list)]
        items = [found["items"] for found in known if "items" in found]
        return [
            _ordered(item, [*items, *(row[at] for row in lists if at < len(row))], root)
            for at, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    maps = [found["properties"] for found in known if isinstance(found.get("properties"), dict)]
    others = [found["additionalProperties"] for found in known if "additionalProperties" in found]
    order = dict.fromkeys(key for map_ in maps for key in map_ if key in value) | dict.fromkeys(value)
    return {
        key: _ordered(value[key], [*(map_[key] for map_ in maps if key in map_), *others], root)
        for key in order
    }


def _flat(schemas: Sequence[Any], root: Any) -> list[dict[str, Any]]:
    """Schemas together with those that they refer to or are made of, each once."""
    found: dict[int, dict[str, Any]] = {}
    waiting = list(schemas)[::-1]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in found:
            continue
        found[id(schema)] = schema
        parts = [part for key in _LISTS for part in schema.get(key, ())]
        reference = schema.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            try:
                parts.append(place(root, reference))
            except Declined:
                continue
        waiting += parts[::-1]
    return list(found.values())
