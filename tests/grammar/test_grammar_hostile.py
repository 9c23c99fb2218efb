"""Constraints made to do harm, given to the real engines in the real process: each is its asker's error, others are served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from sgl_actors.actors.grammar.process import CompilerCrashed, CompilerProcess
from sgl_actors.actors.grammar.protocol import Result, SetUp
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import Constraint
from tests.lang.byte_vocabulary import EOS, SIZE, byte_tokenizer

SECONDS = 2.0
SET_UP = SetUp(byte_tokenizer().to_str(), (EOS,), SIZE, "auto", 1 << 30, 0)


@pytest.fixture
async def compiler() -> AsyncIterator[list[CompilerProcess]]:
    """One process, replaced where a constraint ends it."""
    held = [await CompilerProcess.start(SET_UP)]
    yield held
    await held[0].close()


def schema(value: object) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


HOSTILE = [
    Constraint("regex", "(" * 5000 + "a" + ")" * 5000),
    Constraint("regex", "(((a{1,100}){1,100}){1,100}){1,100}"),
    Constraint("regex", "a{1,100000}"),
    Constraint("regex", "(.{0,200}){0,200}"),
    Constraint("regex", "(x+x+)+y" * 2000 + "("),
    Constraint("regex", "[a&&b]"),
    Constraint("regex", "(a*)*b(?=c)"),
    Constraint("regex", r"(a)\1"),
    Constraint("regex", "|".join("a" * n + "." * (400 - n) for n in range(150))),
    schema({"$ref": "https://example.com/schema.json"}),
    schema({"$ref": "#/definitions/none"}),
    schema({"type": "integer", "minimum": 5, "maximum": 4}),
    schema({"enum": []}),
    schema({"not": {"type": "string"}}),
    schema({"type": "string", "format": "no-such-format"}),
    schema({"type": "string", "pattern": "("}),
    schema({"type": "string", "minLength": 10, "maxLength": 5}),
    Constraint("json_schema", '{"items":' * 3_000 + "{}" + "}" * 3_000),
    Constraint("json_schema", "{" * 60_000),
    Constraint("json_schema", '{"a":' * 6_000 + "1" + "}" * 6_000),
    Constraint("lark", "start: start"),
    Constraint("lark", "start: " + "a" * 30_000),
    Constraint("choice", "[]"),
    Constraint("choice", '"a"'),
    Constraint("poem", "roses"),
]


async def outcome(compiler: CompilerProcess, constraint: Constraint) -> Result | Exception:
    try:
        return await compiler.compile(constraint, SECONDS)
    except (InvalidRequest, CompilerCrashed) as error:
        return error


async def test_each_is_refused_or_served_and_the_next_is_served(compiler: list[CompilerProcess]) -> None:
    """Each is compiled, refused by name, or goes over a limit; a good one is served after each."""
    for number, constraint in enumerate(HOSTILE):
        found = await outcome(compiler[0], constraint)
        if isinstance(found, InvalidRequest):
            assert found.message.startswith((constraint.kind, "constraint: ")), found.message
            assert found.param in (constraint.kind, "constraint"), found.message
            assert len(found.message) < 1000
        elif isinstance(found, CompilerCrashed):
            assert "takes more than" in str(found), (constraint, found.details)
            await compiler[0].close()
            compiler[0] = await CompilerProcess.start(SET_UP)
        assert (await compiler[0].compile(Constraint("regex", f"good {number}"), SECONDS)).engine == "fsm"


NAMED = [
    (schema({"$ref": "https://example.com/schema.json"}), r"\$ref|example\.com"),
    (schema({"not": {"type": "string"}}), "not"),
    (schema({"type": "string", "format": "no-such-format"}), "no-such-format"),
    (schema({"type": "string", "pattern": "("}), "pattern at #.*: unclosed group"),
    (Constraint("regex", r"(a)\1"), "reference.* at character 4 of 5"),
    (Constraint("regex", "[a&&b]"), "no text"),
]


async def test_a_refusal_names_what_is_wrong(compiler: list[CompilerProcess]) -> None:
    """The keyword, or the place in the pattern."""
    for constraint, why in NAMED:
        with pytest.raises(InvalidRequest, match=why) as caught:
            await compiler[0].compile(constraint, SECONDS)
        assert caught.value.param == constraint.kind
