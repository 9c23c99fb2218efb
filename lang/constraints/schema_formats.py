"""Formats of strings of which llguidance allows more than their definitions do, and schemas that allow no more than these.

Dates and times are those of RFC 3339 on a clock and a calendar: no leap seconds (validators know none, as which there were is a matter of tables), February has
29 days in leap years only, and no year is 0. A host name has at most 253 characters (RFC 1035, section 2.3.4).
"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import chain
from typing import Any, Final

import msgspec

from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.schema_places import definitions, parts, place

_DAY: Final = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_YEAR: Final = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_FOURTH: Final = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR: Final = f"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)"
_DATE: Final = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_TIME: Final = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
STRICT: Final = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[tT]{_TIME}$"}
"""The patterns that take the place of formats."""
LONGEST_HOSTNAME: Final = 253
"""Characters."""


def strict_source(source: str) -> str:
    """The schema (JSON text) with strict formats; what is no JSON, or has none of these formats, as it is."""
    try:
        schema = msgspec.json.decode(source)
        return json.dumps(schema, ensure_ascii=False) if make_strict(schema) else source
    except (msgspec.DecodeError, RecursionError):
        return source


def make_strict(root: Any) -> bool:
    """Change a schema (a JSON value) in place so that its formats are strict; says whether anything was to be changed.

    A pattern takes the place of such a format, or comes beside another pattern by ``allOf``. The order of keywords stays.
    """
    seen: set[int] = set()
    waiting, changed = [root], False
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        waiting += [part for _, part in chain(parts(schema, ""), definitions(schema, ""))]
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            with suppress(Declined):
                waiting.append(place(root, reference))
        changed |= _restrict(schema)
    return changed


def _restrict(schema: dict[str, Any]) -> bool:
    name = schema.get("format")
    if name == "hostname":
        most = schema.get("maxLength", LONGEST_HOSTNAME)
        schema["maxLength"] = min(most, LONGEST_HOSTNAME) if isinstance(most, int) else most
        return True
    pattern = STRICT.get(name) if isinstance(name, str) else None
    if pattern is None:
        return False
    if "pattern" in schema:
        also = schema.get("allOf", [])
        if isinstance(also, list):
            schema["allOf"] = [*also, {"pattern": pattern}]
        return True
    keywords = list(schema.items())
    schema.clear()
    schema.update(("pattern", pattern) if key == "format" else (key, value) for key, value in keywords)
    return True
