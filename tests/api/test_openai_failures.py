"""Everything that can go wrong with an answer of the OpenAI API, through the vendor's SDK: a typed error, and never a wrong answer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import (
    BrokenAnswer,
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
from sgl_actors.lang.backends.vendor import Ask, Text
from tests.api.openai_calls import CHAT, KEY, Open, failing
from tests.api.stub import CUT, DROPPED, ENDED, ERROR, HANG, MALFORMED, Fault, Reply, Stub

FAULTS: list[tuple[Fault, type[SglActorsError], str]] = [
    (Fault(307, headers={"location": "/elsewhere"}), InvalidRequest, "key is not sent there"),
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
        ({"retry-after": f"Wed, 21 Oct {'9' * 20} 07:28:30 GMT"}, 0.0),
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
        found = await failing(vendor, Ask(messages=CHAT.messages, stream=stream), timeout=0.2)
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
    for stream in (False, True):
        ask = Ask(messages=CHAT.messages, stream=stream)
        stub.script = Reply(breaks=ERROR, after=0)
        error = await failing(vendor, ask)
        assert type(error) is Overloaded
        assert "the model went away" in error.message
        stub.script = Reply(finish="error")
        assert type(await failing(vendor, ask)) is BrokenAnswer


async def test_a_turn_that_cannot_be_gone_on_with(stub: Stub, connect: Open) -> None:
    """A 400 about that teaches it: the capabilities change, and nothing is asked for any more that cannot be had."""
    stub.script = Fault(400, "continue_final_message is not supported by this model")
    vendor = await connect("m", dialect="vllm")
    ask = Ask(messages=(*(CHAT.messages or ()), ChatMessage("assistant", "It is")), continue_final=True)
    assert type(await failing(vendor, ask)) is NoContinuation
    assert vendor.capabilities.continuation == "none"
    assert type(await failing(vendor, ask)) is NoContinuation
    assert len(stub.asked) == 1
