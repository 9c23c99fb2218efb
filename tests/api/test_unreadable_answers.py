"""Answers with a status of 200 that are not what the API's documentation says: never an error of Python's, and never a wrong number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.backends.anthropic import Anthropic
from sgl_actors.lang.backends.gemini import Gemini
from sgl_actors.lang.backends.openai import OpenAI
from sgl_actors.lang.backends.vendor import Ask, End, Settings, Text, Vendor
from tests.api.stub import Stub

VENDORS: dict[str, Any] = {"openai": OpenAI, "anthropic": Anthropic, "gemini": Gemini}
DEEP = b"[" * 100_000 + b"]" * 100_000
WRONG: tuple[Any, ...] = (5, -5, 1.5, "x", True, [], {}, [1], [[]], {"a": 1}, [None])
GOOD: dict[str, dict[str, Any]] = {
    "openai": {
        "choices": [{"index": 0, "message": {"content": "Paris"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    },
    "anthropic": {
        "type": "message",
        "model": "one",
        "content": [{"type": "text", "text": "Paris"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": "Paris"}]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
    },
}


def spoilt(value: Any) -> Iterator[Any]:
    """The same with one wrong value, for each place and each value."""
    yield from WRONG
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            for wrong in spoilt(one):
                copied: Any = value.copy()
                copied[key] = wrong
                yield copied


def opened(name: str, stub: Stub) -> Vendor:
    base, dialect = (f"{stub.url}/v1", "openai") if name == "openai" else (stub.url, "")
    vendor: Vendor = VENDORS[name](
        Settings("gemini-2.5-flash", base_url=base, key="sk-secret", dialect=dialect)
    )
    return vendor


async def told(vendor: Vendor, *, stream: bool = False) -> End:
    """The answer; all that it may raise is ours, and names the model."""
    ask = Ask(messages=(ChatMessage("user", "The capital of France?"),), stream=stream)
    async with aclosing(vendor.ask(ask, timeout=20.0)) as events:
        async for event in events:
            if isinstance(event, End):
                return event
            assert isinstance(event, Text)
    raise AssertionError("no end")


@pytest.mark.filterwarnings("ignore:.*is not a valid")
@pytest.mark.parametrize("name", VENDORS)
async def test_no_wrong_value_gets_through(stub: Stub, name: str) -> None:
    """Wherever one stands, the answer is as if it were not there, or an error that names the model; token counts are never less than none."""
    vendor = opened(name, stub)
    await vendor.open()
    for body in [*spoilt(GOOD[name]), {"error": {"type": ["x"], "code": {}, "message": [1]}}]:
        stub.script = json.dumps(body).encode()
        try:
            end = await told(vendor)
        except SglActorsError as error:
            assert error.message.startswith(vendor.title)  # noqa: PT017 - many at once
        else:
            assert min(end.used.prompt, end.used.cached, end.used.output) >= 0
            assert isinstance(end.completions[0].text, str)
    await vendor.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", VENDORS)
async def test_what_is_no_answer_at_all(stub: Stub, name: str, stream: bool) -> None:
    """A page, a number, JSON without end."""
    vendor = opened(name, stub)
    await vendor.open()
    for body in (b"", b"<html>Welcome</html>", b"NaN", b"5", b"null", DEEP, b'{"error": 5}'):
        stub.script = b"event: error\ndata: " + body + b"\n\n" if stream else body
        with pytest.raises(SglActorsError) as caught:
            await told(vendor, stream=stream)
        assert caught.value.message.startswith(vendor.title)
        assert caught.value.retryable
    await vendor.close()


@pytest.mark.parametrize(("number", "counted"), [(-5, 0), (10**30, 0), (7, 7)])
@pytest.mark.parametrize("name", VENDORS)
async def test_numbers_of_tokens_that_cannot_be_count_for_nothing(
    stub: Stub, name: str, number: int, counted: int
) -> None:
    """Books and budgets would be wrong for good."""
    vendor = opened(name, stub)
    await vendor.open()
    body = dict(GOOD[name])
    usage = "usageMetadata" if name == "gemini" else "usage"
    body[usage] = dict.fromkeys(body[usage], number)
    stub.script = json.dumps(body).encode()
    used = (await told(vendor)).used
    assert (used.prompt, used.cached, used.output) == (counted, 0, counted)
    await vendor.close()
