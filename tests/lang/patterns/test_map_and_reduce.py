"""The same for many items, and many parts made one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded
from sgl_actors.lang.errors import InvalidPrimitive, PrimitiveFailed
from sgl_actors.lang.patterns import best_of, map_, reduce_
from tests.lang.patterns.conftest import Runs, ScoredClient


async def test_values_come_in_the_order_of_the_items(client: ScoredClient, run: Runs) -> None:
    """However the branches end; the prefix is computed once for all."""
    client.answer = lambda prompt, request: prompt[-2].upper()
    client.hold("[a]")
    prefix = "Capital letters. " * 8

    async def upper(branch: sgl.ProgramState, item: str) -> str:
        branch += f"[{item}]" + sgl.gen("v")
        value = await branch["v"]
        if item == "c":
            client.release("[a]")
        return str(value)

    async def body(s: sgl.ProgramState) -> Any:
        s += prefix
        return await map_(s, ["a", "b", "c"], upper)

    state = await run(body)
    assert state.value == ["A", "B", "C"]
    assert [call.kind for call in client.calls] == ["prefix", "gen", "gen", "gen"]
    assert state.text() == prefix


async def test_a_function_may_return_the_expression(client: ScoredClient, run: Runs) -> None:
    """Its last named gen or select is the value; typed ones are values of their type."""
    client.answer = lambda prompt, request: prompt[-1] * 2

    async def body(s: sgl.ProgramState) -> Any:
        texts = await map_(s, "ab", lambda branch, item: item + sgl.gen("v"))
        numbers = await map_(s, [1, 2], lambda branch, item: str(item) + sgl.gen_int("n"))
        return texts, numbers

    assert (await run(body)).value == (["aa", "bb"], [11, 22])


async def test_at_most_so_many_at_the_same_time(client: ScoredClient, run: Runs) -> None:
    """`max_concurrency` bounds the requests; all items are done."""

    client.hold("x")

    async def body(s: sgl.ProgramState) -> Any:
        s += "x"
        task = asyncio.ensure_future(
            map_(s, range(20), lambda branch, item: f"{item}" + sgl.gen("v"), max_concurrency=3)
        )
        await client.asked(3)
        for _ in range(500):
            await asyncio.sleep(0)
        assert client.running == 3
        client.release("x")
        return await task

    assert len((await run(body)).value) == 20
    assert client.most == 3


async def test_the_first_failure_cancels_the_rest_and_is_raised(client: ScoredClient, run: Runs) -> None:
    """As `run_batch` does."""
    client.answer = lambda prompt, request: Overloaded("full") if prompt == "bad" else "ok"
    client.hold("slow")

    async def body(s: sgl.ProgramState) -> Any:
        with pytest.raises(PrimitiveFailed, match="full"):
            await map_(s, ["slow", "bad", "slow"], lambda branch, item: item + sgl.gen("v"))
        await client.quiet()

    await run(body)
    assert client.cancelled == 2


async def test_errors_can_stand_in_the_places_of_their_items(client: ScoredClient, run: Runs) -> None:
    """With `return_exceptions` the others are none the worse, and the program ends well."""
    client.answer = lambda prompt, request: Overloaded("full") if prompt == "bad" else "ok"

    async def body(s: sgl.ProgramState) -> Any:
        return await map_(
            s, ["a", "bad", "c"], lambda branch, item: item + sgl.gen("v"), return_exceptions=True
        )

    first, failed, last = (await run(body)).value
    assert (first, last) == ("ok", "ok")
    assert isinstance(failed, PrimitiveFailed)


async def test_no_items_ask_nothing(client: ScoredClient, run: Runs) -> None:
    """The list is empty, and nothing is forked."""

    async def body(s: sgl.ProgramState) -> Any:
        return await map_(s, [], lambda branch, item: sgl.gen("v"))

    state = await run(body)
    assert state.value == []
    assert state.branches == []


async def test_patterns_stand_inside_patterns(client: ScoredClient, run: Runs) -> None:
    """A best_of in every branch of a map_: each forks from its own branch."""
    client.answer = lambda prompt, request: f" {prompt[-1]}{(request.sampling.seed or 0) % 1000:03}"

    async def best(branch: sgl.ProgramState, item: str) -> str:
        branch += item
        found = await best_of(branch, 3, sgl.gen("v"), score=lambda text: int(text[-3:]))
        branch += found
        assert found.value == max((one.value for one in found.candidates), key=lambda text: text[-3:])
        return await branch.text()

    async def body(s: sgl.ProgramState) -> Any:
        s += "x"
        return await map_(s, ["a", "b"], best)

    state = await run(body, seed=7)
    assert [text[:4] for text in state.value] == ["xa a", "xb b"]
    assert len(client.gens()) == 6
    assert state.usage.calls == 6
    assert (await run(body, seed=7)).value == state.value


async def test_parts_are_put_together_level_by_level(client: ScoredClient, run: Runs) -> None:
    """Neighbours in their order, a part without a neighbour goes up as it is."""
    seen: list[list[str]] = []

    async def together(branch: sgl.ProgramState, parts: list[str]) -> str:
        seen.append(parts)
        branch += "".join(parts) + sgl.gen("v")
        await branch["v"]
        return f"({''.join(parts)})"

    async def body(s: sgl.ProgramState) -> Any:
        return await reduce_(s, "abcdefg", together, arity=3)

    assert (await run(body)).value == "((abc)(def)g)"
    assert seen == [["a", "b", "c"], ["d", "e", "f"], ["(abc)", "(def)", "g"]]
    assert len(client.gens()) == 3


async def test_a_single_part_is_the_result(client: ScoredClient, run: Runs) -> None:
    """It is not sent to the model; no part at all is an error."""

    async def body(s: sgl.ProgramState) -> Any:
        with pytest.raises(InvalidPrimitive, match="number of parts"):
            await reduce_(s, [], lambda branch, parts: sgl.gen("v"))
        with pytest.raises(InvalidPrimitive, match="arity"):
            await reduce_(s, ["a", "b"], lambda branch, parts: sgl.gen("v"), arity=1)
        return await reduce_(s, ["only"], lambda branch, parts: sgl.gen("v"))

    assert (await run(body)).value == "only"
    assert client.requests == []
