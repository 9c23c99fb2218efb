"""The OpenAI backend through the vendor's SDK, against the stub: what it sends, what it makes of answers, and of everything that can go wrong with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import (
    BrokenAnswer,
    ConfigError,
    ContentFiltered,
    ContextLengthExceeded,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoContinuation,
    NotReady,
    Overloaded,
    QuotaExceeded,
    Refused,
    SglActorsError,
    Unauthorized,
)
from sgl_actors.lang.backends.openai import OpenAI
from sgl_actors.lang.backends.vendor import Ask, End, Settings, Text, Tokens
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint
from sgl_actors.lang.ir import IMAGE, Media
from tests.api.stub import CUT, DROPPED, ENDED, ERROR, HANG, MALFORMED, Asked, Fault, Reply, Stub

KEY = "sk-secret-1234"
CHAT = Ask(messages=(ChatMessage("user", "the capital of France"),))
PLAIN = Ask(text="the capital of France is")
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
        }
    ]
)

Open = Callable[..., Awaitable[OpenAI]]


@pytest.fixture
async def connect(stub: Stub) -> Any:
    """Opens vendors on the stub, and closes them."""
    opened: list[OpenAI] = []

    async def make(model: str = "gpt-4o", **settings: Any) -> OpenAI:
        told = {"base_url": f"{stub.url}/v1", "key": KEY, "dialect": "openai"} | settings
        vendor = OpenAI(Settings(model, **told))
        opened.append(vendor)
        await vendor.open()
        return vendor

    yield make
    for vendor in opened:
        await vendor.close()


async def events(vendor: OpenAI, ask: Ask, timeout: float = 20.0) -> tuple[list[Text], End]:
    """All pieces, and the end."""
    found: list[Any] = [event async for event in vendor.ask(ask, timeout=timeout)]
    assert [isinstance(event, End) for event in found] == [False] * (len(found) - 1) + [True]
    return found[:-1], found[-1]


async def end(vendor: OpenAI, ask: Ask, timeout: float = 20.0) -> End:
    """The end of an answer that comes whole."""
    pieces, found = await events(vendor, ask, timeout)
    assert not pieces
    return found


async def failing(vendor: OpenAI, ask: Ask, timeout: float = 20.0) -> SglActorsError:
    """What it raises; the key is in no message."""
    with pytest.raises(SglActorsError) as raised:
        await events(vendor, ask, timeout)
    assert vendor.title in raised.value.message
    assert KEY not in raised.value.message
    return raised.value


def sampled(ask: Ask, **options: Any) -> Ask:
    return Ask(text=ask.text, messages=ask.messages, sampling=SamplingOptions(**options))


# --------------------------------------------------------------------------------------------------------- requests, and answers to them


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
    """They come with the texts of their tokens; ids are unknown."""
    stub.script = Reply(("the sky",), logprobs={"the": -0.25})
    found = await end(await connect(), Ask(messages=CHAT.messages, logprobs=True, top_logprobs=3))
    assert (stub.body["logprobs"], stub.body["top_logprobs"]) == (True, 3)
    one = found.completions[0]
    assert (one.tokens, one.logprobs) == (("the", " sky"), (TokenLogprob(-1, -0.25), TokenLogprob(-1, -0.5)))


async def test_scores_of_given_text(stub: Stub, connect: Open) -> None:
    """A completion of no tokens that echoes its prompt tells the log probabilities of it; the first token has none."""
    stub.script = Reply(logprobs={" of": -2.0})
    vendor = await connect(api="completions", dialect="vllm")
    ask = Ask(text="capital of France", score=True, sampling=SamplingOptions(max_tokens=0))
    found = await end(vendor, ask)
    assert stub.body.items() >= {"prompt": ask.text, "echo": True, "logprobs": 0, "max_tokens": 0}.items()
    assert found.scored == ("capital", " of", " France")
    assert [one.logprob for one in found.scores] == [None, -2.0, -0.5]
    assert found.completions[0].text == ""


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
    assert (vendor.capabilities.continuation, vendor.capabilities.logprobs) == ("text", 5)


async def test_a_stream_says_what_it_has_used(stub: Stub, connect: Open) -> None:
    """Where the server counts as it goes, every piece tells the tokens so far; the end has the whole."""
    stub.script = Reply(("a b c",), prompt=5)
    vendor = await connect(api="completions", dialect="sgl-actors")
    pieces, found = await events(vendor, Ask(text="x", stream=True))
    assert stub.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert [(one.text, one.used) for one in pieces[:3]] == [
        ("a", Tokens(5, 0, 1)),
        (" b", Tokens(5, 0, 2)),
        (" c", Tokens(5, 0, 3)),
    ]
    assert (found.completions[0].text, found.used) == ("a b c", Tokens(5, 0, 3))


async def test_our_own_node_is_told_everything(stub: Stub, connect: Open) -> None:
    """It takes all sampling arguments by their names there, every kind of constraint, and a stop that stays."""
    vendor = await connect("m", api="completions", dialect="sgl-actors")
    options = {
        "top_k": 5,
        "stop": ("a", "b", "c", "d", "e"),
        "stop_token_ids": (2,),
        "no_stop_trim": True,
        "stop_regex": ("x+",),
    }
    await end(vendor, sampled(PLAIN, temperature=0.0, min_tokens=1, skip_special_tokens=False, **options))
    sent = {
        "top_k": 5,
        "stop": ["a", "b", "c", "d", "e"],
        "stop_token_ids": [2],
        "include_stop_str_in_output": True,
        "stop_regex": ["x+"],
    }
    more = {
        "temperature": 0.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 1,
        "skip_special_tokens": False,
    }
    assert stub.body == {"model": "m", "prompt": PLAIN.text, "max_tokens": 128} | sent | more
    schema = '{"type":"object"}'
    kinds = {REGEX: "a+", JSON_SCHEMA: schema, LARK: 'start: "a"', CHOICE: '["a","b"]'}
    for kind, source in kinds.items():
        assert kind in vendor.capabilities.constraints
        await end(vendor, sampled(PLAIN, constraint=Constraint(kind, source)))
        assert stub.body[kind] == (["a", "b"] if kind == CHOICE else source)


async def test_vllm_is_told_in_its_own_words(stub: Stub, connect: Open) -> None:
    """Constraints stand in `structured_outputs`, a schema in the format; a rendered prompt gets no special tokens once more."""
    vendor = await connect("m", api="completions", dialect="vllm")
    await end(vendor, sampled(PLAIN, constraint=Constraint(CHOICE, '["a"]')))
    assert (stub.body["structured_outputs"], stub.body["add_special_tokens"]) == ({"choice": ["a"]}, False)
    await end(vendor, sampled(PLAIN, constraint=Constraint(JSON_SCHEMA, '{"type":"integer"}')))
    assert stub.body["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    assert LARK not in vendor.capabilities.constraints


async def test_llama_cpp_is_told_in_its_own_words(stub: Stub, connect: Open) -> None:
    """Its prompts are cached if asked for, its repetition penalty has another name, and its defaults are overruled."""
    vendor = await connect("m", api="completions", dialect="llama.cpp")
    await end(
        vendor,
        sampled(PLAIN, repetition_penalty=1.5, constraint=Constraint(JSON_SCHEMA, '{"type":"integer"}')),
    )
    sent = {
        "cache_prompt": True,
        "repeat_penalty": 1.5,
        "top_k": -1,
        "min_p": 0.0,
        "json_schema": {"type": "integer"},
    }
    assert stub.body.items() >= sent.items()


async def test_a_begun_turn_is_gone_on_with(stub: Stub, connect: Open) -> None:
    """Servers of open models are told not to begin a turn of their own."""
    vendor = await connect("m", dialect="sgl-actors")
    messages = (*(CHAT.messages or ()), ChatMessage("assistant", "It is"))
    await end(vendor, Ask(messages=messages, continue_final=True))
    assert (stub.body["continue_final_message"], stub.body["add_generation_prompt"]) == (True, False)
    assert stub.body["messages"][-1] == {"role": "assistant", "content": "It is"}


async def test_no_limit_is_what_the_context_leaves(stub: Stub, connect: Open) -> None:
    """A server whose completions are short by default is asked for all that has room, if it tells its context."""
    stub.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]
    vendor = await connect("m", api="completions", dialect="")
    await end(vendor, sampled(PLAIN, max_tokens=None))
    assert stub.body["max_tokens"] == 100 - len(stub.words.ids(PLAIN.text or ""))


async def test_extra_fields_and_headers(stub: Stub, connect: Open) -> None:
    """What the settings add goes with every request, and goes before what is known."""
    vendor = await connect(extra={"service_tier": "flex", "temperature": 0.5}, headers={"x-team": "ours"})
    await end(vendor, CHAT)
    assert (stub.body["service_tier"], stub.body["temperature"]) == ("flex", 0.5)
    assert stub.asked[-1].headers["x-team"] == "ours"


# ------------------------------------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("owner", "dialect"),
    [
        ("sgl-actors", "sgl-actors"),
        ("vllm", "vllm"),
        ("sglang", "sglang"),
        ("llamacpp", "llama.cpp"),
        ("acme", "other"),
    ],
)
async def test_whose_server_it_is(stub: Stub, connect: Open, owner: str, dialect: str) -> None:
    """`/v1/models` says it."""
    stub.models = [{"id": "another", "owned_by": "x"}, {"id": "m", "owned_by": owner}]
    vendor = await connect("m", dialect="")
    assert vendor.dialect == dialect
    assert (vendor.capabilities.continuation == "prefill") == (dialect != "other")


async def test_a_server_without_a_list_of_models(stub: Stub, connect: Open) -> None:
    """It is opened all the same, and nothing is taken for granted."""
    vendor = await connect("m", dialect="", key="")
    assert stub.visited == ["/v1/models"]
    assert (vendor.dialect, vendor.capabilities.schema, vendor.capabilities.sampling) == (
        "other",
        False,
        ("temperature", "top_p"),
    )


async def test_a_dialect_that_was_said_is_not_looked_up(stub: Stub, connect: Open) -> None:
    """Nothing is asked for what is known."""
    await connect("m", dialect="other")
    await connect("m", dialect="vllm")
    assert stub.visited == []


async def test_capabilities_that_were_said_win(stub: Stub, connect: Open) -> None:
    """And what has no meaning is refused by name."""
    vendor = await connect("m", dialect="other", capabilities={"schema": True, "stops": 1})
    await end(vendor, sampled(CHAT, stop=("a", "b")))
    assert (vendor.capabilities.schema, stub.body["stop"]) == (True, ["a"])
    with pytest.raises(ConfigError, match="'colour' is unknown"):
        await connect("m", capabilities={"colour": True})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "", "key": ""}, "there is no key: set OPENAI_API_KEY"),
        ({"base_url": "", "azure_endpoint": "https://x.example"}, "api_version"),
        ({"dialect": "cobol"}, "dialect 'cobol' is none of openai"),
    ],
)
async def test_settings_without_meaning(
    stub: Stub, connect: Open, settings: dict[str, Any], words: str
) -> None:
    """They are refused before anything is sent."""
    with pytest.raises(ConfigError, match=words):
        await connect(**settings)
    assert stub.visited == []


async def test_nothing_answers(connect: Open) -> None:
    """An address where nothing listens is not ready, at the opening if something has to be found out there, else at the request."""
    with pytest.raises(NotReady, match=r"nothing answers at http://127\.0\.0\.1:9/v1"):
        await connect("m", base_url="http://127.0.0.1:9/v1", dialect="")
    vendor = await connect("m", base_url="http://127.0.0.1:9/v1", dialect="other")
    assert isinstance(await failing(vendor, CHAT), NotReady)


async def test_chat_templates(stub: Stub, connect: Open) -> None:
    """A server that knows it tells its template and its special tokens; one that does not leaves it open."""
    vendor = await connect("m", api="completions", dialect="vllm")
    assert await vendor.template() == ("", {})
    stub.template = {
        "chat_template": "{{ x }}",
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "pad_token": None,
    }
    assert await vendor.template() == ("{{ x }}", {"bos_token": "<s>", "eos_token": "</s>"})
    llama = await connect("m", api="completions", dialect="llama.cpp")
    assert (await llama.template())[0] == "{{ x }}"
    assert [path for path in stub.visited if path != "/v1/models"] == [
        "/tokenizer_info",
        "/tokenizer_info",
        "/props",
    ]


async def test_token_ids(stub: Stub, connect: Open) -> None:
    """The server's tokenizer counts."""
    vendor = await connect("m", api="completions", dialect="sgl-actors")
    assert await vendor.token_ids("a b a") == stub.words.ids("a b a")


# ------------------------------------------------------------------------------------------------------------------------------ bad input


FAULTS: list[tuple[Fault, type[SglActorsError], str]] = [
    (Fault(401, f"Incorrect API key provided: {KEY}"), Unauthorized, "key"),
    (Fault(403, "not in your country"), Forbidden, "not in your country"),
    (Fault(404, "The model `gpt-9` does not exist", "model_not_found"), ModelNotFound, "gpt-9"),
    (Fault(400, "no such field"), InvalidRequest, "no such field"),
    (Fault(400, "too many tokens", "context_length_exceeded"), ContextLengthExceeded, "shorten"),
    (Fault(400, "This model's maximum context length is 8192 tokens"), ContextLengthExceeded, "8192"),
    (Fault(400, "the response was filtered", "content_filter"), ContentFiltered, "filtered"),
    (Fault(413, "too large"), InvalidRequest, "too large"),
    (Fault(422, "unprocessable"), InvalidRequest, "unprocessable"),
    (Fault(429, "slow down"), Overloaded, "too many requests"),
    (Fault(429, "You exceeded your current quota", "insufficient_quota"), QuotaExceeded, "paid"),
    (Fault(402, "Insufficient Balance"), QuotaExceeded, "paid"),
    (Fault(408, "slow"), NotReady, "408"),
    (Fault(500, "server had an error"), NotReady, "500"),
    (Fault(503, "loading"), NotReady, "loading"),
    (Fault(503, "The engine is currently overloaded"), Overloaded, "no room"),
    (Fault(529, "overloaded", "overloaded_error"), Overloaded, "no room"),
]


@pytest.mark.parametrize(
    ("fault", "error", "words"), FAULTS, ids=lambda value: str(getattr(value, "status", ""))
)
@pytest.mark.parametrize("stream", [False, True])
async def test_statuses(
    stub: Stub, connect: Open, fault: Fault, error: type[SglActorsError], words: str, stream: bool
) -> None:
    """Each is a typed error that says what happened; none is asked again by the SDK."""
    stub.script = fault
    found = await failing(await connect(), Ask(messages=CHAT.messages, stream=stream))
    assert type(found) is error
    assert words in found.message
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
async def test_when_to_come_again(stub: Stub, connect: Open, headers: dict[str, str], seconds: float) -> None:
    """Seconds, milliseconds or a date; a date that has passed, or no date at all, says nothing."""
    stub.script = Fault(429, "slow down", headers=headers)
    found = await failing(await connect(), CHAT)
    assert isinstance(found, Overloaded)
    assert found.retry_after == seconds


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("breaks", [CUT, ENDED, DROPPED, MALFORMED, ERROR])
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_that_go_wrong_in_the_middle(
    stub: Stub, connect: Open, api: str, breaks: str, stream: bool
) -> None:
    """A stream that ends early, breaks, or has something else in it is never taken for an answer, and neither is half a body."""
    stub.script = Reply(("a b c d",), breaks=breaks)
    ask = Ask(text="x", stream=stream) if api == "completions" else Ask(messages=CHAT.messages, stream=stream)
    found = await failing(await connect(api=api), ask)
    expected = Overloaded if breaks == ERROR and stream else BrokenAnswer
    assert type(found) is expected
    assert found.retryable


@pytest.mark.parametrize("stream", [False, True])
async def test_silence(stub: Stub, connect: Open, stream: bool) -> None:
    """Nothing at all, or nothing more in the middle of an answer: the deadline ends it, and the connection."""
    vendor = await connect()
    for script in (Fault(), Reply(("a b c",), breaks=HANG)):
        stub.script = script
        stub.gone.clear()
        found = await failing(vendor, Ask(messages=CHAT.messages, stream=stream), timeout=0.1)
        assert type(found) is DeadlineExceeded
        assert await asyncio.to_thread(stub.gone.wait, 10)


async def test_who_stops_reading_ends_the_request(stub: Stub, connect: Open) -> None:
    """Closing the generator closes the connection, so that nothing more is written and paid."""
    stub.script = Reply(("a b c",), breaks=HANG, after=3)
    vendor = await connect()
    async with aclosing(vendor.ask(Ask(messages=CHAT.messages, stream=True), timeout=20)) as pieces:
        assert await anext(pieces) == Text("a")
    assert await asyncio.to_thread(stub.gone.wait, 10)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_the_models_words(stub: Stub, connect: Open, stream: bool) -> None:
    """It is no answer, and no text of one."""
    stub.script = Reply(refusal="I cannot help with that.")
    found = await failing(await connect(), Ask(messages=CHAT.messages, stream=stream))
    assert type(found) is Refused
    assert "I cannot help with that." in found.message


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_filtered(stub: Stub, connect: Open, stream: bool) -> None:
    """Half an answer that the provider took away is none."""
    stub.script = Reply(("half an",), finish="content_filter")
    found = await failing(await connect(), Ask(messages=CHAT.messages, stream=stream))
    assert type(found) is ContentFiltered
    assert not found.retryable


async def test_an_error_with_status_200(stub: Stub, connect: Open) -> None:
    """Some servers answer an error as if it were an answer."""
    vendor = await connect()
    stub.script = Reply(finish="error")
    assert type(await failing(vendor, CHAT)) is BrokenAnswer


async def test_a_turn_that_cannot_be_gone_on_with(stub: Stub, connect: Open) -> None:
    """A 400 about that teaches it: the capabilities change, and nothing is asked for any more that cannot be had."""
    stub.script = Fault(400, "continue_final_message is not supported by this model")
    vendor = await connect("m", dialect="vllm")
    ask = Ask(messages=(*(CHAT.messages or ()), ChatMessage("assistant", "It is")), continue_final=True)
    assert type(await failing(vendor, ask)) is NoContinuation
    assert vendor.capabilities.continuation == "none"
    assert type(await failing(vendor, ask)) is NoContinuation
    assert len(stub.asked) == 1


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
