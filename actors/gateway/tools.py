"""Tools of a chat: what the model is told of, which calls its answer may or has to have, and the turns that earlier ones left.

An answer under tools is constrained: text that ends where the model writes ``<tool_call>``, and then calls of known functions with arguments that
their schemas allow (`lang.tool_turns` has the form), so that whatever begins like a call is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sgl_actors.actors.gateway.constraints import Asked
from sgl_actors.actors.gateway.lark import ANY, quoted, schema_rule, with_lines
from sgl_actors.actors.gateway.limits import MAX_CALLS, MAX_TOOLS, MAX_TOOLS_SIZE, check_length
from sgl_actors.actors.gateway.openai_types import ChatRequest, NamedTool, ToolSpec
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, LARK, Constraint

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
CHOICES = ("auto", "required", "none")

SAYS_NOTHING = frozenset({"type", "properties", "required", "title", "description", "$schema"})
"""Keywords that, empty, do not say what arguments there are."""

OPEN = "<tool_call>"
BEGIN = '\n{"name": "'
MIDDLE = '", "arguments": '
CLOSE = "}\n</tool_call>"
"""A call is these four in order, with the name and the arguments between the last three."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        told: those that the prompt tells of, as JSON text of a list in the OpenAI API's form; "" if there are none.
        asked: the constraint of the answer.
        active: whether the answer may have calls.
    """

    told: str
    asked: Asked
    active: bool


def tools_of(body: ChatRequest, asked: Asked) -> Tools:
    """The tools of a request that has asked for the constraint `asked` by itself.

    Raises:
        InvalidRequest: tools that are none, or a `tool_choice` or constraint that does not fit them.
    """
    specs = _specs(body.tools or [])
    names = [spec["function"]["name"] for spec in specs]
    mode, name = _choice(body.tool_choice, names)
    if not specs or mode == "none":
        return Tools("", asked, active=False)
    numbers = [number for number, known in enumerate(names) if name in ("", known)]
    if mode == "auto":
        rules = {"start": "answer | head calls", **_answer(asked)}
    elif asked.constraint is None:
        rules = {"start": "head calls", "head": quoted(OPEN)}
    else:
        raise InvalidRequest(
            f"{asked.field}: the output is constrained by tool_choice already, give one of them",
            param=asked.field,
        )
    rules |= _calls(specs, numbers, 1 if name or body.parallel_tool_calls is False else MAX_CALLS)
    fields = {f"json_{number}": f"tools[{number}].function.parameters" for number in numbers}
    source, lines = with_lines(rules, fields | {"answer": asked.field})
    return Tools(_json(specs), Asked(Constraint(LARK, source), "tools", lines), active=True)


def told(tools: list[ToolSpec] | None) -> str:
    """Tools as the prompt gets them, whatever may be called; raises as `tools_of` does."""
    specs = _specs(tools or [])
    return _json(specs) if specs else ""


def _json(specs: list[dict[str, Any]]) -> str:
    return msgspec.json.encode(specs).decode()


def _calls(specs: list[dict[str, Any]], numbers: list[int], most: int) -> dict[str, str]:
    """Rules for up to that many calls, behind the tag of the first."""
    further = "" if most == 1 else f" ({quoted(chr(10) + OPEN)} call){{0,{most - 1}}}"
    either = " | ".join(f"call_{number}" for number in numbers)
    rules = {"calls": f"call{further}", "call": f"{quoted(BEGIN)} ({either}) {quoted(CLOSE)}"}
    for number in numbers:
        rules[f"call_{number}"] = f"{quoted(specs[number]['function']['name'] + MIDDLE)} json_{number}"
        rules[f"json_{number}"] = schema_rule(_arguments(specs[number]))
    return rules


def _answer(asked: Asked) -> dict[str, str]:
    """Rules for the answer without a call, and for the tag behind which there is one."""
    form = asked.constraint
    if form is None:
        return {"answer": "TEXT", "TEXT": ANY, "head[lazy]": f"TEXT {quoted(OPEN)}"}
    if form.kind != JSON_SCHEMA:
        raise InvalidRequest(
            f"{asked.field}: with tools, an answer can only be constrained by a JSON schema; or set tool_choice to none",
            param=asked.field,
        )
    try:
        schema = msgspec.json.decode(form.source, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{asked.field}: {error}", param=asked.field) from None
    return {"answer": schema_rule(schema), "head": quoted(OPEN)}


def _choice(choice: str | NamedTool | None, names: list[str]) -> tuple[str, str]:
    """One of `CHOICES`, and the name of the function that has to be called, "" for any."""
    if choice is None:
        return "auto", ""
    if isinstance(choice, NamedTool) and choice.type == "function" and choice.function is not None:
        name = choice.function.name
        if name not in names:
            raise InvalidRequest(
                f"tool_choice: there is no tool {name[:80]!r}; there are {', '.join(names)[:200] or 'none'}",
                param="tool_choice",
            )
        return "required", name
    if isinstance(choice, NamedTool) or choice not in CHOICES:
        raise InvalidRequest(
            f"tool_choice: it is {', '.join(CHOICES)} or {{type: function, function: {{name: …}}}}",
            param="tool_choice",
        )
    if choice == "required" and not names:
        raise InvalidRequest("tool_choice: required, but there are no tools", param="tool_choice")
    return choice, ""


def _specs(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The tools, checked, in the form that templates read."""
    check_length(len(tools), MAX_TOOLS, "tools")
    specs: list[dict[str, Any]] = []
    names: set[str] = set()
    for number, tool in enumerate(tools):
        where, function = f"tools[{number}]", tool.function
        if tool.type != "function" or function is None:
            raise InvalidRequest(
                f"{where}: only functions can be called: {{type: function, function: {{…}}}}", param=where
            )
        if not NAME.fullmatch(function.name):
            raise InvalidRequest(
                f"{where}.function.name: {function.name[:80]!r} is not 1 to 64 letters, digits, dots, dashes and underscores",
                param=f"{where}.function.name",
            )
        if function.name in names:
            raise InvalidRequest(
                f"{where}.function.name: there are two tools {function.name!r}",
                param=f"{where}.function.name",
            )
        names.add(function.name)
        about = {} if function.description is None else {"description": function.description}
        parameters = (
            {"type": "object", "properties": {}} if function.parameters is None else function.parameters
        )
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(
                f"{where}.function.parameters: arguments are an object, its type is {str(parameters['type'])[:80]!r}",
                param=f"{where}.function.parameters",
            )
        specs.append(
            {"type": "function", "function": {"name": function.name, **about, "parameters": parameters}}
        )
    if (size := len(_json(specs))) > MAX_TOOLS_SIZE:
        raise InvalidRequest(
            f"tools: {size} characters of JSON, at most {MAX_TOOLS_SIZE} are allowed", param="tools"
        )
    return specs


def _arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of the arguments: an object, whether it says so or not, and an empty one where nothing is said of its properties."""
    schema: dict[str, Any] = spec["function"]["parameters"]
    named = schema.get("properties") or schema.get("required")
    if not named and schema.keys() <= SAYS_NOTHING:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}
