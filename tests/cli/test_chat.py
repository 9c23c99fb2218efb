"""A conversation: what is sent, what is kept, what a fault leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate
from sgl_actors.cli.chat import Conversation, Settings
from sgl_actors.errors import ContextLengthExceeded


class Node:
    """Answers with pieces; an exception or an event among them is raised or waited for."""

    def __init__(self, *pieces: str | Exception | asyncio.Event) -> None:
        self.pieces = pieces
        self.requests: list[Generate] = []
        self.closed = 0

    async def generate(self, request: Generate, *, trace: str = "") -> AsyncIterator[Chunk]:
        self.requests.append(request)
        try:
            for number, piece in enumerate(self.pieces):
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, asyncio.Event):
                    await piece.wait()
                    continue
                yield Chunk(number, [number], piece, finish=Finish("stop") if piece == "." else None)
        finally:
            self.closed += 1


async def test_a_conversation_remembers_its_turns() -> None:
    """The second request holds the first turn and its answer; each has an id of its own."""
    node = Node("Hel", "lo", ".")
    conversation = Conversation(Settings(system="Be kind.", seed=5, temperature=0.0, max_tokens=9))
    written: list[str] = []
    await conversation.answer(cast("NodeClient", node), "Hi", written.append)
    await conversation.answer(cast("NodeClient", node), "More", written.append)
    assert "".join(written) == "Hello.Hello."
    assert node.requests[1].messages == [
        ChatMessage("system", "Be kind."),
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "Hello."),
        ChatMessage("user", "More"),
    ]
    assert node.requests[0].id != node.requests[1].id
    assert (node.requests[0].sampling.seed, node.requests[0].sampling.max_tokens) == (5, 9)
    conversation.clear()
    assert conversation.messages == [ChatMessage("system", "Be kind.")]


async def test_a_turn_that_failed_leaves_no_trace() -> None:
    """After an error the conversation is as it was before the turn."""
    node = Node("part", ContextLengthExceeded("too long"))
    conversation = Conversation(Settings())
    with pytest.raises(ContextLengthExceeded):
        await conversation.answer(cast("NodeClient", node), "Hi", lambda _: None)
    assert conversation.messages == []


async def test_an_answer_that_was_stopped_keeps_what_it_had_and_is_cancelled_at_the_node() -> None:
    """Ctrl-C closes the stream, which cancels it; what was written stays part of the conversation."""
    node = Node("part", asyncio.Event())
    conversation = Conversation(Settings())
    seen = asyncio.Event()
    task = asyncio.create_task(conversation.answer(cast("NodeClient", node), "Hi", lambda _: seen.set()))
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.closed == 1
    assert conversation.messages[-1] == ChatMessage("assistant", "part")
