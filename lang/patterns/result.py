"""What a pattern comes back with: candidates, the one that won, and how to go on from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sgl_actors.errors import ProgramError, SglActorsError
from sgl_actors.lang.errors import BranchCancelled, BudgetExceeded, InvalidPrimitive, PrimitiveFailed
from sgl_actors.lang.ir import AnyNode, Composable, SetVariable
from sgl_actors.lang.results import Outcome, Usage
from sgl_actors.lang.state import ProgramState
from sgl_actors.lang.typed import InvalidValue

T = TypeVar("T")


class NoValidResult(ProgramError):
    """Every candidate failed or was refused. `candidates` tells why each (`.error`); ask for more of them, or mend the check.

    Attributes:
        candidates: all of them, in order.

    Example:
        >>> @function
        ... async def rome(s):
        ...     try:
        ...         await retry_until(s, gen("capital"), lambda text: text == "Rome", tries=2)
        ...     except NoValidResult as error:
        ...         return [candidate.value for candidate in error.candidates]
        >>> (await rome.run(backend=Mock(lambda call: "Paris"))).value
        ['Paris', 'Paris']
    """

    code = "no_valid_result"

    def __init__(
        self, message: str, candidates: Sequence[Candidate[Any]] = (), *, param: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.candidates = list(candidates)


@dataclass(slots=True, eq=False)
class Candidate(Generic[T]):
    """One branch that was tried.

    Attributes:
        state: the branch. It can be read and continued, unless it was cancelled.
        value: what it came to, also if a check refused it; None if it failed before.
        score: how good that is, where the pattern scores.
        error: why it cannot win: it failed, a check refused it, or it was cancelled because it was needed no more.

    Example:
        >>> @function
        ... async def motto(s):
        ...     best = await best_of(s, 2, gen("motto"), score=len)
        ...     return [(candidate.value, candidate.score) for candidate in best.candidates]
        >>> (await motto.run(backend=Mock(["Work", "Work together"]))).value
        [('Work', 4.0), ('Work together', 13.0)]
    """

    state: ProgramState
    value: T | None = None
    score: float | None = None
    error: SglActorsError | None = None


@dataclass(slots=True, eq=False)
class Result(Composable, Generic[T]):
    """What a pattern found.

    It is an expression as well: ``s += result`` adds what the winning branch has written since it was forked from `s`, and its variables, at no
    cost (it has been computed). To go on in the branch itself, use `result.state`.

    Attributes:
        value: of the winner.
        winner: the candidate that won.
        candidates: all of them, in order.
        usage: tokens and calls of all branches, also of those that were cancelled, as far as they got.

    Example:
        >>> @function
        ... async def motto(s):
        ...     s += "A motto for bees:"
        ...     best = await best_of(s, 2, gen("motto", stop="."), score=len)
        ...     s += best + "."
        ...     return len(best.candidates)
        >>> state = await motto.run(backend=Mock([" Work", " Work together"]))
        >>> state.text(), state["motto"], state.value
        ('A motto for bees: Work together.', ' Work together', 2)
    """

    value: T
    winner: Candidate[T]
    candidates: list[Candidate[T]]
    usage: Usage
    added: tuple[AnyNode, ...] = field(default=(), repr=False)

    @property
    def state(self) -> ProgramState:
        """The branch that won; `result.state += …` goes on in it."""
        return self.winner.state

    @state.setter
    def state(self, state: ProgramState) -> None:
        if state is not self.winner.state:
            raise InvalidPrimitive("the winning branch cannot be replaced; `result.state += …` adds to it")

    @property
    def score(self) -> float | None:
        """The winner's."""
        return self.winner.score

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """What the winner added, as part of an expression."""
        return self.added


FAILURES = (PrimitiveFailed, InvalidValue, BranchCancelled, NoValidResult)
"""What makes a candidate fail. Anything else is a fault of the program, or the end of its budget, and ends the pattern."""


def is_failure(error: BaseException) -> bool:
    """Whether `error` concerns one candidate alone."""
    return isinstance(error, FAILURES) and not isinstance(error.__cause__, BudgetExceeded)


async def conclude(
    winner: Candidate[T], candidates: Sequence[Candidate[T]], path: Sequence[ProgramState] = (), skip: int = 0
) -> Result[T]:
    """The result, with what the winner added.

    Args:
        winner: one of `candidates`.
        candidates: all.
        path: the states from the first fork to the winner, if it is not itself the first.
        skip: nodes at the beginning of what was added that are left out.
    """
    added: list[AnyNode] = []
    variables: dict[str, tuple[Any, str]] = {}
    for state in path or (winner.state,):
        outcome = await outcome_of(state)
        added += outcome.added
        variables |= {name: (outcome.variables[name], outcome.adapters.get(name, "")) for name in outcome.own}
    nodes = (*added[skip:], *(SetVariable(name, *value) for name, value in variables.items()))
    value: Any = winner.value
    return Result(value, winner, list(candidates), await usage_of(c.state for c in candidates), nodes)


async def outcome_of(state: ProgramState) -> Outcome:
    """All that a branch has come to, once everything added to it is done; raises its failure."""
    return await state._stream.snapshot()  # noqa: SLF001 - the same package: what a branch added is nobody else's concern


async def usage_of(states: Iterable[ProgramState]) -> Usage:
    """Tokens and calls of branches and all below them, also of those that failed or were cancelled; none counts twice."""
    paths = {state._stream.path: state for state in states}  # noqa: SLF001 - see above
    total = Usage()
    for path, state in paths.items():
        if not any(path.startswith(f"{other}.") for other in paths):
            total += await state.usage()
    return total


def nothing_valid(what: str, candidates: Sequence[Candidate[Any]]) -> NoValidResult:
    """The error when no candidate is left, raised from the first one's."""
    reasons = dict.fromkeys(str(c.error) for c in candidates if c.error is not None)
    error = NoValidResult(
        f"{what}: none of {len(candidates)} candidates has a valid value: {' | '.join(reasons)}", candidates
    )
    error.__cause__ = next((c.error for c in candidates if c.error is not None), None)
    return error


def best(what: str, candidates: Sequence[Candidate[T]]) -> Candidate[T]:
    """The one of the highest score; of equals the first. `NoValidResult` if all failed."""
    scored = [candidate for candidate in candidates if candidate.error is None]
    if not scored:
        raise nothing_valid(what, candidates)
    return max(scored, key=lambda candidate: candidate.score or 0.0)


def child_of(state: ProgramState, parent: ProgramState, where: str) -> ProgramState:
    """`state`, if it was forked from `parent`; else `InvalidPrimitive`."""
    path = state._stream.path if isinstance(state, ProgramState) else ""  # noqa: SLF001 - see above
    if path.rpartition(".")[0] != parent._stream.path:  # noqa: SLF001
        raise InvalidPrimitive(
            f"{where}: returns branches forked from the one it is given (`branch.fork(n)`), not {state!r:.80}"
        )
    return state
