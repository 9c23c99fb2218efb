"""The OpenAI backend through the vendor's SDK, against the stub: what the vendor's own models are sent, and what is made of their answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import BrokenAnswer
from sgl_actors.lang.backends.strict_schema import Strict, strict
from sgl_actors.lang.backends.vendor import Ask, Tokens
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.ir import IMAGE, Media
from tests.api.openai_calls import CHAT, KEY, PLAIN, TOOLS, Open, end, events, failing, sampled
from tests.api.stub import Asked, Fault, Reply, Stub


async def test_a_chat_of_the_vendors_own(stub: Stub, connect: Open) -> None:
    """Sampling arguments have the API's names, `max_tokens` its new one, and stops beyond four are left out."""
    stub.script = Reply(prompt=9, cached=4, output=2)
    vendor = await connect()
    stops = tuple("abcdef")
    options = {
        "stop": stops,
        "seed": 7,
        "top_p": 0.5,
        "presence_penalty": 0.25,
        "logit_bias": ((5, -100.0),),
        "max_tokens": 16,
    }
    found = await end(vendor, sampled(CHAT, temperature=0.0, **options))
    assert stub.body == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "the capital of France"}],
        "max_completion_tokens": 16,
        "stop": ["a", "b", "c", "d"],
        "seed": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "presence_penalty": 0.25,
        "logit_bias": {"5": -100.0},
    }
    assert stub.asked[-1].headers["authorization"] == f"Bearer {KEY}"
    assert found.completions[0].finish.reason == "stop"
    assert (found.used, found.model, vendor.title) == (Tokens(9, 4, 2), "gpt-4o", "openai gpt-4o (chat)")


async def test_a_reasoning_model_is_sent_no_sampling(stub: Stub, connect: Open) -> None:
    """It takes neither stops nor a temperature, and its capabilities say so."""
    vendor = await connect("o3")
    await end(vendor, sampled(CHAT, stop=("a",), seed=1, max_tokens=None))
    assert stub.body.keys() == {"model", "messages"}
    assert (vendor.capabilities.stops, vendor.capabilities.sampling, vendor.capabilities.logprobs) == (
        0,
        (),
        -1,
    )


async def test_azure_has_paths_of_its_own(stub: Stub, connect: Open) -> None:
    """The model is the deployment in the path, the version is in the query, and the key in Azure's header."""
    for api, path in (("chat", "chat/completions"), ("completions", "completions")):
        vendor = await connect(
            "mine", base_url="", azure_endpoint=stub.url, api_version="2024-10-21", dialect="", api=api
        )
        await end(vendor, CHAT if api == "chat" else PLAIN)
        asked = stub.asked[-1]
        assert asked.path == f"/openai/deployments/mine/{path}"
        assert (asked.query, asked.headers["api-key"]) == ({"api-version": "2024-10-21"}, KEY)
        assert vendor.dialect == "openai"


async def test_several_completions_of_one_request(stub: Stub, connect: Open) -> None:
    """`n` asks once, and all answers come back in their order, in a stream, too."""
    stub.script = Reply(("one", "two and more"))
    vendor = await connect()
    for stream in (False, True):
        ask = Ask(messages=CHAT.messages, count=2, stream=stream, sampling=SamplingOptions(max_tokens=2))
        pieces, found = await events(vendor, ask)
        assert stub.body["n"] == 2
        assert [(one.text, one.finish.reason) for one in found.completions] == [
            ("one", "stop"),
            ("two and", "length"),
        ]
        assert "".join(piece.text for piece in pieces) == ("one" if stream else "")


async def test_tools_are_called(stub: Stub, connect: Open) -> None:
    """Functions go as they are and have to be called; the answer is a JSON array of the calls, in a stream, too."""
    stub.script = Reply(tools=(("weather", {"city": "Lima"}), ("weather", {"city": "Rome"})))
    vendor = await connect()
    for stream in (False, True):
        ask = Ask(messages=CHAT.messages, tools=TOOLS, stream=stream, sampling=SamplingOptions(stop=("x",)))
        pieces, found = await events(vendor, ask)
        assert (stub.body["tools"], stub.body["tool_choice"]) == (json.loads(TOOLS), "required")
        assert "stop" not in stub.body
        text = found.completions[0].text
        assert json.loads(text) == [
            {"tool": "weather", "arguments": {"city": city}} for city in ("Lima", "Rome")
        ]
        assert "".join(piece.text for piece in pieces) == (text if stream else "")


async def test_a_tool_that_is_not_called_is_a_broken_answer(stub: Stub, connect: Open) -> None:
    """A server that ignores `tool_choice` is not taken for one that called."""
    error = await failing(await connect(), Ask(messages=CHAT.messages, tools=TOOLS))
    assert isinstance(error, BrokenAnswer)
    assert "Paris" in error.message


async def test_turns_with_calls_and_images(stub: Stub, connect: Open) -> None:
    """Earlier calls, what the tools answered, and images at their places go in the API's form."""
    calls = '[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]'
    image = Media(IMAGE, b"\x89PNG", "image/png")
    messages = (
        ChatMessage("user", "look: !", media=((6, image),)),
        ChatMessage("assistant", "", tool_calls=calls),
        ChatMessage("tool", "42", tool_call_id="c1", name="f"),
    )
    await end(await connect(), Ask(messages=messages))
    parts = [
        {"type": "text", "text": "look: "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        {"type": "text", "text": "!"},
    ]
    assert stub.body["messages"] == [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": json.loads(calls)},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]


async def test_a_schema_is_made_strict(stub: Stub, connect: Open) -> None:
    """Properties all become required, others are excluded, and defaults are left out, as the strict mode wants it."""
    stub.script = Reply(('{"a": 1}',))
    schema = {
        "$ref": "#/$defs/A",
        "$defs": {"A": {"type": "object", "properties": {"a": {"type": "integer", "default": 0}}}},
    }
    found = await end(await connect(), sampled(CHAT, constraint=Constraint(JSON_SCHEMA, json.dumps(schema))))
    wanted = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    sent = stub.body["response_format"]["json_schema"]
    assert sent == {"name": "answer", "schema": wanted | {"$defs": {"A": wanted}}, "strict": True}
    assert found.completions[0].text == '{"a": 1}'


async def test_a_schema_of_a_list_is_wrapped(stub: Stub, connect: Open) -> None:
    """The strict mode wants an object at the top: the list stands in one, and is taken out again."""
    stub.script = Reply(('{"value":[1,2]}',))
    schema = {"type": "array", "items": {"type": "integer"}}
    ask = sampled(CHAT, constraint=Constraint(JSON_SCHEMA, json.dumps(schema)))
    found = await end(await connect(), ask)
    assert stub.body["response_format"]["json_schema"]["schema"]["properties"] == {"value": schema}
    assert found.completions[0].text == "[1, 2]"


async def test_a_free_object_is_not_strict(stub: Stub, connect: Open) -> None:
    """Keys of any name cannot be said strictly, so the schema goes as it is."""
    stub.script = Reply(('{"b": 2}',))
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    await end(await connect(), sampled(CHAT, constraint=Constraint(JSON_SCHEMA, json.dumps(schema))))
    assert stub.body["response_format"]["json_schema"] == {
        "name": "answer",
        "schema": schema,
        "strict": False,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_regex_or_a_choice_is_wrapped_in_an_object(stub: Stub, connect: Open, stream: bool) -> None:
    """A chat API keeps schemas of objects only: the text stands in one, no stop can cut that, and only the text comes out, letter by letter."""
    stub.script = Reply(('{"value": "blue \\"sky\\""}',))
    vendor = await connect()
    for kind, source, said in (
        (REGEX, "b.*", {"pattern": "^(?:b.*)$"}),
        (CHOICE, '["red", "blue"]', {"enum": ["red", "blue"]}),
    ):
        ask = Ask(
            messages=CHAT.messages,
            stream=stream,
            sampling=SamplingOptions(constraint=Constraint(kind, source), stop=('"',)),
        )
        pieces, found = await events(vendor, ask)
        sent = stub.body["response_format"]["json_schema"]
        assert (sent["strict"], sent["schema"]["properties"]["value"]) == (True, {"type": "string"} | said)
        assert "stop" not in stub.body
        assert found.completions[0].text == 'blue "sky"'
        assert "".join(piece.text for piece in pieces) == ('blue "sky"' if stream else "")


async def test_what_should_be_wrapped_and_is_not(stub: Stub, connect: Open) -> None:
    """Free text where an object with a value had to be is a broken answer, never the value."""
    stub.script = Reply(("blue",))
    error = await failing(await connect(), sampled(CHAT, constraint=Constraint(REGEX, "b.*")))
    assert isinstance(error, BrokenAnswer)


async def test_log_probabilities_of_a_chat(stub: Stub, connect: Open) -> None:
    """They come with the texts of their tokens, and with alternatives; ids are unknown."""
    stub.script = Reply(("the sky",), logprobs={"the": -0.25})
    found = await end(await connect(), Ask(messages=CHAT.messages, logprobs=True, top_logprobs=2))
    assert (stub.body["logprobs"], stub.body["top_logprobs"]) == (True, 2)
    one, top = found.completions[0], ((-1, -0.125), (-1, -0.25))
    assert one.tokens == ("the", " sky")
    assert one.logprobs == (TokenLogprob(-1, -0.25, top), TokenLogprob(-1, -0.5, top))


async def test_completions_and_their_log_probabilities(stub: Stub, connect: Open) -> None:
    """The vendor's own completions: the old name of the limit, and log probabilities by a number."""
    vendor = await connect("gpt-3.5-turbo-instruct", api="completions")
    found = await end(vendor, Ask(text=PLAIN.text, logprobs=True, top_logprobs=2))
    assert stub.body == {
        "model": "gpt-3.5-turbo-instruct",
        "prompt": PLAIN.text,
        "max_tokens": 128,
        "temperature": 1.0,
        "logprobs": 2,
    }
    assert found.completions[0].tokens == ("Paris",)
    assert found.completions[0].logprobs[0].top == ((-1, -0.125), (-1, -0.25))
    assert (vendor.capabilities.continuation, vendor.capabilities.logprobs) == ("text", 5)


async def test_extra_fields_and_headers(stub: Stub, connect: Open) -> None:
    """What the settings add goes with every request, and goes before what is known."""
    vendor = await connect(extra={"service_tier": "flex", "temperature": 0.5}, headers={"x-team": "ours"})
    await end(vendor, CHAT)
    assert (stub.body["service_tier"], stub.body["temperature"]) == ("flex", 0.5)
    assert stub.asked[-1].headers["x-team"] == "ours"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": ["object", "null"]}}},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "null"}]}}},
        {"type": "object", "properties": {"a": {"type": "array", "items": True}}},
    ],
)
def test_schemas_that_cannot_be_said_strictly(schema: dict[str, Any]) -> None:
    """They stay as they are: narrowing them, or sending what the strict mode refuses, would be wrong."""
    assert strict(schema) == Strict(schema, strict=False, wrapped=False)


def test_a_strict_schema_is_narrowed_in_all_its_parts() -> None:
    """In properties, items, alternatives and definitions."""
    plain = {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}}
    narrow = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    for wrong, right in (
        (plain, narrow),
        ({"type": "array", "items": plain}, {"type": "array", "items": narrow}),
    ):
        made = strict({"anyOf": [wrong, {"type": "null"}], "$defs": {"D": wrong}})
        assert made.strict
        assert made.wrapped
        assert made.schema["properties"]["value"]["anyOf"][0] == right
        assert made.schema["$defs"]["D"] == right


async def test_a_model_played_by_a_function(stub: Stub, connect: Open) -> None:
    """The script may be a function of the request; the stub cuts what it writes at the request's stop and limit."""

    def play(asked: Asked) -> Reply | Fault:
        return Reply((asked.prompt.upper() + ". And more",))

    stub.script = play
    found = await end(
        await connect(api="completions"), Ask(text="abc", sampling=SamplingOptions(stop=(".",)))
    )
    assert found.completions[0].text == "ABC"
    assert found.completions[0].finish == Finish("stop")
