"""The worker and the fake one: another class in their place under load, and messages that make no sense."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.microkernel import Actor, Message, Request, Snapshot
from sgl_actors.actors.microkernel import swap as swapping
from sgl_actors.actors.worker.actor import QUEUE, WorkerActor
from sgl_actors.actors.worker.fake import FakeWorker
from sgl_actors.actors.worker.handover import LAYOUT, WorkerState
from sgl_actors.actors.worker.messages import (
    Describe,
    ModelInfo,
    NeedFull,
    NewSequence,
    Options,
    Prepared,
    Profile,
    Profiled,
    Reset,
    ResetDone,
    Sampling,
    Step,
    StepDone,
    Work,
)
from sgl_actors.actors.worker.runner import ModelRunner
from sgl_actors.errors import InvalidRequest, SwapFailed
from sgl_actors.lang.constraints.constraint import Constraint
from tests.worker.test_worker_actor import GREEDY, House, checkpoint, house, new

__all__ = ["checkpoint", "house"]


class Other(WorkerActor):
    """Somebody else's class."""


class Refuses(WorkerActor):
    async def restore(self, snapshot: Snapshot) -> None:
        await super().restore(snapshot)
        raise ValueError("not today")


class OtherFake(FakeWorker):
    """Somebody else's fake."""


class Gate:
    """Passes wait for it in their thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        execute = ModelRunner.execute

        def gated(runner: ModelRunner, step: Step) -> StepDone:
            self.entered.set()
            assert self.opened.wait(20)
            return execute(runner, step)

        monkeypatch.setattr(ModelRunner, "execute", gated)

    async def begun(self) -> None:
        await asyncio.to_thread(self.entered.wait, 20)


async def swap(house: House, actor: type[Actor], **model: Any) -> float:
    config = dict(house.worker.config)
    config["model"] = config["model"] | model
    held: float = await house.worker.swap(actor, config, 5.0)
    return held


async def generate(house: House, number: int, count: int, seq: int = 1) -> list[int]:
    """Tokens of that many steps, sent ahead of their answers."""
    for one in range(number, number + count):
        house.cast(Step(1, one, [], [], [Work(seq)]))
    tokens = []
    for one in range(number, number + count):
        done = await house.hear()
        assert isinstance(done, StepDone), done
        assert (done.number, done.results[0].error) == (one, "")
        tokens.append(done.results[0].token_id)
    return tokens


async def begin(house: House, seq: int = 1) -> int:
    """An empty batch, and the first token of a sequence."""
    house.cast(Reset(1))
    house.cast(Step(1, 0, [], [new(seq, [5, 6])], [Work(seq, 2)]))
    assert await house.hear() == ResetDone(1)
    done = await house.hear()
    assert isinstance(done, StepDone)
    return done.results[0].token_id


async def test_steps_go_on_under_another_class(house: House) -> None:
    """Swapped there and back between and during steps: the tokens are those of one worker, weights stay, counters are continued."""
    await begin(house)
    whole = await generate(house, 1, 3)
    runner = house.worker.actor._engine.runner
    await begin(house)
    tokens = []
    for number, actor in ((1, Other), (2, WorkerActor), (3, Other)):
        steps = asyncio.ensure_future(generate(house, number, 1))
        assert await swap(house, actor) < 0.5
        tokens += await steps
        assert type(house.worker.actor) is actor
    assert tokens == whole
    assert house.worker.actor._engine.runner is runner
    assert house.worker.actor.statistics()["steps_total"] == 8
    assert await house.ctx.call("worker/0", Describe(), ModelInfo) == runner_info(house)


def runner_info(house: House) -> ModelInfo:
    info: ModelInfo = house.worker.actor._engine.info
    return info


async def test_a_pass_is_waited_for_and_what_waits_is_kept(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running step is answered once, by the old object; those behind it run under the new one, in order."""
    await begin(house)
    gate = Gate(monkeypatch)
    steps = asyncio.ensure_future(generate(house, 1, 3))
    await gate.begun()
    old = house.worker.actor
    swapping = asyncio.ensure_future(swap(house, Other))
    while not old._settling:
        await asyncio.sleep(0)
    assert not swapping.done()
    gate.opened.set()
    assert await swapping < 0.5
    assert len(await steps) == 3
    assert old._engine.runner.counters.steps == 4


async def test_a_pass_that_takes_too_long_ends_the_swap(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old object goes on with one task that takes steps, so that a reset does not touch the batch of a pass that runs."""
    await begin(house)
    gate = Gate(monkeypatch)
    house.cast(Step(1, 1, [], [], [Work(1)]))
    await gate.begun()
    monkeypatch.setattr(swapping, "SETTLE_TIMEOUT", 0.02)
    with pytest.raises(SwapFailed, match="did not come to rest"):
        await swap(house, Other)
    house.cast(Reset(2))
    await house.ctx.call("worker/0", Describe(), ModelInfo)
    assert house.worker.actor._engine.runner.batch.epoch == 1
    gate.opened.set()
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert (done.number, await house.hear()) == (1, ResetDone(2))


async def test_a_class_whose_restore_raises_changes_nothing(house: House) -> None:
    """The old object goes on with the same batch, also with what came meanwhile."""
    await begin(house)
    before = house.worker.actor
    steps = asyncio.ensure_future(generate(house, 1, 2))
    with pytest.raises(SwapFailed, match="not today"):
        await swap(house, Refuses)
    assert len(await steps) == 2
    assert house.worker.actor is before
    assert len(await generate(house, 3, 2)) == 2


async def test_what_cannot_take_the_engine_refuses(house: House, tmp_path: Path) -> None:
    """Other options of the model, and the fake worker, would need an engine of their own: the worker goes on."""
    await begin(house)
    with pytest.raises(SwapFailed, match=r"model\.threads: cannot change while the model is loaded"):
        await swap(house, WorkerActor, threads=2)
    with pytest.raises(SwapFailed, match="no handle 'model'"):
        await swap(house, FakeWorker)
    assert len(await generate(house, 1, 2)) == 2


async def test_a_step_that_waits_for_its_constraint_goes_to_the_successor(house: House) -> None:
    """The wait for the grammar actor is given up, nothing of the step has happened, and the successor begins it anew."""
    asked = asyncio.Queue[Request]()

    class Grammar(Actor):
        async def receive(self, message: Message, request: Request) -> None:
            await asked.put(request)

    house.system.name_up(house.system.spawn(Grammar, "grammar").address)
    await begin(house)
    sampling = Sampling(seed=0, constraint=Constraint("regex", "a"))
    house.cast(Step(1, 1, [], [NewSequence(2, [5, 6], 2, 0, [8, 9], sampling)], [Work(2, 2)]))
    first = await asked.get()
    assert await swap(house, Other) < 0.5
    assert first.cancelled
    second = await asked.get()
    second.fail(InvalidRequest("regex: no such thing"))
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert (done.number, done.results[0].code) == (1, "not_ready")


async def test_a_profile_goes_on_through_a_swap(house: House) -> None:
    """Who takes it finishes it; the steps of both objects are in it."""
    await begin(house)
    asked = asyncio.ensure_future(house.ctx.call("worker/0", Profile(0.2), Profiled))
    while not house.worker.actor._engine.runner.profiler.stopwatch.on:
        await asyncio.sleep(0.001)
    await generate(house, 1, 2)
    await swap(house, Other)
    await generate(house, 3, 2)
    assert [step.number for step in (await asked).steps] == [1, 2, 3, 4]


async def test_messages_that_make_no_sense_end_nothing(house: House) -> None:
    """Questions without an asker are counted, a step that is asked for is refused, and nonsense in a step is its sequence's error or a stale batch."""
    await begin(house)
    for message in (Describe(), Prepared(), Profile(1.0)):
        house.cast(message)
    with pytest.raises(InvalidRequest, match=r"worker\.Step as a call"):
        await house.ctx.call("worker/0", Step(1, 1, [], [], []), StepDone)
    house.cast(Step(1, -5, [1 << 60], [], []))
    assert await house.hear() == NeedFull(1)
    wild = NewSequence(7, [5], 1, 0, [1 << 62], msgspec.structs.replace(GREEDY, temperature=float("nan")))
    house.cast(Step(1, 1, [-1], [wild], [Work(7, 1 << 40), Work(1, 1), Work(1, 1), Work(99)]))
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert all(result.error for result in done.results)
    assert house.worker.actor.statistics()["unexpected_messages_total"] == 3
    assert house.worker.state == "running"


async def test_more_steps_than_have_a_place_are_answered(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded, the mailbox is never blocked by it, and a reset skips the steps before it and is answered."""
    await begin(house)
    gate = Gate(monkeypatch)
    house.cast(Step(1, 1, [], [], []))
    await gate.begun()
    for number in range(2, QUEUE + 4):
        house.cast(Step(1, number, [], [], []))
    assert await house.hear() == NeedFull(1)
    assert await house.hear() == NeedFull(1)
    for epoch in range(2, 2 * QUEUE):
        house.cast(Reset(epoch))
    await house.ctx.call("worker/0", Describe(), ModelInfo)
    assert house.worker.actor.statistics()["steps_waiting"] == QUEUE
    gate.opened.set()
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert (done.number, await house.hear()) == (1, ResetDone(QUEUE))


async def test_a_worker_that_ends_in_a_pass_is_replaced_by_one_that_knows_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor answers `NeedFull`, and goes on from the tokens that it is given once it is reset."""
    whole = [await begin(house), *await generate(house, 1, 2)]
    await begin(house)
    await generate(house, 1, 1)
    gate = Gate(monkeypatch)
    house.cast(Step(1, 2, [], [], [Work(1)]))
    await gate.begun()
    old = house.worker
    old.stop("killed")
    gate.opened.set()
    await old.ended.wait()
    house.system.name_down(old.address, "killed")
    house.worker = house.system.spawn(WorkerActor, "worker/0", on_ready=house.system.name_up)
    await house.worker.ready.wait()
    house.cast(Step(1, 3, [], [], [Work(1)]))
    assert await house.hear() == NeedFull(1)
    house.cast(Reset(2))
    assert await house.hear() == ResetDone(2)
    new_sequence = NewSequence(9, [5, 6, *whole[:2]], 2, 0, [1, 2, 3], GREEDY)
    house.cast(Step(2, 0, [], [new_sequence], [Work(9, 4)]))
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert done.results[0].token_id == whole[2]


async def test_the_fake_worker_hands_its_batch_and_pool_over(house: House) -> None:
    """Its hashes come out as without a swap; another pool or a real worker is refused; its own options change."""
    config = {"model": msgspec.to_builtins(Options(path="x")), "cache": {"pages": 64}, "options": {}}
    cell = house.system.spawn(FakeWorker, "worker/1", config, on_ready=house.system.name_up)
    await cell.ready.wait()
    outputs = []
    for swaps in (False, True):
        house.ctx.cast("worker/1", Reset(1))
        assert await house.hear() == ResetDone(1)
        tokens = []
        for number in range(6):
            start = [NewSequence(1, [5, 6], 2, 0, list(range(10)), GREEDY)] if not number else []
            house.ctx.cast("worker/1", Step(1, number, [], start, [Work(1, 1 if number else 2)]))
            if swaps:
                await cell.swap(
                    (OtherFake, FakeWorker)[number % 2], config | {"options": {"delay": 1e-4}}, 5.0
                )
            done = await house.hear()
            assert isinstance(done, StepDone)
            tokens += [done.results[0].token_id, *done.results[0].accepted]
        outputs.append(tokens)
    assert outputs[0] == outputs[1]
    assert isinstance(cell.actor, FakeWorker)
    assert (cell.actor.statistics()["steps"], cell.actor.delay) == (12, 1e-4)
    for actor, other in ((FakeWorker, {"cache": {"pages": 32}}), (WorkerActor, {})):
        with pytest.raises(SwapFailed):
            await cell.swap(actor, config | other, 5.0)
    assert cell.actor.snapshot().read(LAYOUT, WorkerState).number == 6
