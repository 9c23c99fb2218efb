"""What a request asks its output to be, in the forms of OpenAI, vLLM and SGLang: at most one constraint, and the field that it comes from.

Only what concerns the request is checked here. What a source says is read in the node; what is wrong with it comes back under the name that
the constraint's kind has there, and gets the field's name here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sgl_actors.actors.gateway.errors import invalid
from sgl_actors.actors.gateway.lark import free_text_with, with_lines
from sgl_actors.actors.gateway.limits import (
    MAX_CHOICES,
    MAX_GBNF,
    MAX_GBNF_RULES,
    MAX_STRUCTURES,
    check_length,
)
from sgl_actors.actors.gateway.native_types import NativeSampling
from sgl_actors.actors.gateway.openai_types import ResponseFormat, SamplingFields, StructuralTag
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint

OBJECT = '{"type":"object"}'
"""Schema of any JSON object."""

_PLACE = re.compile(r"\bat line (\d+), column \d+")
_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Asked:
    """A constraint, and where it stands in the request.

    Attributes:
        constraint: None for free text.
        field: the field.
        lines: fields that single lines of a source of our own making come from.
    """

    constraint: Constraint | None = None
    field: str = ""
    lines: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def named(self, error: InvalidRequest) -> InvalidRequest:
        """What the node says of the constraint, with the field's name instead of the kind's; any other error as it is."""
        kind = self.constraint.kind if self.constraint is not None else ""
        if not kind or error.param != kind:
            return error
        name, message = self.field, error.message.removeprefix(f"{kind}: ")
        place = _PLACE.search(message)
        if self.lines and place is not None:
            name = self.lines.get(int(place[1]), name)
            message = message.replace(f" {place[0]}", "")
        return InvalidRequest(f"{name}: {message}", param=name)


FREE = Asked()
"""No constraint."""
Form = Callable[[str, Any], Asked]
"""Makes a constraint of a field's name and value."""


def openai_constraint(fields: SamplingFields) -> Asked:
    """The constraint of a request to the OpenAI-compatible endpoints.

    Raises:
        InvalidRequest: more than one, an empty one, or a form that is none.
    """
    outputs = fields.structured_outputs
    given: list[tuple[str, Form, Any]] = [
        ("response_format", _response_format, fields.response_format),
        ("json_schema", _json, fields.json_schema),
        ("guided_json", _json, fields.guided_json),
        ("guided_json_object", _object, fields.guided_json_object or None),
        ("regex", _regex, fields.regex),
        ("guided_regex", _regex, fields.guided_regex),
        ("choice", _choice, fields.choice),
        ("guided_choice", _choice, fields.guided_choice),
        ("lark", _lark, fields.lark),
        ("ebnf", _grammar, fields.ebnf),
        ("guided_grammar", _grammar, fields.guided_grammar),
        ("structural_tag", _structural_tag, fields.structural_tag),
    ]
    if outputs is not None:
        given += [
            ("structured_outputs.json", _json, outputs.json),
            ("structured_outputs.json_object", _object, outputs.json_object or None),
            ("structured_outputs.regex", _regex, outputs.regex),
            ("structured_outputs.choice", _choice, outputs.choice),
            ("structured_outputs.grammar", _grammar, outputs.grammar),
            ("structured_outputs.structural_tag", _structural_tag, outputs.structural_tag),
            ("structured_outputs.whitespace_pattern", _no_white_space, outputs.whitespace_pattern),
        ]
    return _one(given)


def native_constraint(params: NativeSampling) -> Asked:
    """The constraint of `sampling_params`; raises as `openai_constraint` does."""
    return _one(
        [
            ("json_schema", _json, params.json_schema),
            ("regex", _regex, params.regex),
            ("choice", _choice, params.choice),
            ("lark", _lark, params.lark),
            ("ebnf", _grammar, params.ebnf),
            ("structural_tag", _structural_tag, params.structural_tag),
        ]
    )


def _one(given: list[tuple[str, Form, Any]]) -> Asked:
    found = [(name, form(name, value)) for name, form, value in given if value is not None]
    asked = [(name, one) for name, one in found if one.constraint is not None]
    if len(asked) > 1:
        raise InvalidRequest(
            f"{asked[1][0]}: the output is constrained by {asked[0][0]} already, give one of them",
            param=asked[1][0],
        )
    return asked[0][1] if asked else FREE


def _source(name: str, kind: str, source: str) -> Asked:
    if not source:
        raise InvalidRequest(f"{name}: it is empty; leave it out for free text", param=name)
    return Asked(Constraint(kind, source), name)


def _regex(name: str, source: str) -> Asked:
    return _source(name, REGEX, source)


def _lark(name: str, source: str) -> Asked:
    return _source(name, LARK, source)


def _json(name: str, schema: str | dict[str, Any]) -> Asked:
    return _source(
        name, JSON_SCHEMA, schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    )


def _object(name: str, _: bool) -> Asked:
    return Asked(Constraint(JSON_SCHEMA, OBJECT), name)


def _choice(name: str, texts: list[str]) -> Asked:
    if not texts:
        raise InvalidRequest(f"{name}: there is none to choose", param=name)
    check_length(len(texts), MAX_CHOICES, name)
    return Asked(Constraint(CHOICE, msgspec.json.encode(texts).decode()), name)


def _response_format(name: str, wanted: ResponseFormat) -> Asked:
    match wanted:
        case ResponseFormat(type="text"):
            return FREE
        case ResponseFormat(type="json_object"):
            return Asked(Constraint(JSON_SCHEMA, OBJECT), name)
        case ResponseFormat(type="json_schema", json_schema=form) if form and form.schema is not None:
            return _json(name, form.schema)
        case ResponseFormat(type="structural_tag", structures=structures, triggers=triggers) if (
            structures is not None and triggers is not None
        ):
            return _structural_tag(name, StructuralTag(structures, triggers))
    raise InvalidRequest(
        "response_format: it is {type: text}, {type: json_object}, {type: json_schema, json_schema: {schema: …}} or "
        "{type: structural_tag, structures: [{begin, schema, end}, …], triggers: […]}",
        param=name,
    )


def _no_white_space(name: str, _: str) -> Asked:
    raise InvalidRequest(
        f"{name}: the white space of JSON is fixed; a schema may ask for another in its own x-guidance",
        param=name,
    )


def _structural_tag(name: str, tag: str | StructuralTag) -> Asked:
    if isinstance(tag, str):
        try:
            tag = msgspec.json.decode(tag, type=StructuralTag)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{name}: {invalid(error).message}", param=name) from None
    check_length(len(tag.structures), MAX_STRUCTURES, f"{name}.structures")
    if not tag.triggers or not all(tag.triggers):
        raise InvalidRequest(
            f"{name}.triggers: texts that begin a structure are needed", param=f"{name}.triggers"
        )
    started: dict[str, list[int]] = {trigger: [] for trigger in tag.triggers}
    for number, structure in enumerate(tag.structures):
        trigger = next((one for one in tag.triggers if structure.begin.startswith(one)), None)
        if trigger is None:
            where = f"{name}.structures[{number}].begin"
            raise InvalidRequest(f"{where}: it begins with none of the triggers", param=where)
        started[trigger].append(number)
    idle = [trigger for trigger, numbers in started.items() if not numbers]
    if idle:
        raise InvalidRequest(
            f"{name}.triggers: no structure begins with {idle[0][:80]!r}", param=f"{name}.triggers"
        )
    rules = free_text_with(tag.structures, started)
    source, lines = with_lines(
        rules, {f"json_{n}": f"{name}.structures[{n}].schema" for n in range(len(tag.structures))}
    )
    return Asked(Constraint(LARK, source), name, lines)


def _grammar(name: str, source: str) -> Asked:
    """A grammar in GBNF (``root ::= …``, which is what xgrammar calls EBNF) or in Lark."""
    return _source(name, LARK, _from_gbnf(name, source) if _RULE.search(source) else source)


def _from_gbnf(name: str, source: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    rules = len(_RULE.findall(source))
    if len(source) > MAX_GBNF or rules > MAX_GBNF_RULES:
        raise InvalidRequest(
            f"{name}: {len(source)} characters and {rules} rules, at most {MAX_GBNF} and {MAX_GBNF_RULES} are converted; "
            "a grammar in Lark may be larger",
            param=name,
        )
    try:
        return str(gbnf_to_lark(source))
    except RecursionError:
        raise InvalidRequest(f"{name}: it is nested too deeply", param=name) from None
    except Exception as error:  # noqa: BLE001 - a foreign edge: it raises Exception itself
        raise InvalidRequest(f"{name}: {str(error)[:300] or 'it is cut off'}", param=name) from None
