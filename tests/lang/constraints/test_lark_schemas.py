"""JSON schemas inside of Lark grammars."""

from __future__ import annotations

import json

import pytest

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import JSON_FORM, LARK, Constraint
from sgl_actors.lang.constraints.lark_schemas import embedded, strict_lark, vet_lark
from tests.lang.byte_vocabulary import byte_compiler, byte_engines

DATE = '{"type": "object", "properties": {"d": {"type": "string", "format": "date"}},\n"required": ["d"], "additionalProperties": false}'
ENGINES = byte_engines()
COMPILER = byte_compiler()


def problem(source: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        ENGINES.compile(Constraint(LARK, source))
    assert caught.value.param == LARK
    return caught.value.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'start: a\na: %json {"type": "string", "pattern": "("}',
            "lark: pattern at #: unclosed group at line 2, column 4",
        ),
        (
            'start: "\\"" %json {"type":\n"null"} | %json {"items": {"not": {}}}',
            "lark: not at #/items: not supported at line 2, column 11",
        ),
        (
            'start: %json\n {"type": "array", "uniqueItems": true}',
            "lark: uniqueItems at #: not supported at line 1, column 8",
        ),
        (
            'start: %json {"x-guidance": {"lenient": true}}',
            "lark: x-guidance at #: lenient would let keywords have no effect at line 1, column 8",
        ),
        ('start: %json "x"', "lark: the schema at #: a schema has to be a JSON object at line 1, column 8"),
        ("start: /a(/", 'lark: invalid regex "a(" (in regex): unclosed group at line 1, column 8'),
    ],
)
def test_what_is_wrong_is_said_with_keyword_and_line(source: str, message: str) -> None:
    """A schema is vetted as one by itself; keyword, place in the schema, and line of the grammar are named."""
    assert problem(source) == message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, "oneOf: "),
        (
            {"type": "object", "properties": {"a": {}}, "maxProperties": 1},
            "minProperties or maxProperties: not supported beside",
        ),
        (
            {"type": "string", "pattern": "^a$", "minLength": 3},
            "nothing satisfies the schema: no string is as its pattern",
        ),
    ],
)
def test_what_llguidance_declines_is_said_with_the_keyword(schema: object, words: str) -> None:
    """Keywords are named, no setting is advised that would be refused, and no internals are shown; in a grammar and by itself."""
    source = json.dumps(schema)
    by_itself = Constraint("json_schema", source)
    with pytest.raises(InvalidRequest) as caught:
        ENGINES.compile(by_itself)
    assert caught.value.message.startswith(f"json_schema: {words}")
    inside = problem(f"start: %json {source}")
    assert inside == caught.value.message.replace("json_schema", "lark", 1) + " at line 1, column 8"
    assert "coerce" not in inside


def test_only_schemas_are_found() -> None:
    """Strings, regexes, comments, special tokens and other JSON may hold what looks like one."""
    source = r"""start: "%json {" /%json {/ a # %json {
// " %json {
a: <|%json|> %regex {"substring_chars": "%json {"} "\\" b
b: /\/%json{/ %json{"type": "null"}"x" | %json true"""
    assert [(one.value, one.line, one.column) for one in embedded(source)] == [
        ({"type": "null"}, 4, 15),
        (True, 4, 42),
    ]
    vet_lark(source)
    assert list(embedded('start: %json {"a": ')) == []


def test_form_and_formats_are_those_of_schemas() -> None:
    """White space, escapes and formats inside of a grammar are what they are for a schema by itself, unless it says otherwise."""
    fresh = COMPILER.compile(Constraint(LARK, f'start: "<" %json {DATE} ">"'))
    assert fresh.matches('<{"d": "2024-02-29"}>')
    for text in ('<{"d":"2024-02-29"}>', '<{"d": "2023-02-29"}>', '<{"d": "2024-02-29" }>'):
        assert not fresh.matches(text)
    own = COMPILER.compile(
        Constraint(LARK, 'start: %json {"type": "string", "x-guidance": {"key_separator": ":"}}')
    )
    assert own.matches(r'"\n"')
    assert not own.matches(r'"\u0041"')


def test_lines_stay_where_they_are() -> None:
    """The rewritten grammar has the same lines, so that what llguidance says of them is right."""
    source = f"start: %json {DATE} | nothing"
    changed = strict_lark(source)
    assert changed.count("\n") == source.count("\n") == 1
    [found] = embedded(changed)
    assert found.value["x-guidance"] == JSON_FORM
    assert problem(source).startswith('lark: unknown name: "nothing" at line 1')
    assert problem(f"{source}\nnothing: other").endswith("at line 3, column 10")
