"""The first of several branches that has a value, or one that will do."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded
from sgl_actors.lang.errors import BranchCancelled, InvalidPrimitive
from sgl_actors.lang.patterns import NoValidResult, first_valid, race
from sgl_actors.lang.typed import InvalidValue
from tests.lang.patterns.conftest import Runs, ScoredClient


async def test_the_first_value_wins_and_the_others_are_cancelled(client: ScoredClient, run: Runs) -> None:
    """What they ask of the node ends, and they are no failure of the program."""
    client.hold("slow")

    async def body(s: sgl.ProgramState) -> Any:
        slow, quick, slower = s.fork(3)
        slow += "slow" + sgl.gen("v")
        quick += "quick" + sgl.gen("v")
        slower += "very slow" + sgl.gen("v")
        found = await race([slow, quick, slower], "v")
        await client.quiet()
        s += found
        return found

    state = await run(body)
    assert state.value.value == " echo5"
    assert state.text() == "quick echo5"
    assert client.cancelled == 2
    assert [type(one.error) for one in state.value.candidates] == [
        BranchCancelled,
        type(None),
        BranchCancelled,
    ]


async def test_a_branch_that_fails_first_has_not_won(client: ScoredClient, run: Runs) -> None:
    """It is out of the race; its error is in the result."""
    client.answer = lambda prompt, request: Overloaded("full") if "bad" in prompt else " ok"
    client.hold("good")

    async def body(s: sgl.ProgramState) -> Any:
        group = s.fork(2)
        group += ["bad" + sgl.gen("v"), "good" + sgl.gen("v")]
        bad, _ = group
        assert await bad.error() is not None
        client.release("good")
        return await race(group, "v")

    found = (await run(body)).value
    assert found.value == " ok"
    assert isinstance(found.candidates[0].error.__cause__, Overloaded)


async def test_what_may_be_a_gen_or_a_function(run: Runs) -> None:
    """A gen stands for its variable; a function is called with each branch."""

    async def body(s: sgl.ProgramState) -> Any:
        answer = sgl.gen("v")
        group = s.fork(2)
        group += "a" + answer

        async def doubled(branch: sgl.ProgramState) -> str:
            return 2 * await branch[answer]

        return [(await race(group, answer)).value, (await race(s.fork(1), doubled_later)).value]

    async def doubled_later(branch: sgl.ProgramState) -> str:
        branch += "bb" + sgl.gen("w")
        return 2 * str(await branch["w"])

    assert (await run(body)).value == [" echo1", " echo2 echo2"]


async def test_the_first_valid_value_wins(client: ScoredClient, run: Runs) -> None:
    """A value that the check refuses, by its answer or by a ValueError, is passed over."""
    client.answer = lambda prompt, request: {"a": " many", "b": " 3", "c": " 4"}[prompt]
    client.hold("c")

    async def even(text: str) -> bool:
        return int(text) % 2 == 0

    async def body(s: sgl.ProgramState) -> Any:
        group = s.fork(3)
        group += lambda index: "abc"[index] + sgl.gen("v")
        assert await group[0]["v"] == " many"
        assert await group[1]["v"] == " 3"
        client.release("c")
        return await first_valid(group, "v", even)

    found = (await run(body)).value
    assert found.value == " 4"
    assert [one.value for one in found.candidates] == [" many", " 3", " 4"]
    assert all(isinstance(one.error, InvalidValue) for one in found.candidates[:2])
    assert "invalid literal" in str(found.candidates[0].error)


async def test_none_valid_is_an_error_with_all_values(client: ScoredClient, run: Runs) -> None:
    """Its message says why each was refused."""

    async def body(s: sgl.ProgramState) -> Any:
        group = s.fork(2)
        group += sgl.gen("v")
        await first_valid(group, "v", lambda value: False)

    with pytest.raises(NoValidResult, match=r"first_valid: none of 2 .* refused ' echo0'") as caught:
        await run(body)
    assert [one.value for one in caught.value.candidates] == [" echo0", " echo0"]


async def test_a_race_needs_branches(run: Runs) -> None:
    """Of none, none can be first."""

    async def body(s: sgl.ProgramState) -> Any:
        await race([], "v")

    with pytest.raises(InvalidPrimitive, match="no branches"):
        await run(body)
