"""Schemas as regular expressions, against llguidance."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regex_automaton import compile_regex
from sgl_actors.lang.constraints.schema_regex import LONGEST, schema_regex
from tests.lang.constraints import schema_samples as samples

CLOSED = {"additionalProperties": False}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    **CLOSED,
}
OPTIONAL = {"type": "object", "properties": {key: {"type": "null"} for key in "abc"}, **CLOSED}


def regex(schema: Any) -> re.Pattern[str]:
    return re.compile(schema_regex(json.dumps(schema, ensure_ascii=False)))


def compare(schema: Any, random: Random, outputs: int) -> str:
    """Both engines on what llguidance writes, on mutations of it, and on a few texts; says how the schema fared."""
    try:
        fresh = samples.grammar(schema)
    except InvalidRequest:
        return "refused"
    try:
        expression = regex(schema)
    except Declined:
        return "declined"
    for _ in range(outputs):
        text = samples.written(fresh, random)
        if text is not None:
            assert expression.fullmatch(text), (schema, text)
            for other in [samples.mutated(text, random) for _ in range(10)]:
                assert bool(expression.fullmatch(other)) == fresh.matches(other), (schema, other)
    for text in (*samples.NUMBERS, *samples.OTHERS):
        assert bool(expression.fullmatch(text)) == fresh.matches(text), (schema, text)
    return "equal"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            PERSON,
            ['{"name": "Zoë", "age": 7}', '{"name": ""}'],
            ['{"age": 7}', '{"name": "a","age": 7}', "{}"],
        ),
        (
            OPTIONAL,
            ["{}", '{"b": null}', '{"a": null, "c": null}'],
            ['{"c": null, "a": null}', '{"a": null, }'],
        ),
        (
            {"type": "string"},
            [r'"\n"', r'"\""', '"é😀/"'],
            [r'"\u0041"', r'"\u0007"', r'"\/"', '"\n"', '"\x7f"', '"'],
        ),
        ({"type": "string", "minLength": 2, "maxLength": 2}, [r'"\n\""', '"éé"', '"😀a"'], ['"a"', '"abc"']),
        ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"', "b"]),
        ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 2}, ['"ab"'], ['""', '"abc"', '"A"']),
        ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"256.0.0.1"', '"1.2.3"']),
        ({"const": {"b": 1, "a": [1.5, "x"]}}, ['{"b": 1, "a": [1.5, "x"]}'], ['{"a": [1.5, "x"], "b": 1}']),
        ({"enum": ["a", None, -2, False]}, ['"a"', "null", "-2", "false"], ["2", "true", "a"]),
        ({"type": "number"}, ["0", "-0.0", "12e5", "1E+05"], ["01", "1.", ".5", "+1"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1.00", "0.25"], ["-0", "1.01", "1e0"]),
        ({"type": "number", "minimum": -1e15, "maximum": 1e15, "multipleOf": 1e-9}, ["-3.25"], ["1e5"]),
        ({"type": ["integer", "null"], "exclusiveMinimum": 0}, ["1", "120", "null"], ["0", "-1", "1.0"]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1}, ["[null]", "[null, null]"], ["[]"]),
        ({"prefixItems": [{"const": 1}], "items": False, "type": "array"}, ["[]", "[1]"], ["[1, 1]"]),
        (
            {"$defs": {"x": {"enum": [1, 2]}}, "type": "array", "items": {"$ref": "#/$defs/x"}},
            ["[1, 2]"],
            ["[3]"],
        ),
        (
            {"type": "object", "additionalProperties": {"type": "null"}},
            ['{"é": null, "b": null}'],
            ['{"a": 1}'],
        ),
        (
            {"type": "object", "properties": {"ab": {"const": 1}}, "additionalProperties": {"const": 2}},
            ['{"ab": 1, "a": 2, "abc": 2, "b": 2}', '{"": 2}'],
            ['{"ab": 2}', '{"a": 2, "ab": 1}', '{"abc": 1}'],
        ),
        (
            {"type": "object", "patternProperties": {"^x": {"const": 1}}, **CLOSED},
            ['{"x1": 1}'],
            ['{"y": 1}'],
        ),
    ],
)
def test_expression_is_the_schemas_language(schema: Any, good: list[str], bad: list[str]) -> None:
    """Texts in the fixed form that the schema allows match, others do not, and llguidance agrees on each."""
    expression, fresh = regex(schema), samples.grammar(schema)
    for texts, expected in ((good, True), (bad, False)):
        for text in texts:
            assert (text, bool(expression.fullmatch(text))) == (text, expected)
            assert (text, fresh.matches(text)) == (text, expected)


@settings(deadline=None, max_examples=50)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_both_engines_agree(random: Random, depth: int) -> None:
    """On random schemas, what llguidance writes matches, and mutations of that match if and only if llguidance allows them."""
    compare(samples.schema(random, depth), random, 4)


@pytest.mark.parametrize("kind", [*samples.FORMATS, *samples.PATTERNS])
def test_both_engines_agree_on_strings(kind: str) -> None:
    """Every format and kind of pattern has the same language in both; the length of a host name is not the FSM's."""
    key = "format" if kind in samples.FORMATS else "pattern"
    expected = "declined" if kind == "hostname" else "equal"
    assert compare({"type": "string", key: kind}, Random(1), 3) == expected


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False), st.integers(0, 2))
def test_whatever_the_automaton_writes_is_allowed(random: Random, depth: int) -> None:
    """Texts chosen from the automaton of the expression are outputs that llguidance allows."""
    schema = samples.schema(random, depth)
    try:
        automaton = compile_regex(regex(schema).pattern)
        fresh = samples.grammar(schema)
    except (Declined, InvalidRequest):
        return
    for _ in range(5):
        text = samples.walked(automaton, random)
        assert text is None or fresh.matches(text), (schema, text)


@pytest.mark.slow
def test_both_engines_agree_at_length() -> None:
    """Of hundreds of random schemas most are regular, and none differs."""
    random = Random(3)
    found = Counter(compare(samples.schema(random, random.randrange(4)), random, 10) for _ in range(900))
    assert found["equal"] > 600


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({}, "type: any JSON value would do"),
        ({"type": "object"}, "additionalProperties: values of any form"),
        ({"type": "array"}, "items: values of any form"),
        ({"type": "array", "items": {"$ref": "#"}}, r"\$ref: # is recursive"),
        ({"type": "string", "not": {"const": "a"}}, "not: "),
        ({"type": "string", "propertyNames": {}}, "propertyNames: "),
        ({"type": "string", "format": "regex"}, "format: 'regex' is unknown"),
        ({"type": "string", "pattern": "(?i)a"}, "pattern: "),
        (
            {"type": "string", "pattern": "^a.*$", "maxLength": 5},
            "pattern: together with minLength or maxLength",
        ),
        ({"type": "integer", "multipleOf": 7}, "multipleOf: "),
        ({"type": "number", "minimum": 0.5}, "minimum or maximum: with a fraction"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf: "),
        ({"type": "null", "x-guidance": {"item_separator": ","}}, "x-guidance: "),
        ({"anyOf": [False, False]}, "nothing satisfies"),
        (3, "JSON object"),
    ],
)
def test_what_is_not_taken_is_declined(schema: Any, why: str) -> None:
    """What is not regular or not understood is left to the other engine, naming the keyword."""
    with pytest.raises(Declined, match=why):
        regex(schema)


def test_expressions_stay_short() -> None:
    """Repetition is counted, not written out, and what grows too long is declined without being built."""
    assert len(schema_regex('{"type": "array", "items": {"type": "null"}, "maxItems": 1000000}')) < 99
    names = {f"p{number}": {"type": "string"} for number in range(1_000)}
    doubled = {
        f"d{n}": {"items": False, "prefixItems": [{"$ref": f"#/$defs/d{n + 1}"}] * 3} for n in range(16)
    }
    definitions = {name: {"type": "array", "minItems": 3, **part} for name, part in doubled.items()}
    for large in (
        {"type": "object", "properties": names, **CLOSED},
        {"$defs": {**definitions, "d16": {"type": "null"}}, "$ref": "#/$defs/d0"},
        {"type": "string", "pattern": "." * 5_000},
    ):
        with pytest.raises(Declined, match=rf"more than {LONGEST} characters"):
            regex(large)


def test_properties_keep_the_order_of_keywords() -> None:
    """Members come in the order in which the schema names them, those of an allOf that stands first before the others."""
    first = {"properties": {"z": {"const": 1}}, "required": ["z"]}
    schema = {"allOf": [first], "type": "object", "properties": {"z": True, "a": {"const": 2}}, **CLOSED}
    assert regex(schema).fullmatch('{"z": 1, "a": 2}')
    assert samples.grammar(schema).matches('{"z": 1, "a": 2}')
    assert compare(schema, Random(0), 5) == "equal"


@pytest.mark.skipif("SGL_ACTORS_DATA" not in os.environ, reason="needs the real schemas")
def test_real_schemas() -> None:
    """Of 100 real schemas at least five are regular, and both engines agree on them; most are open to members of any form."""
    path = Path(os.environ["SGL_ACTORS_DATA"]) / "json_decode" / "schemas_100.jsonl"
    schemas = [json.loads(line)["schema"] for line in path.read_text().splitlines()]
    found = Counter(compare(schema, Random(0), 1) for schema in schemas)
    assert found["equal"] >= 5
    assert found["refused"] <= 15
