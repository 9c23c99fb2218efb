"""Searching a tree of states: what is asked for, who wins, who is cancelled."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded
from sgl_actors.lang.errors import BranchCancelled, BudgetExceeded, InvalidPrimitive
from sgl_actors.lang.patterns import NoValidResult, beam, tree_search
from tests.lang.patterns.conftest import Runs, ScoredClient, in_turn

PREFIX = "A long question that all of the branches share with each other. " * 3


def digits(client: ScoredClient) -> None:
    """Every state's children are its number with 0, 1, … appended, in the order in which they ask."""
    children: dict[str, itertools.count[int]] = {}

    def answer(prompt: str, request: Any) -> str:
        return str(next(children.setdefault(prompt, itertools.count())))

    client.answer = answer


async def number_of(branch: sgl.ProgramState) -> str:
    return (re.search(r"[0-9]*$", await branch.text()) or [""])[0]


def valued(table: Callable[[str], float]) -> Callable[[sgl.ProgramState], Any]:
    async def value(branch: sgl.ProgramState) -> float:
        return table(await number_of(branch))

    return value


def chaotic(number: str) -> float:
    """A value for each node that no order explains."""
    return (int("7" + number) * 7919 % 1009) / 1009


async def test_a_beam_asks_for_as_many_steps_as_its_width_says(client: ScoredClient, run: Runs) -> None:
    """width 3, depth 3: 3 + 9 + 9 gens, and one more request that computes the common prefix."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        s += PREFIX
        return await beam(s, sgl.gen("step"), valued(chaotic), width=3, depth=3)

    state = await run(body)
    kinds = [call.kind for call in client.calls]
    assert (kinds.count("gen"), kinds.count("prefix"), len(kinds)) == (21, 1, 22)
    assert len(state.value.candidates) == 21

    def naive() -> str:
        level = [""]
        for _ in range(3):
            level = [node + digit for node in level for digit in "012"]
            level = sorted(level, key=chaotic, reverse=True)[:3]
        return level[0]

    assert client.gens()[0] == PREFIX
    assert state.value.value == naive()[-1]
    assert state.value.score == chaotic(naive())


async def test_the_whole_way_to_the_winner_is_the_result(client: ScoredClient, run: Runs) -> None:
    """`s += result` adds all its steps; the winning branch can be continued, and the losers are cancelled."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        found = await beam(s, sgl.gen("step") + "", valued(float), width=2, depth=3, branching=2)
        s += found
        found.state += "!"
        assert await found.state.text() == "n=111!"
        losers = [one for one in found.candidates if one.state is not found.state]
        cancelled = 0
        for one in losers:
            error = await one.state.error()
            cancelled += isinstance(error, BranchCancelled)
        return len(losers), cancelled

    state = await run(body)
    assert state.text() == "n=111"
    assert state["step"] == "1"
    made = 2 + 4 + 4
    assert state.value == (made - 1, made - 3)  # two more are on the way


async def test_a_beam_can_go_by_log_probabilities(client: ScoredClient, run: Runs) -> None:
    """The mean over all tokens since the root counts, not that of the last step alone."""
    client.answer = in_turn("a", "b", "c", "d", "e", "f")
    client.scored = lambda piece: {"a": -1.0, "b": -3.0, "c": -4.0, "d": -4.0, "e": -0.5, "f": -5.0}[piece]

    async def body(s: sgl.ProgramState) -> Any:
        return await beam(s, sgl.gen("step"), width=2, depth=2)

    found = (await run(body)).value
    assert found.value == "e"  # be: -1.75, ac: -2.5
    assert found.score == pytest.approx(2.718281828**-1.75)


async def test_steps_may_be_functions(client: ScoredClient, run: Runs) -> None:
    """Their value is what they return."""
    digits(client)

    async def step(branch: sgl.ProgramState) -> int:
        branch += sgl.gen("digit")
        return int(await branch["digit"])

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        return (await beam(s, step, valued(float), width=1, depth=2, branching=3)).value

    assert (await run(body)).value == 2


@pytest.mark.parametrize("policy", ["bfs", "dfs", "best_first", "mcts"])
async def test_a_search_ends_at_the_goal(client: ScoredClient, run: Runs, policy: str) -> None:
    """The first state at the goal is the result, whatever the policy."""
    digits(client)

    async def goal(branch: sgl.ProgramState) -> bool:
        return await number_of(branch) == "10"

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        found = await tree_search(
            s, sgl.gen("step"), valued(lambda n: 0.5), n=2, goal=goal, policy=policy, depth=2, width=2
        )
        s += found
        return found

    state = await run(body)
    assert state.text() == "n=10"
    assert len(state.value.candidates) <= 6


async def test_siblings_of_the_goal_are_cancelled_while_they_are_written(
    client: ScoredClient, run: Runs
) -> None:
    """What is still being generated ends when the goal is found."""
    answers = iter(["goal", *["x"] * 3])
    client.answer = lambda prompt, request: next(answers)

    async def goal(branch: sgl.ProgramState) -> bool:
        return str(await branch["step"]) == "goal"

    client.hold("[slow]")

    async def body(s: sgl.ProgramState) -> Any:
        numbers = itertools.count()

        async def step(branch: sgl.ProgramState) -> str:
            branch += ("[first]" if next(numbers) == 0 else "[slow]") + sgl.gen("step")
            return str(await branch["step"])

        found = await tree_search(s, step, valued(lambda n: 0.0), n=4, goal=goal, policy="bfs")
        await client.quiet()
        return found

    found = (await run(body)).value
    assert found.value == "goal"
    assert client.cancelled == 3


@pytest.mark.parametrize("nodes", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("policy", ["bfs", "dfs", "best_first", "mcts"])
async def test_no_more_states_are_made_than_allowed(
    client: ScoredClient, run: Runs, policy: str, nodes: int
) -> None:
    """Each state is one gen; when there was no room for a complete one, the best of those there are is the result."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        return await tree_search(
            s, sgl.gen("step"), valued(chaotic), n=3, policy=policy, depth=3, nodes=nodes, width=2
        )

    found = (await run(body)).value
    assert len(client.gens()) == len(found.candidates) <= nodes
    if nodes < 3:
        assert found.score == max(one.score for one in found.candidates)


@pytest.mark.parametrize("policy", ["dfs", "best_first", "mcts"])
async def test_with_room_for_all_the_best_leaf_is_found(client: ScoredClient, run: Runs, policy: str) -> None:
    """The same as by looking at every leaf."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        return await tree_search(s, sgl.gen("step"), valued(chaotic), n=3, policy=policy, depth=3, nodes=39)

    leaves = ["".join(digits) for digits in itertools.product("012", repeat=3)]
    assert (await run(body)).value.score == max(map(chaotic, leaves))


async def test_mcts_depends_on_its_seed_alone(client: ScoredClient, run: Runs) -> None:
    """Twenty seeds, each twice on a tree full of ties: equal seeds make the same states, in the same order; all find the one good leaf."""

    async def body(s: sgl.ProgramState, seed: int) -> Any:
        s += "n="
        found = await tree_search(
            s,
            sgl.gen("step"),
            valued(lambda n: float(n == "210")),
            n=3,
            policy="mcts",
            depth=3,
            nodes=39,
            seed=seed,
        )
        return found.score, [await number_of_quietly(one.state) for one in found.candidates]

    async def number_of_quietly(branch: sgl.ProgramState) -> str:
        error = await branch.error()
        return "cut" if error else await number_of(branch)

    orders = set()
    for seed in range(20):
        twice = []
        for _ in range(2):
            digits(client)
            client.prompts.clear()
            client.calls.clear()
            state = await run(body, seed=seed)
            assert state.value[0] == 1.0
            twice.append((tuple(client.gens()), tuple(state.value[1])))
        assert twice[0] == twice[1]
        orders.add(twice[0])
    assert len(orders) > 3


async def test_children_may_be_forked_by_the_program(client: ScoredClient, run: Runs) -> None:
    """An expansion that proposes several thoughts at once: its branches are the children; none means complete."""
    client.answer = in_turn("apples, pears", "red, green", "plums", "", "", "")

    async def expand(branch: sgl.ProgramState) -> Any:
        (aside,) = branch.fork(1)
        aside += " Next:" + sgl.gen("next")
        thoughts = [thought.strip() for thought in (await aside["next"]).split(",") if thought.strip()]
        if not thoughts:
            return []
        children = branch.fork(len(thoughts))
        children += [f" {thought}." for thought in thoughts]
        return children

    async def length(branch: sgl.ProgramState) -> float:
        return len(await branch.text()) / 100

    async def body(s: sgl.ProgramState) -> Any:
        s += "Think."
        found = await tree_search(s, expand, length, policy="bfs", depth=5)
        s += found
        return found.value, len(found.candidates)

    state = await run(body)
    assert state.text() == "Think. apples. green."
    assert state.value == (" apples. green.", 5)


async def test_children_of_others_are_refused(run: Runs) -> None:
    """`expand` returns branches of the one it is given, so that the way to the winner is known."""

    async def body(s: sgl.ProgramState) -> Any:
        strangers = s.fork(1)
        nested = strangers[0].fork(1)

        async def expand(branch: sgl.ProgramState) -> Any:
            return nested

        await tree_search(s, expand, valued(lambda n: 0.0))

    with pytest.raises(InvalidPrimitive, match=r"branch\.fork\(n\)"):
        await run(body)


async def test_extra_children_are_cancelled_unseen(client: ScoredClient, run: Runs) -> None:
    """Of more branches than there is room for, the first are looked at."""

    async def expand(branch: sgl.ProgramState) -> Any:
        children = branch.fork(5)
        children += "x" + sgl.gen("v")
        return children

    async def body(s: sgl.ProgramState) -> Any:
        return await tree_search(s, expand, valued(lambda n: 0.0), name="v", nodes=2, depth=1)

    found = (await run(body)).value
    assert [one.value for one in found.candidates] == [" echo1", " echo1"]


async def test_a_state_that_fails_is_not_followed(client: ScoredClient, run: Runs) -> None:
    """Nor is one whose value, goal or expansion fails; the others are, and the program ends well."""
    client.answer = in_turn(Overloaded("full"), "1", "2")

    async def value(branch: sgl.ProgramState) -> float:
        if await branch["step"] == "2":
            (aside,) = branch.fork(1)
            aside += sgl.gen("score")
            client.answer = lambda prompt, request: Overloaded("fuller")
            await aside["score"]
        return 0.5

    async def body(s: sgl.ProgramState) -> Any:
        return await tree_search(s, sgl.gen("step"), value, n=3, depth=1)

    found = (await run(body)).value
    assert found.value == "1"
    assert [one.error is None for one in found.candidates] == [False, True, False]


async def test_if_nothing_can_be_expanded_there_is_no_valid_result(client: ScoredClient, run: Runs) -> None:
    """The failure is the cause."""
    client.answer = lambda prompt, request: Overloaded("full")

    async def expand(branch: sgl.ProgramState) -> Any:
        (aside,) = branch.fork(1)
        aside += sgl.gen("next")
        await aside["next"]

    async def body(s: sgl.ProgramState) -> Any:
        await tree_search(s, expand, valued(lambda n: 0.0))

    with pytest.raises(NoValidResult, match="full"):
        await run(body)


async def test_a_goal_that_nothing_reaches_is_an_error(client: ScoredClient, run: Runs) -> None:
    """All states are in it, and all are cancelled."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        with pytest.raises(NoValidResult) as caught:
            await tree_search(
                s, sgl.gen("step"), valued(chaotic), n=2, depth=2, goal=lambda branch: False, policy="dfs"
            )
        errors = [await one.state.error() for one in caught.value.candidates]
        return [type(error) for error in errors]

    assert (await run(body)).value == [BranchCancelled] * 6


async def test_low_values_are_not_followed(client: ScoredClient, run: Runs) -> None:
    """States under the threshold are cut off, with all that could lie below them."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        return await tree_search(
            s, sgl.gen("step"), valued(lambda n: float(n[-1]) / 2), n=3, depth=2, threshold=0.9, policy="bfs"
        )

    found = (await run(body)).value
    assert found.value == "2"
    assert len(found.candidates) == 6


async def test_the_budget_ends_a_search(client: ScoredClient, run: Runs) -> None:
    """`BudgetExceeded` passes through; nothing goes on being generated."""
    digits(client)

    async def body(s: sgl.ProgramState) -> Any:
        s += "n="
        try:
            await beam(s, sgl.gen("step", max_tokens=4), valued(chaotic))
        finally:
            await client.quiet()

    with pytest.raises(BudgetExceeded):
        await run(body, budget=sgl.Budget(calls=5))
    assert len(client.requests) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "random"}, "policy is one of bfs, dfs, best_first, mcts"),
        ({"n": None}, "needs n"),
        ({"depth": 0}, "depth"),
        ({"nodes": 0}, "nodes"),
        ({"width": 0}, "width"),
        ({"value": "best"}, "logprob"),
        ({"value": lambda branch: 2.0, "policy": "mcts"}, "from 0 to 1"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
async def test_wrong_searches_are_named(run: Runs, arguments: dict[str, Any], message: str) -> None:
    """Each is an `InvalidPrimitive` that says what is expected."""

    async def body(s: sgl.ProgramState) -> Any:
        given: dict[str, Any] = {"n": 2, "value": lambda branch: 0.5, **arguments}
        value = given.pop("value")
        await tree_search(s, sgl.gen("step"), value, **given)

    with pytest.raises(InvalidPrimitive, match=message):
        await run(body)
