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
CHOICE: Final = "choice"
"""The output is one of several texts (a JSON array of strings)."""
KINDS: Final = (REGEX, JSON_SCHEMA, LARK, CHOICE)

JSON_FORM: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}
"""The white space and the escapes of constrained JSON: one line, as Python's ``json.dumps`` writes it (keys of llguidance's ``x-guidance``).

Free white space is unbounded, and a small model that is unsure what to write goes on writing it. With a fixed form nothing is left to
choose, all of it is forced text, and it is what models have seen most; a schema that wants another form says so in its own ``x-guidance``. Without ``\\u``,
no key can be spelled in a way that slips past its schema.
"""


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What an output has to be as a whole.

    Attributes:
        kind: one of `KINDS`.
        source: the expression, schema, grammar or choices.
    """

    kind: str
    source: str
