"""Scheduler and cache under load: another class in their place, messages that make no sense, answers that never come."""

from __future__ import annotations

import asyncio
import math
from itertools import cycle, islice
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.cache.handover import CacheState
from sgl_actors.actors.cache.messages import (
    Commit,
    Entry,
    Flush,
    Grant,
    Inspect,
    Match,
    Matched,
    Pin,
    Pool,
    Probe,
    Reset,
    Subscribe,
    Want,
)
from sgl_actors.actors.microkernel import Actor, Address, Message, Request, Snapshot
from sgl_actors.actors.scheduler import overdue
from sgl_actors.actors.scheduler.actor import SchedulerActor
from sgl_actors.actors.scheduler.core import SchedulerCore
from sgl_actors.actors.scheduler.effects import Effect, ToCache
from sgl_actors.actors.scheduler.messages import (
    Abort,
    Configuration,
    Configure,
    Drain,
    Drained,
    FlushCache,
    Flushed,
    Logprobs,
    Progress,
    Sequence,
    Stop,
    Submit,
)
from sgl_actors.actors.worker.fake import FakeWorker, complete
from sgl_actors.actors.worker.messages import Describe, NeedFull, ResetDone, SequenceResult, Step, StepDone
from sgl_actors.errors import SwapFailed
from tests.scheduler.desk import ASKER, Desk, request
from tests.scheduler.test_scheduler_actor import CONFIG, GREEDY, POISON, Asker, House, house, submit

__all__ = ["house"]


class OtherScheduler(SchedulerActor):
    """Somebody else's class."""


class OtherCache(CacheActor):
    """Somebody else's class."""


class BrokenScheduler(SchedulerActor):
    async def restore(self, snapshot: Snapshot) -> None:
        raise ValueError("not today")


class BrokenCache(CacheActor):
    async def restore(self, snapshot: Snapshot) -> None:
        raise ValueError("not today")


class OwnState(msgspec.Struct):
    """What somebody else cares for in a scheduler's snapshot."""

    epoch: int
    requests: list[dict[str, Any]]


class AnewScheduler(SchedulerActor):
    """Reads the snapshot for itself, and begins a new epoch with requests as if they had been submitted again."""

    async def restore(self, snapshot: Snapshot) -> None:
        state = snapshot.read("scheduler/1", OwnState)
        self.core.links.epoch = state.epoch
        for one in state.requests:
            sequence = msgspec.convert(one["sequence"], Sequence)
            again = msgspec.structs.replace(sequence, output=one.get("output", []))
            owner = msgspec.convert(one["owner"], type(self.ctx.address))
            self._know(owner)
            self._perform(self.core.submit([again], owner, self.ctx.now()))
        await self.start()


async def serve(house: House, worker: type[Actor] = FakeWorker) -> tuple[Any, Any, Asker]:
    """Everything up: the cells of cache and scheduler, and an asker."""
    cache = await house.start(CacheActor, "cache")
    await house.start(worker, "worker/0")
    scheduler = await house.start(SchedulerActor, "scheduler")
    return cache, scheduler, (await house.start(Asker, "asker")).actor


async def idle(house: House) -> Pool:
    """The cache's accounts when no lease is left; they come with the last steps."""
    while (pool := await house.ctx.call("cache", Inspect(), Pool)).leases:
        pass
    assert pool.free + pool.cached + pool.leased == pool.total
    return pool


async def told(asker: Asker, count: int) -> None:
    """More than that many updates have come."""
    await asker.until(lambda: len(asker.updates) > count)


def check(asker: Asker, names: list[str], tokens: int) -> None:
    """Each ended once, and was told each of the model's tokens once."""
    for name in names:
        told = [update for update in asker.updates if update.id == name]
        assert [update.first_index for update in told if update.token_ids] == list(
            range(sum(bool(update.token_ids) for update in told))
        )
        assert asker.output(name) == complete([5, 6, len(name)] * 4, GREEDY, tokens, 1000)
        assert asker.ends(name) == ["length"]


async def test_requests_do_not_notice_that_scheduler_and_cache_are_swapped(house: House) -> None:
    """Under load, 20 times each: nobody fails, nothing is told twice, outputs are the model's, totals go on, pages come back."""
    cache, scheduler, asker = await serve(house)
    names = ["x" * (1 + n) for n in range(12)]
    submit(asker, *names, max_tokens=120)
    busy = 0
    classes = cycle([(OtherScheduler, OtherCache), (SchedulerActor, CacheActor)])
    for number, (one, other) in enumerate(islice(classes, 20)):
        await told(asker, 20 * number)
        epoch, steps = scheduler.actor.core.links.epoch, scheduler.actor.core.counters["steps"]
        await scheduler.swap(one, CONFIG, 5.0)
        await cache.swap(other, CONFIG, 5.0)
        assert (type(scheduler.actor), type(cache.actor)) == (one, other)
        assert scheduler.actor.core.links.epoch == epoch
        assert scheduler.actor.core.counters["steps"] >= steps > 0
        busy += scheduler.actor.core.busy > 0
    assert busy > 10
    await asker.until(lambda: all(asker.ends(name) for name in names))
    check(asker, names, 120)
    pool = await idle(house)
    assert pool.cached > 0
    assert scheduler.actor.core.counters["requests"] == len(names)
    assert scheduler.actor.core.counters["requeued"] == 0
    assert cache.actor.statistics()["refused_commits_total"] == 0
    submit(asker, "last")
    await asker.until(lambda: bool(asker.ends("last")))
    worker: Any = house.system.cells["worker/0"].actor
    assert len(worker.model._held) <= 1, "the worker was not told of ends before a swap"


async def test_failed_swap_is_rolled_back(house: House) -> None:
    """A class that cannot restore leaves the old one in charge, and the requests go on."""
    cache, scheduler, asker = await serve(house)
    submit(asker, "a", "bb", max_tokens=100)
    await asker.until(lambda: len(asker.output("a")) > 5)
    for cell, broken in ((scheduler, BrokenScheduler), (cache, BrokenCache)):
        before = cell.actor
        with pytest.raises(SwapFailed, match="not today"):
            await cell.swap(broken, CONFIG, 5.0)
        assert cell.actor is before
    await asker.until(lambda: all(asker.ends(name) for name in ("a", "bb")))
    check(asker, ["a", "bb"], 100)
    await idle(house)


async def test_successor_needs_no_more_than_plain_data(house: House) -> None:
    """A class that reads two fields of the snapshot and begins a new epoch goes on with every request all the same."""
    _, scheduler, asker = await serve(house)
    names = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    submit(asker, *names, max_tokens=100)
    await asker.until(lambda: len(asker.output("a")) > 5)
    epoch = scheduler.actor.core.links.epoch
    await scheduler.swap(AnewScheduler, CONFIG, 5.0)
    await asker.until(lambda: all(asker.ends(name) for name in names))
    check(asker, names, 100)
    assert scheduler.actor.core.links.epoch > epoch


class Reticent(FakeWorker):
    """Answers `Describe` when it is let."""

    asked: list[Request] = []

    async def receive(self, message: Message, request: Request) -> Message | None:
        if isinstance(message, Describe):
            self.asked.append(request)
            return None
        return await super().receive(message, request)


async def test_swap_before_the_worker_has_said_what_it_serves(house: House) -> None:
    """The predecessor takes back its question, the successor asks for itself, and what waited is served."""
    _, scheduler, asker = await serve(house, Reticent)
    submit(asker, "a")
    await asker.until(lambda: bool(Reticent.asked))
    while not scheduler.actor.core.busy:
        await asyncio.sleep(0)
    await scheduler.swap(OtherScheduler, CONFIG, 5.0)
    while len(Reticent.asked) < 2 or not Reticent.asked[0].cancelled:
        await asyncio.sleep(0)
    worker: Any = house.system.cells["worker/0"].actor
    Reticent.asked[1].reply(worker.model.info)
    Reticent.asked.clear()
    await asker.until(lambda: bool(asker.ends("a")))
    check(asker, ["a"], 12)


async def test_what_was_asked_before_a_swap_is_answered_after_it(house: House) -> None:
    """A drain, a change of the order, a pin, a subscription with its numbers."""
    cache, scheduler, asker = await serve(house)
    submit(asker, "a", max_tokens=100)
    await asker.until(lambda: len(asker.output("a")) > 5)
    await house.ctx.call("scheduler", Configure(policy="lpm", overtake=77), Configuration)
    await house.ctx.call("cache", Pin(b"\0" * 32, 60.0, name="kept"), Message)
    events = house.ctx.stream("cache", Subscribe())
    first: Any = await anext(events)
    async with asyncio.TaskGroup() as group:
        drain = group.create_task(house.ctx.call("scheduler", Drain(), Drained))
        while not scheduler.actor.core.lifecycle.draining:
            await asyncio.sleep(0)
        await scheduler.swap(OtherScheduler, CONFIG, 5.0)
        await cache.swap(OtherCache, CONFIG, 5.0)
        core = scheduler.actor.core
        assert (core.queue.policy.name, core.queue.overtake, core.busy) == ("lpm", 77, 1)
        assert not drain.done()
    assert asker.ends("a") == ["length"]
    assert (await house.ctx.call("scheduler", FlushCache(), Flushed)).done
    later: Any = await anext(events)
    assert later.incarnation == first.incarnation
    assert later.number > first.number
    pins: Any = cache.actor.core.pins.live(house.ctx.now())
    assert [(pin.name, 50 < pin.left <= 60) for pin in pins] == [("kept", True)]
    await events.aclose()  # type: ignore[attr-defined]


async def test_contents_that_contradict_themselves_are_refused(house: House) -> None:
    """A snapshot in which a page has two owners makes no cache; the old one goes on."""

    class Lying(CacheActor):
        def snapshot(self) -> Snapshot:
            snapshot = super().snapshot()
            state = snapshot.read("cache/1", CacheState)
            edges = [
                msgspec.structs.replace(edge, pages=[0] * len(edge.pages)) for edge in state.contents.edges
            ]
            contents = msgspec.structs.replace(state.contents, edges=edges)
            return Snapshot.of("cache/1", msgspec.structs.replace(state, contents=contents))

    cache, _, asker = await serve(house)
    submit(asker, "a")
    await asker.until(lambda: bool(asker.ends("a")))
    await idle(house)
    await cache.swap(Lying, CONFIG, 5.0)
    with pytest.raises(SwapFailed, match="contradict"):
        await cache.swap(CacheActor, CONFIG, 5.0)
    submit(asker, "bb")
    await asker.until(lambda: bool(asker.ends("bb")))
    check(asker, ["bb"], 12)


def test_what_the_cache_could_not_be_told_is_told_by_the_successor() -> None:
    """A commit for which there was no room goes over, so that no lease is left."""
    desk = Desk()
    desk.submit(request("a", [1, 2, 3], 9))
    desk.run(3)
    desk.take(desk.core.pause())
    desk.run()
    for effect in desk.core.withdraw():
        if isinstance(effect, ToCache) and isinstance(effect.message, Commit):
            desk.core.uncommitted(effect.message, desk.now)
    state = msgspec.structs.replace(desk.core.state(desk.now), cache=Address("cache", 1))
    assert len(state.entries) == desk.cache.leases == 1
    desk.core = SchedulerCore(desk.core.settings.options)
    desk.take(desk.core.take(state, desk.now))
    desk.run()
    assert desk.output("a") == complete([1, 2, 3], GREEDY, 9, 1000)
    desk.idle()


NONSENSE: list[Message] = [
    Submit([Sequence("n1", [], 4, GREEDY)]),
    Submit([Sequence("n2", [2**63], 4, GREEDY)]),
    Submit([Sequence("n3", [-7], 4, GREEDY)]),
    Submit([Sequence("n4", [5], -4, GREEDY)]),
    Submit([Sequence("n5", [5], 2**62, GREEDY)]),
    Submit([Sequence("n6", [5], 4, GREEDY, timeout=math.nan)]),
    Submit([Sequence("n7", [5], 4, GREEDY, timeout=math.inf)]),
    Submit([Sequence("n8", [5], 4, GREEDY, timeout=-1.0)]),
    Submit([Sequence("n9", [5], 1, GREEDY, output=[5, 5])]),
    Submit([Sequence("n10", [5], 4, GREEDY, output=[2**63])]),
    Submit([Sequence("n11", [5], 4, GREEDY, tenant="a\x1fb")]),
    Submit([Sequence("a", [5], 4, GREEDY, Logprobs(True, 1, 0))]),
    Stop("nobody", -5, ""),
    Abort(["nobody", ""]),
    StepDone(0, 0, []),
    StepDone(-1, 2**63, [SequenceResult(7, 2**63)], math.nan),
    ResetDone(2**63),
    NeedFull(-3),
    Drained(),
    Progress([]),
    Configure(overtake=-1),
    Configure(stall=math.nan),
    Commit(0, [Entry(-1, b"odd")]),
    Grant(1, [Want(1, b"odd", -1, -1)]),
    Match([Probe(b"odd")], touch=True),
    Pin(b"", math.nan),
    Subscribe(),
    Reset(9, 0, 0),
    Reset(9, 2**60, 1),
    Step(0, 0, [], [], []),
    Flush(),
]


async def test_nonsense_ends_nobody(house: House) -> None:
    """Whatever is cast at scheduler and cache, by whomever, both live on, count it, and go on with their work."""
    cache, scheduler, asker = await serve(house)
    stranger = (await house.start(Asker, "stranger")).actor
    submit(asker, "a", max_tokens=100)
    await asker.until(lambda: len(asker.output("a")) > 5)
    for message in NONSENSE:
        for name in ("scheduler", "cache"):
            stranger.ctx.cast(name, message)
    bad = ["a", *(f"n{n}" for n in range(1, 12))]
    await stranger.until(lambda: all(stranger.ends(name) for name in bad))
    await asker.until(lambda: bool(asker.ends("a")))
    assert {stranger.ends(name)[0] for name in bad} == {"error"}
    check(asker, ["a"], 100)
    await idle(house)
    assert {house.system.cells["scheduler"], house.system.cells["cache"]} == {scheduler, cache}
    assert scheduler.actor.core.counters["refused_messages"] >= 10
    assert cache.actor.statistics()["refused_messages_total"] >= 10


class Forgetful(FakeWorker):
    """Loses the answer to its tenth step."""

    async def receive(self, message: Message, request: Request) -> Message | None:
        if isinstance(message, Step) and self.steps == 9:
            self.steps += 1
            self.model.step(message)
            return None
        return await super().receive(message, request)


async def test_lost_answer_of_the_worker_is_asked_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a StepDone does not come for long, the scheduler finds out that it is lost and computes the step again."""
    monkeypatch.setattr(overdue, "PATIENCE", 0.05)
    _, scheduler, asker = await serve(house, Forgetful)
    submit(asker, "a", "bb", max_tokens=60)
    await asker.until(lambda: all(asker.ends(name) for name in ("a", "bb")))
    check(asker, ["a", "bb"], 60)
    assert scheduler.actor.core.counters["overdue_answers"] == 1


async def test_one_poisoned_request_of_a_hundred_ends_alone(house: House) -> None:
    """After two crashes of the worker in which it ran alone it is refused with that reason; its 99 neighbours succeed."""
    await house.start(CacheActor, "cache")
    core = (await house.start(SchedulerActor, "scheduler")).actor.core
    core.settings.options = msgspec.structs.replace(core.settings.options, queue=100)
    asker = (await house.start(Asker, "asker")).actor
    names = [f"r{n}" for n in range(99)]
    sequences = [Sequence(name, [5, 6, 7 + n] * 4, 4, GREEDY) for n, name in enumerate(names)]
    sequences.insert(50, Sequence("poisoned", [5, 6, POISON], 4, GREEDY))
    asker.ctx.cast("scheduler", Submit(sequences), control=True)
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
        await asker.until(lambda: all(asker.ends(name) for name in [*names, "poisoned"]))
        supervisor.cancel()
    ends = {update.id: update.finish for update in asker.updates if update.finish is not None}
    assert (ends["poisoned"].reason, ends["poisoned"].code) == ("error", "quarantined")
    assert "2 times" in ends["poisoned"].message
    assert {ends[name].reason for name in names} == {"length"}
    assert 2 <= crashes <= 4
    await idle(house)


def test_a_look_that_was_answered_at_rest_is_taken_again() -> None:
    """What waits while a swap comes to nothing is asked for again, also when nothing ran and nothing new has come since."""
    desk = Desk()
    (asked,) = [effect for effect in submitted(desk, "a", "b") if isinstance(effect, ToCache)]
    assert isinstance(asked.message, Match)
    desk.take(desk.core.pause())
    matched = Matched(desk.cache.match(asked.message.probes))
    desk.take(desk.core.matched(desk.core.links.epoch, matched))
    assert desk.core.rested
    desk.take(desk.core.withdraw())
    desk.take(desk.core.proceed())
    desk.run()
    assert (desk.finish("a").reason, desk.finish("b").reason) == ("length", "length")


def submitted(desk: Desk, *names: str) -> list[Effect]:
    """What the core wants done when requests of those names come; nothing of it has been done."""
    return desk.core.submit([request(name, [1, 2, 3]) for name in names], ASKER, desk.now)
