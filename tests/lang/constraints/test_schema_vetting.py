"""Schemas that no engine is to see."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.schema_regex import schema_regex
from sgl_actors.lang.constraints.schema_vetting import LARGEST, UNSUPPORTED, vet_schema
from tests.lang.constraints import schema_samples as samples

DRAFT_4 = "http://json-schema.org/draft-04/schema#"


def problem(schema: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        vet_schema(schema if isinstance(schema, str) else json.dumps(schema))
    assert caught.value.param == "json_schema"
    return caught.value.message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"a": ', "no valid JSON"),
        ("[1]", "at #: a schema has to be a JSON object"),
        ("false", "nothing satisfies false"),
        ('{"not":' * 5_000 + "1" + "}" * 5_000, "too deep"),
        ({"title": "x" * LARGEST}, f"more than {LARGEST}"),
        ({"$ref": "https://example.org/x"}, r"\$ref at #: 'https://example.org/x' is not in this schema"),
        ({"items": {"$ref": "other.json#/a"}}, r"\$ref at #/items: 'other.json#/a' is not"),
        ({"$ref": "#/$defs/x"}, r"\$ref at #: nothing stands at '#/\$defs/x'"),
        ({"$schema": "http://example.org/"}, r"\$schema at #: none of"),
        ({"type": 12}, "type at #: '12' is none of null"),
        ({"properties": {"a/b": {"type": "any"}}}, "type at #/properties/a~1b: 'any' is none of"),
        ({"properties": []}, "properties at #: not an object"),
        ({"properties": {"a": 3}}, "at #/properties/a: a schema has to be"),
        ({"required": True}, "required at #: not a list of strings"),
        ({"minItems": 3, "maxItems": 2}, "minItems at #: 3 is greater than maxItems 2"),
        ({"minLength": -1}, "minLength at #: not a whole number"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum at #: 3 is greater than maximum 2"),
        (
            {"type": "number", "exclusiveMinimum": 2, "maximum": 2},
            "exclusiveMinimum at #: nothing is between",
        ),
        ({"maximum": "3"}, "maximum at #: not a number"),
        ({"maximum": 1e30}, "maximum at #: too large"),
        ({"multipleOf": 0}, "multipleOf at #: not greater than 0"),
        ({"enum": []}, "enum at #: not a list with something in it"),
        ({"const": ["a\x01"]}, "const at #: a control character that cannot be written"),
        ({"enum": ["\n", "\x7f"]}, "enum at #: a control character that cannot be written"),
        ({"anyOf": []}, "anyOf at #: not a list"),
        ({"pattern": "a("}, "pattern at #: unclosed group"),
        ({"pattern": "(?=a)"}, "pattern at #: look-around"),
        ({"patternProperties": {"[": True}}, r"patternProperties at #: \[: unclosed"),
        ({"format": "iri"}, "format at #: 'iri' is none of date"),
        ({"x-guidance": {"lenient": True}}, "x-guidance at #: lenient"),
        ({"x-guidance": {"json_allowed_escapes": "nu"}}, r"x-guidance at #: \\u would"),
        (
            {"$ref": "#d", "$defs": {"a/b": {"$anchor": "d", "not": {}}}},
            r"not at #/\$defs/a~1b: not supported",
        ),
        ({"$defs": {"x": {"$id": "http://x/y", "$ref": "#/z"}}, "$ref": "#/$defs/x"}, "'#/z' is below an"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "requires itself"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "at #: no finite value"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "items": {"$ref": "#/$defs/a"}}, "no finite value"),
    ],
)
def test_what_is_wrong_is_said_with_keyword_and_place(schema: Any, words: str) -> None:
    """Each kind of mistake is refused with the keyword, its JSON pointer and what was expected."""
    message = problem(schema)
    assert message.startswith("json_schema: ")
    assert len(message) < 700
    assert re.search(words, message), message


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED))
def test_no_keyword_is_passed_over(keyword: str) -> None:
    """A keyword that constrains and that no engine enforces is refused in any draft, also where a draft does not have it."""
    for schema in ({"type": "string", keyword: {}}, {"$schema": DRAFT_4, "type": "string", keyword: True}):
        assert f"{keyword} at #: not supported" in problem(schema)


@pytest.mark.parametrize(
    ("schema", "keyword", "written"),
    [
        ({"type": "string", "pattern": '^[^"]$'}, "pattern", r'"\""'),
        ({"type": "string", "pattern": "^(?P<stop>a)b$"}, "pattern", None),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "exclusiveMinimum", "0"),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, "exclusiveMaximum", "-0"),
        ({"const": 2**60 + 1}, "const", str(2**60)),
        ({"type": "object", "minProperties": 2}, "minProperties", '{"a": 1, "a": 2}'),
        ({"$schema": DRAFT_4, "const": 3}, "const", "4"),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "additionalItems": False},
            "additionalItems",
            "[2]",
        ),
        ({"type": "array", "additionalItems": False}, "additionalItems", "[2]"),
    ],
)
def test_what_llguidance_gets_wrong_is_refused(schema: Any, keyword: str, written: str | None) -> None:
    """Where llguidance would write what the schema forbids, the schema is refused; if it no longer does, the refusal can go."""
    assert problem(schema).startswith(f"json_schema: {keyword} at #")
    assert written is None or samples.grammar(schema).matches(written)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
        {"$schema": DRAFT_4, "type": "integer", "minimum": 0, "exclusiveMinimum": True},
        {"$defs": {"unused": {"not": {}}}, "type": "null"},
        {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
        {"type": "integer", "format": "int32", "minimum": 0, "maximum": 2**63 - 1},
        {"type": "string", "contentEncoding": "base64", "nullable": True},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "string", "pattern": r"^\p{L}+$"},
        {"properties": {"type": {"type": "string"}, "not": {"type": "null"}}, "const": {"not": None}},
    ],
)
def test_good_schemas_pass(schema: Any) -> None:
    """Ordinary schemas are not refused, whatever their properties are called, and llguidance takes them."""
    vet_schema(json.dumps(schema))
    samples.grammar(schema)


def test_random_schemas_never_fail_otherwise() -> None:
    """Whatever is in a schema, vetting it ends in nothing or `InvalidRequest`, and reading it in an expression or `Declined`."""
    random = Random(5)
    junk: list[Any] = [None, True, 3, -1.5, "x", "#", [], {}, [{}], {"a": 3}, ["#"]]
    for _ in range(300):
        schema = samples.schema(random, 2)
        schema[random.choice(sorted({*schema, "type", "$ref", "items", "required", "enum"}))] = random.choice(
            junk
        )
        with suppress(InvalidRequest):
            vet_schema(json.dumps(schema))
        with suppress(Declined):
            schema_regex(json.dumps(schema))
