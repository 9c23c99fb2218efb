"""Anthropic's models through the vendor's own SDK, against the stub server."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.errors import (
    BrokenAnswer,
    ConfigError,
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
from sgl_actors.lang.backends.anthropic import Anthropic, capabilities_of
from sgl_actors.lang.backends.anthropic_answer import Answer, Block, Event
from sgl_actors.lang.backends.vendor import Settings, Text, Tokens
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint
from sgl_actors.lang.ir import Media
from tests.api.stub import CUT, DROPPED, ENDED, ERROR, HANG, MALFORMED, Fault, Reply, Stub
from tests.api.vendor_calls import USER, chat, told

KEY = "sk-ant-secret"
NEW, OLD = "claude-haiku-5-5", "claude-opus-4-5"
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ]
)
PNG = Media("image", b"\x89PNG", "image/png")
Make = Callable[..., Any]


@pytest.fixture
async def make(stub: Stub) -> AsyncIterator[Make]:
    """Opens models, which are closed at the end."""
    opened: list[Anthropic] = []

    async def one(model: str = NEW, **settings: Any) -> Anthropic:
        vendor = Anthropic(Settings(model, **({"base_url": stub.url, "key": KEY} | settings)))
        opened.append(vendor)
        await vendor.open()
        return vendor

    yield one
    for vendor in opened:
        await vendor.close()


async def test_a_chat_is_sent_in_anthropics_words(make: Make, stub: Stub) -> None:
    """System turns go to `system`, arguments to their fields, only those that differ; the key to its header."""
    vendor = await make(OLD, headers={"x-team": "blue"}, extra={"metadata": {"user_id": "u"}})
    sampling = SamplingOptions(
        max_tokens=9, temperature=0.0, top_k=3, stop=("\n", "END", " "), stop_regex=("x",), seed=4
    )
    messages = ChatMessage("system", "Be brief."), ChatMessage("system", "Be kind."), USER
    stub.script = Reply(("Paris END of it",), prompt=20, cached=15)
    text, end = await told(vendor, chat(*messages, sampling=sampling))
    assert text == ""
    assert end.completions[0].text == "Paris "
    assert end.completions[0].finish == Finish("stop", "END")
    assert end.used == Tokens(20, 15, 2)
    assert end.model == OLD
    assert stub.body == {
        "model": OLD,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": USER.content}],
        "system": "Be brief.\n\nBe kind.",
        "stop_sequences": ["END"],
        "temperature": 0.0,
        "top_k": 3,
        "metadata": {"user_id": "u"},
        "stream": False,
    }
    headers = stub.asked[-1].headers
    assert KEY in (headers.get("x-api-key", "") + headers.get("authorization", ""))
    assert headers["x-team"] == "blue"


async def test_a_stream_comes_in_pieces_and_ends_with_all_of_it(make: Make, stub: Stub) -> None:
    """Streamed text adds up to the completion, with usage from the first and the last events."""
    vendor = await make()
    stub.script = Reply(("one two three",), prompt=30, cached=10, output=7)
    events = [event async for event in vendor.ask(chat(stream=True), timeout=20)]
    *texts, end = events
    assert len(texts) > 1
    assert "".join(text.text for text in texts) == end.completions[0].text == "one two three"
    assert end.completions[0].finish == Finish("stop")
    assert end.used == Tokens(30, 10, 7)
    assert stub.body["stream"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_a_limit_is_kept_and_told(make: Make, stub: Stub, stream: bool) -> None:
    """An answer that was cut off by max_tokens, or by the context, finishes by length."""
    vendor = await make()
    stub.script = Reply(("one two three four",))
    _, end = await told(vendor, chat(sampling=SamplingOptions(max_tokens=2), stream=stream))
    assert end.completions[0].finish == Finish("length")
    stub.script = Reply(finish="model_context_window_exceeded")
    _, end = await told(vendor, chat(stream=stream))
    assert end.completions[0].finish == Finish("length")


@pytest.mark.parametrize(
    ("model", "limit"), [("claude-3-haiku-20240307", 4096), ("claude-opus-4-1", 32_000), (NEW, 64_000)]
)
async def test_without_max_tokens_the_models_usual_limit_is_sent(
    make: Make, stub: Stub, model: str, limit: int
) -> None:
    """The API wants a limit: with none of ours it is the model's."""
    await told(await make(model), chat(sampling=SamplingOptions(max_tokens=None)))
    assert stub.body["max_tokens"] == limit


def test_what_models_can_do_is_known_by_their_names() -> None:
    """Older models go on with a turn, newer ones follow schemas, the newest take no temperature."""
    known = {
        "claude-3-haiku-20240307": ("prefill", False, True),
        "claude-sonnet-4-20250514": ("prefill", False, True),
        "claude-sonnet-4-0": ("prefill", False, True),
        "claude-opus-4-1-20250805": ("prefill", False, True),
        "claude-haiku-4-5": ("prefill", True, True),
        "claude-sonnet-4-5-20250929": ("prefill", True, True),
        "claude-opus-4-6": ("none", True, True),
        "claude-opus-4-7": ("none", True, False),
        "claude-opus-5-5": ("none", True, False),
        "claude-sonnet-5": ("none", True, False),
        "something-else": ("none", True, False),
    }
    assert {
        name: (can.continuation, can.schema, bool(can.sampling))
        for name, can in ((name, capabilities_of(name)) for name in known)
    } == known


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_is_gone_on_with_as_if_its_white_space_had_been_sent(
    make: Make, stub: Stub, stream: bool
) -> None:
    """White space at the end of a prefill is not sent, and not taken when the model writes it again."""
    vendor = await make(OLD)
    begun = ChatMessage("assistant", "The answer is \n")
    for answer, text in ((" \nParis", "Paris"), ("Paris", "Paris"), (" Paris", "Paris"), ("\n\nx", "\n\nx")):
        stub.script = Reply((answer,))
        pieces, end = await told(vendor, chat(USER, begun, continue_final=True, stream=stream))
        assert end.completions[0].text == text
        assert pieces == (text if stream else "")
        assert stub.body["messages"][-1] == {"role": "assistant", "content": "The answer is"}


async def test_a_turn_of_white_space_only_is_begun_anew(make: Make, stub: Stub) -> None:
    """A prefill that has no text is not sent at all."""
    await told(await make(OLD), chat(USER, ChatMessage("assistant", " \n"), continue_final=True))
    assert stub.body["messages"] == [{"role": "user", "content": USER.content}]


async def test_a_400_about_prefill_teaches_that_there_is_none(make: Make, stub: Stub) -> None:
    """NoContinuation, and the capabilities say so from there on; any other 400 teaches nothing."""
    vendor = await make(OLD)
    ask = chat(USER, ChatMessage("assistant", "The"), continue_final=True)
    stub.script = Fault(400, "messages: too many images", "invalid_request_error")
    with pytest.raises(InvalidRequest, match="too many images"):
        await told(vendor, ask)
    assert vendor.capabilities.continuation == "prefill"
    words = "This model does not support assistant message prefill. The conversation must end with a user message."
    stub.script = Fault(400, words, "invalid_request_error")
    with pytest.raises(NoContinuation, match="prefill"):
        await told(vendor, ask)
    assert vendor.capabilities.continuation == "none"


async def test_a_constraint_and_a_begun_turn_do_not_go_together(make: Make, stub: Stub) -> None:
    """The whole turn has to be asked for then; nothing is sent, and the model still goes on with other turns."""
    vendor = await make(OLD)
    sampling = SamplingOptions(constraint=Constraint(JSON_SCHEMA, '{"type": "integer"}'))
    with pytest.raises(NoContinuation, match="of its own"):
        await told(
            vendor, chat(USER, ChatMessage("assistant", "n = "), continue_final=True, sampling=sampling)
        )
    assert not stub.asked
    assert vendor.capabilities.continuation == "prefill"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_json_schema_is_sent_as_the_sdk_writes_it(make: Make, stub: Stub, stream: bool) -> None:
    """Objects are closed, what the dialect lacks is described; stops are not sent, for they would cut the JSON."""
    vendor = await make(extra={"output_config": {"effort": "low"}})
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    sampling = SamplingOptions(constraint=Constraint(JSON_SCHEMA, json.dumps(schema)), stop=("}",))
    stub.script = Reply(('{"n": 4}',))
    text, end = await told(vendor, chat(sampling=sampling, stream=stream))
    assert end.completions[0].text == '{"n": 4}'
    assert text == ('{"n": 4}' if stream else "")
    config = stub.body["output_config"]
    assert config["effort"] == "low"
    assert config["format"]["type"] == "json_schema"
    assert config["format"]["schema"]["additionalProperties"] is False
    assert config["format"]["schema"]["properties"]["n"] == {
        "type": "integer",
        "description": "{minimum: 3}",
    }
    assert "stop_sequences" not in stub.body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (Constraint(CHOICE, '["red", "bl\\"ue"]'), {"type": "string", "enum": ["red", 'bl"ue']}),
        (Constraint(REGEX, '[a-z"]+'), {"type": "string", "pattern": '^(?:[a-z"]+)$'}),
    ],
)
async def test_choices_and_expressions_are_asked_for_in_an_object(
    make: Make, stub: Stub, constraint: Constraint, value: dict[str, Any], stream: bool
) -> None:
    """What is no JSON is the value of one that is; what comes back is the text itself, in pieces too."""
    vendor = await make()
    stub.script = Reply((json.dumps({"value": 'bl"ue'}),))
    text, end = await told(vendor, chat(sampling=SamplingOptions(constraint=constraint), stream=stream))
    assert end.completions[0].text == 'bl"ue'
    assert text == ('bl"ue' if stream else "")
    schema = stub.body["output_config"]["format"]["schema"]
    assert schema["properties"] == {"value": value}
    assert schema["required"] == ["value"]


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Constraint(LARK, "start: /a/"), "lark"),
        (Constraint(JSON_SCHEMA, "{"), "json_schema"),
        (Constraint(JSON_SCHEMA, '{"minimum": 3}'), "does not take"),
        (Constraint(JSON_SCHEMA, '{"type": "object", "additionalProperties": {"type": "integer"}}'), "named"),
    ],
)
async def test_a_schema_that_cannot_be_sent_is_refused(
    make: Make, stub: Stub, constraint: Constraint, words: str
) -> None:
    """What the API's dialect cannot say is an error before anything is sent."""
    vendor = await make()
    with pytest.raises(InvalidRequest, match=words):
        await told(vendor, chat(sampling=SamplingOptions(constraint=constraint)))
    assert not stub.asked


async def test_an_answer_that_had_to_be_json_and_is_none_is_broken(make: Make, stub: Stub) -> None:
    """It is not handed out; one that was cut off by its limit is, as far as it goes."""
    vendor = await make()
    choice = Constraint(CHOICE, '["abc"]')
    stub.script = Reply(("abc",))
    with pytest.raises(BrokenAnswer, match="JSON"):
        await told(vendor, chat(sampling=SamplingOptions(constraint=choice)))
    stub.script = Reply(('{"value": "ab',), finish="max_tokens")
    _, end = await told(vendor, chat(sampling=SamplingOptions(constraint=choice)))
    assert (end.completions[0].text, end.completions[0].finish.reason) == ("ab", "length")


@pytest.mark.parametrize("stream", [False, True])
async def test_called_tools_are_a_json_array(make: Make, stub: Stub, stream: bool) -> None:
    """Functions are sent as tools of which one has to be called; the calls come back as the text."""
    vendor = await make()
    stub.script = Reply(tools=(("weather", {"city": "Lima"}), ("weather", {"city": "Rome"})))
    text, end = await told(vendor, chat(tools=TOOLS, stream=stream))
    calls = [{"tool": "weather", "arguments": {"city": city}} for city in ("Lima", "Rome")]
    assert json.loads(end.completions[0].text) == calls
    assert text == (end.completions[0].text if stream else "")
    assert stub.body["tool_choice"] == {"type": "any"}
    assert stub.body["tools"] == [
        {
            "name": "weather",
            "description": "The weather.",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
        }
    ]


async def test_a_model_that_calls_no_tool_gave_no_answer(make: Make, stub: Stub) -> None:
    """Words instead of a call are broken; calls that were cut off are no JSON, so that nobody takes them for all."""
    vendor = await make()
    with pytest.raises(BrokenAnswer, match="called none"):
        await told(vendor, chat(tools=TOOLS))
    stub.script = Reply(tools=(("weather", {"city": "Lima"}),), finish="max_tokens")
    _, end = await told(vendor, chat(tools=TOOLS, stream=True))
    assert end.completions[0].finish == Finish("length")
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(end.completions[0].text)


async def test_turns_of_tools_images_and_later_systems_keep_their_places(make: Make, stub: Stub) -> None:
    """Calls, results and images become blocks, in the order of the text; empty turns are left out."""
    called = json.dumps([{"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}])
    messages = (
        ChatMessage("user", "Look: , nice", media=((6, PNG),)),
        ChatMessage("assistant", ""),
        ChatMessage("assistant", "", tool_calls=called),
        ChatMessage("tool", "mist", tool_call_id="c1", name="weather"),
        ChatMessage("system", "Be brief."),
        USER,
    )
    await told(await make(), chat(*messages))
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}
    assert stub.body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look: "},
                {"type": "image", "source": source},
                {"type": "text", "text": ", nice"},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Lima"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "mist"}]},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": USER.content},
    ]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((ChatMessage("system", "Be brief."),), "none that says anything"),
        ((USER, ChatMessage("assistant", "Paris")), "the last one is an assistant's"),
        ((ChatMessage("robot", "beep"),), "no role 'robot'"),
        ((ChatMessage("user", "x", media=((0, Media("image", b"BM", "image/bmp")),)),), "image/bmp"),
        ((USER, ChatMessage("assistant", "", tool_calls="[1]"), USER), "tool_calls"),
    ],
)
async def test_a_chat_that_cannot_be_sent_is_refused(
    make: Make, stub: Stub, messages: tuple[ChatMessage, ...], words: str
) -> None:
    """The message says what of it."""
    vendor = await make()
    with pytest.raises(InvalidRequest, match=words):
        await told(vendor, chat(*messages))
    assert not stub.asked


FAULTS = [
    (Fault(400, "messages.0: bad", "invalid_request_error"), InvalidRequest, "bad"),
    (Fault(400, "prompt is too long: 9 > 8", "invalid_request_error"), ContextLengthExceeded, "shorten"),
    (Fault(400, "Your credit balance is too low", "invalid_request_error"), QuotaExceeded, "credit"),
    (Fault(401, f"invalid x-api-key {KEY}", "authentication_error"), Unauthorized, "key"),
    (Fault(402, "unpaid", "billing_error"), QuotaExceeded, "account"),
    (Fault(403, "not allowed", "permission_error"), Forbidden, "not allowed"),
    (Fault(404, f"model: {NEW}", "not_found_error"), ModelNotFound, "no such model"),
    (Fault(413, "too large", "request_too_large"), InvalidRequest, "too large"),
    (Fault(429, "slow down", "rate_limit_error", {"retry-after": "7"}), Overloaded, "too many"),
    (Fault(500, "oops", "api_error"), NotReady, "500"),
    (Fault(307, headers={"location": "/elsewhere"}), InvalidRequest, "key is not sent there"),
    (Fault(504, "late", "timeout_error"), NotReady, "504"),
    (Fault(529, "Overloaded", "overloaded_error"), Overloaded, "no room"),
]


@pytest.mark.parametrize(("fault", "error", "words"), FAULTS, ids=lambda one: str(getattr(one, "status", "")))
async def test_an_error_of_the_api_is_ours(
    make: Make, stub: Stub, fault: Fault, error: type[SglActorsError], words: str
) -> None:
    """Each status is the error that says what to do; asked once; the key is in no message."""
    vendor = await make()
    stub.script = fault
    with pytest.raises(SglActorsError, match=words) as caught:
        await told(vendor, chat(stream=True))
    assert type(caught.value) is error
    assert caught.value.message.startswith(f"anthropic {NEW}: ")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert getattr(caught.value, "retry_after", 0.0) == float(fault.headers.get("retry-after", 0))
    assert len(stub.asked) == 1


@pytest.mark.parametrize("breaks", [CUT, ENDED, DROPPED, MALFORMED])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_breaks_off_is_no_answer(
    make: Make, stub: Stub, breaks: str, stream: bool
) -> None:
    """However a stream or a body breaks, it is an error that asking again may mend."""
    vendor = await make()
    stub.script = Reply(("one two three four",), breaks=breaks, after=3)
    with pytest.raises(SglActorsError) as caught:
        await told(vendor, chat(stream=stream))
    assert type(caught.value) is BrokenAnswer or (not stream and type(caught.value) is NotReady)
    assert caught.value.retryable


async def test_an_error_in_mid_stream_is_told_by_its_type(make: Make, stub: Stub) -> None:
    """It has no status of its own."""
    vendor = await make()
    stub.script = Reply(("one two three four",), breaks=ERROR, after=4)
    with pytest.raises(Overloaded, match="the model went away"):
        await told(vendor, chat(stream=True))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_does_not_go_on_is_late(make: Make, stub: Stub, stream: bool) -> None:
    """Silence, before the answer and in its middle, ends with the deadline, and the connection with it."""
    vendor = await make()
    for script in (Fault(0), Reply(("one two three",), breaks=HANG, after=4)):
        stub.script = script
        stub.gone.clear()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await told(vendor, chat(stream=stream), timeout=0.2)
        assert await asyncio.to_thread(stub.gone.wait, 10)


async def test_leaving_a_stream_ends_the_request(make: Make, stub: Stub) -> None:
    """Closing the generator closes the connection."""
    vendor = await make()
    stub.script = Reply(("one two three",), breaks=HANG, after=4)
    events = vendor.ask(chat(stream=True), timeout=60)
    assert isinstance(await anext(events), Text)
    await events.aclose()
    assert await asyncio.to_thread(stub.gone.wait, 10)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_told_in_the_models_words(make: Make, stub: Stub, stream: bool) -> None:
    """It is no answer, and not asked for again."""
    vendor = await make()
    stub.script = Reply(refusal="I would rather not.")
    with pytest.raises(Refused, match="rather not") as caught:
        await told(vendor, chat(stream=stream))
    assert not caught.value.retryable


def test_an_answer_of_thoughts_only_says_what_to_do() -> None:
    """Thoughts are no text; that nothing is left for text is not handed out as if the model had nothing to say."""
    thought = Event("content_block_start", content_block=Block("thinking"))
    stop, over = Event("message_delta", delta=Block(stop_reason="max_tokens")), Event("message_stop")
    text = Event("content_block_delta", 1, delta=Block("text_delta", text="Par"))
    for events, words in (((thought, stop, over), "went into"), ((thought, text, stop, over), "")):
        answer = Answer(chat(stream=True), "", "anthropic x")
        for event in events:
            answer.feed(event)
        if words:
            with pytest.raises(InvalidRequest, match=words):
                answer.end()
        else:
            assert answer.end().completions[0].text == "Par"


async def test_nobody_there_is_not_ready(make: Make) -> None:
    """The message says who was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    vendor = await make(base_url=url)
    with pytest.raises(NotReady, match=url):
        await told(vendor, chat())


async def test_capabilities_can_be_told(make: Make) -> None:
    """The user knows better; names and values that mean nothing are refused."""
    vendor = await make(NEW, capabilities={"continuation": "prefill", "stops": 2})
    assert vendor.capabilities.continuation == "prefill"
    assert vendor.capabilities.stops == 2
    assert vendor.capabilities.schema
    for given, words in (
        ({"prefil": True}, "'prefil' is unknown"),
        ({"stops": "x"}, "stops"),
        ({"continuation": "some"}, "continuation is one of"),
        ({"constraints": ["xml"]}, "xml"),
    ):
        with pytest.raises(ConfigError, match=words):
            await make(NEW, capabilities=given)


async def test_a_model_without_key_or_sdk_says_what_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key: which variable. No SDK: which extra. A server of one's own needs no key."""
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        await make(key="", base_url="")
    await told(await make(key=""), chat())
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(ConfigError, match=r"pip install 'sgl-actors\[anthropic\]'"):
        await make()


async def test_it_knows_neither_template_nor_ids_and_shows_no_key(make: Make) -> None:
    """Nor does closing one that was never opened hurt."""
    vendor = await make()
    assert await vendor.template() == ("", {})
    with pytest.raises(InvalidRequest, match="no token ids"):
        await vendor.token_ids("x")
    assert KEY not in repr(vendor)
    await Anthropic(Settings(NEW)).close()
