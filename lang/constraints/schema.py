"""JSON schemas of types, and what a constraint keeps of them.

`schema_of` is msgspec's own schema made strict and completed; `constrained` leaves out what only a reader of the schema
needs and bounds the numbers; `scalar` gives types without structure as a regular expression. A constraint may allow more than the type
(sets with equal members, a pattern of keys): the type has the last word when the text is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from sgl_actors.lang.constraints.regular import INTEGER, LARGEST, NUMBER, any_of, literal, whole_numbers

Schema = dict[str, Any]

DECIMALS: Final = 1e-9
"""Numbers inside of a value have at most nine decimals, no exponent, and at most fifteen digits before the point."""
LARGEST_NUMBER: Final = 1e15
"""Numbers inside of a value lie below it: larger ones are no longer exact in every reader of JSON."""
_MAPS: Final = ("properties", "patternProperties", "$defs")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES: Final = ("items", "additionalProperties")
_LOWER: Final = ("minimum", "exclusiveMinimum")
_UPPER: Final = ("maximum", "exclusiveMaximum")
_KEPT: Final = frozenset(
    {"type", "enum", "const", "$ref", "required", "minItems", "maxItems", "minProperties", "maxProperties"}
    | {"minLength", "maxLength", "pattern", "format", "multipleOf", *_LOWER, *_UPPER}
)
_FORMATS: Final = frozenset({"date-time", "time", "date", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""What engines and msgspec mean the same by."""

_DATE: Final = "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-9]))"
_CLOCK: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_OFFSET: Final = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_SECONDS: Final = r"[0-9]{1,5}(?:\.[0-9]{1,6})?S"
_SPAN: Final = f"T(?:[0-9]{{1,5}}H(?:[0-9]{{1,5}}M)?(?:{_SECONDS})?|[0-9]{{1,5}}M(?:{_SECONDS})?|{_SECONDS})"
_PATTERNS: Final = {
    "decimal": rf"^{INTEGER}(?:\.[0-9]{{1,18}})?$",
    "duration": f"^-?P(?:[0-9]{{1,6}}D(?:{_SPAN})?|{_SPAN})$",
    "partial-time": f"^{_CLOCK}$",
    "base64": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
"""Formats that msgspec writes and engines do not know, or take for more than msgspec reads (years of a duration)."""


def schema_of(type_: object) -> Schema:
    """The strict JSON schema of a type that msgspec knows; raises what msgspec raises, for others and unresolved names.

    Beyond `msgspec.json.schema`: objects of known fields take no others; times of day and dates with or without an offset have a
    pattern; whole numbers and choices as keys of a dictionary do.
    """
    info = inspect.type_info(type_)
    classes = {found.cls: found for found in walk(info) if hasattr(found, "fields")}
    (schema, *references), definitions = msgspec.json.schema_components([type_, *classes])
    for found, reference in zip(classes.values(), references, strict=True):
        _complete_fields(found, definitions[reference["$ref"].rpartition("/")[2]])
    _complete(info, schema)
    return strict({**schema, "$defs": definitions} if definitions else schema)


def walk(info: inspect.Type) -> Iterator[Any]:
    """A type, and every type that it is made of, each class once."""
    seen: set[object] = set()
    stack: list[Any] = [info]
    while stack:
        found = stack.pop()
        if hasattr(found, "fields"):
            if found.cls in seen:
                continue
            seen.add(found.cls)
        yield found
        stack += _parts(found)


def _parts(info: Any) -> list[Any]:
    single = (getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type"))
    several = (*getattr(info, "item_types", ()), *getattr(info, "types", ()))
    return [*filter(None, single), *several, *(field.type for field in getattr(info, "fields", ()))]


def _complete_fields(info: Any, schema: Schema) -> None:
    tagged = len(schema.get("prefixItems", ())) - len(
        info.fields
    )  # the tag of an array-like Struct stands first
    for number, field in enumerate(info.fields):
        if "properties" in schema:
            _complete(field.type, schema["properties"][field.encode_name])
        else:
            _complete(field.type, schema["prefixItems"][tagged + number])


def _complete(info: Any, schema: Schema) -> None:
    """State what msgspec leaves open. Of the options of a union, at most one can be a string, an array, a dictionary."""
    kind = schema.get("type")
    if isinstance(info, inspect.Metadata):
        _complete(info.type, schema)
    elif isinstance(info, inspect.UnionType):
        for part in info.types:
            for option in schema.get("anyOf", ()):
                _complete(part, option)
    elif isinstance(info, inspect.DateTimeType | inspect.TimeType) and kind == "string":
        _complete_time(info, schema)
    elif isinstance(info, inspect.CollectionType) and kind == "array" and "items" in schema:
        _complete(info.item_type, schema["items"])
    elif isinstance(info, inspect.TupleType) and kind == "array":
        for part, option in zip(info.item_types, schema.get("prefixItems", ()), strict=True):
            _complete(part, option)
    elif hasattr(info, "value_type") and kind == "object":
        _complete_keys(info, schema)


def _complete_time(info: inspect.DateTimeType | inspect.TimeType, schema: Schema) -> None:
    if "format" in schema:
        return
    start = _CLOCK if isinstance(info, inspect.TimeType) else f"{_DATE}T{_CLOCK}"
    schema["pattern"] = f"^{start}$" if info.tz is False else f"^{start}{_OFFSET}?$"


def _complete_keys(info: Any, schema: Schema) -> None:
    values = schema.get("additionalProperties", {})
    _complete(info.value_type, values)
    key = info.key_type
    while isinstance(key, inspect.Metadata):
        key = key.type
    names = ""
    if isinstance(key, inspect.IntType):
        names = INTEGER
    elif isinstance(key, inspect.LiteralType | inspect.EnumType):
        known = key.values if isinstance(key, inspect.LiteralType) else [item.value for item in key.cls]
        names = any_of(literal(str(value)) for value in known)
    if names:
        schema["patternProperties"] = {f"^{names}$": values}
        schema["additionalProperties"] = False


def strict(schema: Schema) -> Schema:
    """The same, where objects of stated properties take no others unless the schema says that they do."""
    found = _mapped(schema, strict)
    if "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


def constrained(schema: Schema) -> Schema:
    """What a constraint needs of a type's schema: no annotations, what engines know, numbers of bounded length."""
    found = {
        ("anyOf" if key == "oneOf" else key): value
        for key, value in _mapped(schema, constrained).items()
        if key in _KEPT or key in _MAPS or key in _LISTS or key in _ONES
    }
    form = schema.get("contentEncoding", found.get("format"))
    if form in _PATTERNS:
        found["pattern"] = _PATTERNS[form]
    if found.get("format") not in _FORMATS:
        found.pop("format", None)
    if found.get("type") == "integer":
        _bound(found, int(LARGEST_NUMBER) - 1)
    elif found.get("type") == "number":
        _bound(found, LARGEST_NUMBER)
        found.setdefault("multipleOf", DECIMALS)
    return found


def _bound(schema: Schema, largest: float) -> None:
    low = [schema[key] for key in _LOWER if key in schema]
    high = [schema[key] for key in _UPPER if key in schema]
    if not low and all(bound > -largest for bound in high):
        schema["minimum"] = -largest
    if not high and all(bound < largest for bound in low):
        schema["maximum"] = largest


def _mapped(schema: Schema, change: Any) -> Schema:
    """A copy with `change` applied to each schema directly inside."""
    found = dict(schema)
    for key, value in schema.items():
        if key in _MAPS:
            found[key] = {
                name: change(part) if isinstance(part, dict) else part for name, part in value.items()
            }
        elif key in _LISTS:
            found[key] = [change(part) if isinstance(part, dict) else part for part in value]
        elif key in _ONES and isinstance(value, dict):
            found[key] = change(value)
    return found


def scalar(schema: Schema, root: Schema) -> str | None:
    """A regular expression for the JSON values that a schema within `root` allows; None if they have structure or are text."""
    found = _resolved(schema, root)
    if "enum" in found or "const" in found:
        values = found.get("enum", [found.get("const")])
        if all(value is None or isinstance(value, str | int | float) for value in values):
            return any_of(literal(msgspec.json.encode(value).decode()) for value in values)
        return None
    if set(found) == {"anyOf"}:
        parts = [scalar(part, root) for part in found["anyOf"]]
        known = [part for part in parts if part is not None]
        return any_of(known) if len(known) == len(parts) else None
    if found.get("type") == "integer":
        return _whole(found)
    return (
        {"boolean": "(?:true|false)", "null": "null", "number": NUMBER}.get(found["type"])
        if set(found) == {"type"}
        else None
    )


def _whole(schema: Schema) -> str | None:
    if set(schema) == {"type"}:
        return INTEGER
    bounds = {key: value for key, value in schema.items() if key != "type"}
    if not set(bounds) <= {*_LOWER, *_UPPER} or not all(isinstance(value, int) for value in bounds.values()):
        return None
    low = max(bounds.get("minimum", -LARGEST), bounds.get("exclusiveMinimum", -LARGEST - 1) + 1)
    high = min(bounds.get("maximum", LARGEST), bounds.get("exclusiveMaximum", LARGEST + 1) - 1)
    return whole_numbers(low, high) if low <= high else None


def choices(schema: Schema) -> tuple[str, ...]:
    """The strings that a schema allows if it allows nothing but some strings; else none."""
    found = _resolved(schema, schema)
    values = found.get("enum", [found["const"]] if "const" in found else [])
    return tuple(values) if all(isinstance(value, str) for value in values) else ()


def _resolved(schema: Schema, root: Schema) -> Schema:
    """The keywords of a schema that matter, behind its reference."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    found = {
        key: value
        for key, value in schema.items()
        if key in _KEPT or key in _LISTS or key in _MAPS or key in _ONES
    }
    found.pop("$defs", None)
    return found


def source(schema: Mapping[str, Any]) -> str:
    """A schema as JSON text; raises TypeError or ValueError if it cannot be."""
    return msgspec.json.encode(schema).decode()


def is_any_text(schema: Schema) -> bool:
    """Whether it allows every string and nothing else."""
    return _resolved(schema, schema) == {"type": "string"}
