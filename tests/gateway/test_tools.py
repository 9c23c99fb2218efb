"""Tools of /v1/chat/completions: what the node is asked, and how calls come back, also to the stock openai client."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.bytewise import accepts, refusal
from sgl_actors.lang.constraints.constraint import Constraint
from tests.gateway.events import events
from tests.gateway.fake_node import FakeNode, encode

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer"}},
        },
        "strict": True,
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
HELLO: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather in Lima?"}],
    "tools": [WEATHER, NOW],
    "max_tokens": 1000,
    "temperature": 0,
}
LIMA = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lima }</tool_call>"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "now"}}


async def post(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post("/v1/chat/completions", json={**HELLO, **fields})


async def asked_for(client: httpx2.AsyncClient, node: FakeNode, **fields: Any) -> Constraint:
    """The constraint that the node is asked for, which the engine takes."""
    response = await post(client, **fields)
    assert response.status_code == 200, response.text
    constraint = node.asked[-1].sampling.constraint
    assert constraint is not None
    assert not refusal(constraint)
    return constraint


@pytest.mark.parametrize(
    ("fields", "taken", "refused"),
    [
        (
            {},
            ["Mist, I think.\n", LIMA, f"Let me see.\n{LIMA}", f"{LIMA}\n{CLOCK}", "a < b <tool_"],
            [f"{LIMA} so", f"{LIMA}{CLOCK}", "<tool_call>", LIMA.replace("city", "town"), LIMA.replace("get_w", "W")],
        ),
        ({"parallel_tool_calls": False}, ["", LIMA], [f"{LIMA}\n{CLOCK}"]),
        ({"tool_choice": "required"}, [LIMA, CLOCK, f"{CLOCK}\n{LIMA}\n{LIMA}"], ["", "Mist.", f"Well {LIMA}"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [LIMA, CLOCK], [f"{CLOCK}\n{LIMA}"]),
        ({"tool_choice": NAMED}, [CLOCK], [LIMA, "", f"{CLOCK}\n{CLOCK}", CLOCK.replace("{}", '{"a": 1}')]),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [{"a": 1}]}}}},
            ['{"a": 1}', LIMA, f"{LIMA}\n{CLOCK}"],
            ["Mist.", f'{{"a": 1}}{LIMA}'],
        ),
    ],
)  # fmt: skip
async def test_answers_are_constrained(
    client: httpx2.AsyncClient, node: FakeNode, fields: Any, taken: list[str], refused: list[str]
) -> None:
    """auto is text or calls, required is calls, a named function is one call of it; arguments follow the schema, whose references are its own."""
    constraint = await asked_for(client, node, **fields)
    for text in taken:
        assert accepts(constraint, text.encode()), text
    for text in refused:
        assert not accepts(constraint, text.encode()), text


@pytest.mark.parametrize(
    ("parameters", "free"),
    [
        (None, False),
        ({}, False),
        ({"type": "object", "properties": {}, "required": []}, False),
        ({"type": "object", "additionalProperties": True}, True),
        ({"description": "None.", "additionalProperties": {"type": "integer"}}, True),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, True),
    ],
)
async def test_a_function_without_parameters_gets_none(
    client: httpx2.AsyncClient, node: FakeNode, parameters: Any, free: bool
) -> None:
    """Where a schema says nothing of arguments there are none; where it says that there may be any, they may."""
    tools = [{"type": "function", "function": {"name": "now", "parameters": parameters}}]
    constraint = await asked_for(client, node, tools=tools)
    assert accepts(constraint, CLOCK.replace("{}", '{"a": 1}').encode()) is free


async def test_prompt_tells_of_the_tools(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """The node gets the tools for its template; none of them with tool_choice none, which does not constrain either."""
    await post(client, tool_choice=NAMED)
    told = json.loads(node.asked[-1].tools)
    assert [tool["function"]["name"] for tool in told] == ["get_weather", "now"]
    assert told[0]["function"]["parameters"] == WEATHER["function"]["parameters"]
    assert (await post(client, tool_choice="none")).status_code == 200
    assert (node.asked[-1].tools, node.asked[-1].sampling.constraint) == ("", None)
    assert (await post(client, tool_choice="none", regex="a+")).status_code == 200
    assert node.asked[-1].sampling.constraint == Constraint("regex", "a+")


async def test_calls_come_as_calls(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A call is in message.tool_calls with an id of its own and its arguments as they were written; content is null and the reason tool_calls."""
    node.forced = f"{LIMA}\n{CLOCK}"
    (choice,) = (await post(client)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", None)
    first, second = message["tool_calls"]
    assert first["id"].startswith("call_")
    assert first["id"] != second["id"]
    assert first["type"] == "function"
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Lima }</tool_call>"}'}
    assert second["function"] == {"name": "now", "arguments": "{}"}


async def test_text_before_a_call_is_content(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """What was written before the call is the message's content."""
    node.forced = f"Let me see. {CLOCK}"
    (choice,) = (await post(client)).json()["choices"]
    assert choice["message"]["content"] == "Let me see. "
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("text", ["Mist.", "<tool_call>now</tool_call>", '<tool_call>\n{"name": "n'])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_call_stays_text(
    client: httpx2.AsyncClient, node: FakeNode, text: str, stream: bool
) -> None:
    """Text that only looks like a call is content, whole and streamed, and ends for its own reason."""
    node.forced = text
    response = await post(client, stream=stream)
    if stream:
        chunks = [chunk["choices"][0] for chunk in events(response.text)[:-1]]
        content = "".join(chunk["delta"].get("content", "") for chunk in chunks)
        assert all("tool_calls" not in chunk["delta"] for chunk in chunks)
        assert (content, chunks[-1]["finish_reason"]) == (text, "stop")
    else:
        (choice,) = response.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
        assert "tool_calls" not in choice["message"]


async def test_without_tools_nothing_is_a_call(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A model that writes a call unasked has written text."""
    node.forced = CLOCK
    (choice,) = (await post(client, tools=None)).json()["choices"]
    assert choice["message"]["content"] == CLOCK
    assert choice["finish_reason"] == "stop"


async def test_a_call_that_is_cut_off_says_so(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """At max_tokens the arguments are as far as they came, with the reason length, as the OpenAI API has it."""
    node.forced = LIMA
    (choice,) = (await post(client, max_tokens=len(LIMA) - 32)).json()["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "Li'


async def test_a_stream_has_id_and_name_first(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """A streamed call begins with index, id, type and name and goes on with pieces of its arguments; log probabilities cover all tokens."""
    node.forced = f"Hm. {LIMA}\n{CLOCK}"
    chunks = events((await post(client, stream=True, logprobs=True)).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "Hm. "
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    begins = [piece for piece in pieces if "id" in piece]
    assert [(begin["index"], begin["type"], begin["function"]["name"]) for begin in begins] == [
        (0, "function", "get_weather"),
        (1, "function", "now"),
    ]
    first = [piece for piece in pieces if piece["index"] == 0]
    assert first[0] is begins[0]
    assert len(first) > 3
    assert "".join(piece["function"]["arguments"] for piece in first) == '{"city": "Lima }</tool_call>"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    told = [
        entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(entry["token"] for entry in told).startswith(f"Hm. {LIMA}\n{CLOCK}")


async def test_turns_of_tools_reach_the_node(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Calls of earlier turns keep the text of their arguments, and a tool's answer has the name of its call."""
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{ "zone":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{cut"}},
        {"id": "call_3", "type": "function", "function": {"name": "now", "arguments": {"zone": 2}}},
        {"id": "call_4", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]
    turns: list[Any] = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]},
    ]
    assert (await post(client, messages=turns)).status_code == 200
    _, called, answered = node.asked[-1].messages or []
    assert [call["function"]["arguments"] for call in json.loads(called.tool_calls)] == [
        '{ "zone":1}', '"{cut"', '{"zone":2}', "{}",
    ]  # fmt: skip
    assert (answered.role, answered.content, answered.tool_call_id, answered.name) == (
        "tool",
        "noon",
        "call_1",
        "now",
    )


async def test_tokenize_and_pin_take_tools(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """/tokenize and /cache/pin render the chat with its tools, so that both give the prefix that the chat has."""
    body = {"messages": HELLO["messages"], "tools": [NOW]}
    await post(client, tools=[NOW])
    asked = node.prompt_ids(node.asked[-1])
    assert (await client.post("/tokenize", json=body)).json()["tokens"] == asked
    pinned = (await client.post("/cache/pin", json={**body, "ttl": 60})).json()
    assert pinned["tokens"] == len(asked) - len(encode("[assistant]"))


def with_function(**function: Any) -> dict[str, Any]:
    return {"tools": [NOW, {"type": "function", "function": {"name": "other", **function}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [NOW, NOW]}, "tools[1].function.name"),
        (with_function(name="no spaces"), "tools[1].function.name"),
        (with_function(name="a" * 65), "tools[1].function.name"),
        (with_function(name=""), "tools[1].function.name"),
        (with_function(name='a"b'), "tools[1].function.name"),
        (with_function(parameters={"type": "string"}), "tools[1].function.parameters"),
        (with_function(parameters=[]), "tools[1].function.parameters"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [NOW] * 129}, "tools"),
        (with_function(description="x" * (1 << 18)), "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "later"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": None, "tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"regex": "a+"}, "regex"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "call_1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "name": "x", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "now", "arguments": "{}"}}]}]},
            "messages[0].tool_calls",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "n w", "arguments": "{}"}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
    ],
)  # fmt: skip
async def test_bad_tools_are_named(
    client: httpx2.AsyncClient, node: FakeNode, fields: Any, param: str
) -> None:
    """Tools, choices and turns that cannot be meant are a 400 that names the place, and nothing reaches the node."""
    response = await post(client, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert node.asked == []


async def test_a_schema_that_is_declined_is_named(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """What the engine says of one schema among several names the tool's parameters and the keyword."""
    bad = {**NOW, "function": {"name": "bad", "parameters": {"properties": {"a": {"not": {}}}}}}
    await post(client, tools=[WEATHER, NOW, bad])
    made = node.asked[-1].sampling.constraint
    assert made is not None
    assert "not" in refusal(made)
    line = next(n for n, one in enumerate(made.source.split("\n"), 1) if '"not"' in one)
    node.refusal = InvalidRequest(f'lark: Unimplemented keys: ["not"] at line {line}, column 9', param="lark")
    error = (await post(client, tools=[WEATHER, NOW, bad])).json()["error"]
    assert error["param"] == "tools[2].function.parameters"
    assert error["message"] == 'tools[2].function.parameters: Unimplemented keys: ["not"]'


async def test_tools_are_for_chats(client: httpx2.AsyncClient) -> None:
    """Plain completions refuse tools by name, as they would not be honoured."""
    response = await client.post("/v1/completions", json={"prompt": "x", "tools": [NOW]})
    assert response.json()["error"]["param"] == "tools"


async def test_stock_client_reads_calls(url: str, node: FakeNode) -> None:
    """The openai client finds the calls, and answers them in a second request with what it was given."""
    node.forced = LIMA
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        chat: list[Any] = [*HELLO["messages"]]
        tools: list[Any] = HELLO["tools"]
        answer = await client.chat.completions.create(
            model="fake", messages=chat, tools=tools, max_tokens=500
        )
        message = answer.choices[0].message
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Lima }</tool_call>"}
        chat += [message, {"role": "tool", "tool_call_id": call.id, "content": "mist"}]
        node.forced = "Mist."
        answer = await client.chat.completions.create(
            model="fake", messages=chat, tools=tools, max_tokens=500
        )
        assert answer.choices[0].message.content == "Mist."
        assert answer.choices[0].message.tool_calls is None
        assert [turn.role for turn in node.asked[-1].messages or []] == ["user", "assistant", "tool"]


async def test_stock_client_streams_calls(url: str, node: FakeNode) -> None:
    """The openai client's own accumulator puts a streamed message with two calls together."""
    node.forced = f"{LIMA}\n{CLOCK}"
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        tools: list[Any] = HELLO["tools"]
        async with client.chat.completions.stream(
            model="fake", messages=HELLO["messages"], tools=tools, max_tokens=500
        ) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.choices[0].finish_reason == "tool_calls"
    calls = final.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", '{"city": "Lima }</tool_call>"}'),
        ("now", "{}"),
    ]
