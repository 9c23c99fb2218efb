"""Several answers from the same point of a prompt, of which one is kept: the best, or the most frequent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Final, Literal, TypeVar, overload

from sgl_actors.lang.arguments import whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Expression
from sgl_actors.lang.patterns.attempts import (
    LOGPROB,
    Attempt,
    Score,
    Task,
    fork,
    logprobs_of,
    mean,
    number_of,
    settle,
)
from sgl_actors.lang.patterns.result import Candidate, Result, best, conclude
from sgl_actors.lang.state import MAX_BRANCHES, ProgramState

T = TypeVar("T")

EDGES: Final = re.compile(r"""^["'“”‘’«»`*(\[\s]+|["'“”‘’«»`*)\].,;:!?\s]+$""")


def normalise(value: Any) -> Hashable:
    """What two answers have to share to be the same: case, white space, quotes and brackets around a text, and punctuation after it do not count.

    Example:
        >>> normalise(" The  Hague.") == normalise("the hague")
        True
    """
    if not isinstance(value, str):
        return repr(value)
    text = " ".join(value.casefold().split())
    return EDGES.sub("", text) or text


@overload
async def best_of(
    s: ProgramState,
    n: int,
    what: Attempt[T],
    score: Score[T] | Literal["logprob"] = ...,
    *,
    judge: Score[ProgramState] | None = ...,
    name: str | None = ...,
) -> Result[T]: ...
@overload
async def best_of(
    s: ProgramState,
    n: int,
    what: Expression,
    score: Score[Any] | Literal["logprob"] = ...,
    *,
    judge: Score[ProgramState] | None = ...,
    name: str | None = ...,
) -> Result[Any]: ...
async def best_of(
    s: ProgramState,
    n: int,
    what: Any,
    score: Any = LOGPROB,
    *,
    judge: Score[ProgramState] | None = None,
    name: str | None = None,
) -> Result[Any]:
    """Try something `n` times from here, at once, and keep the best.

    Args:
        s: the state to go on from; it is left as it is.
        n: tries.
        what: an expression that is added to each branch, or `async def f(branch)` that returns a value.
        score: "logprob", the mean log probability of the value's tokens (of a function's: of variable `name`, whose gen has
            `logprobs=True`); or a function of the value, plain or async. The highest wins, of equals the first.
        judge: in place of `score`, a function of the branch: ``lambda branch: judge(branch, "Is it kind?")``.
        name: the variable that is the value; by default that of the expression's last gen or select.

    Raises:
        NoValidResult: all tries failed.
        InvalidPrimitive: an argument is wrong, or a score no finite number.

    Example:
        >>> @function
        ... async def motto(s):
        ...     s += "A motto for bees:"
        ...     best = await best_of(s, 3, gen("motto", stop="."), score=len)
        ...     return best.value, best.score
        >>> (await motto.run(backend=Mock([" Work", " Work together", " Buzz"]))).value
        (' Work together', 14.0)
    """
    if judge is None and score != LOGPROB and not callable(score):
        raise InvalidPrimitive(f'best_of: score is "logprob" or a function, not {score!r:.80}', param="score")
    by_logprob = judge is None and score == LOGPROB
    task = Task("best_of", what, name, logprobs=by_logprob)
    candidates = fork("best_of", s, whole("best_of", "n", n, 1, MAX_BRANCHES), task)

    async def attempt(candidate: Candidate[Any]) -> None:
        value = await task(candidate.state)
        if by_logprob:
            candidate.score = mean(await logprobs_of("best_of", candidate.state, task.name))
        elif judge is not None:
            candidate.score = await number_of("best_of", judge, candidate.state)
        else:
            candidate.score = await number_of("best_of", score, value)
        candidate.value = value

    await settle(candidates, attempt)
    return await conclude(best("best_of", candidates), candidates)


@overload
async def vote(
    s: ProgramState,
    n: int,
    what: Attempt[T],
    *,
    key: Callable[[T], Hashable] = ...,
    stop_when_decided: bool = ...,
    name: str | None = ...,
) -> Result[T]: ...
@overload
async def vote(
    s: ProgramState,
    n: int,
    what: Expression,
    *,
    key: Callable[[Any], Hashable] = ...,
    stop_when_decided: bool = ...,
    name: str | None = ...,
) -> Result[Any]: ...
async def vote(
    s: ProgramState,
    n: int,
    what: Any,
    *,
    key: Callable[[Any], Hashable] = normalise,
    stop_when_decided: bool = True,
    name: str | None = None,
) -> Result[Any]:
    """Answer `n` times from here, at once, and keep the most frequent answer (self-consistency, arXiv 2203.11171).

    The winner is the first branch that gave that answer; a candidate's score is how many gave the same. Of equally frequent answers the one with
    the first branch wins.

    Args:
        s: the state to go on from; it is left as it is.
        n: answers.
        what: an expression that is added to each branch, or `async def f(branch)` that returns a value.
        key: what two answers have to share to be the same.
        stop_when_decided: cancel the branches that are left as soon as they cannot change which answer wins.
        name: the variable that is the value; by default that of the expression's last gen or select.

    Raises:
        NoValidResult: all failed.

    Example:
        >>> @function
        ... async def sums(s):
        ...     s += "17 + 25 ="
        ...     return (await vote(s, 3, gen("sum", stop="."))).value
        >>> (await sums.run(backend=Mock([" 42", " 41", "42"]))).value
        ' 42'
    """
    task = Task("vote", what, name)
    candidates = fork("vote", s, whole("vote", "n", n, 1, MAX_BRANCHES), task)
    votes: Counter[Hashable] = Counter()
    keys: dict[Candidate[Any], Hashable] = {}

    async def attempt(candidate: Candidate[Any]) -> None:
        value = await task(candidate.state)
        keys[candidate] = key(value)
        votes[keys[candidate]] += 1
        candidate.value = value

    def decided() -> bool:
        left = sum(candidate not in keys and candidate.error is None for candidate in candidates)
        first, second = [*(count for _, count in votes.most_common(2)), 0, 0][:2]
        return stop_when_decided and first > second + left

    await settle(candidates, attempt, decided=decided)
    for candidate, answer in keys.items():
        candidate.score = float(votes[answer])
    return await conclude(best("vote", candidates), candidates)
