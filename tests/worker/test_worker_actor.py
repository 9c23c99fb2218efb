"""The worker actor in a kernel of its own, with a small random model on disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.microkernel import Actor, Address, Context, Message, Request
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.worker.actor import WorkerActor
from sgl_actors.actors.worker.messages import (
    Describe,
    ModelInfo,
    NeedFull,
    NewSequence,
    Options,
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
from sgl_actors.errors import InvalidRequest, Overloaded
from tests.worker.harness import make_theirs

GREEDY = Sampling(seed=0, temperature=0.0)


class Scheduler(Actor):
    """Collects what the worker says."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.heard: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self, message: Message, request: Request) -> None:
        await self.heard.put(message)


class House:
    """A kernel with a worker and a scheduler that only listens."""

    def __init__(self, system: System, worker: Any, scheduler: Any) -> None:
        self.system, self.worker, self.scheduler = system, worker, scheduler
        self.ctx = scheduler.context

    def cast(self, message: Message) -> None:
        self.ctx.cast("worker/0", message)

    async def hear(self) -> Message:
        message: Message = await asyncio.wait_for(self.scheduler.actor.heard.get(), 30)
        return message


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-1.5")
    make_theirs().save_pretrained(folder)
    return folder


@pytest.fixture
async def house(checkpoint: Path) -> AsyncIterator[House]:
    config = {
        "model": msgspec.to_builtins(Options(path=str(checkpoint), threads=1)),
        "cache": msgspec.to_builtins(CacheOptions(page_size=2, memory=10_000)),
    }
    system = System("test", LocalTransport(LocalHub(), "local://test"), config=config, force_codec=True)
    await system.open()
    ready = asyncio.Event()
    scheduler = system.spawn(Scheduler, "scheduler")

    def announce(address: Address) -> None:
        system.name_up(address)
        ready.set()

    worker = system.spawn(WorkerActor, "worker/0", on_ready=announce)
    await asyncio.wait_for(ready.wait(), 30)
    yield House(system, worker, scheduler)
    await system.close()


def new(seq: int, tokens: list[int]) -> NewSequence:
    return NewSequence(seq, tokens, len(tokens), 0, [4 * seq, 4 * seq + 1, 4 * seq + 2], GREEDY)


async def test_it_describes_the_model_and_its_pool(house: House, checkpoint: Path) -> None:
    """Pages are what fits into the memory: 3 layers, k and v of 2 heads of 8 dimensions in fp32, 2 tokens to a page."""
    info = await house.ctx.call("worker/0", Describe(), ModelInfo)
    assert info.bytes_per_token == 3 * 2 * 2 * 8 * 4
    assert info.pages == 10_000 // (2 * info.bytes_per_token)
    assert info.served_name == checkpoint.name
    assert (info.context, info.vocabulary, info.eos_ids) == (64, 97, (2, 5))
    assert (info.dtype, info.device, info.threads, info.page_size) == ("float32", "cpu", 1, 2)


async def test_a_step_before_a_reset_is_answered_with_need_full(house: House) -> None:
    """A worker that has just started holds no batch."""
    house.cast(Step(5, 0, [], [], []))
    assert await house.hear() == NeedFull(5)
    house.cast(Reset(5))
    assert await house.hear() == ResetDone(5)
    house.cast(Step(5, 0, [], [], []))
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert (done.epoch, done.number, done.results) == (5, 0, [])


async def test_steps_sent_ahead_run_in_order(house: House) -> None:
    """The worker feeds its own tokens back: five steps may be under way at once."""
    house.cast(Reset(1))
    house.cast(Step(1, 0, [], [new(1, [5, 6, 7])], [Work(1, 3)]))
    for number in (1, 2):
        house.cast(Step(1, number, [], [], [Work(1)]))
    assert await house.hear() == ResetDone(1)
    tokens = []
    for number in (0, 1, 2):
        done = await house.hear()
        assert isinstance(done, StepDone)
        assert done.number == number
        tokens.append(done.results[0].token_id)
    house.cast(Step(1, 3, [1], [new(2, [5, 6, 7, *tokens[:2]])], [Work(2, 5)]))
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert done.results[0].token_id == tokens[2]
    assert house.worker.actor.statistics()["steps_total"] == 4
    assert house.worker.actor.statistics()["forward_tokens_total"] == 10


async def test_a_bad_sequence_does_not_end_the_worker(house: House) -> None:
    """Its error comes back in StepDone, the others get their tokens."""
    house.cast(Reset(1))
    house.cast(Step(1, 0, [], [new(1, [5, 999]), new(2, [5, 6])], [Work(1, 2), Work(2, 2)]))
    assert await house.hear() == ResetDone(1)
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert "999 is not in the vocabulary" in done.results[0].error
    assert done.results[1].token_id >= 0
    assert house.worker.actor.statistics()["failed_sequences_total"] == 1


async def test_its_loop_answers_while_a_pass_runs_and_a_reset_waits_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Describe is answered during the pass; a waiting step is skipped; ResetDone comes when nothing runs any more."""
    running, go_on = threading.Event(), threading.Event()
    execute = ModelRunner.execute

    def slow(runner: ModelRunner, step: Step) -> StepDone:
        running.set()
        assert go_on.wait(30)
        return execute(runner, step)

    house.cast(Reset(1))
    assert await house.hear() == ResetDone(1)
    monkeypatch.setattr(ModelRunner, "execute", slow)
    house.cast(Step(1, 0, [], [new(1, [5, 6])], [Work(1, 2)]))
    await asyncio.to_thread(running.wait, 30)
    house.cast(Step(1, 1, [], [], [Work(1)]))
    house.cast(Reset(2))
    await house.ctx.call("worker/0", Describe(), ModelInfo)
    assert house.scheduler.actor.heard.empty()
    go_on.set()
    done = await house.hear()
    assert isinstance(done, StepDone)
    assert done.number == 0
    assert await house.hear() == ResetDone(2)
    assert house.worker.actor.statistics()["sequences"] == 0


async def test_a_message_for_others_is_refused(house: House) -> None:
    """The asker hears which message it was."""
    with pytest.raises(InvalidRequest, match="ResetDone"):
        await house.ctx.call("worker/0", ResetDone(1), ModelInfo)


async def test_a_profile_begins_and_ends_between_steps(house: House) -> None:
    """Steps that came meanwhile are whole, with the times of their coming and of their answer; a second profile is refused until it has ended."""
    house.cast(Reset(1))
    assert await house.hear() == ResetDone(1)
    first = asyncio.ensure_future(house.ctx.call("worker/0", Profile(0.3, slices=True), Profiled))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await house.ctx.call("worker/0", Profile(0.3), Profiled)
    house.cast(Step(1, 0, [], [new(1, [5, 6, 7])], [Work(1, 3)]))
    house.cast(Step(1, 1, [], [], [Work(1)]))
    for _ in range(2):
        assert isinstance(await house.hear(), StepDone)
    profiled = await first
    assert [(step.number, step.tokens, step.started, step.goes_on) for step in profiled.steps] == [
        (0, 3, (3,), False),
        (1, 1, (), True),
    ]
    for step in profiled.steps:
        assert profiled.began <= step.received <= step.began <= step.ended <= step.sent <= profiled.ended
    assert {one.part for one in profiled.slices} >= {"qkv", "head", "sampling"}
    assert await house.ctx.call("worker/0", Profile(0.001), Profiled)
