"""A JSON schema as the strict mode of the OpenAI API wants it: an object at the top, all properties required and no others.

Both only narrow it: what the new schema allows, the old one does, too. Objects with keys of any name cannot be said strictly.
Source: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

_NAMED: Final = ("properties", "$defs", "definitions")
_LISTED: Final = ("anyOf", "prefixItems")
_UNSAID: Final = frozenset({"default", "examples", "x-guidance", "$schema", "discriminator"})
_UNSTRICT: Final = frozenset(
    {"patternProperties", "allOf", "oneOf", "not", "if", "prefixItems", "propertyNames"}
)


class Strict(NamedTuple):
    """A schema to send.

    Attributes:
        schema: it.
        strict: whether it keeps to the strict mode's rules; otherwise the model may stray from it.
        wrapped: the value stands in ``{"value": …}``, because it need not be an object.
    """

    schema: dict[str, Any]
    strict: bool
    wrapped: bool


def strict(schema: dict[str, Any]) -> Strict:
    """Make it so.

    Example:
        >>> strict({"type": "object", "properties": {"a": {"type": "integer", "default": 1}}}).schema
        {'type': 'object', 'properties': {'a': {'type': 'integer'}}, 'required': ['a'], 'additionalProperties': False}
        >>> strict({"type": "integer"}).wrapped
        True
    """
    definitions: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    root = {name: value for name, value in schema.items() if name not in definitions}
    if set(root) <= {"$ref", *_UNSAID} and "$ref" in root:
        root = _resolved(root["$ref"], definitions)
    wrap = root.get("type") != "object"
    if wrap:
        root = {"type": "object", "properties": {"value": root}, "required": ["value"]}
    whole = root | definitions
    if not _can_be(whole):
        return Strict(whole, strict=False, wrapped=wrap)
    return Strict(_narrowed(whole), strict=True, wrapped=wrap)


def _resolved(reference: str, definitions: dict[str, Any]) -> dict[str, Any]:
    _, _, path = reference.partition("#/")
    kind, _, name = path.partition("/")
    found = definitions.get(kind, {}).get(name)
    return dict(found) if isinstance(found, dict) else {"$ref": reference}


def _can_be(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    if _UNSTRICT & schema.keys() or schema.keys() <= _UNSAID:
        return False
    kinds = schema.get("type")
    an_object = "object" in (kinds if isinstance(kinds, list) else [kinds])
    if an_object and ("properties" not in schema or schema.get("additionalProperties")):
        return False
    return all(map(_can_be, _within(schema)))


def _within(schema: dict[str, Any]) -> list[Any]:
    found = [one for name in _NAMED for one in schema.get(name, {}).values()]
    found += [one for name in _LISTED for one in schema.get(name, [])]
    return found + ([schema["items"]] if "items" in schema else [])


def _narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    made = {name: value for name, value in schema.items() if name not in _UNSAID}
    for name in _NAMED:
        if name in made:
            made[name] = {key: _narrowed(one) for key, one in made[name].items()}
    for name in _LISTED:
        if name in made:
            made[name] = [_narrowed(one) for one in made[name]]
    if "items" in made:
        made["items"] = _narrowed(made["items"])
    if "properties" in made:
        made |= {"required": list(made["properties"]), "additionalProperties": False}
    return made
