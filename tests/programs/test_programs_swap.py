"""The node's `programs` actor: another class in its place under load, its end while a graph runs, and messages that make no sense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sgl_actors.actors.microkernel import Snapshot
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.programs.actor import ProgramsActor
from sgl_actors.actors.programs.handover import LAYOUT, ProgramsState
from sgl_actors.actors.programs.messages import (
    Appended,
    ListPrograms,
    ProgramEnded,
    Programs,
    ProgramStarted,
    Report,
    RunGraph,
)
from sgl_actors.errors import DeadlineExceeded, InvalidRequest, Overloaded, SwapFailed
from sgl_actors.lang.graph import Graph, StreamNodes
from sgl_actors.lang.ir import AnyNode, ConstantText, Fork, Gen, Join
from tests.programs.fakes import FakeClient
from tests.programs.test_programs_actor import FakeTokenizer


class Other(ProgramsActor):
    """Somebody else's class."""


class Refuses(ProgramsActor):
    async def restore(self, snapshot: Snapshot) -> None:
        await super().restore(snapshot)
        raise ValueError("not today")


class House:
    """A kernel with a tokenizer whose answers wait for `release`, and a programs actor."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.ctx: Any = system.spawn(Outside, "asker").context
        self.fake = FakeClient(lambda prompt, request: f" echo{len(prompt)}")
        self.fake.hold("wait")

    async def start(self, actor: type, name: str) -> Any:
        cell = self.system.spawn(actor, name, on_ready=self.system.name_up)
        await cell.ready.wait()
        return cell

    @property
    def cell(self) -> Any:
        return self.system.cells["programs"]

    async def swap(self, actor: type, **options: Any) -> float:
        config = {"programs": {"limit": 4} | options}
        held: float = await self.cell.swap(actor, config, 5.0)
        return held

    def run(self, name: str, text: str = "wait") -> asyncio.Task[Report]:
        nodes: list[AnyNode] = [ConstantText(f"{text} {name}"), Fork(2), Join(1, "x")]
        leaves = [StreamNodes(f"0.{index}", [ConstantText(f":{index}"), Gen("x")]) for index in range(2)]
        ask = RunGraph(Graph([StreamNodes("0", nodes), *leaves]), name, seed=1, fork_hint=False)
        return asyncio.ensure_future(self.ctx.call("programs", ask, Report, timeout=20))

    async def listed(self) -> Programs:
        answer: Programs = await self.ctx.call("programs", ListPrograms(), Programs)
        return answer


@pytest.fixture
async def house() -> AsyncIterator[House]:
    config = {"programs": {"limit": 4}}
    system = System("test", LocalTransport(LocalHub(), "local://p"), config=config, force_codec=True)
    await system.open()
    house = House(system)
    await house.start(type("Tokenizer", (FakeTokenizer,), {"client": house.fake}), "tokenizer")
    await house.start(ProgramsActor, "programs")
    yield house
    await system.close()


async def test_graphs_and_announced_programs_go_on_under_another_class(house: House) -> None:
    """Swapped there and back while graphs run: the same streams go on, nobody fails, lists and counters are continued."""
    house.ctx.cast("programs", ProgramStarted("p1", "client's"))
    asked = [house.run("a"), house.run("b")]
    await house.fake.asked(4)
    for actor in (Other, ProgramsActor, Other):
        assert await house.swap(actor) < 0.5
        assert isinstance(house.cell.actor, actor)
    assert [row.name for row in (await house.listed()).rows] == ["client's", "a", "b"]
    house.fake.release("wait")
    for report in await asyncio.gather(*asked):
        assert report.outcome.failure is None
        assert len(report.outcome.variables["x"]) == 2
    house.ctx.cast("programs", ProgramEnded("p1"))
    listed = await house.listed()
    assert (listed.rows, listed.succeeded, listed.failed) == ([], 3, 0)
    assert len(house.fake.requests) == 4, "nothing was asked of the model twice"


async def test_a_class_whose_restore_raises_changes_nothing(house: House) -> None:
    """The old object goes on with its graphs, and takes new ones."""
    asked = house.run("a")
    await house.fake.asked(2)
    before = house.cell.actor
    with pytest.raises(SwapFailed, match="not today"):
        await house.swap(Refuses)
    assert house.cell.actor is before
    house.fake.release("wait")
    assert (await asked).outcome.failure is None
    assert (await house.run("b")).outcome.failure is None


async def test_a_graph_that_comes_while_it_settles_is_run_by_the_successor(house: House) -> None:
    """It is kept, counts against the limit, and begins after the swap; the same if the swap comes to nothing."""
    old = house.cell.actor
    for actor in (Other, Refuses):
        old = house.cell.actor
        await old.settle()
        asked = [house.run(str(number), "go") for number in range(5)]
        while len(old._waiting) < 4:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await asked[4]
        state = old.snapshot().read(LAYOUT, ProgramsState)
        assert len(state.waiting) == 4
        if actor is Other:
            await house.swap(Other)
        else:
            old.resume()
        for report in await asyncio.gather(*asked[:4]):
            assert report.outcome.failure is None


async def test_an_asker_that_leaves_after_a_swap_ends_its_graph(house: House) -> None:
    """The streams of a cancelled graph end, whichever object began them."""
    asked = house.run("a")
    await house.fake.asked(2)
    await house.swap(Other)
    asked.cancel()
    while (await house.listed()).rows:
        pass
    assert house.fake.cancelled == 2
    assert not [name for name in house.system.cells if name.startswith("program/")]


async def test_the_end_of_the_actor_is_no_error_for_who_asks_through_the_client(house: House) -> None:
    """Its successor runs the graph again with the same seed; it gets what a run without a fault gets."""
    graph = RunGraph(
        Graph([StreamNodes("0", [ConstantText("wait"), Gen("x"), Gen("y")])]), "g", seed=5, timeout=20
    )
    client = NodeClient(house.ctx)
    asked = asyncio.ensure_future(client.run_graph(graph))
    await house.fake.asked(1)
    old = house.cell
    old.stop("killed")
    await old.ended.wait()
    house.system.name_down(old.address, "killed")
    await house.start(ProgramsActor, "programs")
    house.fake.release("wait")
    report = await asked
    assert report.outcome.failure is None
    seeds = [request.sampling.seed for request in house.fake.requests]
    assert seeds[0] == seeds[1], "the gen that was cut off is asked with the same seed"
    assert (await client.run_graph(graph)).outcome.variables == report.outcome.variables


async def test_a_graph_out_of_time_is_not_asked_for_again(house: House) -> None:
    """The time is the graph's, restarts included."""
    graph = RunGraph(Graph([StreamNodes("0", [ConstantText("wait"), Gen("x")])]), "g", timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        await NodeClient(house.ctx).run_graph(graph)


async def test_messages_that_make_no_sense_end_nothing(house: House) -> None:
    """A question without an asker is counted, too many streams are the asker's error, and what is another's message is refused."""
    graph = RunGraph(Graph([StreamNodes("0", [Fork(1 << 40)])]))
    house.ctx.cast("programs", graph)
    house.ctx.cast("programs", Appended())
    for count in (1 << 40, -1):
        with pytest.raises(InvalidRequest, match="graph: forks"):
            await house.ctx.call("programs", RunGraph(Graph([StreamNodes("0", [Fork(count)])])), Report)
    with pytest.raises(InvalidRequest, match=r"does not take programs\.Appended as a call"):
        await house.ctx.call("programs", Appended(), Report)
    assert house.cell.actor.statistics()["programs_unexpected_total"] == 2
    assert house.cell.state == "running"
