"""Having several branches try something at once: what each is given to do, and how those are stopped that are needed no more."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.errors import BranchCancelled, InvalidPrimitive
from sgl_actors.lang.ir import Composable, Expression, Gen, Node, Select, Slot, as_nodes
from sgl_actors.lang.patterns.result import Candidate, is_failure
from sgl_actors.lang.state import ProgramState
from sgl_actors.lang.typed import InvalidValue

T = TypeVar("T")
Attempt: TypeAlias = Slot[T] | Callable[[ProgramState], Awaitable[T]]
"""What a branch does to come to a value: an expression that is added to it, or an `async def` that is given it."""
Score: TypeAlias = Callable[[T], Any]
"""Says how good something is: a number, or what `float()` makes one of (a `Judgement`); plain or async."""

Check: TypeAlias = Callable[[T], Any]
"""Whether a value will do: returns true if so, plain or async; may raise `InvalidValue` or `ValueError` to say why not."""

LOGPROB = "logprob"
NOTHING = Expression()


class Task:
    """An attempt that has been looked at: `begin(branch)`, then `await task(branch)` for its value.

    Attributes:
        name: the variable that holds the value of an expression.
    """

    def __init__(self, where: str, what: object, name: str | None = None, *, logprobs: bool = False) -> None:
        self.where, self.name = where, name
        self._function: Callable[..., Any] | None = None
        self._expression: Expression | None = None
        if not isinstance(what, Composable | Node | str) and callable(what):
            self._function = what
            return
        nodes = as_nodes(what)
        self.name = name or variable_of(where, nodes)
        if logprobs:
            nodes = tuple(
                msgspec.structs.replace(n, logprobs=True) if isinstance(n, Gen) and n.name == self.name else n
                for n in nodes
            )
        self._expression = Expression(nodes)

    def begin(self, branch: ProgramState) -> None:
        """Add the expression, if it is one. Done outside of tasks: so all branches begin together, and errors name the program's line."""
        if self._expression is not None:
            branch += self._expression

    async def __call__(self, branch: ProgramState, *arguments: Any) -> Any:
        """The value; raises what the branch failed of."""
        if self._function is None:
            value = await branch[self.name or ""]
            await branch.sync()
            return value
        made = self._function(branch, *arguments)
        if inspect.isawaitable(made):
            return await made
        if isinstance(made, Composable | Node):
            task = Task(self.where, made, self.name)
            task.begin(branch)
            return await task(branch)
        raise InvalidPrimitive(
            f"{self.where}: expected an expression or an `async def` of the branch; {self._function!r:.80} returned {made!r:.80}"
        )


def variable_of(where: str, nodes: Sequence[Node]) -> str:
    """The variable that the last named gen or select among `nodes` sets."""
    for node in reversed(nodes):
        if isinstance(node, Gen | Select) and node.name:
            return node.name
    raise InvalidPrimitive(
        f"{where}: the expression sets no variable; give its gen or select a name", param="name"
    )


def fork(
    where: str, s: ProgramState, count: int, task: Task, hint: Expression = NOTHING
) -> list[Candidate[Any]]:
    """That many branches of `s`, which begin with a task, or with a hint before it."""
    if not isinstance(s, ProgramState):
        raise InvalidPrimitive(f"{where}: the first argument is the state `s`, not {s!r:.80}", param="s")
    branches = list(s.fork(count))
    for branch in branches:
        branch += hint  # noqa: PLW2901 - adds to the branch in place
        task.begin(branch)
    return [Candidate(branch) for branch in branches]


async def settle(
    candidates: Sequence[Candidate[T]],
    work: Callable[[Candidate[T]], Awaitable[None]],
    *,
    decided: Callable[[], bool] = lambda: False,
    limit: int | None = None,
    strict: bool = False,
) -> None:
    """Do `work` on all candidates at once, at most `limit` at a time; a failure is the candidate's own (`.error`), unless `strict`.

    As soon as `decided()` is true, which is asked after each that has ended, the branches of the others are cancelled. So they are when anything else
    than a failure of one candidate is raised, which then is raised here, or when the caller is cancelled.
    """
    going, gate = dict.fromkeys(candidates), asyncio.Semaphore(limit or max(1, len(candidates)))
    tasks: dict[Candidate[T], asyncio.Task[None]] = {}

    async def one(candidate: Candidate[T]) -> None:
        async with gate:
            if candidate not in going:
                return
            failure: SglActorsError | None = None
            try:
                await work(candidate)
            except SglActorsError as error:
                if strict or not is_failure(error):
                    raise
                failure = error
            if candidate not in going:
                return  # it was stopped, and has not heard of it
            del going[candidate]
            candidate.error = failure
        if decided():
            stop("no longer needed")

    def stop(reason: str) -> None:
        for candidate in list(going):
            del going[candidate]
            candidate.error = BranchCancelled(reason)
            candidate.state.cancel(reason)
            if candidate in tasks:
                tasks[candidate].cancel()

    try:
        async with asyncio.TaskGroup() as group:
            for candidate in candidates:
                tasks[candidate] = group.create_task(one(candidate))
    except BaseExceptionGroup as errors:
        stop("another branch raised")
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    except BaseException:
        stop("the pattern was cancelled")
        raise


async def number_of(where: str, score: Score[T], subject: T) -> float:
    """A score as a finite number; `InvalidPrimitive` for anything else."""
    made = score(subject)
    if inspect.isawaitable(made):
        made = await made
    try:
        found = math.nan if isinstance(made, str) else float(made)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InvalidPrimitive(f"{where}: a score is a finite number, not {made!r:.80}", param="score")
    return found


async def truth_of(check: Check[T], subject: T) -> bool:
    """A check's answer, plain or async."""
    made = check(subject)
    return bool(await made) if inspect.isawaitable(made) else bool(made)


async def examine(check: Check[T], value: T) -> None:
    """`InvalidValue` if the check refuses the value."""
    try:
        passed = await truth_of(check, value)
    except ValueError as error:
        raise InvalidValue(f"the check refused {value!r:.80}: {error}") from error
    if not passed:
        raise InvalidValue(f"the check refused {value!r:.80}")


def mean(logprobs: Sequence[float]) -> float:
    """Mean log probability per token; negative infinity if nothing was generated."""
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


async def logprobs_of(where: str, branch: ProgramState, name: str | None) -> list[float]:
    """Log probability of each token that variable `name` was generated with.

    Raises:
        InvalidPrimitive: it is no gen's, or the gen was not told `logprobs=True`.
    """
    if name is None:
        raise InvalidPrimitive(
            f"{where}: a function's value has no log probability; say with name=… which variable's counts",
            param="name",
        )
    entries = (await branch.meta(name)).get("output_token_logprobs")
    if entries is None:
        raise InvalidPrimitive(
            f"{where}: no log probabilities of {name!r} are known: it takes one gen({name!r}, logprobs=True) without n",
            param="score",
        )
    return [entry[0] for entry in entries]
