"""How programs end when they are cancelled, late, or lose their node; and what is said about it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.errors import DeadlineExceeded, NodeGone, UnknownVariable
from sgl_actors.lang import body as lang_body
from sgl_actors.lang.errors import BodyFailed, PrimitiveFailed
from tests.programs.fakes import FakeClient, backend_of

SECRET = "a very private prompt"


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
async def backend(client: FakeClient) -> AsyncIterator[Backend]:
    async with backend_of(client) as backend:
        yield backend


async def idle(client: FakeClient) -> None:
    """Until no request runs."""
    while client.running:
        await asyncio.sleep(0)


@sgl.function
async def deaf(s: sgl.ProgramState, again: asyncio.Event) -> None:
    """Catches every cancellation and waits on."""
    s += "slow" + sgl.gen("x")
    while not again.is_set():
        try:
            await again.wait()
        except asyncio.CancelledError:
            s["cancelled"] = True


@sgl.function
async def swallow(s: sgl.ProgramState) -> str:
    """Takes its cancellation for a reason to go on."""
    s += "slow" + sgl.gen("x")
    try:
        await s["x"]
    except asyncio.CancelledError:
        s += "slow again" + sgl.gen("y")
    return "done"


@sgl.function
def plain(s: sgl.ProgramState) -> None:
    """Never awaits."""
    group = s.fork(3)
    group += "slow" + sgl.gen("x")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deaf body is left to itself at once."""
    monkeypatch.setattr(lang_body, "PATIENCE", 0.0)


@pytest.mark.parametrize(("which", "gens"), [("deaf", 1), ("swallow", 1), ("plain", 3)])
@pytest.mark.usefixtures("impatient", "backend")
async def test_cancelling_a_program_cancels_its_requests(client: FakeClient, which: str, gens: int) -> None:
    """Whatever the body does with its cancellation, the caller gets it and no request runs on."""
    client.hold("slow")
    again = asyncio.Event()
    program = {"deaf": deaf.bind(again=again), "swallow": swallow.bind(), "plain": plain.bind()}[which]
    task = asyncio.ensure_future(program.run())
    await client.asked(gens)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await idle(client)
    assert client.cancelled >= gens
    assert len([r for r in client.requests if r.sampling.max_tokens]) == gens
    again.set()


@pytest.mark.parametrize("which", ["deaf", "swallow", "plain"])
@pytest.mark.usefixtures("impatient", "backend")
async def test_a_program_that_is_late_leaves_no_requests(client: FakeClient, which: str) -> None:
    """After its time is over nothing that it asked for runs on."""
    client.hold("slow")
    again = asyncio.Event()
    program = {"deaf": deaf.bind(again=again), "swallow": swallow.bind(), "plain": plain.bind()}[which]
    with pytest.raises((DeadlineExceeded, PrimitiveFailed)):
        await program.run(timeout=0.05)
    await idle(client)
    again.set()


@pytest.mark.usefixtures("impatient", "backend")
async def test_leaving_a_stream_early_cancels_the_program(client: FakeClient) -> None:
    """Closing the iterator ends requests even if the body goes on."""
    client.hold("slow")
    again = asyncio.Event()

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Hello" + sgl.gen("x")
        await deaf.body(s, again)

    pieces = program.stream("x")
    assert await anext(pieces) == " echo5"
    await client.asked(2)
    await pieces.aclose()
    await idle(client)
    again.set()


@pytest.mark.usefixtures("backend")
async def test_a_bodys_own_timeout_is_not_the_programs() -> None:
    """A TimeoutError that the body lets through is its failure."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        raise TimeoutError

    with pytest.raises(BodyFailed, match="TimeoutError"):
        await program.run()


class Nodes:
    """Nodes one after the other; `kill` ends the present one."""

    def __init__(self) -> None:
        self.clients: list[FakeClient] = []
        self.closed: list[int] = []
        self._systems: list[Any] = []

    def backend(self) -> Backend:
        return Backend(self._open, "mortal")

    def kill(self) -> None:
        self._systems[-1].node_down()

    async def _open(self) -> Any:
        number, client, kernel = len(self.clients), FakeClient(), await open_kernel()
        self.clients.append(client)
        self._systems.append(kernel._system)
        nodes = self

        class Handle:
            @property
            def gone(self) -> bool:
                return kernel.gone

            def context(self, name: str) -> Any:
                return kernel.context(name)

            async def close(self) -> None:
                nodes.closed.append(number)
                await kernel.close()

        return Handle(), lambda context: client, False


@sgl.function
async def hello(s: sgl.ProgramState) -> None:
    s += "Hello" + sgl.gen("x")


async def test_a_node_that_ended_is_replaced_for_the_next_program() -> None:
    """A running program fails with NodeGone and its prompt's tail; the next run opens a node, as does one that finds it dead."""
    nodes = Nodes()
    async with nodes.backend():
        await hello.run()
        nodes.clients[0].answer = lambda prompt, request: NodeGone("the node has ended")
        nodes.kill()
        await hello.run()
        assert (len(nodes.clients), nodes.closed) == (2, [0])
        client = nodes.clients[1]
        client.hold("Hello")
        client.answer = lambda prompt, request: NodeGone("the node has ended")
        failing = asyncio.ensure_future(hello.run())
        await client.asked(2)
        nodes.kill()
        await hello.run()
        assert (len(nodes.clients), nodes.closed) == (3, [0])  # one program still ends on the second
        client.release("Hello")
        with pytest.raises(PrimitiveFailed, match=r"NodeGone.*ends: 'Hello'") as failed:
            await failing
        assert isinstance(failed.value.__cause__, NodeGone)
        await hello.run()
        assert (len(nodes.clients), nodes.closed) == (3, [0, 1])
    assert nodes.closed == [0, 1, 2]


@pytest.mark.usefixtures("backend")
async def test_an_unknown_variable_shows_what_is_still_to_come(client: FakeClient) -> None:
    """What pending primitives will define is listed beside what has a value."""
    client.hold("x")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s["z"] = 1
        s += "x" + sgl.gen("a")
        await s["b"]

    with pytest.raises(UnknownVariable, match="it has: a, z"):
        await program.run()


@pytest.mark.usefixtures("backend")
async def test_a_branch_inherits_what_is_still_being_written(client: FakeClient) -> None:
    """Reading a parent's pending variable through a branch waits for it."""
    client.hold("x")

    @sgl.function
    async def program(s: sgl.ProgramState) -> Any:
        s += "x" + sgl.gen("a")
        (branch,) = s.fork(1)
        reading = asyncio.ensure_future(_await(branch["a"]))
        unknown = asyncio.ensure_future(_await(branch["b"]))
        await client.asked(1)
        client.release("x")
        with pytest.raises(UnknownVariable, match="it has: a"):
            await unknown
        return await reading

    assert (await program.run()).value == " echo1"


async def _await(value: Any) -> Any:
    return await value


@pytest.mark.parametrize("error", [ValueError(SECRET), UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET)])
@pytest.mark.usefixtures("backend")
async def test_internal_errors_reach_the_user_as_exceptions_only(
    client: FakeClient, error: Exception, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is printed; who listens to the logger gets class and place, without text, variables or prompt."""

    def fail(prompt: str, request: Any) -> Any:
        raise error

    client.answer = fail
    with caplog.at_level(logging.DEBUG, "sgl_actors"):

        @sgl.function
        async def program(s: sgl.ProgramState) -> None:
            s += SECRET + sgl.gen("x")

        with pytest.raises(PrimitiveFailed):
            await program.run()
    assert capfd.readouterr() == ("", "")
    assert type(error).__name__ in caplog.text
    assert "a node failed" in caplog.text
    assert "private" not in caplog.text
