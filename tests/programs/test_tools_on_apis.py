"""`gen(tools=…)` on API models: called natively, or written under a constraint; the program sees the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.tokenizer.messages import Generate
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, TEXT
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA
from sgl_actors.lang.protocols import Call
from sgl_actors.lang.tools import Tool
from tests.programs.api_mock import ApiMock


@sgl.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@sgl.tool
def shout(text: str, times: int | None = None) -> str:
    """Say it loudly."""
    return text.upper() * (times or 1)


TOOLS: list[Tool[..., Any]] = [add, shout]
CALLS = [{"tool": "add", "arguments": {"b": 2, "a": 1}}, {"tool": "shout", "arguments": {"text": "é\n"}}]


@sgl.function
async def work(s: sgl.ProgramState, begun: str = "") -> Any:
    calls = sgl.gen("calls", tools=TOOLS, max_tokens=2000)
    s += sgl.user("Add 1 and 2, and shout é.")
    s += sgl.assistant(begun + calls)
    return [one.text for one in await sgl.call_all(TOOLS, await s[calls])]


def model(text: str, **capabilities: Any) -> ApiMock:
    return ApiMock(lambda _request, _call: text, **capabilities)


@pytest.mark.parametrize("continuation", [NONE, PREFILL])
@pytest.mark.parametrize(
    "text", [json.dumps(CALLS), json.dumps(CALLS, separators=(",", ":"), ensure_ascii=False)]
)
async def test_a_model_that_knows_tools_is_told_of_them(continuation: str, text: str) -> None:
    """One call with the tools and without a constraint; arguments may come in any order and form of JSON."""
    async with model(text, continuation=continuation, tools=True, schema=True) as backend:
        state = await work.run(backend=backend)
    assert state.value == ["3", "É\n"]
    ((request, call),) = backend.client.asked
    assert [one["function"]["name"] for one in json.loads(call.tools)] == ["add", "shout"]
    assert request.sampling.constraint is None


@pytest.mark.parametrize("continuation", [NONE, PREFILL, TEXT])
async def test_a_model_that_knows_schemas_writes_the_calls(continuation: str) -> None:
    """The same program is one call under the constraint that a node of ours gets."""
    able = {"schema": True} if continuation == NONE else {"constraints": (JSON_SCHEMA,)}
    async with model(json.dumps(CALLS, ensure_ascii=False), continuation=continuation, **able) as backend:
        state = await work.run(backend=backend)
    assert state.value == ["3", "É\n"]
    ((request, call),) = backend.client.asked
    assert call.tools == ""
    assert request.sampling.constraint is not None
    assert request.sampling.constraint.kind == JSON_SCHEMA


async def test_many_native_calls_are_not_counted() -> None:
    """The bound of a constraint is none of a model's that calls by itself."""
    async with model(json.dumps(CALLS[:1] * 17), tools=True, schema=True) as backend:
        assert (await work.run(backend=backend)).value == ["3"] * 17


async def test_wrong_native_arguments_fail_the_gen_with_the_tool_and_the_field() -> None:
    """What the model called with is not asked for again, and not mended in silence."""
    text = json.dumps([{"tool": "add", "arguments": {"a": "one", "b": 2}}])
    async with model(text, tools=True, schema=True) as backend:
        with pytest.raises(sgl.InvalidValue, match=r"\$\[0\]\.arguments\.a: tool add: Expected `int`"):
            await work.run(backend=backend)


async def test_a_turn_that_begins_with_text_holds_calls_all_the_same() -> None:
    """Where the tools cannot be called natively, for the turn has begun, they are written under their schema."""

    def writes(_request: Generate, call: Call) -> str:
        assert call.tools == ""
        return json.dumps({"calls": CALLS})

    async with ApiMock(writes, tools=True, schema=True) as backend:
        state = await work.run(begun="Calls: ", backend=backend)
    assert state.value == ["3", "É\n"]


async def test_a_model_of_text_alone_is_refused() -> None:
    """Neither tools nor schemas: the error says who has them."""
    async with model("", continuation=TEXT) as backend:
        with pytest.raises(sgl.Unsupported, match="calls no tools, and follows no JSON schema; openai"):
            await work.run(backend=backend)
