"""Whether a text is JSON that a schema allows, by the `jsonschema` package, formats included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import jsonschema
import referencing
from jsonschema.validators import validator_for

_FORMATS = jsonschema.FormatChecker(["date", "email", "idn-email", "ipv4", "ipv6", "uuid", "regex"])
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")


def _checks(name: str) -> Callable[[Callable[[str], bool]], Callable[[str], bool]]:
    """Have a format checked by the function; jsonschema leaves it to packages of others."""

    def enter(check: Callable[[str], bool]) -> Callable[[str], bool]:
        _FORMATS.checks(name, raises=ValueError)(lambda value: not isinstance(value, str) or check(value))
        return check

    return enter


@_checks("date-time")
def is_moment(value: str) -> bool:
    """RFC 3339, section 5.6; a leap second (":60") is one."""
    if not _MOMENT.fullmatch(value):
        return False
    fraction = re.sub(r"\.\d+", "", value.upper().replace(":60", ":59"))
    return datetime.fromisoformat(fraction).tzinfo is not None


@_checks("time")
def is_time(value: str) -> bool:
    """RFC 3339, `full-time`."""
    return is_moment(f"2000-01-01T{value}")


@_checks("uri")
def is_uri(value: str) -> bool:
    """RFC 3986: a scheme, and characters that a URI may have."""
    return _URI.fullmatch(value) is not None


def schema_problem(schema: Any) -> str:
    """Why jsonschema does not take it, "" if it does. References to elsewhere are followed when something is checked."""
    try:
        validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"{error.json_path}: {error.message}"
    return ""


def problem(schema: Any, text: str) -> str:
    """What is wrong with `text`, "" if nothing is.

    A key may come twice if no schema names it: no grammar can remember what a model called the further properties of an open object, and readers take the last.
    """
    named = set(_names(schema))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs if key in named]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a key comes twice in {keys}")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse)
    except ValueError as error:
        return str(error)
    validator = validator_for(schema, default=jsonschema.Draft202012Validator)
    found = validator(schema, registry=referencing.Registry(), format_checker=_FORMATS).iter_errors(value)
    return "; ".join(f"{error.json_path}: {error.message}" for error in found)


def _names(schema: Any) -> Iterator[str]:
    """Of all properties that it states, wherever."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
        for part in schema.values():
            yield from _names(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _names(part)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
