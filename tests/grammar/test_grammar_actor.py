"""The grammar actor in a kernel, with a compiling process that does what a source says, and a worker and a tokenizer of the test's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sgl_actors.actors.grammar import actor as grammar_actor
from sgl_actors.actors.grammar import host
from sgl_actors.actors.grammar.actor import GrammarActor
from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Actor, Context, Message, Request
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.tokenizer.messages import DescribeVocabulary, VocabularyInfo
from sgl_actors.actors.worker.messages import Prepare, Prepared
from sgl_actors.errors import (
    ActorDown,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    SglActorsError,
)
from sgl_actors.lang.constraints.constraint import Constraint

CONFIG = {"grammar": {"engine": "fsm", "seconds": 0.1, "memory": 64 << 20, "queue": 4, "nice": 0}}


class HostileGrammar(GrammarActor):
    compiler = "tests.grammar.hostile_compiler"


class Tokenizer(Actor):
    """Describes its vocabulary."""

    asked = 0

    async def receive(self, message: Message, request: Request) -> Message:
        assert isinstance(message, DescribeVocabulary)
        self.asked += 1
        return VocabularyInfo("", 1, (0,))


class Worker(Actor):
    """Notes what it is told, and answers with what the test says, or not at all."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.told: list[Prepare] = []
        self.heard = asyncio.Event()
        self.answer: Message | SglActorsError | None = Prepared()
        self.kept: list[Request] = []

    async def receive(self, message: Message, request: Request) -> Message | None:
        assert isinstance(message, Prepare)
        self.told.append(message)
        self.kept.append(request)
        self.heard.set()
        if isinstance(self.answer, SglActorsError):
            raise self.answer
        return self.answer


class House:
    """A kernel with the grammar actor; tokenizer and worker come with `house`."""

    grammar: HostileGrammar
    tokenizer: Tokenizer
    worker: Worker

    def __init__(self, system: System) -> None:
        self.system = system
        self.ctx: Any = system.spawn(Outside, "asker").context

    async def start(self, actor: type[Actor], name: str) -> Any:
        cell = self.system.spawn(actor, name, on_ready=self.system.name_up)
        await cell.ready.wait()
        return cell.actor

    async def stop(self, name: str) -> None:
        cell = self.system.cells[name]
        cell.stop("test")
        await cell.ended.wait()
        self.system.name_down(cell.address, "test")

    def ask(self, source: str, *, prepare: bool = True) -> asyncio.Task[Compiled]:
        question = Compile(Constraint("regex", source), prepare)
        return asyncio.ensure_future(self.ctx.call("grammar", question, Compiled, timeout=30))

    async def error(self, source: str) -> BaseException:
        (error,) = await asyncio.gather(self.ask(source), return_exceptions=True)
        assert isinstance(error, BaseException)
        return error

    def count(self, name: str) -> float:
        statistics: dict[str, float] = self.grammar.statistics()
        return statistics.get(name, 0.0)

    async def settle(self) -> None:
        """What was sent has arrived: an answer to a later question came back."""
        await self.ctx.call("tokenizer", DescribeVocabulary(), VocabularyInfo)


@pytest.fixture
async def empty() -> AsyncIterator[House]:
    """With a grammar actor alone."""
    system = System("test", LocalTransport(LocalHub(), "local://g"), config=CONFIG, force_codec=True)
    await system.open()
    house = House(system)
    house.grammar = await house.start(HostileGrammar, "grammar")
    yield house
    await system.close()


@pytest.fixture
async def house(empty: House) -> House:
    """With tokenizer and worker too."""
    empty.tokenizer = await empty.start(Tokenizer, "tokenizer")
    empty.worker = await empty.start(Worker, "worker/0")
    return empty


class Gate:
    """A fifo that a job waits for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    @property
    def source(self) -> str:
        return f"hold {self.path}"

    async def begun(self) -> None:
        """Until the job has opened it."""
        self._end = await asyncio.to_thread(os.open, self.path, os.O_WRONLY)

    def open(self) -> None:
        os.close(self._end)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


async def test_the_worker_is_told_before_the_answer(house: House) -> None:
    """A constraint is compiled, the worker prepared, and then the asker hears; the second time nothing of that is needed."""
    house.worker.answer = None
    asked = house.ask("abc")
    await house.worker.heard.wait()
    await house.settle()
    assert not asked.done()
    assert house.worker.told == [Prepare(Constraint("regex", "abc"), b"abc")]
    house.worker.kept[0].reply(Prepared())
    answer = await asked
    assert (answer.engine, answer.automaton, answer.why) == ("fsm", b"", "")
    assert await house.ask("abc") == answer
    assert len(house.worker.told) == 1
    assert (house.count("grammars_compiled_total"), house.count("grammars_hits_total")) == (1, 1)


async def test_without_prepare_the_automaton_comes_back(house: House) -> None:
    """The worker, which asks for itself after a restart, gets what it needs and is not asked in return."""
    assert (await house.ask("abc", prepare=False)).automaton == b"abc"
    assert house.worker.told == []


async def test_nothing_is_started_before_the_first_constraint(house: House) -> None:
    """An idle actor has no process and has asked nobody; then it asks for the vocabulary once."""
    assert house.grammar._host.process is None
    assert (house.tokenizer.asked, house.count("grammar_compiler_bytes")) == (0, 0)
    for source in ("a", "b"):
        await house.ask(source)
    assert (house.tokenizer.asked, house.count("grammars_compilers_total")) == (1, 1)
    assert house.count("grammar_compiler_bytes") > 1 << 20


async def test_equal_constraints_at_once_are_compiled_once(house: House, gate: Gate) -> None:
    """Ten who ask at once share one compilation and one message to the worker; one who cancels takes it from nobody."""
    asked = [house.ask(gate.source) for _ in range(10)]
    await gate.begun()
    asked[0].cancel()
    await asyncio.gather(asked[0], return_exceptions=True)
    gate.open()
    answers = await asyncio.gather(*asked[1:])
    assert {answer.engine for answer in answers} == {"fsm"}
    assert len(house.worker.told) == 1
    assert (house.count("grammars_compiled_total"), house.count("grammars_joined_total")) == (1, 9)


async def test_who_asks_while_the_worker_prepares_waits_for_it_too(house: House) -> None:
    """The worker is told once, and both answers come after its own."""
    house.worker.answer = None
    first = house.ask("abc")
    await house.worker.heard.wait()
    second = house.ask("abc")
    await house.settle()
    assert (first.done(), second.done(), len(house.worker.told)) == (False, False, 1)
    house.worker.kept[0].reply(Prepared())
    assert await first == await second


async def test_what_nobody_waits_for_is_not_compiled(house: House, gate: Gate) -> None:
    """A caller who cancels while its constraint waits leaves nothing behind."""
    first = house.ask(gate.source)
    await gate.begun()
    second = house.ask("abc")
    await house.settle()
    assert house.count("grammars_waiting") == 1
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await house.settle()
    assert house.count("grammars_waiting") == 0
    gate.open()
    await first
    assert house.count("grammars_compiled_total") == 1


async def test_the_queue_is_bounded_by_the_option(house: House, gate: Gate) -> None:
    """One constraint too many is refused with the limit's name, while those that wait are served."""
    first = house.ask(gate.source)
    await gate.begun()
    waiting = [house.ask(str(number)) for number in range(4)]
    error = await house.error("one more")
    assert isinstance(error, Overloaded)
    assert "[grammar] queue" in error.message
    gate.open()
    assert len(await asyncio.gather(first, *waiting)) == 5


async def test_an_error_is_its_askers_and_is_kept(house: House) -> None:
    """Message and field arrive, the second time without compiling; the worker hears nothing of it."""
    for _ in range(2):
        error = await house.error("wrong")
        assert isinstance(error, InvalidRequest)
        assert (error.message, error.param) == ("regex: unclosed group", "regex")
    assert (house.count("grammars_invalid_total"), house.worker.told) == (1, [])


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        ("spin", "0.1 s of CPU time"),
        ("hog 100", "64 MiB of memory"),
        ("bug", "ended in an error of the compiler"),
    ],
)
async def test_one_that_ends_the_compiler_twice_is_refused(house: House, source: str, limit: str) -> None:
    """It is a 400 that names kind, limit and way out, is tried once more, then refused at once; others are served all the while."""
    for number in range(2):
        error = await house.error(source)
        assert isinstance(error, InvalidRequest)
        assert error.param == "regex"
        assert error.message.startswith("regex: compiling it ")
        assert limit in error.message
        assert error.message.endswith("make it smaller")
        assert (await house.ask(f"good {number}")).engine == "fsm"
    assert "is not tried again" in str(await house.error(source))
    assert house.count("grammars_crashed_total") == 2
    assert house.count("grammars_refused_total") == 1
    assert house.count("grammars_compilers_total") == 3


async def test_the_process_is_replaced_after_so_many_jobs(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it keeps or leaks ends with it; and one that died while idle is nobody's fault."""
    monkeypatch.setattr(host, "RECYCLED", 3)
    for number in range(7):
        await house.ask(str(number))
    assert house.count("grammars_compilers_total") == 3
    process = house.grammar._host.process
    assert process is not None
    os.kill(process.pid, 9)
    await process._process.wait()
    assert (await house.ask("abc")).engine == "fsm"
    assert house.count("grammars_crashed_total") == 0


async def test_a_worker_that_is_down_keeps_nobody_waiting(house: House) -> None:
    """The answer comes without it; the next worker is told what its predecessor knew when it is asked for again."""
    await house.stop("worker/0")
    await house.ask("abc")
    worker = await house.start(Worker, "worker/0")
    await house.ask("abc")
    assert worker.told == [Prepare(Constraint("regex", "abc"), b"abc")]
    await house.stop("worker/0")
    worker = await house.start(Worker, "worker/0")
    await house.ask("abc")
    assert len(worker.told) == 1


@pytest.mark.parametrize("trouble", [ActorDown("gone"), DeadlineExceeded("late")])
async def test_a_worker_in_trouble_keeps_nobody_waiting(house: House, trouble: SglActorsError) -> None:
    """Whatever it answers but that the constraint is wrong, the request goes on, and the worker is told again next time."""
    house.worker.answer = trouble
    await house.ask("abc")
    house.worker.answer = Prepared()
    await house.ask("abc")
    assert (len(house.worker.told), house.count("grammars_unprepared_total")) == (2, 1)


async def test_a_silent_worker_keeps_nobody_waiting_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience is bounded."""
    monkeypatch.setattr(grammar_actor, "PATIENCE", 0.01)
    house.worker.answer = None
    assert (await house.ask("abc")).engine == "fsm"


async def test_what_the_worker_refuses_is_the_askers_error(house: House) -> None:
    """A constraint that it cannot load is not admitted."""
    house.worker.answer = InvalidRequest("regex: no token can come next", param="regex")
    error = await house.error("abc")
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param) == ("regex: no token can come next", "regex")


async def test_the_worker_is_told_again_of_what_was_long_ago(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps so many; those asked for last are those it still has."""
    monkeypatch.setattr(grammar_actor, "TOLD", 2)
    for source in ("a", "b", "a", "c", "a", "b"):
        await house.ask(source)
    assert [told.constraint.source for told in house.worker.told] == ["a", "b", "c", "b"]


async def test_without_a_tokenizer_it_is_not_ready(empty: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for one that comes up, not for ever, and holds nothing against the constraint."""
    monkeypatch.setattr(grammar_actor, "PATIENCE", 0.0)
    error = await empty.error("abc")
    assert isinstance(error, NotReady)
    monkeypatch.setattr(grammar_actor, "PATIENCE", 20.0)
    asked = empty.ask("abc")
    await empty.start(Tokenizer, "tokenizer")
    assert (await asked).engine == "fsm"


async def test_it_stops_in_the_middle_of_a_job(house: House, gate: Gate) -> None:
    """The process ends with it, and its askers hear that it went down."""
    asked = house.ask(gate.source)
    await gate.begun()
    process = house.grammar._host.process
    assert process is not None
    await house.stop("grammar")
    assert not process.alive
    with pytest.raises(ActorDown):
        await asked
    gate.open()


async def test_other_messages_are_refused(house: House) -> None:
    """As every actor does."""
    with pytest.raises(SglActorsError, match="does not take"):
        await house.ctx.call("grammar", DescribeVocabulary(), VocabularyInfo)
