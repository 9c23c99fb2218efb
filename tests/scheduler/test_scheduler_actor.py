"""The actors over the kernel: scheduler, cache and fake worker in one process, every message encoded all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.cache.messages import (
    Commit,
    Entry,
    Flush,
    Grant,
    Inspect,
    Match,
    Matched,
    Pool,
    Probe,
    Reset,
    Want,
    pack,
)
from sgl_actors.actors.microkernel import Actor, Address, Context, Message, Request
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.scheduler import orphans
from sgl_actors.actors.scheduler.actor import SchedulerActor
from sgl_actors.actors.scheduler.messages import (
    Abort,
    DescribeModel,
    Drain,
    Drained,
    FlushCache,
    Flushed,
    ModelInfo,
    Progress,
    Sampling,
    Sequence,
    Submit,
    Update,
)
from sgl_actors.actors.worker.fake import FakeWorker, complete
from sgl_actors.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded

POISON = 999
CONFIG: dict[str, Any] = {
    "model": {"path": "fake"},
    "cache": {"pages": 256, "page_size": 4, "memory": 1 << 20},
    "scheduler": {"policy": "fcfs", "max_batch": 4, "chunk": 16, "queue": 64, "timeout": 30.0},
    "options": {"context": 512, "vocabulary": 1000, "poison": POISON},
}
GREEDY = Sampling(0)


class Asker(Actor):
    """Submits on a test's behalf and keeps what it is told."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.updates: list[Update] = []
        self.news = asyncio.Event()

    async def receive(self, message: Message, request: Request) -> None:
        assert isinstance(message, Progress)
        self.updates += message.updates
        self.news.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not done():
                self.news.clear()
                await self.news.wait()

    def output(self, name: str) -> list[int]:
        tokens: list[int] = []
        for update in self.updates:
            if update.id == name:
                tokens[update.first_index :] = update.token_ids
        return tokens

    def ends(self, name: str) -> list[str]:
        return [update.finish.reason for update in self.updates if update.id == name and update.finish]


class House:
    """One kernel with the three actors; a test starts, stops and asks."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.ctx = system.spawn(Outside, "outside").context

    async def start(self, actor: type[Actor], name: str) -> Any:
        """The actor's cell, when the actor is up."""
        up = asyncio.Event()

        def ready(address: Address) -> None:
            self.system.name_up(address)
            up.set()

        cell = self.system.spawn(actor, name, on_ready=ready)
        async with asyncio.timeout(10):
            await up.wait()
        return cell

    async def end(self, cell: Any) -> None:
        address: Address = cell.address
        cell.stop("test")
        await cell.ended.wait()
        self.system.name_down(address, "test")

    async def ready(self) -> ModelInfo:
        async with asyncio.timeout(10):
            while True:
                try:
                    return await self.ctx.call("scheduler", DescribeModel(), ModelInfo)
                except NotReady:
                    await asyncio.sleep(0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    system = System("here", LocalTransport(LocalHub(), "local://here"), config=CONFIG, force_codec=True)
    await system.open()
    yield House(system)
    await system.close()


def submit(asker: Actor, *names: str, max_tokens: int = 12) -> None:
    sequences = [Sequence(name, [5, 6, len(name)] * 4, max_tokens, GREEDY) for name in names]
    asker.ctx.cast("scheduler", Submit(sequences), control=True)


async def test_requests_are_served(house: House) -> None:
    """From Submit to Finish through all three actors, with the model's tokens."""
    cache = await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    names = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    submit(asker, *names)
    await asker.until(lambda: all(asker.ends(name) for name in names))
    for name in names:
        assert asker.output(name) == complete([5, 6, len(name)] * 4, GREEDY, 12, 1000)
        assert asker.ends(name) == ["length"]
    assert (await house.ready()).context == 512
    pool = await house.ctx.call("cache", Inspect(), Pool)
    assert (pool.leases, pool.leased, pool.total) == (0, 0, 256)
    assert pool.free + pool.cached == 256
    assert cache.actor.statistics()["pages_cached"] == pool.cached > 0


@pytest.mark.parametrize("which", ["worker/0", "cache", "both"])
async def test_restart_of_worker_or_cache_goes_unnoticed(house: House, which: str) -> None:
    """Requests that run when one of them goes down finish with the same tokens when it is back."""
    cells = {
        "cache": await house.start(CacheActor, "cache"),
        "worker/0": await house.start(FakeWorker, "worker/0"),
    }
    actors: dict[str, type[Actor]] = {"cache": CacheActor, "worker/0": FakeWorker}
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    submit(asker, "a", "bb", max_tokens=150)
    await asker.until(lambda: len(asker.output("a")) > 5)
    for name in ["worker/0", "cache"] if which == "both" else [which]:
        await house.end(cells[name])
        await house.start(actors[name], name)
    await asker.until(lambda: bool(asker.ends("a") and asker.ends("bb")))
    for name in ("a", "bb"):
        assert asker.output(name) == complete([5, 6, len(name)] * 4, GREEDY, 150, 1000)
        assert asker.ends(name) == ["length"]


async def test_restarted_scheduler_takes_over_worker_and_cache(house: House) -> None:
    """Its requests are lost, the leases end, and what the asker submits again is served to the end."""
    await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    scheduler = await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    submit(asker, "a", max_tokens=150)
    await asker.until(lambda: len(asker.output("a")) > 5)
    await house.end(scheduler)
    await house.start(SchedulerActor, "scheduler")
    known = asker.output("a")
    await house.ready()
    asker.ctx.cast("scheduler", Submit([Sequence("a", [5, 6, 1] * 4, 150, GREEDY, output=known)]))
    await asker.until(lambda: bool(asker.ends("a")))
    assert asker.output("a") == complete([5, 6, 1] * 4, GREEDY, 150, 1000)
    pool = await house.ctx.call("cache", Inspect(), Pool)
    assert (pool.leases, pool.leased) == (0, 0)


async def test_requests_of_an_asker_that_ends_are_aborted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while in which a successor could have come their pages come back, although nobody says so."""
    await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    scheduler = (await house.start(SchedulerActor, "scheduler")).actor
    monkeypatch.setattr(orphans, "ORPHAN", 0.01)
    cell = await house.start(Asker, "asker")
    submit(cell.actor, "a", max_tokens=400)
    await cell.actor.until(lambda: len(cell.actor.output("a")) > 5)
    await house.end(cell)
    await house.ctx.call("scheduler", Drain(), Drained)
    assert scheduler.core.counters["finished_abort"] == 1
    assert scheduler.core.busy == 0


async def test_describe_is_not_ready_without_a_worker(house: House) -> None:
    """Until a worker is up there is nothing to describe."""
    await house.start(SchedulerActor, "scheduler")
    with pytest.raises(NotReady):
        await house.ctx.call("scheduler", DescribeModel(), ModelInfo)


async def test_flush_is_refused_while_requests_run(house: House) -> None:
    """The tree is emptied only when nobody is inside; after an abort the step in flight is waited for, and nothing is left."""
    await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    submit(asker, "a", max_tokens=300)
    await asker.until(lambda: len(asker.output("a")) > 2)
    assert await house.ctx.call("scheduler", FlushCache(), Flushed) == Flushed(done=False, busy=1)
    asker.ctx.cast("scheduler", Abort(["a"]))
    assert await asker.ctx.call("scheduler", FlushCache(), Flushed) == Flushed(done=True)
    pool = await house.ctx.call("cache", Inspect(), Pool)
    assert (pool.leased, pool.cached, pool.free) == (0, 0, pool.total)


async def test_drain_waits_for_the_last_request(house: House) -> None:
    """Drained comes after every end; new requests are refused with `not_ready` meanwhile and after."""
    await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    submit(asker, "a", max_tokens=100)
    await asker.until(lambda: len(asker.output("a")) > 2)
    await house.ctx.call("scheduler", Drain(), Drained)
    await asker.until(lambda: bool(asker.ends("a")))
    submit(asker, "b")
    await asker.until(lambda: bool(asker.ends("b")))
    assert (asker.ends("a"), asker.ends("b")) == (["length"], ["error"])


async def test_drain_that_is_given_up_is_for_good(house: House) -> None:
    """When whoever drained no longer waits, new requests are refused all the same."""
    await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    submit(asker, "a", max_tokens=300)
    await asker.until(lambda: len(asker.output("a")) > 2)
    with pytest.raises(DeadlineExceeded):
        await house.ctx.call("scheduler", Drain(), Drained, timeout=0.001)
    submit(asker, "b")
    await asker.until(lambda: bool(asker.ends("b")))
    assert asker.ends("b") == ["error"]
    await asker.until(lambda: bool(asker.ends("a")))
    assert asker.ends("a") == ["length"]


async def test_poisoned_request_ends_and_its_neighbours_go_on(house: House) -> None:
    """A worker that crashes on one prompt is started again by its supervisor; that request alone ends, as quarantined."""
    await house.start(CacheActor, "cache")
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    crashes = 0

    async def supervise() -> None:
        nonlocal crashes
        while True:
            cell = await house.start(FakeWorker, "worker/0")
            await cell.ended.wait()
            crashes += 1
            house.system.name_down(cell.address, "Poisoned")

    async with asyncio.TaskGroup() as group:
        supervisor = group.create_task(supervise())
        poisoned = Sequence("p", [POISON, 6], 8, GREEDY)
        neighbours = [Sequence(name, [5, 6, len(name)] * 4, 8, GREEDY) for name in ("a", "bb", "ccc")]
        asker.ctx.cast("scheduler", Submit([*neighbours, poisoned]))
        await asker.until(lambda: all(asker.ends(name) for name in ("a", "bb", "ccc", "p")))
        supervisor.cancel()
    assert asker.ends("p") == ["error"]
    assert {update.finish.code for update in asker.updates if update.finish} == {"", "quarantined"}
    for name in ("a", "bb", "ccc"):
        assert asker.output(name) == complete([5, 6, len(name)] * 4, GREEDY, 8, 1000)
    assert 2 <= crashes <= 4


async def test_worker_stopped_by_an_operator_is_no_suspect(house: House) -> None:
    """A `Down` with the reason "stopped" counts against nobody, however often."""
    await house.start(CacheActor, "cache")
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    submit(asker, "a", max_tokens=300)
    for round_ in range(4):
        cell = await house.start(FakeWorker, "worker/0")
        await asker.until(lambda round_=round_: len(asker.output("a")) > 5 + 20 * round_)
        house.system.name_down(cell.address, "stopped")
        cell.stop("stopped")
        await cell.ended.wait()
    await house.start(FakeWorker, "worker/0")
    await asker.until(lambda: bool(asker.ends("a")))
    assert asker.ends("a") == ["length"]


async def test_what_finds_no_room_is_sent_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that takes no mail for a while loses neither the end of a request nor a lease, and ends nobody."""
    await house.start(CacheActor, "cache")
    await house.start(FakeWorker, "worker/0")
    scheduler = (await house.start(SchedulerActor, "scheduler")).actor
    asker = (await house.start(Asker, "asker")).actor
    cast, refused = scheduler.ctx.cast, {"Commit": 0, "Progress": 0}

    def full(to: Any, message: Message, **how: Any) -> None:
        kind = type(message).__name__
        if refused.get(kind, 9) < 9 and (kind == "Commit" or any(u.finish for u in message.updates)):  # type: ignore[attr-defined]
            refused[kind] += 1
            raise Overloaded("full")
        cast(to, message, **how)

    monkeypatch.setattr(scheduler.ctx, "cast", full)
    submit(asker, "a", "bb", "ccc", max_tokens=4)
    await asker.until(lambda: all(asker.ends(name) for name in ("a", "bb", "ccc")))
    assert [asker.ends(name) for name in ("a", "bb", "ccc")] == [["length"]] * 3
    assert refused["Progress"] == 9
    async with asyncio.timeout(10):
        while (await house.ctx.call("cache", Inspect(), Pool)).leases:
            pass
    assert refused["Commit"] == 9


async def test_deadline_passes_on_the_real_clock(house: House) -> None:
    """A request that waits for a worker that never comes ends when its time is up."""
    await house.start(SchedulerActor, "scheduler")
    asker = (await house.start(Asker, "asker")).actor
    asker.ctx.cast("scheduler", Submit([Sequence("a", [5], 4, GREEDY, timeout=0.05)]))
    await asker.until(lambda: bool(asker.ends("a")))
    assert asker.updates[-1].finish.code == "deadline_exceeded"


async def test_cache_serves_its_owner_alone(house: House) -> None:
    """Who resets the pool owns it; others may match and inspect, but get no lease and commit nothing."""
    await house.start(CacheActor, "cache")
    stranger = house.system.spawn(Outside, "stranger").context
    pool = await house.ctx.call("cache", Reset(3, 16, 1), Pool)
    assert (pool.epoch, pool.free) == (3, 16)
    with pytest.raises(InvalidRequest, match="own"):
        await stranger.call("cache", Grant(3, [Want(1, pack([1]), 1, 1)]), Message)
    granted: Any = await house.ctx.call(
        "cache", Grant(3, [Want(1, pack([1, 2]), 2, 4), Want(2, pack([9]), 1, 99)]), Message
    )
    assert [lease.lease for lease in granted.leases] == [1]
    stranger.cast("cache", Commit(3, [Entry(1, pack([1, 2]))]))
    house.ctx.cast("cache", Commit(2, [Entry(1, pack([1, 2]))]))
    house.ctx.cast("cache", Commit(3, [Entry(1, pack([1, 2]), release=False)]))
    matched = await house.ctx.call("cache", Match([Probe(pack([1, 2, 3])), Probe(pack([2]))]), Matched)
    assert matched.lengths == [2, 0]
    stale: Any = await house.ctx.call("cache", Grant(1, [Want(5, pack([1]), 1, 1)]), Message)
    assert (stale.epoch, stale.leases) == (3, [])


async def test_leases_end_with_their_owner(house: House) -> None:
    """When the owner goes down its pages come back; what it had committed stays, evictable."""
    await house.start(CacheActor, "cache")
    owner = house.system.spawn(Outside, "owner")
    await owner.context.call("cache", Reset(3, 16, 1), Pool)
    await owner.context.call("cache", Grant(3, [Want(1, pack([1, 2, 3]), 2, 6)]), Message)
    owner.context.cast("cache", Commit(3, [Entry(1, pack([1, 2]), release=False)]))
    await house.end(owner)
    pool = await house.ctx.call("cache", Inspect(), Pool)
    assert (pool.leases, pool.leased, pool.locked, pool.cached) == (0, 0, 0, 2)
    pool = await house.ctx.call("cache", Flush(), Pool)
    assert pool.free == 16
