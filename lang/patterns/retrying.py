"""Again, until it will do: what did not is taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.arguments import whole
from sgl_actors.lang.ir import (
    ConstantText,
    Expression,
    Gen,
    Media,
    RoleBegin,
    RoleEnd,
    Select,
    Variable,
    as_nodes,
)
from sgl_actors.lang.patterns.attempts import Attempt, Check, Task, examine, fork, settle
from sgl_actors.lang.patterns.result import Candidate, Result, conclude, nothing_valid
from sgl_actors.lang.state import ProgramState

T = TypeVar("T")

Feedback = Callable[[Any, SglActorsError], Any]
"""What to tell the model before its next try: of the refused value (None if there is none) and the error, an expression; "" for nothing."""

Writing = ConstantText | RoleBegin | RoleEnd | Media | Variable | Gen | Select
"""Nodes that add one piece to the prompt."""
MAX_TRIES: Final = 1000


@overload
async def retry_until(
    s: ProgramState,
    what: Attempt[T],
    check: Check[T] | None = ...,
    *,
    tries: int = ...,
    feedback: Feedback | None = ...,
    name: str | None = ...,
) -> Result[T]: ...
@overload
async def retry_until(
    s: ProgramState,
    what: Expression,
    check: Check[Any] | None = ...,
    *,
    tries: int = ...,
    feedback: Feedback | None = ...,
    name: str | None = ...,
) -> Result[Any]: ...
async def retry_until(
    s: ProgramState,
    what: Any,
    check: Check[Any] | None = None,
    *,
    tries: int = 3,
    feedback: Feedback | None = None,
    name: str | None = None,
) -> Result[Any]:
    """Try something until it passes `check`, each time anew from here.

    A try that is refused is taken back: its text is in no later prompt, unless `feedback` quotes it. ``s += await retry_until(…)`` goes on with what
    passed, as if it had come at once; the feedback is left out.

    Args:
        s: the state to go on from; it is left as it is.
        what: an expression that is added to the branch, or `async def f(branch)` that returns a value.
        check: a function of the value: whether it will do, plain or async; may raise `InvalidValue` or `ValueError` to say why not. Without one,
            whatever does not fail passes: a `gen(type=…)` fails if the text is no value of the type.
        tries: at most. Tries differ by their seeds: at temperature 0 they do so by `feedback` only.
        feedback: a function of the refused value and the error; the next try begins with the expression it returns.
        name: the variable that is the value; by default that of the expression's last gen or select.

    Raises:
        NoValidResult: no try passed; its `candidates` are the tries.

    Example:
        >>> @function
        ... async def even(s):
        ...     s += "An even number:"
        ...     s += await retry_until(s, gen("number", stop="."), lambda text: int(text) % 2 == 0)
        >>> state = await even.run(backend=Mock([" 3", " many", " 4"]))
        >>> state.text(), state["number"]
        ('An even number: 4', ' 4')
    """
    task = Task("retry_until", what, name)
    candidates: list[Candidate[Any]] = []
    hint = Expression()

    async def attempt(candidate: Candidate[Any]) -> None:
        candidate.value = await task(candidate.state)
        if check is not None:
            await examine(check, candidate.value)

    for _ in range(whole("retry_until", "tries", tries, 1, MAX_TRIES)):
        candidates += fork("retry_until", s, 1, task, hint)
        candidate = candidates[-1]
        await settle([candidate], attempt)
        if candidate.error is None:
            skip = sum(isinstance(node, Writing) for node in hint.nodes)
            return await conclude(candidate, candidates, skip=skip)
        if feedback is not None:
            hint = Expression(as_nodes(feedback(candidate.value, candidate.error)))
    raise nothing_valid("retry_until", candidates)
