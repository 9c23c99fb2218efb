"""The model as a judge."""

from __future__ import annotations

import math
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded
from sgl_actors.lang.errors import InvalidPrimitive, PrimitiveFailed
from sgl_actors.lang.patterns import judge
from tests.lang.patterns.conftest import Runs, ScoredClient


async def test_a_grade_is_the_expectation_over_the_scale(client: ScoredClient, run: Runs) -> None:
    """All scores count: two equally probable grades give the one between."""
    client.logprob = lambda word: {"4": -1.0, "5": -1.0}.get(word.strip(), -50.0)

    async def body(s: sgl.ProgramState) -> Any:
        s += "Essay: bees."
        return await judge(s, "Is it clear?")

    state = await run(body)
    found = state.value
    assert found.value == pytest.approx(4.5)
    assert found.score == float(found) == pytest.approx(0.875)
    assert found.probabilities["4"] == pytest.approx(0.5)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.usage.calls >= 1
    assert state.text() == "Essay: bees."
    assert all(p.startswith("Essay: bees.\n\nIs it clear?\nGive a grade from 1") for p in client.prompts)


async def test_a_scale_may_fall(client: ScoredClient, run: Runs) -> None:
    """(worst, best): in German schools the best grade is 1."""
    client.logprob = lambda word: -0.1 if word.strip() == "1" else -60.0

    async def body(s: sgl.ProgramState) -> Any:
        return await judge(s, "Is it clear?", scale=(6, 1))

    found = (await run(body)).value
    assert (round(found.value, 6), round(found.score, 6)) == (1.0, 1.0)


async def test_labels_go_from_worst_to_best(client: ScoredClient, run: Runs) -> None:
    """The value is the most probable one, the score where the expectation lies."""
    client.logprob = lambda word: {"fair": -1.0, "good": -1.0 - math.log(2)}.get(word.strip(), -50.0)

    async def body(s: sgl.ProgramState) -> Any:
        s += sgl.user("A poem, please.") + sgl.assistant("Roses.")
        return await judge(s, "Grade it.", labels=["poor", "fair", "good"])

    found = (await run(body)).value
    assert found.value == "fair"
    assert found.score == pytest.approx((2 / 3) * 0.5 + (1 / 3) * 1.0)
    scored = [prompt for prompt in client.prompts if prompt.endswith("good")]
    assert scored[0].endswith(
        "<|im_start|>user\nGrade it.\nAnswer with one of: poor, fair, good.<|im_end|>\n<|im_start|>assistant\ngood"
    )


async def test_a_pair_is_judged_in_both_orders(client: ScoredClient, run: Runs) -> None:
    """A model that always prefers the first place finds both equal; one that knows finds the better one."""
    client.logprob = lambda word: -0.5 if word.strip() == "A" else -1.5

    async def body(s: sgl.ProgramState) -> Any:
        return await judge(s, "Which is kinder?", pairwise=("hello", "go away"))

    biased = (await run(body)).value
    assert biased.score == pytest.approx(0.5)
    assert len(biased.states) == 2
    shown = {prompt.partition("A: ")[2].partition("\n")[0] for prompt in client.prompts}
    assert shown >= {"hello", "go away"}

    client.logprob = lambda word: (
        -0.1 if word.strip() == ("A" if "A: hello" in client.prompts[-1] else "B") else -4.0
    )
    found = (await run(body)).value
    assert found.value == "hello"
    assert found.probabilities["first"] > 0.9


async def test_an_open_turn_or_text_is_gone_on_with(client: ScoredClient, run: Runs) -> None:
    """No turn is opened inside another one, and none in a prompt of plain text."""

    async def body(s: sgl.ProgramState) -> Any:
        s += sgl.user("Poem!") + sgl.assistant_begin() + "Roses."
        await judge(s, "Good?", labels=["no", "yes"])
        s += sgl.assistant_end()

    await run(body)
    assert any(
        p.endswith("assistant\nRoses.\n\nGood?\nAnswer with one of: no, yes.\nAnswer: yes")
        for p in client.prompts
    )


async def test_a_judge_that_fails_is_the_programs_to_handle(client: ScoredClient, run: Runs) -> None:
    """`PrimitiveFailed`; the program may go on."""

    async def broken(*args: Any, **more: Any) -> Any:
        raise Overloaded("full")

    client.tokenize = broken  # type: ignore[method-assign]

    async def body(s: sgl.ProgramState) -> Any:
        s += "x"
        with pytest.raises(PrimitiveFailed):
            await judge(s, "Good?", labels=["no", "yes"])
        return "went on"

    assert (await run(body)).value == "went on"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["only"]}, "two or more"),
        ({"labels": ["a", "a"]}, "equal"),
        ({"scale": (1, 1)}, "2 to 100 grades"),
        ({"scale": (1, 1000)}, "2 to 100 grades"),
        ({"scale": 5}, r"\(worst, best\)"),
        ({"pairwise": ("one",)}, "two texts"),
        ({"scale": (1, 5), "labels": ["a", "b"]}, "only one"),
    ],
)
async def test_wrong_ways_to_judge_are_named(run: Runs, arguments: dict[str, Any], message: str) -> None:
    """Before the model is asked."""

    async def body(s: sgl.ProgramState) -> Any:
        await judge(s, "Good?", **arguments)

    with pytest.raises(InvalidPrimitive, match=message):
        await run(body)
