"""Grammars of texts with JSON in them, in llguidance's dialect of Lark.

A lazy lexeme ends with the first trigger, so free text goes on until one was written, and what comes behind it is forced.
Each schema has a line of its own, as it is by it that an error names the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sgl_actors.actors.gateway.openai_types import Structure
from sgl_actors.lang.constraints.constraint import JSON_FORM

ANY = "/(?s:.*)/"
"""Free text."""


def quoted(text: str) -> str:
    r"""A text as a literal.

    Example:
        >>> quoted('<a "b">\n')
        '"<a \\"b\\">\\n"'
    """
    return json.dumps(text)


def schema_rule(schema: dict[str, Any]) -> str:
    """A schema in place, on one line; its white space is fixed as elsewhere."""
    return f"%json {msgspec.json.encode({'x-guidance': JSON_FORM, **schema}).decode()}"


def free_text_with(structures: Sequence[Structure], started: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Rules for free text in which each trigger is the beginning of one of the structures that it starts (by number)."""
    rules = {"start": "tag* text", "text": "TEXT", "TEXT": ANY}
    rules["tag"] = " | ".join(f"head_{number} body_{number}" for number in range(len(started)))
    for number, (trigger, numbers) in enumerate(started.items()):
        rules[f"head_{number}[lazy]"] = f"TEXT {quoted(trigger)}"
        rests = (
            f"{quoted(structures[one].begin[len(trigger) :])} json_{one} {quoted(structures[one].end)}"
            for one in numbers
        )
        rules[f"body_{number}"] = " | ".join(rests)
    return rules | {f"json_{number}": schema_rule(one.schema) for number, one in enumerate(structures)}


def with_lines(rules: Mapping[str, str], fields: Mapping[str, str]) -> tuple[str, dict[int, str]]:
    r"""The grammar's text, and the field that belongs to a line, by the fields of rules.

    Example:
        >>> with_lines({"start": "a", "a": "/x/"}, {"a": "tools[0]"})
        ('start: a\na: /x/', {2: 'tools[0]'})
    """
    source = "\n".join(f"{name}: {rule}" for name, rule in rules.items())
    return source, {line: fields[name] for line, name in enumerate(rules, 1) if name in fields}
