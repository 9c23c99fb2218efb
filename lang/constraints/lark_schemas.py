"""JSON schemas inside of grammars in llguidance's dialect of Lark (``%json {…}``), held to what holds for schemas alone.

The grammar is read as llguidance's lexer does (its ``parser/src/lark/lexer.rs``), as far as it takes to tell a schema from a string, a regex or a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import JSON_FORM, JSON_SCHEMA, LARK
from sgl_actors.lang.constraints.schema_formats import make_strict
from sgl_actors.lang.constraints.schema_vetting import vet_schema

_LEXEME: Final = re.compile(
    r"""
    (?P<json>%json) | %llguidance | %regex
    | (?:\#|//)[^\n]*                                                        # comment
    | "(?:\\(?:["\\/bfnrt]|u[a-fA-F0-9]{4})|[^"\\\x00-\x1F\x7F])*"           # string
    | /(?:\\.|[^/\\])+/                                                      # regex
    | <[^<>\s]+>                                                             # special token
    """,
    re.VERBOSE,
)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_JSON: Final = json.JSONDecoder()


class Embedded(NamedTuple):
    """A schema in a grammar.

    Attributes:
        start, end: where its text stands.
        value: the schema, a JSON value.
        line, column: where its ``%json`` stands, from 1.
    """

    start: int
    end: int
    value: Any
    line: int
    column: int


def embedded(source: str) -> Iterator[Embedded]:
    r"""The schemas of a grammar, up to the first thing that cannot be read.

    >>> [(one.value, one.line) for one in embedded('start: a "%json {"\na: %json {"type": "null"}')]
    [({'type': 'null'}, 2)]
    """
    at = line = line_start = 0
    while (found := _LEXEME.search(source, at)) is not None:
        at = found.end()
        if not found[0].startswith("%"):
            continue
        space = _SPACE.match(source, at)
        start = at if space is None else space.end()
        try:
            value, at = _JSON.raw_decode(source, start)
        except (ValueError, RecursionError):
            return
        if found["json"]:
            line += source.count("\n", line_start, found.start())
            line_start = found.start()
            column = found.start() - source.rfind("\n", 0, found.start())
            yield Embedded(start, at, value, line + 1, column)


def vet_lark(source: str) -> None:
    """Refuse a grammar with a schema that no engine is to see.

    Raises:
        InvalidRequest: what `vet_schema` says, with the line and the column; `param` is ``lark``.
    """
    for one in embedded(source):
        try:
            vet_schema(source[one.start : one.end])
        except InvalidRequest as error:
            why = error.message.removeprefix(f"{JSON_SCHEMA}: ")
            raise InvalidRequest(
                f"{LARK}: {why} at line {one.line}, column {one.column}", param=LARK
            ) from None


def strict_lark(source: str) -> str:
    """The grammar with `JSON_FORM` (where a schema says nothing else) and strict formats in its schemas. Lines stay where they are."""
    found, at = "", 0
    for one in embedded(source):
        if isinstance(one.value, dict):
            form = one.value.get("x-guidance", {})
            schema = one.value | {"x-guidance": JSON_FORM | form if isinstance(form, dict) else form}
            make_strict(schema)
            lines = "\n" * source.count("\n", one.start, one.end)
            found += f"{source[at : one.start]}{json.dumps(schema)[:-1]}{lines}}}"
            at = one.end
    return found + source[at:]
