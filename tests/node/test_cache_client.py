"""The client's side of cache and scheduling: pins that are computed, events that go on, settings that are checked first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from sgl_actors.actors.cache.messages import (
    Edge,
    Event,
    Events,
    Export,
    Exported,
    ListPins,
    Pin,
    Pinned,
    Pins,
    Subscribe,
    Unpin,
    unpack,
)
from sgl_actors.actors.microkernel import Actor, Message, Request
from sgl_actors.actors.microkernel.messages import ActorRow, Actors
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.node import cache_client
from sgl_actors.actors.node.client import (
    POLICIES,
    NodeClient,
    describe_edge,
    namespace_of,
    prompt_counts,
    split_namespace,
)
from sgl_actors.actors.scheduler.messages import Configuration, Configure, Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate
from sgl_actors.errors import ActorDown, Cancelled, ContextLengthExceeded, InvalidRequest


class Cache(Actor):
    """Holds what was computed; tells events 1 to 4 one by one, and then `ends` its incarnation or the stream."""

    computed: set[tuple[str, tuple[int, ...]]] = set()
    held: dict[tuple[str, str], Pinned] = {}
    asked: list[Message] = []
    incarnation = 1
    ends = ""

    async def receive(self, message: Message, request: Request) -> Message | None:
        self.asked.append(message)
        match message:
            case Pin():
                key = unpack(message.key)
                held = len(key) if (message.namespace, tuple(key)) in self.computed else 0
                name = message.name or f"drawn {len(self.asked)}"
                pin = Pinned(name, message.namespace, len(key), held, message.ttl)
                self.held[message.namespace, name] = pin
                return pin
            case Unpin():
                for name in message.names:
                    self.held.pop((message.namespace, name), None)
                return Pins([])
            case ListPins():
                return Pins(list(self.held.values()))
            case Subscribe():
                self._tell(message, request)
            case Export():
                request.item(Exported([Edge("a", 0, -1, [1])]))
                request.item(Exported([Edge("a", 1, 0, [2])]))
                request.end()
        return None

    def _tell(self, message: Subscribe, request: Request) -> None:
        same = message.incarnation in (None, self.incarnation)
        since = message.since if same else -1
        if since < 0:
            request.item(Events(self.incarnation, -1, [Event("cleared")]))
            since = 0
        for number in range(since + 1, min(4, since + 2) + 1):
            request.item(Events(self.incarnation, number, [Event("stored", "a", bytes([number]))]))
        if self.ends == "actor":
            self.ctx.task(crash())


async def crash() -> None:
    raise RuntimeError("killed")


class Tokenizer(Actor):
    """Computes prompts, or fails as `finish` says."""

    finish = Finish("length")
    asked: list[Generate] = []

    async def receive(self, message: Message, request: Request) -> Message | None:
        assert isinstance(message, Generate)
        self.asked.append(message)
        if self.finish.reason == "length":
            Cache.computed.add((namespace_of(message.tenant, message.salt), tuple(message.input_ids or ())))
        request.end(Chunk(0, [], "", finish=self.finish))
        return None


class Scheduler(Actor):
    """Takes any configuration."""

    asked: list[Configure] = []

    async def receive(self, message: Message, request: Request) -> Message | None:
        assert isinstance(message, Configure)
        self.asked.append(message)
        return Configuration(message.policy or "lpm", message.overtake or 0, True, True, message.stall or 3.0)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    Cache.computed, Cache.held, Cache.asked = set(), {}, []
    Tokenizer.asked, Scheduler.asked = [], []
    made = System("test", LocalTransport(LocalHub(), "local://test"), force_codec=True)
    await made.open()
    yield made
    await made.close()


def client_of(system: System) -> NodeClient:
    return NodeClient(system.spawn(Outside, "asker").context)


async def test_pin_computes_what_is_not_cached(system: System) -> None:
    """A prefix is computed once, without output, in its tenant's namespace; cached already it is only held."""
    system.spawn(Cache, "cache")
    system.spawn(Tokenizer, "tokenizer")
    client = client_of(system)
    first = await client.pin([1, 2, 3], ttl=60, tenant="t", salt="s")
    assert (first.namespace, first.tokens, first.held) == (namespace_of("t", "s"), 3, 3)
    (ask,) = Tokenizer.asked
    assert (ask.input_ids, ask.sampling.max_tokens, ask.tenant, ask.salt) == ([1, 2, 3], 0, "t", "s")
    again = await client.pin([1, 2, 3], ttl=60, name="mine", tenant="t", salt="s")
    assert (again.name, again.held) == ("mine", 3)
    assert len(Tokenizer.asked) == 1
    assert [pin.name for pin in await client.pins()] == [first.name, "mine"]
    await client.unpin([first, again])
    assert await client.pins() == []


@pytest.mark.parametrize(
    ("finish", "error"),
    [
        (Finish("error", code="context_length_exceeded", message="too long"), ContextLengthExceeded),
        (Finish("abort", code="cancelled", message="by an operator"), Cancelled),
    ],
)
async def test_a_pin_that_cannot_be_computed_is_taken_back(
    system: System, monkeypatch: pytest.MonkeyPatch, finish: Finish, error: type[Exception]
) -> None:
    """The reason is raised, and no wish stays behind."""
    monkeypatch.setattr(Tokenizer, "finish", finish)
    system.spawn(Cache, "cache")
    system.spawn(Tokenizer, "tokenizer")
    client = client_of(system)
    with pytest.raises(error):
        await client.pin([1], ttl=60)
    assert await client.pins() == []


async def test_a_live_pin_stays_if_its_successor_fails(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinning a live name again replaces it only once the new prefix is there."""
    system.spawn(Cache, "cache")
    system.spawn(Tokenizer, "tokenizer")
    client = client_of(system)
    await client.pin([1, 2, 3], ttl=60, name="keep")
    monkeypatch.setattr(Tokenizer, "finish", Finish("abort", code="cancelled", message="by an operator"))
    with pytest.raises(Cancelled):
        await client.pin([4, 5], ttl=60, name="keep")
    assert [(pin.name, pin.tokens) for pin in await client.pins()] == [("keep", 3)]


async def test_who_leaves_before_the_prefix_is_computed_leaves_no_pin(system: System) -> None:
    """An asker that is cancelled while it waits takes its wish with it."""
    system.spawn(Cache, "cache")
    client = client_of(system)
    waiting = asyncio.create_task(client.pin([1, 2, 3], ttl=60, name="left"))
    async with asyncio.timeout(10):
        while not Cache.held:
            await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await client.pins() == []


async def read(client: NodeClient, count: int, since: tuple[int, int] | None = None) -> list[Events]:
    """The first `count` messages."""
    batches: list[Events] = []
    async with asyncio.timeout(10), aclosing(cast("Any", client.events(since))) as stream:
        async for batch in stream:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


async def test_events_are_subscribed_to_anew_from_where_they_were(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that has become old is made again after the last number that is known, never after a -1."""
    monkeypatch.setattr(cache_client, "SUBSCRIPTION", 0.05)
    system.spawn(Cache, "cache")
    batches = await read(client_of(system), 5)
    assert [batch.number for batch in batches] == [-1, 1, 2, 3, 4]
    subscriptions = [message for message in Cache.asked if isinstance(message, Subscribe)]
    assert [(one.since, one.incarnation) for one in subscriptions] == [(-1, None), (2, 1)]


async def test_events_begin_with_a_given_number(system: System) -> None:
    """Whoever says what it knows gets what came after."""
    system.spawn(Cache, "cache")
    assert [batch.number for batch in await read(client_of(system), 2, (1, 2))] == [3, 4]


async def test_events_go_on_over_a_restart_of_the_cache(system: System) -> None:
    """The next incarnation is told what is known of the last one, and begins anew."""
    dying = type("Dying", (Cache,), {"ends": "actor"})
    first = system.spawn(dying, "cache")
    client = client_of(system)

    async def restart() -> None:
        await first.ended.wait()
        system.spawn(type("Second", (Cache,), {"incarnation": 2}), "cache")

    restarting = asyncio.create_task(restart())
    batches = await read(client, 6)
    await restarting
    assert [(batch.incarnation, batch.number) for batch in batches] == [
        (1, -1),
        (1, 1),
        (1, 2),
        (2, -1),
        (2, 1),
        (2, 2),
    ]


async def test_closing_events_cancels_at_the_cache(system: System) -> None:
    """Nobody goes on telling who has left."""
    gone = asyncio.Event()

    class Watched(Cache):
        def _tell(self, message: Subscribe, request: Request) -> None:
            request.on_cancel(gone.set)
            super()._tell(message, request)

    system.spawn(Watched, "cache")
    await read(client_of(system), 1)
    async with asyncio.timeout(10):
        await gone.wait()


async def test_export(system: System) -> None:
    """All messages in their order; without a cache it fails at once."""
    client = client_of(system)
    with pytest.raises(ActorDown):
        async for _ in client.export():
            pass
    system.spawn(Cache, "cache")
    edges = [edge async for part in client.export("a") for edge in part.edges]
    assert [edge.number for edge in edges] == [0, 1]
    assert Export("a") in Cache.asked


async def test_configure_refuses_before_it_asks(system: System) -> None:
    """Each wrong value names its field; nothing reaches the scheduler."""
    system.spawn(Scheduler, "scheduler")
    client = client_of(system)
    for changes in ({"policy": "best"}, {"overtake": -1}, {"stall": 1.0}, {"stall": float("nan")}, {"stall": float("inf")}):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            await client.configure(**cast("Any", changes))
        assert caught.value.param in changes
    assert Scheduler.asked == []
    for policy in POLICIES:
        assert (await client.configure(policy=policy)).policy == policy
    assert (await client.configure(stall=0, overtake=5)).overtake == 5
    await client.configure()
    assert Scheduler.asked[-1] == Configure()


def test_namespaces_and_lines() -> None:
    """A namespace comes apart into what it was made of; a line shows token ids only if asked."""
    assert split_namespace(namespace_of("t", "s")) == ("t", "s")
    assert split_namespace(namespace_of("t")) == ("t", "")
    line = describe_edge(Edge(namespace_of("t", "s"), 3, 1, [7, 8], 2, 5), with_tokens=False)
    assert (line.tenant, line.cache_salt, line.number, line.parent, line.tokens) == ("t", "s", 3, 1, 2)
    assert "token_ids" not in repr(line) or line.token_ids != [7, 8]
    assert describe_edge(Edge("t", 0, -1, [7]), with_tokens=True).token_ids == [7]


def test_prompt_counts_are_the_scheduler_s() -> None:
    """From its own row, whatever epoch it is in; nothing without one."""
    counts = {"prompt_tokens_total": 10.0, "cached_tokens_total": 4.0}
    rows = [
        ActorRow("tokenizer", "running", 1, 0, 0, 1, 1, statistics={"prompt_tokens_total": 99.0}),
        ActorRow("scheduler", "running", 3, 2, 0, 1, 1, statistics=counts),
    ]
    assert prompt_counts(Actors(rows, ready=True)) == (10, 4)
    assert prompt_counts(Actors(rows[:1], ready=True)) == (0, 0)
    assert prompt_counts(None) == (0, 0)


def test_prompt_counts_of_one_model_and_of_all() -> None:
    """Each model has a scheduler of its own; a suffix says whose is meant."""
    rows = [
        ActorRow(
            name,
            "running",
            1,
            0,
            0,
            1,
            1,
            statistics={"prompt_tokens_total": 10.0, "cached_tokens_total": hit},
        )
        for name, hit in (("scheduler", 1.0), ("scheduler@b#4", 2.0), ("scheduler@bc", 4.0))
    ]
    actors = Actors(rows, ready=True)
    assert prompt_counts(actors) == (30, 7)
    assert prompt_counts(actors, "") == (10, 1)
    assert prompt_counts(actors, "@b") == (10, 2)
