"""What the tests of chat vendors ask, and how they ask it."""

from __future__ import annotations

from typing import Any

from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.lang.backends.vendor import Ask, End, Text, Vendor

USER = ChatMessage("user", "The capital of France?")


async def told(vendor: Vendor, ask: Ask, timeout: float = 20.0) -> tuple[str, End]:
    """The pieces joined, and the end."""
    *pieces, end = [event async for event in vendor.ask(ask, timeout=timeout)]
    assert isinstance(end, End)
    texts = [piece.text for piece in pieces if isinstance(piece, Text)]
    assert len(texts) == len(pieces)
    return "".join(texts), end


def chat(*messages: ChatMessage, **fields: Any) -> Ask:
    """A chat, by default a question."""
    sampling = fields.pop("sampling", SamplingOptions())
    return Ask(messages=messages or (USER,), sampling=sampling, **fields)
