"""The cache actor over the kernel: who may do what, pins by the clock, streams with credit. Every message is encoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import pytest

from sgl_actors.actors.cache import actor as actor_module
from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.cache.messages import (
    CheckAccounts,
    Commit,
    Entry,
    Events,
    Export,
    Exported,
    Flush,
    Grant,
    Granted,
    Inspect,
    ListPins,
    Match,
    Matched,
    More,
    Pin,
    Pinned,
    Pins,
    Pool,
    Probe,
    Reset,
    Subscribe,
    Unpin,
    Want,
    pack,
)
from sgl_actors.actors.microkernel import Context, Message
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.errors import ConfigError, InvalidRequest, Overloaded

PAGES = 4096


class House:
    """A cache with a pool that the test owns, and a stranger."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.owner = system.spawn(Outside, "owner").context
        self.stranger = system.spawn(Outside, "stranger").context
        self.leases = 0

    async def start(self) -> CacheActor:
        """The cache, up and reset."""
        up = asyncio.Event()
        cell = self.system.spawn(CacheActor, "cache", on_ready=lambda address: self.up(address, up))
        async with asyncio.timeout(10):
            await up.wait()
        await self.reset(1)
        return cast("CacheActor", cell.actor)

    def up(self, address: Any, event: asyncio.Event) -> None:
        self.system.name_up(address)
        event.set()

    async def reset(self, epoch: int) -> Pool:
        return await self.owner.call("cache", Reset(epoch, PAGES, 1, "model@1"), Pool, control=True)

    async def fill(self, tokens: list[int], epoch: int = 1) -> None:
        """A whole request."""
        self.leases += 1
        want = Want(self.leases, pack(tokens), len(tokens), len(tokens))
        granted = await self.owner.call("cache", Grant(epoch, [want]), Granted, control=True)
        assert len(granted.leases) == 1
        self.owner.cast("cache", Commit(epoch, [Entry(self.leases, pack(tokens))]), control=True)

    def reading(self, message: Message, *, credit: int = 64) -> Any:
        """The stream that answers a stranger, closed at the end of the block."""
        return aclosing(cast("Any", self.stranger.stream("cache", message, credit=credit)))


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    system = System(
        "here", LocalTransport(LocalHub(), "local://here"), config={"cache": {"events": 8}}, force_codec=True
    )
    await system.open()
    yield House(system)
    await system.close()


async def test_the_owner_is_served(house: House) -> None:
    """Match, grant, grow and commit, all on packed keys; `Inspect` has the accounts."""
    cache = await house.start()
    await house.fill([1, 2, 3])
    probes = [Probe(pack([1, 2, 9])), Probe(pack([1, 2, 3]), "other")]
    matched = await house.owner.call("cache", Match(probes, touch=True), Matched)
    assert matched.lengths == [2, 0]
    want = Want(9, pack([1, 2, 3, 4]), 3, 4)
    granted = await house.owner.call("cache", Grant(1, [want], []), Granted, control=True)
    assert granted.leases[0].cached == 3
    granted = await house.owner.call("cache", Grant(1, [], [More(9, 2), More(8, 1)]), Granted, control=True)
    assert [len(pages) for pages in granted.more] == [2]
    stale = await house.owner.call("cache", Grant(0, [want], [More(9, 1)]), Granted, control=True)
    assert (stale.epoch, stale.leases, stale.more) == (1, [], [])
    pool = await house.stranger.call("cache", Inspect(), Pool)
    assert (pool.free, pool.cached, pool.leased, pool.locked, pool.pinned) == (PAGES - 6, 3, 3, 3, 0)
    assert cache.statistics()["unknown_leases_total"] == 1


async def test_only_the_owner_changes_the_order(house: House) -> None:
    """A stranger may ask what is cached, but neither touch nor take it."""
    cache = await house.start()
    await house.fill([1, 2, 3])
    probe = Probe(pack([1, 2, 3]))
    assert (await house.stranger.call("cache", Match([probe]), Matched)).lengths == [3]
    with pytest.raises(InvalidRequest, match="does not own the pool"):
        await house.stranger.call("cache", Match([probe], touch=True), Matched)
    with pytest.raises(InvalidRequest, match="does not own the pool"):
        await house.stranger.call("cache", Grant(1, []), Granted)
    with pytest.raises(InvalidRequest, match="7 bytes"):
        await house.stranger.call("cache", Match([Probe(b"1234567")]), Matched)
    assert cache.statistics()["refused_messages_total"] == 2


async def test_pins_of_a_namespace(house: House) -> None:
    """Pin, list and unpin; a name is drawn if there is none; flush spares what is pinned, and the accounts show it."""
    cache = await house.start()
    await house.fill([1, 2, 3])
    drawn = await house.stranger.call("cache", Pin(key=pack([1, 2]), ttl=60.0), Pinned)
    assert (drawn.tokens, drawn.held) == (2, 2)
    assert len(drawn.name) == 12
    await house.stranger.call("cache", Pin(key=pack([7]), ttl=60.0, namespace="b", name="n"), Pinned)
    pool = await house.stranger.call("cache", Flush(), Pool)
    assert (pool.cached, pool.pinned, pool.evicted) == (2, 2, 1)
    everywhere = await house.stranger.call("cache", ListPins(), Pins)
    assert [(pin.namespace, pin.name) for pin in everywhere.pins] == [("default", drawn.name), ("b", "n")]
    left = await house.stranger.call("cache", Unpin([drawn.name, "unheard of"]), Pins)
    assert left.pins == []
    assert [pin.name for pin in (await house.stranger.call("cache", ListPins("b"), Pins)).pins] == ["n"]
    statistics = cache.statistics()
    assert (statistics["pins"], statistics["pages_pinned"]) == (1, 0)
    assert cache.core.check() == []


async def test_pins_end_by_the_clock_and_survive_a_reset(house: House) -> None:
    """One timer is enough for all; a pin's wish is held again in the next pool."""
    cache = await house.start()
    await house.stranger.call("cache", Pin(key=pack([1, 2]), ttl=60.0, name="long"), Pinned)
    await house.stranger.call("cache", Pin(key=pack([1]), ttl=0.02, name="short"), Pinned)
    await house.fill([1, 2])
    await until(lambda: cache.core.pins.count == 1)
    await house.reset(2)
    listed = await house.stranger.call("cache", ListPins(), Pins)
    assert [(pin.name, pin.held) for pin in listed.pins] == [("long", 0)]
    await house.fill([1, 2, 3], epoch=2)
    listed = await house.stranger.call("cache", ListPins(), Pins)
    assert [(pin.name, pin.held) for pin in listed.pins] == [("long", 2)]


async def test_pins_have_one_timer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often names are pinned again and unpinned, one timer waits at most."""
    cache = await house.start()
    waiting: set[int] = set()
    numbers = iter(range(100))

    def after(_seconds: float, _message: Message) -> Callable[[], None]:
        number = next(numbers)
        waiting.add(number)
        return lambda: waiting.discard(number)

    monkeypatch.setattr(cache.ctx, "after", after)
    for name in "aabab":
        await house.stranger.call("cache", Pin(key=pack([1]), ttl=60.0, name=name), Pinned)
        assert len(waiting) == 1
    await house.stranger.call("cache", Unpin(["a"]), Pins)
    assert len(waiting) == 1
    await house.stranger.call("cache", Unpin(["b"]), Pins)
    assert not waiting


async def test_pin_gives_way_to_a_request_that_needs_the_pool(house: House) -> None:
    """A grant of the whole pool is served at once, and the pin is gone and counted."""
    cache = await house.start()
    await house.fill([1, 2])
    await house.stranger.call("cache", Pin(key=pack([1, 2]), ttl=60.0), Pinned)
    want = Want(99, b"", 0, PAGES)
    granted = await house.owner.call("cache", Grant(1, [want]), Granted, control=True)
    assert len(granted.leases) == 1
    assert (cache.statistics()["pins"], cache.statistics()["yielded_pins_total"]) == (0, 1)


async def test_subscription_follows(house: House) -> None:
    """First everything of now, then what happens; who leaves is forgotten, who comes back reads on."""
    cache = await house.start()
    await house.fill([1] * 128)
    async with house.reading(Subscribe()) as stream:
        first: Events = await anext(stream)
        assert [event.kind for event in first.events] == ["cleared", "stored", "stored"]
        assert cache.statistics()["subscribers"] == 1
        await house.fill([2] * 64)
        second: Events = await anext(stream)
        assert [event.kind for event in second.events] == ["stored"]
        assert second.number == first.number + 1
    await until(lambda: cache.statistics()["subscribers"] == 0)
    await house.fill([3] * 64)
    back = Subscribe(second.number, second.incarnation)
    async with house.reading(back) as stream:
        third: Events = await anext(stream)
        assert [event.token_ids for event in third.events] == [[3] * 64]
    other = Subscribe(second.number, second.incarnation + 1)
    async with house.reading(other) as stream:
        assert (await anext(stream)).events[0].kind == "cleared"


async def test_slow_subscriber_is_sent_no_more_than_it_has_asked_for(house: House) -> None:
    """Without credit nothing is sent or kept for it; when it reads again it is brought up to date."""
    cache = await house.start()
    async with house.reading(Subscribe(), credit=2) as stream:
        await anext(stream)
        for token in range(20):
            await house.fill([token] * 64)
        await house.stranger.call("cache", Inspect(), Pool)
        (request,) = cache._subscribers
        assert request.credit == 0
        seen: set[int] = set()
        while len(seen) < 20:
            events: Events = await anext(stream)
            for event in events.events:
                seen = set() if event.kind == "cleared" else seen | {event.token_ids[0]}
        assert seen == set(range(20))


async def test_recording_ends_when_nobody_reads(house: House) -> None:
    """At the second check without a subscriber nothing is hashed or kept any more."""
    cache = await house.start()
    async with house.reading(Subscribe()) as stream:
        await anext(stream)
        house.owner.cast("cache", CheckAccounts(), control=True)
        house.owner.cast("cache", CheckAccounts(), control=True)
        await house.owner.call("cache", Inspect(), Pool, control=True)
        assert cache.log_of_events.recording
    await until(lambda: not cache._subscribers)
    house.owner.cast("cache", CheckAccounts(), control=True)
    house.owner.cast("cache", CheckAccounts(), control=True)
    await house.owner.call("cache", Inspect(), Pool, control=True)
    assert not cache.log_of_events.recording


async def test_export_ends(house: House) -> None:
    """All edges of a namespace, message by message as the reader gives credit, then the end."""
    cache = await house.start()
    for token in range(5):
        await house.fill([token] * 64)
    edges = []
    async with house.reading(Export("default"), credit=1) as stream:
        async for page in stream:
            assert isinstance(page, Exported)
            edges += page.edges
    assert sorted(edge.token_ids[0] for edge in edges) == [0, 1, 2, 3, 4]
    assert cache._exports == {}
    async with house.reading(Export("other")) as stream:
        assert [page async for page in stream] == []


async def test_readers_are_streams_and_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call cannot subscribe, and there are only so many readers at a time."""
    monkeypatch.setattr(actor_module, "MOST_READERS", 1)
    await house.start()
    with pytest.raises(InvalidRequest, match="answered by a stream"):
        await house.stranger.call("cache", Subscribe(), Events)
    async with house.reading(Subscribe()) as stream:
        await anext(stream)
        with pytest.raises(Overloaded, match="1 readers"):
            await anext(aiter(house.owner.stream("cache", Subscribe())))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pinned": 1.0}, "pinned"),
        ({"pinned": -0.1}, "pinned"),
        ({"events": 0}, "events"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], why: str) -> None:
    """The message names the key and its range."""

    class Stub:
        config = {"cache": options}

    with pytest.raises(ConfigError, match=why):
        actor_module._options(cast("Context", Stub()))


async def test_numbers_of_another_log_are_not_taken_for_its_own(house: House) -> None:
    """A cache that has been started anew, in this node or in another of its name, has an incarnation nobody has seen."""
    one, two = await house.start(), CacheActor(house.stranger)
    assert one.log_of_events.incarnation != two.log_of_events.incarnation


@pytest.mark.parametrize("damage", ["lost page", "wrong total"])
async def test_damaged_accounts_are_mended_at_the_next_check(house: House, damage: str) -> None:
    """Where free + cached + leased is not the total, the periodic check counts it and puts it right; leases and what is cached stay."""
    cache = await house.start()
    await house.fill([1, 2, 3])
    want = Want(9, pack([1, 2, 3, 4]), 3, 4)
    await house.owner.call("cache", Grant(1, [want], []), Granted, control=True)
    if damage == "lost page":
        cache.core._pool.take(5)
    else:
        cache.core.tree.cached += 2
    pool = await house.stranger.call("cache", Inspect(), Pool)
    assert pool.free + pool.cached + pool.leased != PAGES
    house.stranger.cast("cache", CheckAccounts())
    pool = await house.stranger.call("cache", Inspect(), Pool)
    assert (pool.free, pool.cached, pool.leased) == (PAGES - 4, 3, 1)
    assert cache.statistics()["repairs_total"] == 1
    assert cache.core.check() == []


async def test_readers_read_on_from_another_class(house: House) -> None:
    """A subscription that has read everything goes on with the next event, one that has not begins anew, and an export comes to its end."""
    await house.start()
    cell = house.system.cells["cache"]
    for token in range(600):
        await house.fill([token])
    async with (
        house.reading(Subscribe()) as quick,
        house.reading(Subscribe(), credit=2) as slow,
        house.reading(Export(), credit=1) as export,
    ):
        first: Any = await anext(quick)
        await anext(slow)
        edges = len((await anext(export)).edges)
        for token in range(10):
            await house.fill([1000 + token] * 64)
            first = await anext(quick)
        await cell.swap(CacheActor, {"cache": {"events": 8}}, 5.0)
        await house.fill([2000] * 64)
        then: Any = await anext(quick)
        assert [event.token_ids[0] for event in then.events] == [2000]
        assert (then.number, then.incarnation) == (first.number + 1, first.incarnation)
        anew = 0
        seen: set[int] = set()
        while len(seen) < 11:
            for event in (await anext(slow)).events:
                anew += event.kind == "cleared"
                seen = set() if event.kind == "cleared" else seen | {event.token_ids[0]}
        assert anew == 1
        assert edges + sum([len(page.edges) async for page in export]) == 600
