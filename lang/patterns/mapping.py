"""The same for many items, each in a branch of its own, and many parts made one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, TypeVar, overload

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.arguments import whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Expression, Slot
from sgl_actors.lang.patterns.attempts import Task, fork, settle
from sgl_actors.lang.patterns.result import Candidate
from sgl_actors.lang.state import MAX_BRANCHES, ProgramState

T = TypeVar("T")
Item = TypeVar("Item")

Each = Callable[[ProgramState, Item], Awaitable[T] | Slot[T]]
"""What a branch does with its item: `async def f(branch, item)` that returns a value, or a function that returns the gen to be added."""
Loose = Callable[[ProgramState, Item], Expression]


@overload
async def map_(
    s: ProgramState,
    items: Iterable[Item],
    f: Each[Item, T],
    *,
    max_concurrency: int = ...,
    return_exceptions: Literal[False] = ...,
) -> list[T]: ...
@overload
async def map_(
    s: ProgramState,
    items: Iterable[Item],
    f: Loose[Item],
    *,
    max_concurrency: int = ...,
    return_exceptions: bool = ...,
) -> list[Any]: ...
@overload
async def map_(
    s: ProgramState,
    items: Iterable[Item],
    f: Each[Item, T],
    *,
    max_concurrency: int = ...,
    return_exceptions: bool,
) -> list[T | SglActorsError]: ...
async def map_(
    s: ProgramState,
    items: Iterable[Any],
    f: Callable[[ProgramState, Any], Any],
    *,
    max_concurrency: int = 64,
    return_exceptions: bool = False,
) -> list[Any]:
    """Do the same with every item, each in a branch of its own from here; values in the order of the items.

    Args:
        s: the state to go on from; it is left as it is.
        items: them.
        f: what a branch does with its item: `async def f(branch, item)` that returns a value, or a function that returns an expression, which is
            added to the branch and whose last named gen or select is the value.
        max_concurrency: items at the same time.
        return_exceptions: put the error of an item whose branch failed in its place; else the first one cancels the other branches and is raised.

    Raises:
        PrimitiveFailed: a branch failed; or another error of the one item's.

    Example:
        >>> @function
        ... async def capitals(s):
        ...     s += "Capitals."
        ...     return await map_(s, ["France", "Peru"], lambda branch, land: f" {land}:" + gen("city", stop="."))
        >>> (await capitals.run(backend=Mock([" Paris", " Lima"]))).value
        [' Paris', ' Lima']
    """
    limit = whole("map_", "max_concurrency", max_concurrency, 1, MAX_BRANCHES)
    if not callable(f):
        raise InvalidPrimitive(f"map_: f is a function of a branch and an item, not {f!r:.80}", param="f")
    given = list(items)
    if not whole("map_", "number of items", len(given), 0, MAX_BRANCHES):
        return []
    task = Task("map_", f)
    candidates = fork("map_", s, len(given), task)
    item_of = dict(zip(candidates, given, strict=True))

    async def attempt(candidate: Candidate[Any]) -> None:
        candidate.value = await task(candidate.state, item_of[candidate])

    await settle(candidates, attempt, limit=limit, strict=not return_exceptions)
    return [candidate.value if candidate.error is None else candidate.error for candidate in candidates]


@overload
async def reduce_(
    s: ProgramState, parts: Iterable[T], f: Each[list[T], T], *, arity: int = ..., max_concurrency: int = ...
) -> T: ...
@overload
async def reduce_(
    s: ProgramState, parts: Iterable[T], f: Loose[list[T]], *, arity: int = ..., max_concurrency: int = ...
) -> Any: ...
async def reduce_(
    s: ProgramState,
    parts: Iterable[Any],
    f: Callable[[ProgramState, list[Any]], Any],
    *,
    arity: int = 4,
    max_concurrency: int = 64,
) -> Any:
    """Make many parts one: neighbours are put together, then what came of them, until one is left.

    A level's branches work at the same time, each forked from here. A part that has no neighbour goes to the next level as it is, so a single
    part is the result itself.

    Args:
        s: the state to go on from; it is left as it is.
        parts: at least one.
        f: makes one of a list of 2 to `arity` parts: `async def f(branch, parts)` that returns a value, or a function that returns an expression.
        arity: most parts put together at a time, 2 at least.
        max_concurrency: branches at the same time.

    Raises:
        PrimitiveFailed: a branch failed; or another error of the one branch's.
        InvalidPrimitive: no parts.

    Example:
        >>> @function
        ... async def summary(s, notes):
        ...     s += "Notes to one sentence."
        ...     return await reduce_(s, notes, lambda branch, some: f" {some}:" + gen("sum", stop="."), arity=2)
        >>> (await summary.bind(["a", "b", "c"]).run(backend=Mock(["ab", "abc"]))).value
        'abc'
    """
    arity = whole("reduce_", "arity", arity, 2, MAX_BRANCHES)
    level: list[Any] = list(parts)
    whole("reduce_", "number of parts", len(level), 1, MAX_BRANCHES * arity)
    while len(level) > 1:
        groups = [level[start : start + arity] for start in range(0, len(level), arity)]
        several = [group for group in groups if len(group) > 1]
        made = iter(await map_(s, several, f, max_concurrency=max_concurrency))
        level = [next(made) if len(group) > 1 else group[0] for group in groups]
    return level[0]
