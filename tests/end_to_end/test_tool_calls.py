"""Tools with the default model and the stock openai client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from sgl_actors.actors.node.record import NodeRecord

pytestmark = pytest.mark.model

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": "The time of day."}}
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather in Lima?"}],
    "tools": [WEATHER, NOW],
    "max_tokens": 64,
    "temperature": 0,
}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}


async def test_a_call_and_its_answer(node: NodeRecord) -> None:
    """A required call is valid and mostly forced text; streamed and without jumps it is the same; what the tool answered can be asked about."""
    async with openai.AsyncOpenAI(base_url=node.url + "/v1", api_key="none", max_retries=0) as client:
        served = (await client.models.list()).data[0].id
        whole = await client.chat.completions.create(model=served, tool_choice=NAMED, **ASK)
        assert whole.choices[0].finish_reason == "tool_calls"
        message = whole.choices[0].message
        assert message.content is None
        (call,) = message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert sorted(arguments) == ["city", "unit"]
        assert len(arguments["city"]) <= 12
        assert whole.usage is not None
        details: Any = whole.usage.completion_tokens_details
        assert details.forced_tokens > 8
        assert details.steps < whole.usage.completion_tokens - 8
        async with client.chat.completions.stream(
            model=served, tool_choice=NAMED, extra_body={"jump_forward": False}, **ASK
        ) as stream:
            final = await stream.get_final_completion()
        (streamed,) = final.choices[0].message.tool_calls or []
        assert streamed.function.arguments == call.function.arguments
        chat: list[Any] = [*ASK["messages"], message]
        chat.append({"role": "tool", "tool_call_id": call.id, "content": "mist, 17 degrees"})
        answer = await client.chat.completions.create(
            model=served, tool_choice="none", **ASK | {"messages": chat, "max_tokens": 8}
        )
        assert answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None


async def test_a_free_choice(node: NodeRecord) -> None:
    """With tool_choice auto the answer is text, or calls of known functions with valid arguments."""
    async with openai.AsyncOpenAI(base_url=node.url + "/v1", api_key="none", max_retries=0) as client:
        served = (await client.models.list()).data[0].id
        answer = await client.chat.completions.create(
            model=served, n=2, seed=1, **ASK | {"temperature": 1, "max_tokens": 24}
        )
    for choice in answer.choices:
        assert (choice.finish_reason == "tool_calls") <= bool(choice.message.tool_calls)
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls or []:
                assert call.type == "function"
                assert call.function.name in ("get_weather", "now")
                assert isinstance(json.loads(call.function.arguments), dict)
        elif not choice.message.tool_calls:
            assert choice.message.content


async def test_a_schema_that_is_declined(node: NodeRecord) -> None:
    """A schema that the engine does not take is a 400 that names the tool's parameters and the keyword."""
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": "object", "not": {}}}}
    tools: list[Any] = [WEATHER, NOW, bad]
    async with openai.AsyncOpenAI(base_url=node.url + "/v1", api_key="none", max_retries=0) as client:
        served = (await client.models.list()).data[0].id
        with pytest.raises(openai.BadRequestError, match="not") as caught:
            await client.chat.completions.create(model=served, **ASK | {"tools": tools})
    assert caught.value.param == "tools[2].function.parameters"
