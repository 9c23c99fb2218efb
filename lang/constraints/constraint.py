"""The form in which a constraint travels: its kind and its source. Plain data, nothing is compiled here."""

from __future__ import annotations

from typing import Final

import msgspec

REGEX: Final = "regex"
"""The whole output matches a regular expression (Rust's syntax: no back references, no look-around)."""
JSON_SCHEMA: Final = "json_schema"
"""The output is a JSON value that a JSON schema (as JSON text) allows."""
LARK: Final = "lark"
"""The output is a sentence of a context-free grammar in llguidance's dialect of Lark."""
KINDS: Final = (REGEX, JSON_SCHEMA, LARK)


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What an output has to be as a whole.

    Attributes:
        kind: one of `KINDS`.
        source: the expression, schema or grammar.
    """

    kind: str
    source: str
