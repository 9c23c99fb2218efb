"""What `gen(tools=…)` asks for: calls of tools, as the text of an array ``[{"tool": name, "arguments": {…}}, …]``, and that text as `Call`s.

API models that know tools write the calls by themselves; every other model writes the array under a constraint. The text is checked in both cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from sgl_actors.lang.constraints import bytewise, schema
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.shape import Shape
from sgl_actors.lang.tools import Call, Tool, by_name
from sgl_actors.lang.typed import (
    Adapter,
    Form,
    Library,
    Mismatch,
    json_constraint_of,
    key_of,
    remembered,
)

MAX_CALLS: Final = 16
"""Most calls that a constraint leaves room for."""


def check_tools(where: str, tools: object) -> dict[str, Tool[..., Any]]:
    """Tools by their names; `InvalidPrimitive` for what is no list of them, or an empty one."""
    if isinstance(tools, Tool | str | bytes) or not isinstance(tools, Iterable):
        raise InvalidPrimitive(f"{where}: tools is a list of tools, not {tools!r:.80}", param="tools")
    try:
        known = by_name(tools)
    except InvalidPrimitive as error:
        raise InvalidPrimitive(f"{where}: {error.message}", param="tools") from None
    if not known:
        raise InvalidPrimitive(f"{where}: there are no tools", param="tools")
    return known


def told(tools: Mapping[str, Tool[..., Any]]) -> str:
    """Tools as API models are told of them: the JSON text of a list in the OpenAI API's form."""
    functions = [
        {"name": one.name, "description": one.description, "parameters": one.schema} for one in tools.values()
    ]
    return msgspec.json.encode([{"type": "function", "function": one} for one in functions]).decode()


def calls_of(where: str, tools: object) -> Shape:
    """The shape of calls of these tools; what is no list of tools is said of the primitive `where`.

    Raises:
        InvalidPrimitive: they are none, or their parameters cannot be a constraint.
    """
    known = check_tools(where, tools)
    listed = told(known)
    # Tools that a body makes anew in each of its runs are one if all that is asked and checked here is the same.
    found = remembered(f"tools {listed}", lambda: _adapter(where, known))
    return Shape(found.constraint, found.key, (), listed)


def _adapter(where: str, tools: Mapping[str, Tool[..., Any]]) -> Adapter[list[Call]]:
    found = _schema(tools)
    constraint = json_constraint_of(found)
    if refusal := bytewise.refusal(constraint):
        raise InvalidPrimitive(
            f"{where}: calls of {', '.join(tools)} cannot be a constraint: {refusal}", param="tools"
        )
    kinds = {name: (one.args, one.signature) for name, one in tools.items()}

    def decode(text: str) -> list[Call]:
        return _read(_items(text), kinds)

    library = Library(found, decode, lambda value: _read(value, kinds))
    key = key_of(f"calls of {', '.join(tools)}", found)
    return Adapter(key, "list[Call]", list[Call], found, Form.JSON, constraint, constraint, library)


def _schema(tools: Mapping[str, Tool[..., Any]]) -> schema.Schema:
    """Of a non-empty array of calls: ``tool`` is a name, ``arguments`` that tool's parameters."""
    kinds: list[schema.Schema] = []
    definitions: schema.Schema = {}
    for number, (name, one) in enumerate(tools.items()):
        arguments = dict(_moved(one.schema, f"{number}."))
        definitions |= {f"{number}.{key}": value for key, value in arguments.pop("$defs", {}).items()}
        fields = {"tool": {"type": "string", "enum": [name]}, "arguments": arguments}
        kinds.append({"type": "object", "properties": fields, "required": ["tool", "arguments"]})
    items = {"anyOf": kinds} if len(kinds) > 1 else kinds[0]
    found = {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_CALLS}
    return schema.strict({**found, "$defs": definitions} if definitions else found)


def _moved(part: Any, prefix: str) -> Any:
    """A schema whose definitions go by other names, for two tools may have different ones of the same name."""
    if isinstance(part, list):
        return [_moved(one, prefix) for one in part]
    if not isinstance(part, dict):
        return part
    found = {key: _moved(value, prefix) for key, value in part.items()}
    if isinstance(reference := part.get("$ref"), str):
        found["$ref"] = f"#/$defs/{prefix}{reference.removeprefix('#/$defs/')}"
    return found


_KINDS = Mapping[str, tuple[type[msgspec.Struct], str]]


def _items(text: str) -> list[Any]:
    try:
        return msgspec.json.decode(text, type=list[Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        why, _, path = str(error).partition(" - at ")
        raise Mismatch(path.strip("`"), why) from None


def _read(items: object, kinds: _KINDS) -> list[Call]:
    """Plain data as calls; `Mismatch` names the tool and the field."""
    if not isinstance(items, list) or not items:
        raise Mismatch("$", "no tool is called")
    return [_call(f"$[{index}]", item, kinds) for index, item in enumerate(items)]


def _call(place: str, item: object, kinds: _KINDS) -> Call:
    match item:
        case {"tool": str(name), "arguments": arguments, **others} if not others:
            if name not in kinds:
                raise Mismatch(
                    f"{place}.tool", f"there is no tool {name!r:.80}; there are {', '.join(kinds)}"
                )
            args, signature = kinds[name]
            try:
                msgspec.convert(arguments, args)
            except msgspec.MsgspecError as error:
                why, _, path = str(error).partition(" - at ")
                field = f"{place}.arguments{path.strip('`').removeprefix('$')}"
                raise Mismatch(field, f"tool {name}: {why}; it is called as {signature}") from None
            return Call(name, arguments)
    raise Mismatch(place, 'a call is {"tool": name, "arguments": {…}}')
