"""A model that thinks, acts and looks at what came of it, until it knows the answer (ReAct, arXiv 2210.03629)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, overload

from sgl_actors.lang.arguments import whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Slot
from sgl_actors.lang.patterns.asking import ask, given_up, opened
from sgl_actors.lang.patterns.result import Candidate, Result, conclude
from sgl_actors.lang.primitives import assistant_end, gen, select
from sgl_actors.lang.state import MAX_BRANCHES, ProgramState
from sgl_actors.lang.tools import (
    FINISH,
    MAX_TEXT,
    Call,
    Observation,
    Tool,
    by_name,
    call_all,
    noted,
    recalled,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One round of a `react` loop: what the model thought, and what came of the calls it made.

    Example:
        >>> Step("I have to add.", []).thought
        'I have to add.'
    """

    thought: str
    observations: list[Observation]


@dataclass(slots=True, eq=False)
class Reaction(Result[T], Generic[T]):
    """What a `react` loop came to; see `Result`.

    Attributes:
        steps: the rounds with calls.
        finished: the model ended the loop; else it was told to after the last step.

    Example:
        >>> @tool
        ... def add(a: int, b: int) -> int:
        ...     return a + b
        >>> @function
        ... async def solve(s):
        ...     return await react(s, "What is 2 + 3?", [add], max_steps=1)
        >>> found = (await solve.run(backend=Mock({"thought_1": "Add.", "action_1": "add", "input_1": {"a": 2, "b": 3}, "answer": "5"}))).value
        >>> found.value, found.finished, [one.text for step in found.steps for one in step.observations]
        ('5', False, ['5'])
    """

    steps: list[Step] = field(default_factory=list)
    finished: bool = True


@overload
async def react(
    s: ProgramState,
    question: str,
    tools: Iterable[Tool[..., Any]],
    *,
    finish: Slot[T],
    max_steps: int = ...,
    parallel: int = ...,
    max_tokens: int = ...,
    timeout: float | None = ...,
    max_text: int = ...,
) -> Reaction[T]: ...
@overload
async def react(
    s: ProgramState,
    question: str,
    tools: Iterable[Tool[..., Any]],
    *,
    finish: None = ...,
    max_steps: int = ...,
    parallel: int = ...,
    max_tokens: int = ...,
    timeout: float | None = ...,
    max_text: int = ...,
) -> Reaction[str]: ...
async def react(
    s: ProgramState,
    question: str,
    tools: Iterable[Tool[..., Any]],
    *,
    finish: Slot[Any] | None = None,
    max_steps: int = 8,
    parallel: int = 1,
    max_tokens: int = 256,
    timeout: float | None = None,
    max_text: int = MAX_TEXT,
) -> Reaction[Any]:
    """Have the model answer a question with the help of tools: it thinks, chooses an action, writes its input and reads what comes of it, until it finishes.

    All is written into one branch of `s`. What goes wrong with a call (wrong arguments, an exception, a timeout) is an observation, too, so that the
    model can mend it.

    Args:
        s: the state to go on from; it is left as it is.
        question: what is to be answered.
        tools: what may be called.
        finish: the gen that writes the answer; one line of text by default.
        max_steps: rounds with calls; after them the model is told to answer.
        parallel: calls in one round, which are made at the same time.
        max_tokens: of a thought, and of a call's input.
        timeout: seconds for a call; the tool's own by default.
        max_text: characters of an observation.

    Raises:
        PrimitiveFailed: a gen or select failed.
        InvalidValue: the answer is no value of its type.
        InvalidPrimitive: no tools, or two of the same name.

    Example:
        >>> @tool
        ... def add(a: int, b: int) -> int:
        ...     \"\"\"Add two numbers.\"\"\"
        ...     return a + b
        >>> @function
        ... async def solve(s, problem):
        ...     found = await react(s, problem, [add])
        ...     return found.value, found.steps[0].observations[0].text
        >>> script = Mock({
        ...     "thought_1": ["I have to add."], "action_1": ["add"], "input_1": ['{"a":2,"b":3}'],
        ...     "thought_2": ["I know it."], "action_2": ["finish"], "answer": ["5"],
        ... })
        >>> (await solve.run("What is 2 + 3?", backend=script)).value
        ('5', '5')
    """
    known = by_name(tools)
    if not known:
        raise InvalidPrimitive("react: there are no tools", param="tools")
    last = whole("react", "max_steps", max_steps, 1, MAX_BRANCHES)
    answer = gen("answer", max_tokens=max_tokens, stop="\n") if finish is None else finish
    if answer.name is None:
        raise InvalidPrimitive("react: finish is a gen with a name", param="finish")
    ((branch, turns),) = await opened(s, 1)
    with given_up([branch]):
        ask(branch, instructions(question, known.values()), turns=turns, lead="")
        loop = _Loop(branch, known, whole("react", "parallel", parallel, 1, MAX_BRANCHES), max_tokens)
        steps: list[Step] = []
        finished = False
        while not finished and len(steps) < last:
            thought, calls = await loop.step(len(steps) + 1)
            finished = not calls
            if calls:
                found = await _observe(
                    branch,
                    calls,
                    partial(
                        call_all,
                        known.values(),
                        calls,
                        max_concurrency=parallel,
                        timeout=timeout,
                        max_text=max_text,
                    ),
                )
                branch += " " + "\nObservation: ".join(one.text for one in found) + "\n"
                steps.append(Step(thought, found))
        branch += "Answer: " + answer + (assistant_end() if turns else "")
        candidate = Candidate(branch, await branch[answer.name])
    result = await conclude(candidate, [candidate])
    return Reaction(result.value, candidate, [candidate], result.usage, result.added, steps, finished)


async def _observe(
    branch: ProgramState, calls: Sequence[Call], make: Callable[[], Awaitable[list[Observation]]]
) -> list[Observation]:
    """What comes of calls; in a durable program, also what came of them before: there, a value that is no plain data is None."""
    fresh: list[Observation] = []

    async def note() -> list[list[Any]]:
        fresh.extend(await make())
        return [noted(one) for one in fresh]

    known = await branch.once("observations", note)
    return fresh or [recalled(call, one) for call, one in zip(calls, known, strict=True)]


@dataclass(frozen=True, slots=True)
class _Loop:
    """What the model writes in a round."""

    branch: ProgramState
    tools: Mapping[str, Tool[..., Any]]
    parallel: int
    max_tokens: int

    async def step(self, number: int) -> tuple[str, list[Call]]:
        """Its thought, and the calls it wants; none if it finishes."""
        branch = self.branch
        branch += "Thought:" + gen(f"thought_{number}", max_tokens=self.max_tokens, stop="\n") + "\nAction:"
        calls: list[Call] = []
        while True:
            suffix = f"{number}_{len(calls) + 1}" if calls else str(number)
            actions = list(self.tools) if calls else [*self.tools, FINISH]
            branch += " " + select(f"action_{suffix}", actions) + "\n"
            action = await branch[f"action_{suffix}"]
            if action == FINISH:
                break
            calls.append(await self._call(action, suffix))
            if len(calls) == self.parallel:
                branch += "Observation:"
                break
            branch += select(f"next_{suffix}", ["Action:", "Observation:"])
            if await branch[f"next_{suffix}"] == "Observation:":
                break
        return (await branch[f"thought_{number}"]).strip(), calls

    async def _call(self, action: str, suffix: str) -> Call:
        """The arguments are read as text, so that what is wrong with them becomes an observation."""
        branch, schema = self.branch, self.tools[action].schema
        branch += (
            "Action Input: " + gen(f"input_{suffix}", max_tokens=self.max_tokens, json_schema=schema) + "\n"
        )
        return Call(action, await branch[f"input_{suffix}"])


def instructions(question: str, tools: Iterable[Tool[..., Any]]) -> str:
    """What the model is told before it begins."""
    several = list(tools)
    listed = "\n".join(f"- {one.signature}: {one.description}{_parameters(one)}" for one in several)
    return f"""Answer the question with the help of tools:
{listed}

Write in this form, where the lines from Thought to Observation can repeat:
Thought: what is to be done next
Action: one of {", ".join([*(one.name for one in several), FINISH])}
Action Input: the arguments of the tool as a JSON object
Observation: what the tool returned
Thought: I know the answer.
Action: {FINISH}
Answer: the answer

Question: {question}"""


def _parameters(tool: Tool[..., Any]) -> str:
    described = tool.schema.get("properties", {})
    return "".join(
        f"\n    {name}: {about['description']}" for name, about in described.items() if "description" in about
    )
