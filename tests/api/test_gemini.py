"""Gemini models through the vendor's own SDK, against the stub server."""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable
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
    SglActorsError,
    Unauthorized,
)
from sgl_actors.lang.backends.gemini import Gemini, capabilities_of
from sgl_actors.lang.backends.gemini_answer import Answer
from sgl_actors.lang.backends.vendor import Settings, Text, Tokens
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, Constraint
from sgl_actors.lang.ir import Media
from tests.api.stub import CUT, DROPPED, ENDED, ERROR, HANG, MALFORMED, Asked, Fault, Reply, Stub
from tests.api.vendor_calls import USER, chat, told

KEY = "AIza-secret"
NEW, OLD = "gemini-3.8-flash", "gemini-2.5-flash"
TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {}}}]
)
PNG, MP4 = Media("image", b"\x89PNG", "image/png"), Media("video", b"mp4!", "video/mp4")
Make = Callable[..., Any]


@pytest.fixture
async def make(stub: Stub) -> AsyncIterator[Make]:
    """Opens models, which are closed at the end."""
    opened: list[Gemini] = []

    async def one(model: str = NEW, **settings: Any) -> Gemini:
        vendor = Gemini(Settings(model, **({"base_url": stub.url, "key": KEY} | settings)))
        opened.append(vendor)
        await vendor.open()
        return vendor

    yield one
    for vendor in opened:
        await vendor.close()


async def test_a_chat_is_sent_in_geminis_words(make: Make, stub: Stub) -> None:
    """Turns become contents, system turns the instruction, arguments the config; the key goes to its header."""
    thinking = {"thinkingConfig": {"thinkingBudget": 0}}
    vendor = await make(OLD, headers={"x-team": "blue"}, extra={"generationConfig": thinking})
    sampling = SamplingOptions(
        max_tokens=9,
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        stop=("a", "b", "c", "d", "END", "f"),
        seed=(5 << 40) + 7,
    )
    messages = ChatMessage("system", "Be brief."), ChatMessage("system", "Be kind."), USER
    stub.script = Reply(("Plum END",), prompt=20, cached=15)
    text, end = await told(vendor, chat(*messages, sampling=sampling))
    assert text == ""
    assert end.completions[0].text == "Plum "
    assert end.completions[0].finish == Finish("stop")
    assert end.used == Tokens(20, 15, 2)
    assert end.model == OLD
    assert stub.asked[-1].path == f"/v1/models/{OLD}:generateContent"
    assert stub.body == {
        "contents": [{"role": "user", "parts": [{"text": USER.content}]}],
        "systemInstruction": {"parts": [{"text": "Be brief.\n\nBe kind."}]},
        "generationConfig": {
            "maxOutputTokens": 9,
            "temperature": 0.0,
            "topP": 0.5,
            "topK": 3.0,
            "presencePenalty": 0.25,
            "frequencyPenalty": 0.5,
            "stopSequences": ["a", "b", "c", "d", "END"],
            "seed": 7,
            **thinking,
        },
    }
    headers = stub.asked[-1].headers
    assert headers["x-goog-api-key"] == KEY
    assert headers["x-team"] == "blue"


async def test_a_stream_comes_in_pieces_and_counts_as_it_goes(make: Make, stub: Stub) -> None:
    """Streamed text adds up to the completion, and each piece says what was used so far."""
    vendor = await make()
    stub.script = Reply(("one two three",), prompt=30, cached=10, output=7)
    *texts, end = [event async for event in vendor.ask(chat(stream=True), timeout=20)]
    assert len(texts) > 1
    assert "".join(text.text for text in texts) == end.completions[0].text == "one two three"
    assert {text.used for text in texts} == {end.used} == {Tokens(30, 10, 7)}
    assert vendor.capabilities.counting
    assert stub.asked[-1].path.endswith(":streamGenerateContent")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_limit_is_kept_and_told(make: Make, stub: Stub, stream: bool) -> None:
    """An answer that was cut off finishes by length; without max_tokens no limit is sent."""
    vendor = await make()
    stub.script = Reply(("one two three four",))
    _, end = await told(vendor, chat(sampling=SamplingOptions(max_tokens=2), stream=stream))
    assert end.completions[0].finish == Finish("length")
    stub.script = Reply(finish="CONTINUATION")
    _, end = await told(vendor, chat(sampling=SamplingOptions(max_tokens=None), stream=stream))
    assert end.completions[0].finish == Finish("length")
    assert "maxOutputTokens" not in stub.body.get("generationConfig", {})
    assert len(stub.asked) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_several_completions_come_of_one_request(make: Make, stub: Stub, stream: bool) -> None:
    """Each has its own text; the pieces are the first one's."""
    vendor = await make(OLD)
    stub.script = Reply(("one two", "three", "four"))
    text, end = await told(vendor, chat(count=3, stream=stream))
    assert [one.text for one in end.completions] == ["one two", "three", "four"]
    assert text == ("one two" if stream else "")
    assert stub.body["generationConfig"]["candidateCount"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_come_with_the_tokens_texts(make: Make, stub: Stub, stream: bool) -> None:
    """Of the tokens and as many alternatives as were asked for."""
    vendor = await make(OLD)
    stub.script = Reply(("one two",), logprobs={"one": -0.25})
    _, end = await told(vendor, chat(logprobs=True, top_logprobs=2, stream=stream))
    (one,) = end.completions
    assert "".join(one.tokens) == "one two"
    assert one.logprobs[0] == TokenLogprob(-1, -0.25, ((-1, -0.25), (-1, -3.0)))
    assert len(one.logprobs) == len(one.tokens)
    assert stub.body["generationConfig"]["responseLogprobs"] is True
    assert stub.body["generationConfig"]["logprobs"] == 2


def test_what_models_can_do_is_known_by_their_names() -> None:
    """Older models go on with a turn and take a temperature; the newest do neither."""
    known = {
        "gemini-2.0-flash": ("prefill", True, 20),
        "gemini-2.5-pro": ("prefill", True, 20),
        "models/gemini-3-pro-preview": ("prefill", True, -1),
        "gemini-3.1-pro-preview": ("prefill", True, -1),
        "gemini-3.5-flash": ("prefill", True, -1),
        "gemini-3.5-flash-lite": ("none", False, -1),
        "gemini-3.6-flash": ("none", False, -1),
        "gemini-4-pro": ("none", False, -1),
        "something-else": ("none", False, -1),
    }
    assert {
        name: (can.continuation, bool(can.sampling), can.logprobs)
        for name, can in ((name, capabilities_of(name)) for name in known)
    } == known


async def test_a_turn_is_gone_on_with(make: Make, stub: Stub) -> None:
    """The begun turn is sent as it is, as the model's last one."""
    vendor = await make(OLD)
    _, end = await told(vendor, chat(USER, ChatMessage("assistant", "It is "), continue_final=True))
    assert stub.body["contents"][-1] == {"role": "model", "parts": [{"text": "It is "}]}
    assert end.completions[0].text == "Paris"


async def test_a_400_about_the_models_turn_teaches_that_there_is_none(make: Make, stub: Stub) -> None:
    """NoContinuation, and the capabilities say so from there on; any other 400 teaches nothing."""
    vendor = await make(OLD)
    ask = chat(USER, ChatMessage("assistant", "The"), continue_final=True)
    stub.script = Fault(400, "Invalid value at 'contents'", "INVALID_ARGUMENT")
    with pytest.raises(InvalidRequest, match="Invalid value"):
        await told(vendor, ask)
    assert vendor.capabilities.continuation == "prefill"
    stub.script = Fault(400, "Requests ending with a model turn are not supported.", "INVALID_ARGUMENT")
    with pytest.raises(NoContinuation, match="model turn"):
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
async def test_a_json_schema_is_sent_as_it_is(make: Make, stub: Stub, stream: bool) -> None:
    """With the media type for it; stops are not sent, for they would cut the JSON."""
    vendor = await make()
    schema = {
        "$defs": {"n": {"type": "integer", "minimum": 3}},
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "required": ["n"],
    }
    sampling = SamplingOptions(constraint=Constraint(JSON_SCHEMA, json.dumps(schema)), stop=("}",))
    stub.script = Reply(('{"n": 4}',))
    text, end = await told(vendor, chat(sampling=sampling, stream=stream))
    assert end.completions[0].text == '{"n": 4}'
    assert text == ('{"n": 4}' if stream else "")
    assert stub.body["generationConfig"] == {
        "maxOutputTokens": 128,
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_are_asked_for_in_an_object(make: Make, stub: Stub, stream: bool) -> None:
    """What comes back is the choice itself, in pieces too; what is no JSON is broken."""
    vendor = await make()
    ask = chat(sampling=SamplingOptions(constraint=Constraint(CHOICE, '["réd", "blue"]')), stream=stream)
    stub.script = Reply(('{"value": "r\\u00e9d"}',))
    text, end = await told(vendor, ask)
    assert end.completions[0].text == "réd"
    assert text == ("réd" if stream else "")
    assert stub.body["generationConfig"]["responseJsonSchema"]["properties"] == {
        "value": {"type": "string", "enum": ["réd", "blue"]}
    }
    for answer in ("réd", '{"value": 3}', '{"values": "réd"}'):
        stub.script = Reply((answer,))
        with pytest.raises(BrokenAnswer, match="JSON"):
            await told(vendor, ask)


@pytest.mark.parametrize("stream", [False, True])
async def test_called_tools_are_a_json_array(make: Make, stub: Stub, stream: bool) -> None:
    """Functions are declared, one has to be called, and the SDK calls none by itself."""
    vendor = await make()
    stub.script = Reply(tools=(("weather", {"city": "Lima"}), ("weather", {})))
    text, end = await told(vendor, chat(tools=TOOLS, stream=stream))
    assert json.loads(end.completions[0].text) == [
        {"tool": "weather", "arguments": {"city": "Lima"}},
        {"tool": "weather", "arguments": {}},
    ]
    assert text == (end.completions[0].text if stream else "")
    (declared,) = stub.body["tools"][0]["functionDeclarations"]
    assert declared == {
        "name": "weather",
        "description": "The weather.",
        "parameters_json_schema": {"type": "object", "properties": {}},
    }
    assert stub.body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert len(stub.asked) == 1
    stub.script = Reply()
    with pytest.raises(BrokenAnswer, match="called none"):
        await told(vendor, chat(tools=TOOLS, stream=stream))


async def test_turns_of_tools_images_and_videos_keep_their_places(make: Make, stub: Stub) -> None:
    """Calls, results and media become parts, in the order of the text; results of one turn stand together."""
    called = json.dumps(
        [
            {"id": name, "function": {"name": "weather", "arguments": json.dumps({"city": name})}}
            for name in ("Lima", "Rome")
        ]
    )
    messages = (
        ChatMessage("user", "Look: , nice", media=((6, PNG), (6, MP4))),
        ChatMessage("assistant", ""),
        ChatMessage("assistant", "", tool_calls=called),
        ChatMessage("tool", "mist", tool_call_id="Lima", name="weather"),
        ChatMessage("tool", "sun", tool_call_id="Rome", name="weather"),
        USER,
    )
    await told(await make(), chat(*messages))
    assert stub.body["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "Look: "},
                {"inlineData": {"mime_type": "image/png", "data": "iVBORw=="}},
                {"inlineData": {"mime_type": "video/mp4", "data": "bXA0IQ=="}},
                {"text": ", nice"},
            ],
        },
        {
            "role": "model",
            "parts": [
                {
                    "functionCall": {"name": "weather", "args": {"city": name}, "id": name},
                    "thoughtSignature": "skip_thought_signature_validator",
                }
                for name in ("Lima", "Rome")
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "weather", "response": {"output": text}, "id": name}}
                for name, text in (("Lima", "mist"), ("Rome", "sun"))
            ],
        },
        {"role": "user", "parts": [{"text": USER.content}]},
    ]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((ChatMessage("system", "Be brief."),), "none that says anything"),
        ((USER, ChatMessage("assistant", "Paris")), "the last one is an assistant's"),
        ((USER, ChatMessage("system", "Be brief."), USER), "only at the beginning"),
        ((ChatMessage("robot", "beep"),), "'robot'"),
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


EXHAUSTED = "You exceeded your current quota, please check your plan and billing details."
FAULTS = [
    (Fault(400, "Invalid value", "INVALID_ARGUMENT"), InvalidRequest, "Invalid value"),
    (
        Fault(
            400,
            "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            "INVALID_ARGUMENT",
        ),
        ContextLengthExceeded,
        "shorten",
    ),
    (Fault(400, f"API key not valid: {KEY}", "INVALID_ARGUMENT"), Unauthorized, "key is wrong"),
    (Fault(400, "Please enable billing", "FAILED_PRECONDITION"), QuotaExceeded, "account"),
    (Fault(401, "no credentials", "UNAUTHENTICATED"), Unauthorized, "key"),
    (Fault(403, "not allowed", "PERMISSION_DENIED"), Forbidden, "not allowed"),
    (Fault(404, f"models/{NEW} is not found", "NOT_FOUND"), ModelNotFound, "no such model"),
    (Fault(429, EXHAUSTED, "RESOURCE_EXHAUSTED", {"retry-delay": "7.5"}), Overloaded, "too many"),
    (Fault(429, f"{EXHAUSTED} limit: 0, model: x", "RESOURCE_EXHAUSTED"), QuotaExceeded, "limit: 0"),
    (Fault(307, headers={"location": "/elsewhere"}), InvalidRequest, "key is not sent there"),
    (Fault(429, "requests per day", "RESOURCE_EXHAUSTED"), QuotaExceeded, "per day"),
    (Fault(500, "oops", "INTERNAL"), NotReady, "500"),
    (Fault(503, "The service is down.", "UNAVAILABLE"), NotReady, "503"),
    (Fault(503, "The model is overloaded.", "UNAVAILABLE"), Overloaded, "no room"),
    (Fault(504, "late", "DEADLINE_EXCEEDED"), DeadlineExceeded, "within 20 s"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fault", "error", "words"), FAULTS, ids=lambda one: str(getattr(one, "status", "")))
async def test_an_error_of_the_api_is_ours(
    make: Make, stub: Stub, fault: Fault, error: type[SglActorsError], words: str, stream: bool
) -> None:
    """Each status is the error that says what to do; asked once; the key is in no message."""
    vendor = await make()
    stub.script = fault
    with pytest.raises(SglActorsError, match=words) as caught:
        await told(vendor, chat(stream=stream))
    assert type(caught.value) is error
    assert caught.value.message.startswith(f"gemini {NEW}: ")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert getattr(caught.value, "retry_after", 0.0) == float(fault.headers.get("retry-delay", 0))
    assert len(stub.asked) == 1


@pytest.mark.parametrize("breaks", [CUT, ENDED, DROPPED, MALFORMED])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_breaks_off_is_no_answer(
    make: Make, stub: Stub, breaks: str, stream: bool
) -> None:
    """However a stream or a body breaks, it is an error that asking again may mend."""
    vendor = await make()
    stub.script = Reply(("one two three four",), breaks=breaks, after=3)
    with pytest.raises(BrokenAnswer, match="broke off"):
        await told(vendor, chat(stream=stream))
    assert len(stub.asked) == 1


async def test_an_error_in_mid_stream_is_told(make: Make, stub: Stub) -> None:
    """It is an event of its own."""
    vendor = await make()
    stub.script = Reply(("one two three four",), breaks=ERROR, after=3)
    with pytest.raises(NotReady, match="the model went away"):
        await told(vendor, chat(stream=True))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_does_not_go_on_is_late(make: Make, stub: Stub, stream: bool) -> None:
    """Silence, before the answer and in its middle, ends with the deadline, and the connection with it."""
    vendor = await make()
    for script in (Fault(0), Reply(("one two three",), breaks=HANG, after=3)):
        stub.script = script
        stub.gone.clear()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await told(vendor, chat(stream=stream), timeout=0.2)
        assert await asyncio.to_thread(stub.gone.wait, 10)


async def test_leaving_a_stream_ends_the_request(make: Make, stub: Stub) -> None:
    """Closing the generator closes the connection."""
    vendor = await make()
    stub.script = Reply(("one two three",), breaks=HANG, after=3)
    events = vendor.ask(chat(stream=True), timeout=60)
    assert isinstance(await anext(events), Text)
    await events.aclose()
    assert await asyncio.to_thread(stub.gone.wait, 10)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(refusal="PROHIBITED_CONTENT"), ContentFiltered, "the prompt was filtered: PROHIBITED_CONTENT"),
        (Reply(finish="SAFETY"), ContentFiltered, "the answer was filtered: SAFETY"),
        (Reply(finish="RECITATION"), ContentFiltered, "RECITATION"),
        (Reply(finish="SPII"), ContentFiltered, "SPII"),
        (Reply(finish="MALFORMED_FUNCTION_CALL"), BrokenAnswer, "MALFORMED_FUNCTION_CALL"),
        (Reply(finish="OTHER"), BrokenAnswer, "OTHER"),
        (Reply(finish="PUP_LIMITED_DISABLED"), Forbidden, "limited"),
    ],
    ids=str,
)
async def test_what_is_not_let_through_is_no_answer(
    make: Make, stub: Stub, reply: Reply, error: type[SglActorsError], words: str, stream: bool
) -> None:
    """Neither text that was cut off for what it says, nor calls that nobody can read."""
    vendor = await make()
    stub.script = reply
    with pytest.raises(error, match=words):
        await told(vendor, chat(stream=stream))


def thinking(*parts: tuple[str, bool], finish: str) -> Answer:
    """An answer of a model that thinks."""
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 2, "thoughtsTokenCount": 40}
    candidate = {
        "content": {
            "role": "model",
            "parts": [{"text": text, "thought": thought} for text, thought in parts],
        },
        "finishReason": finish,
    }
    types = importlib.import_module("google.genai.types")
    answer = Answer(chat(), "gemini x")
    answer.feed(
        types.GenerateContentResponse.model_validate({"candidates": [candidate], "usageMetadata": usage})
    )
    return answer


def test_thoughts_are_no_text_but_count_as_output() -> None:
    """What a model thinks aloud is not its answer; it is paid for."""
    end = thinking(("hm", True), ("Paris", False), finish="STOP").end()
    assert end.completions[0].text == "Paris"
    assert end.used == Tokens(9, 0, 42)


def test_an_answer_of_thoughts_only_says_what_to_do() -> None:
    """No text at all is not handed out as if the model had nothing to say."""
    with pytest.raises(InvalidRequest, match="went into the model's thoughts"):
        thinking(("hm", True), finish="MAX_TOKENS").end()


async def test_a_completion_too_few_is_a_broken_answer(make: Make, stub: Stub) -> None:
    """As many were asked for, so as many have to end."""
    vendor = await make(OLD)

    def one(asked: Asked) -> Reply:
        object.__setattr__(asked, "count", 1)
        return Reply()

    stub.script = one
    with pytest.raises(BrokenAnswer, match="no reason given"):
        await told(vendor, chat(count=2))


async def test_nobody_there_is_not_ready(make: Make) -> None:
    """The message says who was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    vendor = await make(base_url=url)
    with pytest.raises(NotReady, match=url):
        await told(vendor, chat())


async def test_a_model_without_key_or_sdk_says_what_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key: which variable. No SDK: which extra. A server of one's own needs no key; capabilities can be told."""
    with pytest.raises(ConfigError, match="GEMINI_API_KEY"):
        await make(key="", base_url="")
    vendor = await make(key="", capabilities={"count": 4})
    await told(vendor, chat())
    assert vendor.capabilities.count == 4
    with pytest.raises(ConfigError, match="'counts' is unknown"):
        await make(capabilities={"counts": 4})
    monkeypatch.setitem(sys.modules, "google.genai", None)
    with pytest.raises(ConfigError, match=r"pip install 'sgl-actors\[gemini\]'"):
        await make()


async def test_it_knows_neither_template_nor_ids_and_shows_no_key(make: Make) -> None:
    """Nor does closing one that was never opened hurt."""
    vendor = await make()
    assert await vendor.template() == ("", {})
    with pytest.raises(InvalidRequest, match="no token ids"):
        await vendor.token_ids("x")
    assert KEY not in repr(vendor)
    await Gemini(Settings(NEW)).close()
