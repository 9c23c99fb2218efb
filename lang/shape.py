"""What a gen's text has to be, said in one of four ways, as its node holds it: constraint, adapter, named parts. A fifth way is `tool_calls`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.constraints.values import Pattern, json
from sgl_actors.lang.constraints.values import regex as regex_value
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.typed import adapter, adapter_of

AS_JSON: Final = "json:"
"""Before the key of an adapter: the text is the value as JSON, whatever the type's own form."""
PATTERNS: Final = 4096
"""Constraints with named parts that are remembered, the last used ones."""

_PLAIN: Final = {str, int, float, bool, type(None), dict, list, tuple}

_patterns: OrderedDict[str, Pattern] = OrderedDict()


class Shape(NamedTuple):
    """See `ir.Gen`."""

    constraint: Constraint | None = None
    adapter: str = ""
    parts: tuple[str, ...] = ()
    tools: str = ""


def shape_of(
    where: str, regex: str | None, json_schema: str | Mapping[str, Any] | None, constraint: object, kind: Any
) -> Shape:
    """The shape that one of the arguments of `gen` describes; no shape for none.

    Raises:
        InvalidPrimitive: a pattern, schema or type that is none; `param` names the argument.
    """
    if regex is not None:
        return Shape(_named(where, "regex", lambda: regex_value(regex).constraint()))
    if json_schema is not None:
        return Shape(_named(where, "json_schema", lambda: json(_schema(json_schema)).constraint()))
    if constraint is not None:
        if not isinstance(constraint, Pattern):
            raise InvalidPrimitive(
                f"{where}: constraint is made with regex(…), choice(…), json(…) and so on, not {constraint!r:.80}",
                param="constraint",
            )
        return _pattern(constraint)
    if kind is not None:
        found = _named(where, "type", lambda: adapter(kind))
        return Shape(found.constraint, found.key)
    return Shape()


def quoted() -> Shape:
    """A string in double quotes, as JSON writes it."""
    found = adapter(str)
    return Shape(found.json_constraint, AS_JSON + found.key)


def decoder_of(key: str) -> Callable[[str], Any] | None:
    """What makes the value of a text, by the key in a node; None if it is not known (in this process, any more)."""
    found = adapter_of(key.removeprefix(AS_JSON))
    if found is None:
        return None
    return found.decode_json if key.startswith(AS_JSON) else found.decode


def parts_of(key: str, text: str) -> dict[str, tuple[Any, str]] | None:
    """Values of a constraint's named parts, each with the adapter that makes it; None if `key` names no constraint.

    Raises:
        InvalidValue: the text is not what the constraint says.
    """
    pattern = _patterns.get(key)
    if pattern is None:
        return None
    return {name: _plain(value) for name, value in pattern.captures(text).items()}


def _plain(value: Any) -> tuple[Any, str]:
    """A value in a form that travels: objects of a class as JSON, with what makes them again."""
    items = value if isinstance(value, list) else [value]
    kinds = {type(item) for item in items}
    if len(kinds) != 1 or not kinds.isdisjoint(_PLAIN):
        return value, ""
    found = adapter(kinds.pop())
    texts = [msgspec.json.encode(item).decode() for item in items]
    return (texts if isinstance(value, list) else texts[0]), AS_JSON + found.key


def _pattern(pattern: Pattern) -> Shape:
    constraint = pattern.constraint()
    if not pattern.names:
        return Shape(constraint)
    _patterns[pattern.key] = pattern
    _patterns.move_to_end(pattern.key)
    if len(_patterns) > PATTERNS:
        _patterns.popitem(last=False)
    return Shape(constraint, pattern.key, tuple(pattern.names))


def _schema(schema: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(schema, str):
        return schema
    try:
        found = msgspec.json.decode(schema)
    except msgspec.DecodeError as error:
        raise InvalidPrimitive(f"the schema is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidPrimitive(f"a schema is a JSON object, not {schema[:80]!r}")
    return found


def _named(where: str, param: str, make: Any) -> Any:
    """What `make` gives; its errors say which argument of which gen they are about."""
    try:
        return make()
    except InvalidPrimitive as error:
        raise InvalidPrimitive(f"{where}: {error.message}", param=param) from None
