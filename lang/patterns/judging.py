"""The model as a judge: a `select` whose whole score distribution counts, not only its first place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, overload

from sgl_actors.lang.arguments import check_choices, whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.patterns.asking import ask, given_up, opened
from sgl_actors.lang.patterns.result import usage_of
from sgl_actors.lang.primitives import assistant_end, select
from sgl_actors.lang.results import Usage
from sgl_actors.lang.state import ProgramState

T = TypeVar("T")

MAX_GRADES: Final = 100
"""Most grades of a scale."""
JUDGEMENT: Final = "judgement"
"""The variable of a judging branch."""


@dataclass(frozen=True, slots=True)
class Judgement(Generic[T]):
    """What a judge thinks. `float(judgement)` is its score, so that it can stand where a score is wanted.

    Attributes:
        value: of a scale, the expected grade; of labels, the most probable one; of a pair, the better of the two.
        score: from 0 (worst) to 1 (best): where on the scale, or in the row of labels, the expectation lies; of a pair, the probability
            that the first one is the better one.
        probabilities: per grade or label; of a pair, "first" and "second". They sum up to 1.
        states: the branches in which it was asked.
        usage: tokens and calls.

    Example:
        >>> @function
        ... async def review(s):
        ...     s += "Essay: On bees."
        ...     return await judge(s, "How clear is it?", scale=(1, 3))
        >>> found = (await review.run(backend=Mock({"judgement": {"2": 0.5, "3": 0.5}}))).value
        >>> round(found.value, 3), round(float(found), 3), found.probabilities.keys()
        (2.5, 0.75, dict_keys(['1', '2', '3']))
    """

    value: T
    score: float
    probabilities: dict[str, float]
    states: list[ProgramState] = field(repr=False)
    usage: Usage = field(repr=False)

    def __float__(self) -> float:
        return self.score


@overload
async def judge(s: ProgramState, criteria: str, *, scale: tuple[int, int] = ...) -> Judgement[float]: ...
@overload
async def judge(s: ProgramState, criteria: str, *, labels: Sequence[str]) -> Judgement[str]: ...
@overload
async def judge(s: ProgramState, criteria: str, *, pairwise: tuple[str, str]) -> Judgement[str]: ...
async def judge(
    s: ProgramState,
    criteria: str,
    *,
    scale: tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    pairwise: tuple[str, str] | None = None,
) -> Judgement[Any]:
    """Have the model judge what `s` holds, or a pair of texts, in branches of their own.

    The answer is chosen by `select`; the probability of a choice is the softmax over the mean log probabilities of all. Where `s` has chat turns,
    or nothing yet, the question is a user turn and the answer an assistant turn; else both are text.

    Args:
        s: what is judged, or what a pair is judged for; it is left as it is.
        criteria: the question, or what counts.
        scale: (worst, best) grade, whole numbers; (1, 5) by default.
        labels: in place of a scale: from worst to best (if there is such an order), at least two.
        pairwise: in place of a scale: two texts, of which the better one is asked for in both orders, because models prefer places.

    Raises:
        PrimitiveFailed: the select failed.
        InvalidPrimitive: more than one of scale, labels and pairwise, or a wrong one.

    Example:
        >>> @function
        ... async def review(s, essay):
        ...     s += f"Essay: {essay}"
        ...     return await judge(s, "Is it clear?", labels=["no", "yes"])
        >>> (await review.bind("On bees.").run(backend=Mock({"judgement": ["yes"]}))).value.value
        'yes'
    """
    if sum(given is not None for given in (scale, labels, pairwise)) > 1:
        raise InvalidPrimitive("judge: only one of scale, labels and pairwise can be given", param="labels")
    if pairwise is not None:
        return await _pair(s, criteria, pairwise)
    if labels is not None:
        return await _labels(s, criteria, labels)
    return await _scale(s, criteria, (1, 5) if scale is None else scale)


def softmax(logprobs: dict[str, float]) -> dict[str, float]:
    """Probabilities that sum up to 1.

    Example:
        >>> softmax({"yes": -1.0, "no": -1.0})
        {'yes': 0.5, 'no': 0.5}
    """
    most = max(logprobs.values())
    weights = {choice: math.exp(value - most) for choice, value in logprobs.items()}
    return {choice: weight / sum(weights.values()) for choice, weight in weights.items()}


async def _scale(s: ProgramState, criteria: str, scale: tuple[int, int]) -> Judgement[float]:
    if not isinstance(scale, tuple | list) or len(scale) != 2:
        raise InvalidPrimitive(f"judge: scale is (worst, best), not {scale!r:.80}", param="scale")
    low, high = (whole("judge", "scale", grade, -1_000_000, 1_000_000) for grade in scale)
    step = 1 if low < high else -1
    grades = [str(grade) for grade in range(low, high + step, step)]
    if not 2 <= len(grades) <= MAX_GRADES:
        raise InvalidPrimitive(f"judge: a scale has 2 to {MAX_GRADES} grades, not {scale}", param="scale")
    asked = f"{criteria}\nGive a grade from {low} (worst) to {high} (best). Answer with the number alone."
    (probabilities,), states = await _choose(s, [asked], grades)
    expected = sum(int(grade) * p for grade, p in probabilities.items())
    return Judgement(expected, (expected - low) / (high - low), probabilities, states, await usage_of(states))


async def _labels(s: ProgramState, criteria: str, labels: Sequence[str]) -> Judgement[str]:
    choices = check_choices(JUDGEMENT, labels)
    if len(choices) < 2:
        raise InvalidPrimitive(f"judge: labels are two or more, not {choices!r:.80}", param="labels")
    asked = f"{criteria}\nAnswer with one of: {', '.join(choices)}."
    (probabilities,), states = await _choose(s, [asked], choices)
    value = max(choices, key=lambda choice: probabilities[choice])
    expected = sum(place * probabilities[choice] for place, choice in enumerate(choices))
    return Judgement(value, expected / (len(choices) - 1), probabilities, states, await usage_of(states))


async def _pair(s: ProgramState, criteria: str, pair: tuple[str, str]) -> Judgement[str]:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
        raise InvalidPrimitive(f"judge: pairwise is two texts, not {pair!r:.80}", param="pairwise")
    asked = [
        f"{criteria}\n\nA: {one}\n\nB: {two}\n\nWhich is better? Answer with A or B alone."
        for one, two in (pair, reversed(pair))
    ]
    (there, back), states = await _choose(s, asked, ("A", "B"))
    first = (there["A"] + back["B"]) / 2
    probabilities = {"first": first, "second": 1 - first}
    return Judgement(
        pair[0] if first >= 0.5 else pair[1], first, probabilities, states, await usage_of(states)
    )


async def _choose(
    s: ProgramState, questions: Sequence[str], choices: Sequence[str]
) -> tuple[list[dict[str, float]], list[ProgramState]]:
    """Per question the probabilities of the choices, and the branch it was asked in."""
    branches = await opened(s, len(questions))
    with given_up([branch for branch, _ in branches]):
        for (branch, turns), text in zip(branches, questions, strict=True):
            ask(branch, text, turns=turns)
            branch += select(JUDGEMENT, choices) + (assistant_end() if turns else "")  # noqa: PLW2901 - adds to it
        scores = [(await branch.meta(JUDGEMENT))["scores"] for branch, _ in branches]
    return [softmax(dict(one)) for one in scores], [branch for branch, _ in branches]
