"""What the tests of the OpenAI backend ask, and how they ask it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.backends.openai import OpenAI
from sgl_actors.lang.backends.vendor import Ask, End, Text

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
