"""What went wrong once: cancellation at awkward moments, reads by position, listeners, books of calls that were given up."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import UnknownVariable
from tests.programs.fakes import FakeClient, backend_of


async def run(program: sgl.Program, client: FakeClient, **options: Any) -> sgl.FinishedState:
    async with asyncio.timeout(20), backend_of(client) as backend:
        return await program.run(backend=backend, **options)


async def test_a_cancelled_branch_that_joins_takes_its_children_along() -> None:
    """They are being waited for at that moment; nothing of theirs goes on."""
    client = FakeClient()
    client.hold("LONG")

    @sgl.function
    async def program(s: sgl.ProgramState) -> int:
        branch = s.fork(1)[0]
        below = branch.fork(2)
        below += "LONG" + sgl.gen("x")
        below.join("x")
        await client.asked(2)
        branch.cancel("not needed")
        while client.running:
            await asyncio.sleep(0)
        return client.cancelled

    assert (await run(program.bind(), client)).value == 2


async def test_a_read_means_the_value_as_of_its_place() -> None:
    """Also when the variable has been written again since, here or seen from a branch."""
    answers = iter(["one", "two"])
    client = FakeClient(lambda prompt, request: next(answers))

    @sgl.function
    async def program(s: sgl.ProgramState) -> tuple[str, str]:
        s += "start" + sgl.gen("v")
        first = s["v"]
        branch = s.fork(1)[0]
        branch += first
        s += sgl.gen("v")
        await s.sync()
        return await first, await branch.text()

    state = await run(program.bind(), client)
    assert state.value == ("one", "startoneone")
    assert state["v"] == "two"


async def test_a_listener_may_come_before_its_branch_has_begun() -> None:
    """It hears what the branch inherits."""
    client = FakeClient()
    client.hold("PREFIX")

    @sgl.function
    async def program(s: sgl.ProgramState) -> list[str]:
        s["a"] = "AA"
        s += "PREFIX " * 30
        branch = s.fork(2)[0]
        asked = asyncio.ensure_future(collect(branch, "a"))
        while not client.running:
            await asyncio.sleep(0)
        client.release("PREFIX")
        return await asked

    assert (await run(program.bind(), client)).value == ["AA"]


async def collect(state: sgl.ProgramState, var: str | None = None) -> list[str]:
    return [piece async for piece in state.text_iter(var)]


async def test_the_whole_prompt_is_heard_from_any_moment_on() -> None:
    """Who comes while a gen writes gets what is there, then the rest, and nothing twice."""
    client = FakeClient(lambda prompt, request: ["a", "b", "c"])

    @sgl.function
    async def program(s: sgl.ProgramState) -> tuple[str, str]:
        group = s.fork(1)
        branch = group[0]
        branch += "Before " + sgl.gen("x") + " after" + sgl.gen("y")
        async for _ in branch.text_iter("x"):
            break
        heard = asyncio.ensure_future(collect(branch))
        await branch["y"]
        text = await branch.text()
        group.join()
        return text, "".join(await heard)

    state = await run(program.bind(), client)
    assert state.value == ("Before abc afterabc", "Before abc afterabc")


async def test_a_listener_for_what_nothing_defines_is_told_so() -> None:
    """At once, with what there is."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.gen("story")
        await collect(s, "stroy")

    with pytest.raises(UnknownVariable, match=r"'stroy'.*there is: story"):
        await run(program.bind(), FakeClient())


async def test_what_a_cancelled_call_had_reserved_is_given_back() -> None:
    """The budget counts what was generated."""
    client = FakeClient(lambda prompt, request: " x")
    client.hold("LONG")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        group = s.fork(2)
        group += lambda index: ("LONG", "fast")[index] + sgl.gen("x", max_tokens=50)
        await group[1]["x"]
        await client.asked(2)
        group[0].cancel()
        await group[0].error()
        s += sgl.gen("y", max_tokens=20)

    state = await run(program.bind(), client, budget=sgl.Budget(tokens=101))
    assert state["y"] == " x"


async def test_usage_is_of_a_branch_and_what_is_below_it_alone() -> None:
    """Branch 10 is no child of branch 1."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> list[int]:
        group = s.fork(11)
        group += "Q" + sgl.gen("x")
        return [(await branch.usage()).calls for branch in group]

    assert (await run(program.bind(), FakeClient())).value == [1] * 11


async def test_a_select_is_one_call_of_the_budget() -> None:
    """However many choices it scores."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Sky: " + sgl.select("a", ["blue", "red", "green"])
        s += " and " + sgl.select("b", ["blue", "red", "green"])

    await run(program.bind(), FakeClient(), budget=sgl.Budget(calls=2))
    with pytest.raises(sgl.BudgetExceeded, match="1 calls"):
        await run(program.bind(), FakeClient(), budget=sgl.Budget(calls=1))


async def test_branches_are_joined_once() -> None:
    """The second time is refused where it is said."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        group = s.fork(2)
        group += "Q" + sgl.gen("x")
        group.join("x")
        with pytest.raises(sgl.InvalidPrimitive, match="joined already"):
            group.join("x")

    await run(program.bind(), FakeClient())


async def test_a_copy_whose_block_raises_is_cancelled() -> None:
    """The program does not wait for what it asked."""
    client = FakeClient()
    client.hold("LONG")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        try:
            with s.copy() as branch:
                branch += "LONG" + sgl.gen("x")
                await client.asked(1)
                int("no number")
        except ValueError:
            pass

    await run(program.bind(), client)
    assert client.running == 0


def test_one_backend_in_several_loops() -> None:
    """Each loop has what it opens; none closes another's."""
    mock = sgl.Mock({}, default="x")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        group = s.fork(2)
        group += "Q" + sgl.gen("x")
        await group.join("x")

    async def several() -> list[Any]:
        return [(await program.run(backend=mock))["x"] for _ in range(3)]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(asyncio.run, [several() for _ in range(3)]))
    assert found == [[["x", "x"]] * 3] * 3
