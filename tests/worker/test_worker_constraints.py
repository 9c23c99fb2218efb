"""The worker actor and constraints: what the grammar actor tells it, and what it asks for after a restart."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Actor, Context, Message, Request
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.tokenizer.messages import DescribeVocabulary, VocabularyInfo
from sgl_actors.actors.worker import actor as worker_actor
from sgl_actors.actors.worker.actor import WorkerActor
from sgl_actors.actors.worker.grammars import Grammars
from sgl_actors.actors.worker.messages import (
    NewSequence,
    Options,
    Prepare,
    Prepared,
    Reset,
    ResetDone,
    Sampling,
    SequenceResult,
    Step,
    StepDone,
    Work,
)
from sgl_actors.errors import InvalidRequest, NotReady, RemoteError
from sgl_actors.lang.constraints.constraint import Constraint
from tests.lang.byte_vocabulary import EOS, SIZE, byte_engines, byte_tokenizer, text_of
from tests.worker.harness import make_theirs

YEAR = Constraint("regex", "[0-9]{4}")
LETTER = Constraint("regex", "[a-z]")
ENGINES = byte_engines()


class Tokenizer(Actor):
    """Describes a vocabulary of bytes."""

    asked = 0

    async def receive(self, message: Message, request: Request) -> Message:
        assert isinstance(message, DescribeVocabulary)
        self.asked += 1
        return VocabularyInfo(byte_tokenizer().to_str(), EOS + 1, (EOS,))


class Grammar(Actor):
    """Compiles at once, and counts."""

    asked = 0

    async def receive(self, message: Message, request: Request) -> Message:
        assert isinstance(message, Compile)
        assert not message.prepare
        self.asked += 1
        compiled = ENGINES.compile(message.constraint)
        return Compiled(compiled.engine, compiled.automaton, compiled.why)


class Scheduler(Actor):
    """Collects what the worker says."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.heard: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self, message: Message, request: Request) -> None:
        await self.heard.put(message)


class House:
    """A kernel with a worker that has no batch yet."""

    worker: WorkerActor
    scheduler: Scheduler

    def __init__(self, system: System) -> None:
        self.system = system

    async def start(self, actor: type[Actor], name: str) -> Any:
        cell = self.system.spawn(actor, name, on_ready=self.system.name_up)
        await asyncio.wait_for(cell.ready.wait(), 30)
        return cell.actor

    @property
    def grammars(self) -> Grammars:
        assert self.worker._engine is not None
        return self.worker._engine.runner.grammars

    async def prepare(self, constraint: Constraint, automaton: bytes) -> None:
        message = Prepare(constraint, automaton)
        await self.scheduler.ctx.call("worker/0", message, Prepared, timeout=30)

    async def step(self, number: int, new: list[NewSequence], work: list[Work]) -> list[SequenceResult]:
        self.scheduler.ctx.cast("worker/0", Step(1, number, [], new, work))
        done = await asyncio.wait_for(self.scheduler.heard.get(), 30)
        assert isinstance(done, StepDone)
        return done.results


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    make_theirs(vocab_size=SIZE, eos_token_id=EOS).save_pretrained(folder)
    return folder


@pytest.fixture
async def house(checkpoint: Path) -> AsyncIterator[House]:
    config = {
        "model": msgspec.to_builtins(Options(path=str(checkpoint), threads=1)),
        "cache": msgspec.to_builtins(CacheOptions(page_size=1, memory=20_000)),
    }
    system = System("test", LocalTransport(LocalHub(), "local://test"), config=config, force_codec=True)
    await system.open()
    house = House(system)
    house.scheduler = await house.start(Scheduler, "scheduler")
    house.worker = await house.start(WorkerActor, "worker/0")
    house.scheduler.ctx.cast("worker/0", Reset(1))
    assert await asyncio.wait_for(house.scheduler.heard.get(), 30) == ResetDone(1)
    yield house
    await system.close()


def new(seq: int, constraint: Constraint | None) -> NewSequence:
    sampling = Sampling(seed=0, temperature=0.0, end_ids=(EOS,), constraint=constraint)
    return NewSequence(seq, [5, 6], 2, 0, [8 * seq + place for place in range(8)], sampling)


async def test_what_was_prepared_needs_nobody(house: House) -> None:
    """The first constraint has the vocabulary fetched, once; a step under what was prepared asks nobody."""
    tokenizer = await house.start(Tokenizer, "tokenizer")
    await asyncio.gather(*(house.prepare(one, ENGINES.compile(one).automaton) for one in (YEAR, LETTER)))
    assert (tokenizer.asked, house.grammars.knows(YEAR), house.grammars.knows(LETTER)) == (1, True, True)
    results = await house.step(0, [new(0, YEAR), new(1, LETTER)], [Work(0, 2), Work(1, 2)])
    assert re.fullmatch("[0-9]", text_of([results[0].token_id]))
    assert re.fullmatch("[a-z]", text_of([results[1].token_id]))


async def test_what_is_not_known_is_asked_for(house: House) -> None:
    """After a restart the worker asks the grammar actor before the step runs, once for each constraint."""
    await house.start(Tokenizer, "tokenizer")
    grammar = await house.start(Grammar, "grammar")
    starts = [new(0, YEAR), new(1, YEAR), new(2, LETTER), new(3, None)]
    results = await house.step(0, starts, [Work(seq, 2) for seq in range(4)])
    assert [result.error for result in results] == [""] * 4
    assert re.fullmatch("[0-9]{2}[a-z]", text_of([result.token_id for result in results[:3]]))
    assert grammar.asked == 2


async def test_without_the_grammar_actor_only_constrained_sequences_fail(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience is bounded for the whole step; its free sequences run, and the next step asks again."""
    monkeypatch.setattr(worker_actor, "PATIENCE", 0.0)
    results = await house.step(
        0, [new(0, YEAR), new(1, LETTER), new(2, None)], [Work(n, 2) for n in range(3)]
    )
    assert [result.code for result in results] == [NotReady.code, NotReady.code, ""]
    monkeypatch.setattr(worker_actor, "PATIENCE", 20.0)
    await house.start(Tokenizer, "tokenizer")
    await house.start(Grammar, "grammar")
    assert (await house.step(1, [new(3, YEAR)], [Work(3, 2)]))[0].error == ""


async def test_what_cannot_be_loaded_is_the_askers_error(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the constraint is wrong or the loading fails: the worker goes on."""
    await house.start(Tokenizer, "tokenizer")
    with pytest.raises(InvalidRequest, match="unclosed group"):
        await house.prepare(Constraint("regex", "a(b"), b"")

    def broken(_self: Grammars, _constraint: Constraint, _automaton: bytes) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(Grammars, "prepare", broken)
    with pytest.raises(RemoteError, match="boom"):
        await house.prepare(YEAR, b"")
    assert (await house.step(0, [new(0, None)], [Work(0, 2)]))[0].error == ""
