"""From a JSON schema to its tree (`schema_nodes`): which keywords there are and how they go together.

Keywords are applied in the order they are written in, groups of them between ``anyOf``, ``allOf``, ``oneOf``, ``enum``, ``const`` and ``$ref`` at once, as
llguidance does it; the order of an object's properties comes of that.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sgl_actors.lang.constraints.constraint import JSON_FORM
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.schema_formats import make_strict
from sgl_actors.lang.constraints.schema_nodes import (
    FORMAT,
    LITERAL,
    PATTERN,
    Anything,
    Array,
    Boolean,
    Node,
    Nothing,
    Null,
    Number,
    Object,
    Reference,
    Text,
    any_of,
    checked,
    intersection,
    one_of,
)
from sgl_actors.lang.constraints.schema_places import place

DEPTH: Final = 48
"""Schemas inside of each other, at most."""
SIZE: Final = 5_000
"""Schemas read, at most; those behind a reference that is combined with others count each time."""
DRAFTS: Final = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
"""Values of ``$schema`` without ``#`` at the end."""
NEWEST: Final = 2020
TYPES: Final = ("null", "boolean", "number", "string", "array", "object")
"""All types; ``integer`` is a kind of number."""
NOTES: Final = frozenset(
    {"$anchor", "$defs", "definitions", "$schema", "$id", "id", "$comment", "title", "description", "default"}
    | {"readOnly", "writeOnly", "examples", "contentMediaType", "contentEncoding", "x-guidance"}
)
"""Keywords that say nothing about values."""
_OTHER_NOTES: Final = frozenset({"deprecated", "example", "markdownDescription", "enumDescriptions"})
_IN_PLACE: Final = frozenset({"const", "enum", "allOf", "anyOf", "oneOf", "$ref"})
_ASSERTIONS: Final = frozenset(
    {"type", "items", "additionalItems", "prefixItems", "minItems", "maxItems", "properties"}
    | {"additionalProperties", "patternProperties", "required", "minProperties", "maxProperties"}
    | {"minLength", "maxLength", "pattern", "format", "multipleOf"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
_KNOWN: Final = NOTES | _OTHER_NOTES | _IN_PLACE | _ASSERTIONS
_SHAPES: Final = dict.fromkeys(("properties", "patternProperties"), dict) | dict.fromkeys(
    ("required", "prefixItems", "enum", "allOf", "anyOf", "oneOf"), list
)
_SINCE: Final = {"const": 6, "prefixItems": 2019}
"""First draft that has a keyword."""
_NEGATIVE_ZERO: Final = re.compile(r"[\[:,]\s*-0\s*[\],}]")


class Reader:
    """One schema, and the definitions that have been read."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.definitions: dict[str, Node] = {}
        self._root = root
        self._draft = draft_of(root)
        self._open: set[str] = set()
        self._left = SIZE

    def read(self, schema: Any, depth: int = 0) -> Node:
        """The tree of a schema within the root.

        Raises:
            Declined: it is not understood, naming the keyword.
        """
        self._left -= 1
        if depth > DEPTH or self._left < 0:
            raise Declined(f"the schema is deeper than {DEPTH} or has more than {SIZE} parts")
        if isinstance(schema, bool):
            return Anything() if schema else Nothing("a schema is false")
        if not isinstance(schema, dict):
            raise Declined("a schema is neither an object nor a boolean")
        self._check(schema, depth)
        if all(key in NOTES or key in _OTHER_NOTES or _SINCE.get(key, 4) > self._draft for key in schema):
            return Anything()
        return self._read(schema, depth)

    def _check(self, schema: dict[str, Any], depth: int) -> None:
        for key, value in schema.items():
            if not isinstance(value, _SHAPES.get(key, object)):
                raise Declined(f"{key}: of a wrong type")
            if key not in _KNOWN and not (key == "uniqueItems" and value is False):
                raise Declined(f"{key[:64]}: not a keyword that is read here")
        if depth and any(isinstance(schema.get(key), str) for key in ("$schema", "$id", "id")):
            raise Declined("$id: inside of a schema it changes what references mean")

    def _read(self, schema: dict[str, Any], depth: int) -> Node:
        found: Node = Anything()
        group: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _IN_PLACE:
                found = self._with_group(found, group, schema, depth)
                group = {}
                found = self._apply(found, key, value, depth)
            elif key in _ASSERTIONS:
                group[key] = value
        return self._with_group(found, group, schema, depth)

    def _with_group(self, found: Node, group: dict[str, Any], schema: dict[str, Any], depth: int) -> Node:
        """`found`, restricted by keywords that stand together; they hear of names and places that others name."""
        if not group:
            return found
        if "additionalProperties" in group and "properties" in schema:
            group.setdefault("properties", dict.fromkeys(schema["properties"], True))
        if "items" in group and "prefixItems" in schema:
            group.setdefault("prefixItems", [True] * len(schema["prefixItems"]))
        types = schema.get("type", list(TYPES))
        parts = [self._typed(name, group, depth) for name in (types if isinstance(types, list) else [types])]
        return self._meet(found, parts[0] if len(parts) == 1 else any_of(parts))

    def _meet(self, one: Node, other: Node) -> Node:
        if not isinstance(one, Anything):
            one, other = self._resolved(one), self._resolved(other)
        return intersection(one, other)

    def _resolved(self, node: Node) -> Node:
        while isinstance(node, Reference):
            if node.name not in self.definitions:
                raise Declined(f"$ref: {node.name[:64]} is recursive")
            node = self.definitions[node.name]
        return node

    def _apply(self, found: Node, key: str, value: Any, depth: int) -> Node:
        if key == "$ref":
            return self._meet(found, self._reference(value, depth))
        if key == "const":
            return self._meet(found, self._constant(value, depth))
        if key == "enum":
            return self._meet(found, any_of([self._constant(one, depth) for one in value]))
        parts = [self.read(one, depth + 1) for one in value]
        if key == "allOf":
            for part in parts:
                found = self._meet(found, part)
            return found
        if key == "oneOf" and not isinstance(found, Anything):
            parts = [self._meet(found, part) for part in parts]
            found = Anything()
        return self._meet(found, one_of(parts) if key == "oneOf" else any_of(parts))

    def _reference(self, name: Any, depth: int) -> Node:
        if not isinstance(name, str) or (name != "#" and not name.startswith("#/")):
            raise Declined("$ref: not a place in this schema (#/…)")
        if name in self._open:
            return Reference(name)
        if name not in self.definitions:
            self._open.add(name)
            self.definitions[name] = self.read(place(self._root, name), depth + 1)
            self._open.discard(name)
        return Reference(name)

    def _typed(self, name: Any, group: dict[str, Any], depth: int) -> Node:
        """What keywords say of values of one type."""
        match name:
            case "null":
                return Null()
            case "boolean":
                return Boolean()
            case "number" | "integer":
                return _number(group, name == "integer")
            case "string":
                return _text(group)
            case "array":
                return self._array(group, depth)
            case "object":
                return self._object(group, depth)
        raise Declined(f"type: {str(name)[:32]!r} is none")

    def _array(self, group: dict[str, Any], depth: int) -> Node:
        prefix, items = group.get("prefixItems", []), group.get("items")
        if isinstance(items, list):
            prefix, items = items, group.get("additionalItems")
        elif self._draft <= 2019 or "additionalItems" in group:
            prefix = []
        return Array(
            _count(group, "minItems") or 0,
            _count(group, "maxItems"),
            tuple(self.read(part, depth + 1) for part in prefix),
            None if items is None else self.read(items, depth + 1),
        )

    def _object(self, group: dict[str, Any], depth: int) -> Node:
        properties, patterns = (
            {name: self.read(part, depth + 1) for name, part in group.get(key, {}).items()}
            for key in ("properties", "patternProperties")
        )
        required = group.get("required", [])
        if not all(isinstance(name, str) for name in required):
            raise Declined("required: not of strings")
        others = group.get("additionalProperties")
        return checked(
            Object(
                properties,
                patterns,
                None if others is None else self.read(others, depth + 1),
                tuple(dict.fromkeys(required)),
                _count(group, "minProperties") or 0,
                _count(group, "maxProperties"),
            )
        )

    def _constant(self, value: Any, depth: int) -> Node:
        """The tree that allows one value alone."""
        if depth > DEPTH:
            raise Declined(f"const: deeper than {DEPTH}")
        match value:
            case None:
                return Null()
            case bool():
                return Boolean(value)
            case int() | float():
                bound = _float("const", value)
                return Number(isinstance(value, int) and abs(value) < 2**63, bound, bound)
            case str():
                return Text(rules=((LITERAL, value),))
            case list():
                parts = tuple(self._constant(one, depth + 1) for one in value)
                return Array(len(parts), len(parts), parts, Nothing("a constant has no more items"))
        properties = {name: self._constant(one, depth + 1) for name, one in value.items()}
        return Object(properties, {}, Nothing("a constant has no more properties"), tuple(properties))


def decoded(source: str) -> Any:
    """The JSON value of a schema's text, with strict formats; raises Declined if there is none, or if it asks for another form than `JSON_FORM`."""
    try:
        schema = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Declined(f"no valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise Declined("a schema has to be a JSON object")
    if _NEGATIVE_ZERO.search(source):
        raise Declined("-0: as a whole number")
    if schema.get("x-guidance", JSON_FORM) != JSON_FORM:
        raise Declined("x-guidance: another form of JSON")
    make_strict(schema)
    return schema


def draft_of(root: dict[str, Any]) -> int:
    """The year or number of a schema's draft; raises Declined for an unknown one."""
    stated = root.get("$schema")
    if not isinstance(stated, str):
        return NEWEST
    draft = DRAFTS.get(stated.rstrip("#"))
    if draft is None:
        raise Declined("$schema: an unknown draft")
    return draft


def _count(group: dict[str, Any], key: str) -> int | None:
    value = group.get(key)
    if key in group and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32):
        raise Declined(f"{key}: no natural number")
    return value


def _float(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**53:
        raise Declined(f"{key}: no number up to 2^53")
    return float(value)


def _number(group: dict[str, Any], integer: bool) -> Number:
    values = {
        key: _float(key, value)
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
        if not isinstance(value := group.get(key, False), bool)
    }
    low, high = values.get("minimum"), values.get("maximum")
    return Number(
        integer,
        low,
        high,
        low if group.get("exclusiveMinimum") is True else values.get("exclusiveMinimum"),
        high if group.get("exclusiveMaximum") is True else values.get("exclusiveMaximum"),
        abs(values["multipleOf"]) if "multipleOf" in values else None,
    )


def _text(group: dict[str, Any]) -> Text:
    rules = tuple((kind, group[kind]) for kind in (PATTERN, FORMAT) if kind in group)
    if not all(isinstance(source, str) for _, source in rules):
        raise Declined("pattern or format: no string")
    return Text(_count(group, "minLength") or 0, _count(group, "maxLength"), rules)
