"""Several answers from one point, of which the best or the most frequent is kept."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded
from sgl_actors.lang.errors import BranchCancelled, BudgetExceeded, InvalidPrimitive, PrimitiveFailed
from sgl_actors.lang.patterns import NoValidResult, best_of, judge, normalise, vote
from tests.lang.patterns.conftest import Runs, ScoredClient, in_turn


async def test_the_highest_score_wins_and_the_state_goes_on_with_it(client: ScoredClient, run: Runs) -> None:
    """`s += result` adds the winner's text and its variables, and asks the model for nothing."""
    client.answer = in_turn(" a", " longest", " mid", " end")

    async def body(s: sgl.ProgramState) -> Any:
        s += "Say:"
        best = await best_of(s, 3, sgl.gen("word") + "!", score=len)
        asked = len(client.requests)
        s += best
        assert await s["word"] == " longest"
        assert len(client.requests) == asked
        s += sgl.gen("more")
        return best

    state = await run(body)
    assert state.text() == "Say: longest! end"
    best = state.value
    assert (best.value, best.score) == (" longest", 8.0)
    assert [(one.value, one.score) for one in best.candidates] == [(" a", 2), (" longest", 8), (" mid", 4)]
    assert best.usage.calls == 3
    assert best.usage.completion_tokens == 3


async def test_the_winning_branch_can_be_continued(client: ScoredClient, run: Runs) -> None:
    """`result.state` is the branch itself, the state it came from stays as it is; no other branch can take its place."""
    client.answer = in_turn(" aa", " b", " then")

    async def body(s: sgl.ProgramState) -> list[str]:
        s += "x"
        best = await best_of(s, 2, sgl.gen("v"), score=len)
        best.state += " and" + sgl.gen("w")
        with pytest.raises(InvalidPrimitive, match="cannot be replaced"):
            best.state = s
        return [await best.state.text(), await s.text()]

    assert (await run(body)).value == ["x aa and then", "x"]


async def test_logprob_is_the_mean_over_the_tokens(client: ScoredClient, run: Runs) -> None:
    """Long answers are at no disadvantage, and the gen need not ask for log probabilities itself."""
    client.answer = in_turn([" one", " two", " three"], [" single"])
    client.scored = lambda piece: -1.5 if piece == " single" else -1.0

    async def body(s: sgl.ProgramState) -> Any:
        return await best_of(s, 2, sgl.gen("v"))

    best = (await run(body)).value
    assert best.value == " one two three"
    assert [one.score for one in best.candidates] == [-1.0, -1.5]


async def test_a_functions_logprob_is_that_of_the_variable_it_names(client: ScoredClient, run: Runs) -> None:
    """Without a name, or without log probabilities, the error says what to write."""
    client.answer = lambda prompt, request: " v"

    async def attempt(branch: sgl.ProgramState) -> int:
        branch += sgl.gen("v", logprobs=True)
        return 7

    async def plain(branch: sgl.ProgramState) -> int:
        branch += sgl.gen("v")
        return 7

    async def body(s: sgl.ProgramState) -> Any:
        best = await best_of(s, 2, attempt, name="v")
        with pytest.raises(InvalidPrimitive, match="name="):
            await best_of(s, 1, attempt)
        with pytest.raises(InvalidPrimitive, match="logprobs=True"):
            await best_of(s, 1, plain, name="v")
        return best.value, best.score

    assert (await run(body)).value == (7, -1.0)


async def test_scores_may_be_async_and_ties_go_to_the_first(client: ScoredClient, run: Runs) -> None:
    """Of equal scores the first branch wins, however late it comes."""
    client.hold("first")
    names = iter(["first", "second"])

    async def attempt(branch: sgl.ProgramState) -> str:
        name = next(names)
        branch += name + sgl.gen("v")
        value = await branch["v"]
        if name == "second":
            client.release("first")
        return f"{name}{value}"

    async def score(value: str) -> float:
        await asyncio.sleep(0)
        return 1.0

    async def body(s: sgl.ProgramState) -> str:
        return (await best_of(s, 2, attempt, score)).value

    assert (await run(body)).value.startswith("first")


async def test_a_judge_scores_the_branch(client: ScoredClient, run: Runs) -> None:
    """With `judge=` the model itself is asked about each branch."""
    client.answer = in_turn(" dull", " bright")
    client.logprob = lambda word: -0.1 if word.strip() == "yes" else -1.0

    async def judged(branch: sgl.ProgramState) -> Any:
        client.logprob = lambda word: -0.1 if word.strip() == wanted else -3.0
        wanted = "yes" if await branch["v"] == " bright" else "no"
        return await judge(branch, "Is it bright?", labels=["no", "yes"])

    async def body(s: sgl.ProgramState) -> Any:
        s += "x"
        first = await best_of(s, 1, sgl.gen("v"), judge=judged)
        second = await best_of(s, 1, sgl.gen("v"), judge=judged)
        return first, second

    first, second = (await run(body)).value
    assert first.score < 0.1 < 0.9 < second.score


async def test_a_failed_branch_is_a_candidate_with_an_error(client: ScoredClient, run: Runs) -> None:
    """The others go on, and the program ends well."""
    client.answer = in_turn(Overloaded("full"), " ok")

    async def body(s: sgl.ProgramState) -> Any:
        best = await best_of(s, 2, sgl.gen("v"), score=len)
        s += best
        return best

    state = await run(body)
    failed, good = state.value.candidates
    assert state["v"] == " ok"
    assert good.error is None
    assert isinstance(failed.error, PrimitiveFailed)
    assert isinstance(failed.error.__cause__, Overloaded)


async def test_when_all_fail_there_is_no_valid_result(client: ScoredClient, run: Runs) -> None:
    """The error holds the candidates, and the first one's error is its cause; a body may catch it and go on."""
    client.answer = in_turn(Overloaded("full"), Overloaded("fuller"), " after")

    async def body(s: sgl.ProgramState) -> Any:
        with pytest.raises(NoValidResult, match="best_of: none of 2") as caught:
            await best_of(s, 2, sgl.gen("v"), score=len)
        s += sgl.gen("v")
        return caught.value

    state = await run(body)
    assert state["v"] == " after"
    assert [type(one.error) for one in state.value.candidates] == [PrimitiveFailed, PrimitiveFailed]
    assert state.value.__cause__ is state.value.candidates[0].error


async def test_no_valid_result_is_what_the_run_raises(client: ScoredClient, run: Runs) -> None:
    """A body that does not catch it lets `run` raise it as it is."""
    client.answer = lambda prompt, request: Overloaded("full")

    async def body(s: sgl.ProgramState) -> Any:
        await best_of(s, 2, sgl.gen("v"), score=len)

    with pytest.raises(NoValidResult, match="full"):
        await run(body)


async def test_the_end_of_the_budget_is_no_candidates_failure(client: ScoredClient, run: Runs) -> None:
    """`BudgetExceeded` passes through, and the other branches are cancelled."""
    client.answer = lambda prompt, request: " v"
    client.hold("x")

    async def body(s: sgl.ProgramState) -> Any:
        s += "x"
        try:
            await best_of(s, 3, sgl.gen("v", max_tokens=4), score=len)
        finally:
            await client.quiet()

    with pytest.raises(BudgetExceeded):
        await run(body, budget=sgl.Budget(calls=2))
    assert client.cancelled == 2


async def test_what_a_score_raises_ends_the_pattern_and_the_branches(client: ScoredClient, run: Runs) -> None:
    """A fault of the program is not taken for a candidate's: it is raised, and what still runs is cancelled."""
    client.hold("[1]")
    numbers = itertools.count()

    async def attempt(branch: sgl.ProgramState) -> str:
        branch += f"[{next(numbers)}]" + sgl.gen("v")
        return str(await branch["v"])

    async def body(s: sgl.ProgramState) -> Any:
        with pytest.raises(ZeroDivisionError):
            await best_of(s, 2, attempt, score=lambda value: 1 / 0)
        await client.quiet()

    await run(body)
    assert client.cancelled == 1


async def test_a_cancelled_pattern_cancels_its_branches(client: ScoredClient, run: Runs) -> None:
    """A timeout around it in the body frees what it has asked for, and the program goes on."""
    client.hold("slow")

    async def body(s: sgl.ProgramState) -> str:
        s += "slow"
        task = asyncio.ensure_future(best_of(s, 3, sgl.gen("v"), score=len))
        await client.asked(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.quiet()
        return "went on"

    assert (await run(body)).value == "went on"
    assert client.cancelled == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is a whole number"),
        ({"what": sgl.gen()}, "sets no variable"),
        ({"what": "text"}, "sets no variable"),
        ({"what": lambda branch: 3}, "async def"),
        ({"score": lambda value: float("nan")}, "finite number"),
        ({"score": lambda value: value}, "finite number"),
        ({"score": "best"}, "logprob"),
    ],
)
async def test_wrong_arguments_are_named(run: Runs, arguments: dict[str, Any], message: str) -> None:
    """Each is an `InvalidPrimitive` that says what is expected."""

    async def body(s: sgl.ProgramState) -> Any:
        given: dict[str, Any] = {"n": 2, "what": sgl.gen("v"), "score": len, **arguments}
        await best_of(s, given["n"], given["what"], given["score"])

    with pytest.raises(InvalidPrimitive, match=message):
        await run(body)


async def test_the_majority_wins_and_the_undecisive_rest_is_cancelled(
    client: ScoredClient, run: Runs
) -> None:
    """Three equal answers of five decide; the two that are still generated end at once, and the program is none the worse."""
    client.answer = lambda prompt, request: " 42." if "[1]" in prompt else "42"
    client.hold("[3]")
    client.hold("[4]")
    numbers = itertools.count()

    async def attempt(branch: sgl.ProgramState) -> str:
        branch += f"[{next(numbers)}]" + sgl.gen("v")
        return str(await branch["v"])

    async def body(s: sgl.ProgramState) -> Any:
        found = await vote(s, 5, attempt)
        await client.quiet()
        s += found
        return found

    state = await run(body)
    assert client.cancelled == 2
    assert state.text() == "[0]42"
    errors = [one.error for one in state.value.candidates]
    assert errors[:3] == [None] * 3
    assert all(isinstance(error, BranchCancelled) for error in errors[3:])
    assert state.value.score == 3
    assert state.usage.calls == 3


async def test_votes_are_all_awaited_if_asked_for(client: ScoredClient, run: Runs) -> None:
    """`stop_when_decided=False` lets every branch answer."""
    client.answer = in_turn("a", "a", "a", "b")

    async def body(s: sgl.ProgramState) -> Any:
        return await vote(s, 4, sgl.gen("v"), stop_when_decided=False)

    found = (await run(body)).value
    assert [one.value for one in found.candidates] == ["a", "a", "a", "b"]
    assert [one.score for one in found.candidates] == [3, 3, 3, 1]


async def test_a_vote_is_not_decided_while_another_answer_can_still_draw(
    client: ScoredClient, run: Runs
) -> None:
    """Of a tie the answer of the first branch wins, as it would without stopping early."""
    client.answer = in_turn("b", "a", "a", "b")

    async def body(s: sgl.ProgramState) -> Any:
        return await vote(s, 4, sgl.gen("v"))

    found = (await run(body)).value
    assert found.value == "b"
    assert all(one.error is None for one in found.candidates)


async def test_failed_voters_do_not_vote(client: ScoredClient, run: Runs) -> None:
    """They count neither for an answer nor among those that are still awaited."""
    client.answer = in_turn(Overloaded("full"), Overloaded("full"), "a")

    async def body(s: sgl.ProgramState) -> Any:
        return (await vote(s, 3, sgl.gen("v"))).value

    assert (await run(body)).value == "a"


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("Paris.", " paris", True),
        ("The  Hague", "the hague\n", True),
        ("**42**", "42.", True),
        ("(b)", "B)", True),
        ("-3", "-3.", True),
        ("-3", "3", False),
        (".5", "5", False),
        ("...", "…", False),
        (3, 3, True),
        ([1], [1], True),
    ],
)
def test_answers_are_compared_by_their_words(one: object, two: object, same: bool) -> None:
    """Case, white space, marks around and punctuation after them do not count; a sign or a decimal point does."""
    assert (normalise(one) == normalise(two)) is same
