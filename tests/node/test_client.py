"""What the client's side of a node promises: no token twice, none missing, whatever restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sgl_actors.actors.microkernel import Actor, Message, Request
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.node.client import NodeClient, merge
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate
from sgl_actors.errors import (
    ActorDown,
    ContextLengthExceeded,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    SglActorsError,
)

TOTAL = 10


class Tokens(Actor):
    """Streams TOTAL tokens, from where the asker is; `dies_after` tokens it ends, as a killed process does."""

    asked: list[Generate] = []
    dies_after = TOTAL + 1
    error: Finish | None = None
    overlap = 0

    async def receive(self, message: Message, request: Request) -> Message | None:
        assert isinstance(message, Generate)
        self.asked.append(message)
        if self.error is not None:
            request.end(Chunk(0, [], "", finish=self.error))
            return None
        for index in range(max(0, len(message.output) - self.overlap), TOTAL):
            if len(self.asked) == 1 and index == self.dies_after:
                raise_later(self)
                return None
            request.item(
                Chunk(index, [index], f"{index}", prompt_tokens=3, prompt_ids=[7] if index == 0 else [])
            )
        request.end(Chunk(TOTAL, [], "", finish=Finish("length")))
        return None


def raise_later(actor: Actor) -> None:
    """End the incarnation without an answer to anybody."""

    async def crash() -> None:
        raise RuntimeError("killed")

    actor.ctx.task(crash())


@pytest.fixture
async def system() -> AsyncIterator[System]:
    made = System("test", LocalTransport(LocalHub(), "local://test"), force_codec=True)
    await made.open()
    yield made
    await made.close()


def tokens(**settings: object) -> type[Tokens]:
    return type("Tokens", (Tokens,), {"asked": [], **settings})


async def test_tokens_once_over_a_restart(system: System) -> None:
    """A stream that breaks off is asked for again with what is known; every token arrives once, with the same id and seed."""
    kind = tokens(dies_after=4, overlap=2)
    first = system.spawn(kind, "tokenizer")
    client = NodeClient(system.spawn(Outside, "asker").context)

    async def restart() -> None:
        await first.ended.wait()
        system.spawn(kind, "tokenizer")

    restarting = asyncio.create_task(restart())
    whole = await client.complete(Generate("r1", text="x"), timeout=10)
    await restarting
    assert whole.token_ids == list(range(TOTAL))
    assert whole.text == "0123456789"
    assert whole.finish == Finish("length")
    one, two = kind.asked
    assert (one.id, one.sampling.seed) == (two.id, two.sampling.seed)
    assert two.output == [0, 1, 2, 3]


class Recovering(Tokens):
    """After its death it refuses the first askers, one way and the other."""

    refusals: list[SglActorsError] = []

    async def receive(self, message: Message, request: Request) -> Message | None:
        if self.refusals and self.asked:
            error = self.refusals.pop(0)
            if len(self.refusals) % 2:
                raise error
            request.end(Chunk(0, [], "", finish=Finish("error", code=error.code, message=error.message)))
            return None
        return await super().receive(message, request)


async def test_a_refusal_after_a_restart_is_part_of_it(system: System) -> None:
    """A request that had its place asks until it has it again, however it is refused; each token comes once."""
    refusals = [Overloaded("full"), NotReady("no model"), NotReady("no worker"), Overloaded("full")]
    kind = type("Kind", (Recovering,), {"asked": [], "dies_after": 4, "refusals": refusals})
    first = system.spawn(kind, "tokenizer")
    client = NodeClient(system.spawn(Outside, "asker").context)

    async def restart() -> None:
        await first.ended.wait()
        system.spawn(kind, "tokenizer")

    restarting = asyncio.create_task(restart())
    whole = await client.complete(Generate("r1", text="x"), timeout=10)
    await restarting
    assert whole.token_ids == list(range(TOTAL))
    assert refusals == []


async def test_a_first_refusal_is_the_caller_s(system: System) -> None:
    """Without a fault before it, no room means no room."""
    system.spawn(tokens(error=Finish("error", code="overloaded", message="full")), "tokenizer")
    client = NodeClient(system.spawn(Outside, "asker").context)
    with pytest.raises(Overloaded, match="full"):
        await client.complete(Generate("r1", text="x"), timeout=10)


async def test_error_finish_is_raised(system: System) -> None:
    """A request that the scheduler refused raises the class its code names."""
    system.spawn(
        tokens(error=Finish("error", code="context_length_exceeded", message="9000 > 8192")), "tokenizer"
    )
    client = NodeClient(system.spawn(Outside, "asker").context)
    with pytest.raises(ContextLengthExceeded, match="9000 > 8192"):
        await client.complete(Generate("r1", text="x"), timeout=10)


async def test_abort_is_an_answer(system: System) -> None:
    """An aborted request ends with its finish, not with an exception."""
    system.spawn(tokens(error=Finish("abort", message="by operator")), "tokenizer")
    client = NodeClient(system.spawn(Outside, "asker").context)
    assert (await client.complete(Generate("r1", text="x"), timeout=10)).finish == Finish(
        "abort", message="by operator"
    )


async def test_nobody_there(system: System) -> None:
    """Without a tokenizer the request ends at its deadline with the reason."""
    client = NodeClient(system.spawn(Outside, "asker").context)
    with pytest.raises((ActorDown, DeadlineExceeded)):
        await client.complete(Generate("r1", text="x"), timeout=0.2)


def test_merge() -> None:
    """Two chunks as one: ids, text and finish of both, prompt data of the first."""
    one = Chunk(0, [1, 2], "a", prompt_tokens=5, cached_tokens=3, prompt_ids=[9])
    two = Chunk(2, [3], "b", prompt_tokens=5, finish=Finish("stop"), completion_tokens=3)
    assert merge(one, two) == Chunk(
        0,
        [1, 2, 3],
        "ab",
        prompt_tokens=5,
        cached_tokens=3,
        prompt_ids=[9],
        finish=Finish("stop"),
        completion_tokens=3,
    )
