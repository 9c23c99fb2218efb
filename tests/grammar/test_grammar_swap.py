"""The grammar actor: another class in its place under load, its compiling process dying, and messages that make no sense."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Address, Snapshot, Up
from sgl_actors.actors.worker.messages import Prepare, Prepared
from sgl_actors.errors import InvalidRequest, SwapFailed
from sgl_actors.lang.constraints.constraint import Constraint
from tests.grammar.test_grammar_actor import CONFIG, Gate, HostileGrammar, House, empty, gate, house

__all__ = ["empty", "gate", "house"]


class Other(HostileGrammar):
    """Somebody else's class."""


class Refuses(HostileGrammar):
    async def restore(self, snapshot: Snapshot) -> None:
        await super().restore(snapshot)
        raise ValueError("not today")


async def swap(house: House, actor: type, **options: Any) -> float:
    """Put `actor` in its place; `house.grammar` is the object in charge afterwards."""
    cell = house.system.cells["grammar"]
    held = await cell.swap(actor, {"grammar": CONFIG["grammar"] | options}, 5.0)
    house.grammar = cell.actor  # type: ignore[assignment]
    return held


async def test_compilations_go_on_under_another_class(house: House, gate: Gate) -> None:
    """One that runs is not begun again, those in line keep their order and their askers, and what is known stays known."""
    await house.ask("known")
    asked = [house.ask(source) for source in (gate.source, "one", "two", gate.source)]
    await gate.begun()
    for actor in (Other, HostileGrammar, Other):
        assert await swap(house, actor) < 0.5
    gate.open()
    answers = await asyncio.gather(*asked)
    assert {answer.engine for answer in answers} == {"fsm"}
    assert [told.automaton for told in house.worker.told] == [
        b"known",
        gate.source.encode(),
        b"one",
        b"two",
    ]
    assert (await house.ask("known")).engine == "fsm"
    assert (house.count("grammars_compiled_total"), house.count("grammars_compilers_total")) == (4, 1)
    assert house.count("grammars_hits_total") == 1


async def test_a_class_whose_restore_raises_changes_nothing(house: House, gate: Gate) -> None:
    """The compilation goes on, and those who wait for it and behind it are answered by the old object."""
    asked = [house.ask(source) for source in (gate.source, "one")]
    await gate.begun()
    before = house.grammar
    with pytest.raises(SwapFailed, match="not today"):
        await swap(house, Refuses)
    assert house.system.cells["grammar"].actor is before
    gate.open()
    assert len(await asyncio.gather(*asked)) == 2
    assert (house.count("grammars_compiled_total"), house.count("grammars_compilers_total")) == (2, 1)


async def test_the_successor_tells_the_worker_what_was_not_confirmed(house: House) -> None:
    """Those who wait for the worker are answered once it has heard from the successor."""
    house.worker.answer = None
    asked = house.ask("abc")
    await house.worker.heard.wait()
    house.worker.answer = Prepared()
    await swap(house, Other)
    assert (await asked).engine == "fsm"
    assert house.worker.told == [Prepare(Constraint("regex", "abc"), b"abc")] * 2
    await house.ask("abc")
    assert len(house.worker.told) == 2


async def test_what_comes_while_it_settles_is_kept(house: House) -> None:
    """A constraint that arrives between `settle` and the successor is compiled by that."""
    await house.grammar.settle()
    asked = house.ask("late")
    await house.settle()
    assert not asked.done()
    await swap(house, Other)
    assert (await asked).engine == "fsm"


async def test_an_asker_that_leaves_after_a_swap_is_forgotten(house: House, gate: Gate) -> None:
    """What nobody waits for any more is not begun by the successor either."""
    first, second = house.ask(gate.source), house.ask("unwanted")
    await gate.begun()
    await swap(house, Other)
    second.cancel()
    await house.settle()
    gate.open()
    await first
    assert house.count("grammars_compiled_total") == 1
    assert house.count("grammars_waiting") == 0


async def test_another_engine_forgets_what_the_last_one_made(house: House) -> None:
    """Results of the old engine are not served, and the process is set up anew; limits change without that."""
    await house.ask("abc")
    await swap(house, HostileGrammar, seconds=0.2)
    assert (await house.ask("abc")).engine == "fsm"
    assert house.count("grammars_compilers_total") == 1
    await swap(house, HostileGrammar, engine="llguidance")
    assert (await house.ask("abc")).engine == "llguidance"
    assert house.count("grammars_compilers_total") == 2


async def test_offenders_are_refused_by_the_successor(house: House) -> None:
    """Two crashes count, whichever object saw them."""
    await house.error("abort")
    await swap(house, Other)
    await house.error("abort")
    await swap(house, HostileGrammar)
    assert "is not tried again" in str(await house.error("abort"))


async def test_a_process_killed_from_outside_fails_one_constraint_alone(house: House, gate: Gate) -> None:
    """The one that was compiled is its asker's error, and may be tried again; those behind it are compiled by a new process."""
    asked = [house.ask(source) for source in (gate.source, "one", "two")]
    await gate.begun()
    process = house.grammar._host.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    gate.open()
    assert isinstance(outcomes[0], InvalidRequest)
    assert "SIGKILL" in str(outcomes[0])
    assert [type(one) for one in outcomes[1:]] == [Compiled, Compiled]


async def test_messages_that_make_no_sense_end_nothing(house: House) -> None:
    """A question without an asker and what is another's message are counted; news of a stranger does not replace the worker."""
    house.ctx.cast("grammar", Compile(Constraint("regex", "abc")))
    house.ctx.cast("grammar", Prepared())
    house.ctx.cast("grammar", Up(Address("scheduler", 1, "local://g")))
    with pytest.raises(InvalidRequest, match=r"worker\.Prepared as a call"):
        await house.ctx.call("grammar", Prepared(), Compiled)
    assert house.count("grammars_unexpected_total") == 3
    await house.ask("abc")
    assert len(house.worker.told) == 1
