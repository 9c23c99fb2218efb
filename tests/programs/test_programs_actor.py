"""The node's `programs` actor and the runtime around it, in a kernel of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.microkernel import Actor, Context, Message
from sgl_actors.actors.programs import runtime
from sgl_actors.actors.programs.actor import ProgramsActor
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.messages import (
    ListPrograms,
    ProgramEnded,
    Programs,
    ProgramStarted,
    Report,
    RunGraph,
)
from sgl_actors.actors.programs.runtime import Backend, Default
from sgl_actors.actors.tokenizer.messages import Generate, TokenIds, Tokenize
from sgl_actors.errors import ActorDown, ConfigError, InvalidRequest, Overloaded
from sgl_actors.lang.graph import Graph, StreamNodes, record
from sgl_actors.lang.ir import ConstantText, Fork, Gen, Join, SamplingArgs, Variable
from tests.programs.fakes import FakeClient


class FakeTokenizer(Actor):
    """The node's door over a `FakeClient`."""

    client: FakeClient

    async def receive(self, message: Any, request: Any) -> Any:
        match message:
            case Generate():
                self.ctx.task(self.run(message, request))
            case Tokenize():
                ids: TokenIds = await self.client.tokenize(message)
                return ids
        return None

    async def run(self, message: Any, request: Any) -> None:
        task = asyncio.ensure_future(self.answer(message, request))
        request.on_cancel(task.cancel)
        await asyncio.wait([task])

    async def answer(self, message: Any, request: Any) -> None:
        async for chunk in self.client.generate(message):
            request.item(chunk)
        request.end()


@pytest.fixture
async def node() -> AsyncIterator[Any]:
    """A kernel with a tokenizer and a programs actor; gives (a client's context, the fake node)."""
    kernel = await open_kernel(force_codec=True)
    context = kernel.context("tester")
    await asyncio.sleep(0)
    client = FakeClient()
    tokenizer = type("Tokenizer", (FakeTokenizer,), {"client": client})
    context.spawn(tokenizer, "tokenizer")
    context.spawn(ProgramsActor, "programs", {"programs": {"limit": 2, "timeout": 10.0}})
    yield context, client
    await kernel.close()


@sgl.function
async def fan(s: sgl.ProgramState, topic: str) -> None:
    s += sgl.user(f"About {topic}") + sgl.assistant_begin() + sgl.gen("head")
    group = s.fork(2)
    group += lambda i: f"{i}:" + sgl.gen("x")
    await group.join("x")
    s += sgl.assistant_end()


async def test_a_recorded_program_runs_in_the_node(node: tuple[Context, FakeClient]) -> None:
    """A graph gives what the body gives: text, variables, branches, usage; sampling defaults and seed count."""
    context, client = node
    client.answer = lambda prompt, request: " bees"
    graph = await record(fan.bind(topic="honey"))
    ask = RunGraph(graph, "fan", seed=3, sampling=SamplingArgs(temperature=0.0))
    outcome = (await context.call("programs", ask, Report)).outcome
    assert outcome.failure is None
    assert outcome.variables == {"head": " bees", "x": [" bees", " bees"]}
    assert outcome.turns[-1] == ("assistant", " bees")
    assert outcome.total.calls == 3
    seeds = [r.sampling.seed for r in client.requests]
    assert {r.sampling.temperature for r in client.requests if r.sampling.max_tokens} == {0.0}
    client.requests.clear()
    await context.call("programs", ask, Report)
    assert [r.sampling.seed for r in client.requests] == seeds


async def test_streams_of_a_graph_may_read_each_other_in_any_order(node: tuple[Context, FakeClient]) -> None:
    """Nothing begins before all streams have their nodes, so a parent may quote a child it has not joined."""
    context, client = node
    client.answer = lambda prompt, request: "v"
    graph = Graph(
        [
            StreamNodes("0", [Fork(1), ConstantText("q:"), Variable("x", "0.0", 2), Join(0)]),
            StreamNodes("0.0", [ConstantText("c"), Gen("x")]),
        ]
    )
    outcome = (await context.call("programs", RunGraph(graph), Report)).outcome
    assert outcome.text == "q:v"
    assert outcome.variables == {"x": ["v"]}


@pytest.mark.parametrize(
    "streams",
    [
        [],
        [StreamNodes("0.0", [])],
        [StreamNodes("0", []), StreamNodes("0.0", [])],
        [StreamNodes("0", []), StreamNodes("0", [])],
    ],
)
async def test_a_graph_that_does_not_fit_together_is_refused(
    node: tuple[Context, FakeClient], streams: Any
) -> None:
    """Streams that no fork begins, and a missing root, are the caller's error."""
    context, _ = node
    with pytest.raises(InvalidRequest, match="graph"):
        await context.call("programs", RunGraph(Graph(streams)), Report)


async def test_graphs_fail_alone_and_are_listed(node: tuple[Context, FakeClient]) -> None:
    """A failing graph reports why; running ones are listed, too many are refused, all are counted."""
    context, client = node
    client.hold("wait")
    client.answer = lambda prompt, request: "done"
    slow = RunGraph(Graph([StreamNodes("0", [ConstantText("wait"), Gen("x")])]), "slow")
    bad = RunGraph(Graph([StreamNodes("0", [Variable("nothing")])]), "bad")
    first = asyncio.ensure_future(context.call("programs", slow, Report))
    await client.asked(1)
    outcome = (await context.call("programs", bad, Report)).outcome
    assert outcome.failure is not None
    assert outcome.failure.code == "unknown_variable"
    second = asyncio.ensure_future(context.call("programs", slow, Report))
    await client.asked(2)
    with pytest.raises(Overloaded, match="2 graphs"):
        await context.call("programs", slow, Report)
    second.cancel()
    while client.running > 1:
        await asyncio.sleep(0)
    while len((listed := await context.call("programs", ListPrograms(), Programs)).rows) > 1:
        pass
    assert [(row.name, row.where) for row in listed.rows] == [("slow", "node")]
    client.release("wait")
    assert (await first).outcome.variables == {"x": "done"}
    while True:
        listed = await context.call("programs", ListPrograms(), Programs)
        if not listed.rows:
            break
    assert (listed.succeeded, listed.failed) == (1, 2)


async def test_programs_in_clients_are_listed_until_they_or_their_client_end(
    node: tuple[Context, FakeClient],
) -> None:
    """Announced programs show with their client; a client that ends takes its rows with it."""
    context, _ = node
    client = context.spawn(Echo, "client")
    for id_ in ("p1", "p2"):
        await context.call(client, Forward(id_), Programs)
    listed = await context.call("programs", ListPrograms(), Programs)
    assert [(row.id, row.where) for row in listed.rows] == [("p1", str(client)), ("p2", str(client))]
    context.cast("programs", ProgramEnded("p1"))
    context.cast("programs", ProgramEnded("unknown"))
    context.stop(client)
    while (listed := await context.call("programs", ListPrograms(), Programs)).rows:
        pass
    assert (listed.succeeded, listed.failed) == (1, 1)


class Forward(Message):
    id: str


class Echo(Actor):
    async def receive(self, message: Any, request: Any) -> Any:
        if isinstance(message, Forward):
            self.ctx.cast("programs", ProgramStarted(message.id, "p"))
            return await self.ctx.call("programs", ListPrograms(), Programs)
        return None


def fake(client: FakeClient, log: list[str]) -> Backend:
    class Handle:
        gone = False

        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def context(self, name: str) -> Any:
            return self.kernel.context(name)

        async def close(self) -> None:
            log.append("closed")
            await self.kernel.close()

    async def opens() -> Any:
        log.append("opened")
        return Handle(await open_kernel()), lambda context: client, False

    return Backend(opens, "fake")


def test_a_connection_works_in_one_event_loop_after_the_other() -> None:
    """What `connect` set as the default is opened anew in each loop, and closed with it."""
    log: list[str] = []
    backend = fake(FakeClient(), log)
    for _ in range(2):
        asyncio.run(hello.bind().run(backend=backend))
    assert log == ["opened", "closed"] * 2


@sgl.function
async def hello(s: sgl.ProgramState) -> None:
    s += "Hello" + sgl.gen("x")


def test_the_embedded_node_opens_on_first_use_and_closes_with_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One per event loop, opened once, closed when asyncio.run ends."""
    log: list[str] = []
    default = Default(lambda: fake(FakeClient(), log))
    monkeypatch.setattr(runtime, "default", default)

    async def main() -> None:
        assert log.count("opened") == log.count("closed")
        await asyncio.gather(hello.run(), hello.run())
        await hello.run()

    asyncio.run(main())
    assert log == ["opened", "closed"]
    asyncio.run(main())
    assert log == ["opened", "closed"] * 2


async def test_shutdown_closes_the_embedded_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """`await sgl.shutdown()` closes it now; the next run opens another."""
    log: list[str] = []
    monkeypatch.setattr(runtime, "default", Default(lambda: fake(FakeClient(), log)))
    await sgl.shutdown()
    await hello.run()
    await sgl.shutdown()
    assert log == ["opened", "closed"]
    await hello.run()
    await sgl.shutdown()
    assert log == ["opened", "closed"] * 2


async def test_the_backend_opened_last_is_the_default() -> None:
    """Nested `async with` blocks work like a stack; `backend=` names one outright."""
    one, two = FakeClient(), FakeClient()
    async with fake(one, []) as outer:
        async with fake(two, []):
            await hello.run()
            await hello.bind().run(backend=outer)
        await hello.run()
    assert (len(one.requests), len(two.requests)) == (2, 1)


async def test_closing_a_backend_ends_its_programs() -> None:
    """A program under way gets an error, not silence."""
    client = FakeClient()
    client.hold("Hello")
    backend = fake(client, [])
    task = asyncio.ensure_future(hello.bind().run(backend=backend))
    await client.asked(1)
    await backend.close()
    with pytest.raises(ActorDown):
        await task


def test_connect_refuses_what_is_no_address() -> None:
    """The message shows the forms it takes."""
    with pytest.raises(ConfigError, match="http://host:port"):
        sgl.connect("localhost:30000")


def test_messages_of_programs_survive_the_wire() -> None:
    """A graph in a message decodes to itself."""
    ask = RunGraph(Graph([StreamNodes("0", [ConstantText("a"), Gen("x", SamplingArgs(stop=("b",)))])]))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ask), type=RunGraph) == ask
