"""The first of several branches that has a value, or a value that will do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, overload

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Slot
from sgl_actors.lang.patterns.attempts import Attempt, Check, Task, examine, settle
from sgl_actors.lang.patterns.result import Candidate, Result, conclude, nothing_valid
from sgl_actors.lang.state import ProgramState

T = TypeVar("T")


@overload
async def race(branches: Iterable[ProgramState], what: Attempt[T]) -> Result[T]: ...
@overload
async def race(branches: Iterable[ProgramState], what: str) -> Result[Any]: ...
async def race(branches: Iterable[ProgramState], what: Any) -> Result[Any]:
    """Take the first of several branches to have a value; the others are cancelled.

    Args:
        branches: a group, or any branches.
        what: the variable (its name, or the gen that sets it), or `async def f(branch)` that returns a value.

    Raises:
        NoValidResult: all failed.

    Example:
        >>> @function
        ... async def capital(s):
        ...     terse, chatty = s.fork(2)
        ...     terse += "The capital of France is" + gen("city", stop=".")
        ...     chatty += "Let me think about France." + gen("city", stop=".")
        ...     return (await race([terse, chatty], "city")).value
        >>> (await capital.run(backend=Mock({"city": [" Paris", " Paris"]}))).value
        ' Paris'
    """
    return await _first("race", branches, what, None)


@overload
async def first_valid(branches: Iterable[ProgramState], what: Attempt[T], check: Check[T]) -> Result[T]: ...
@overload
async def first_valid(branches: Iterable[ProgramState], what: str, check: Check[Any]) -> Result[Any]: ...
async def first_valid(branches: Iterable[ProgramState], what: Any, check: Check[Any]) -> Result[Any]:
    """Take the first of several branches to have a value that passes `check`; the others are cancelled.

    Args:
        branches: a group, or any branches.
        what: the variable (its name, or the gen that sets it), or `async def f(branch)` that returns a value.
        check: a function of the value: whether it will do, plain or async; may raise `InvalidValue` or `ValueError` to say why not.

    Raises:
        NoValidResult: all failed or were refused.

    Example:
        >>> @function
        ... async def even(s):
        ...     tries = s.fork(2)
        ...     tries += "An even number:" + gen("number", stop=".")
        ...     return (await first_valid(tries, "number", lambda text: int(text) % 2 == 0)).value
        >>> (await even.run(backend=Mock([" 3", " 4"]))).value
        ' 4'
    """
    return await _first("first_valid", branches, what, check)


async def _first(
    where: str, branches: Iterable[ProgramState], what: Any, check: Check[Any] | None
) -> Result[Any]:
    candidates: list[Candidate[Any]] = [Candidate(branch) for branch in branches]
    if not candidates:
        raise InvalidPrimitive(f"{where}: there are no branches", param="branches")
    name: Any = what.name if isinstance(what, Slot) else what
    task = None if isinstance(name, str) else Task(where, what)
    winners: list[Candidate[Any]] = []

    async def attempt(candidate: Candidate[Any]) -> None:
        candidate.value = await (candidate.state[name] if task is None else task(candidate.state))
        if check is not None:
            await examine(check, candidate.value)
        winners.append(candidate)

    await settle(candidates, attempt, decided=lambda: bool(winners))
    if not winners:
        raise nothing_valid(where, candidates)
    return await conclude(winners[0], candidates)
