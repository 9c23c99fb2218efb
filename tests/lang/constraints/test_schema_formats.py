"""Formats as the definitions have them, in both engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sgl_actors.lang.constraints.regex_automaton import compile_regex
from sgl_actors.lang.constraints.schema_formats import LONGEST_HOSTNAME, strict_source
from sgl_actors.lang.constraints.schema_regex import schema_regex
from tests.lang.constraints import schema_samples as samples

CHECKER = Draft202012Validator.FORMAT_CHECKER


def written(name: str) -> Iterator[str]:
    """Texts of a format: from the automaton where there is one, else from masks."""
    schema, random = {"type": "string", "format": name}, Random(7)
    automaton = None if name == "hostname" else compile_regex(schema_regex(json.dumps(schema)))
    fresh = samples.grammar(schema)
    for _ in range(300 if automaton is not None else 30):
        text = samples.walked(automaton, random) if automaton is not None else samples.written(fresh, random)
        if text is not None:
            yield json.loads(text)


@pytest.mark.parametrize("name", samples.FORMATS)
def test_whatever_is_written_passes_the_check(name: str) -> None:
    """The package that checks formats knows each of them, and takes every text that is allowed."""
    assert name in CHECKER.checkers
    texts = list(written(name))
    assert len(texts) > 10
    assert [text for text in texts if not CHECKER.conforms(text, name)] == []


@pytest.mark.parametrize("name", ["date", "date-time"])
def test_days_are_those_of_the_calendar(name: str) -> None:
    """Every day of years of all kinds can be written, and none that does not exist."""
    behind = "" if name == "date" else "T00:00:59.5+23:59"
    fresh = samples.grammar({"type": "string", "format": name})
    for year in (1, 4, 100, 400, 1900, 1999, 2000, 2024, 9999):
        first = date(year, 1, 1)
        for day in (0, 30, 31, 58, 59, 60, 364):
            assert fresh.matches(f'"{first + timedelta(day)}{behind}"')
    for year in range(0, 10_000, 4):
        leap = year > 0 and (year % 100 != 0 or year % 400 == 0)
        assert fresh.matches(f'"{year:04d}-02-29{behind}"') == leap
    for text in ("0000-01-01", "2023-02-29", "2024-02-30", "2023-04-31", "2023-13-01", "2023-00-01"):
        assert not fresh.matches(f'"{text}{behind}"')


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"format": "time"}, "23:59:59.25-00:30", "23:59:60Z"),
        ({"format": "date", "pattern": "^2"}, "2024-02-29", "2023-02-29"),
        ({"format": "date", "pattern": "^2"}, "2023-02-28", "1999-01-01"),
        ({"allOf": [{"minLength": 3}], "format": "time", "pattern": "Z$"}, "00:00:00Z", "00:00:00z"),
        ({"enum": ["2024-02-29", "2023-02-29"], "format": "date"}, "2024-02-29", "2023-02-29"),
        ({"format": "hostname"}, "a." * 126 + "b", "a." * 126 + "bc"),
        ({"format": "hostname", "maxLength": 900}, "a." * 126 + "b", "a." * 126 + "bc"),
        ({"format": "hostname", "maxLength": 3}, "a.b", "a.bc"),
        ({"$ref": "#/$defs/d", "$defs": {"d": {"format": "date"}}}, "2024-02-29", "2023-02-29"),
        ({"$ref": "#/x/d", "x": {"d": {"format": "date"}}}, "2024-02-29", "2023-02-29"),
        ({"anyOf": [False, {"format": "date"}]}, "2024-02-29", "2023-02-29"),
    ],
)
def test_formats_stay_strict_wherever_they_stand(schema: dict[str, Any], good: str, bad: str) -> None:
    """Beside a pattern both hold; a format is found behind references and inside of other schemas."""
    fresh = samples.grammar({"type": "string", **schema})
    assert fresh.matches(json.dumps(good))
    assert not fresh.matches(json.dumps(bad))


def test_only_schemas_are_changed() -> None:
    """Values that look like a schema stay, other schemas come back to the letter, and so does what is none."""
    for source in (
        '{"const": {"format":  "date"}}',
        '{"properties": {"format": {}}}',
        "{",
        "3",
        '{"format": 3}',
    ):
        assert strict_source(source) == source
    changed = json.loads(strict_source('{"format": "date", "title": "é", "enum": [{"format": "date"}]}'))
    assert list(changed) == ["pattern", "title", "enum"]
    assert changed["enum"] == [{"format": "date"}]
    assert json.loads(strict_source('{"format": "hostname"}'))["maxLength"] == LONGEST_HOSTNAME
