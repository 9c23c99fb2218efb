"""What a function's signature and docstring say of its parameters, as a msgspec Struct."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.typed import adapter

SECTION: Final = re.compile(r"^(Args|Arguments|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
PARAMETER: Final = re.compile(r"^(\s*)\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)$")


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    r"""Description and parameters of a docstring in Google's style.

    Example:
        >>> read_docstring("Look up.\n\nArgs:\n    word: what\n        to look up.\n\nReturns:\n    It.")
        ('Look up.', {'word': 'what to look up.'})
    """
    parts = SECTION.split(text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    parameters: dict[str, str] = {}
    indent, last = None, ""
    for line in (sections.get("Args") or sections.get("Arguments") or "").splitlines():
        found = PARAMETER.match(line)
        if found and indent in (None, found[1]):
            indent, last = found[1], found[2]
            parameters[last] = found[3]
        elif line.strip() and last:
            parameters[last] = f"{parameters[last]} {line.strip()}".strip()
    return " ".join(parts[0].split()), parameters


def args_of(name: str, function: Callable[..., Any], about: Mapping[str, str]) -> type[msgspec.Struct]:
    """A Struct of a function's parameters; see `tool` for what is raised."""
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError) as error:
        raise InvalidPrimitive(f"tool {name}: the types of its parameters are not known: {error}") from error
    fields: list[Any] = []
    for key, one in parameters.items():
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise InvalidPrimitive(
                f"tool {name}: its parameters are given by name; {one} cannot be", param=key
            )
        if key not in hints:
            raise InvalidPrimitive(f"tool {name}: parameter {key} has no type; write {key}: str", param=key)
        type_ = Annotated[hints[key], msgspec.Meta(description=about[key])] if key in about else hints[key]
        if one.default is one.empty:
            fields.append((key, type_))
        elif isinstance(one.default, list | dict | set | bytearray):
            fields.append((key, type_, msgspec.field(default_factory=partial(copy.deepcopy, one.default))))
        else:
            fields.append((key, type_, one.default))
    title = re.sub(r"\W", "_", name)
    return msgspec.defstruct(title, fields, kw_only=True, frozen=True, forbid_unknown_fields=True)


def parameters_schema(args: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON schema of a Struct of parameters: an object, with the schemas it refers to under "$defs"."""
    schema = adapter(args).schema
    others = dict(schema.get("$defs", {}))
    own = others.pop(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    return {**own, "$defs": others} if others else own


def shown(one: msgspec.structs.FieldInfo) -> str:
    """A parameter as people write it: ``count: int = 1``."""
    type_ = get_args(one.type)[0] if get_origin(one.type) is Annotated else one.type
    default = "" if one.required else " = …" if one.default is msgspec.NODEFAULT else f" = {one.default!r}"
    return f"{one.name}: {inspect.formatannotation(type_)}{default}"
