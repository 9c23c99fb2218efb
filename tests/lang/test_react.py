"""A model that uses tools until it knows the answer."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.react import react
from sgl_actors.lang.tools import Tool, ToolFailed, tool
from sgl_actors.lang.typed import InvalidValue
from tests.programs.fakes import FakeClient, backend_of


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


@tool
async def capital(land: str) -> str:
    """Capital of a country."""
    return {"France": "Paris"}[land]


async def reacts(
    script: list[tuple[str, Any]],
    *,
    s: Any = None,
    tools: tuple[Tool[..., Any], ...] = (add, capital),
    **more: Any,
) -> tuple[Any, FakeClient, sgl.FinishedState]:
    """Run a `react` whose gens and selects are answered by the script's pairs of (variable, answer), in this order."""
    client = FakeClient()
    gens = iter([answer for name, answer in script if not name.startswith(("action", "next"))])
    chosen = {name: answer for name, answer in script if name.startswith(("action", "next"))}
    client.answer = lambda prompt, request: next(gens)

    def logprob(word: str) -> float:
        wanted = chosen.get(client.calls[-1].name, "")
        return -0.1 if word.strip() and word.strip() in wanted else -5.0

    client.logprob = logprob

    @sgl.function
    async def program(s: sgl.ProgramState, start: Any) -> Any:
        if start is not None:
            s += start
        found = await react(s, "What is it?", tools, **more)
        s += found
        return found

    async with backend_of(client):
        state = await program.run(s)
        return state.value, client, state


async def test_thoughts_actions_and_observations_alternate() -> None:
    """Until the model finishes; the whole of it is one assistant turn, which `s += result` adds."""
    found, _, state = await reacts(
        [
            ("thought_1", " add first"),
            ("action_1", "add"),
            ("input_1", '{"a": 2, "b": 3}'),
            ("thought_2", " done"),
            ("action_2", "finish"),
            ("answer", "5"),
        ]
    )
    assert (found.value, found.finished) == ("5", True)
    (step,) = found.steps
    assert step.thought == "add first"
    assert [(one.call.tool, one.value) for one in step.observations] == [("add", 5)]
    user, assistant = state.messages()
    assert user["role"] == "user"
    assert (
        "- add(a: int, b: int): Add two numbers.\n    a: the first.\n    b: the second.\n" in user["content"]
    )
    assert "Action: one of add, capital, finish" in user["content"]
    assert assistant["content"] == (
        'Thought: add first\nAction: add\nAction Input: {"a": 2, "b": 3}\nObservation: 5\n'
        "Thought: done\nAction: finish\nAnswer: 5"
    )
    assert state["answer"] == "5"
    assert found.usage.completion_tokens == 4


async def test_inputs_are_written_under_the_tools_schema() -> None:
    """Each input's gen has the constraint that the tool's parameters make."""
    _, client, _ = await reacts(
        [
            ("thought_1", " x"),
            ("action_1", "add"),
            ("input_1", '{"a":1,"b":1}'),
            ("thought_2", " x"),
            ("action_2", "finish"),
            ("answer", "2"),
        ]
    )
    pairs = zip(client.calls, client.requests, strict=True)
    constraints = {
        call.name: str(request.sampling.constraint) for call, request in pairs if call.kind == "gen"
    }
    assert constraints["thought_1"] == "None"
    assert '"b"' in constraints["input_1"]


async def test_mistakes_are_observations() -> None:
    """Wrong arguments and what a tool raises are told to the model, which goes on."""
    found, _, state = await reacts(
        [
            ("thought_1", " x"),
            ("action_1", "add"),
            ("input_1", '{"a": 2'),
            ("thought_2", " x"),
            ("action_2", "capital"),
            ("input_2", '{"land": "Atlantis"}'),
            ("thought_3", " x"),
            ("action_3", "finish"),
            ("answer", "none"),
        ]
    )
    errors = [one.error for step in found.steps for one in step.observations]
    assert [type(error) for error in errors] == [InvalidValue, ToolFailed]
    text = state.messages()[-1]["content"]
    assert "Observation: Error: tool add: Input data was truncated" in text
    assert "Observation: Error: tool capital raised KeyError: 'Atlantis'" in text


async def test_after_the_last_step_the_answer_is_asked_for() -> None:
    """A model that never finishes ends all the same, and that shows."""
    steps = [
        [(f"thought_{n}", " x"), (f"action_{n}", "add"), (f"input_{n}", '{"a":1,"b":1}')] for n in (1, 2)
    ]
    found, _, _ = await reacts([*steps[0], *steps[1], ("answer", "2")], max_steps=2)
    assert (found.value, found.finished, len(found.steps)) == ("2", False, 2)


async def test_several_calls_in_one_step() -> None:
    """With `parallel` the model may go on with another action before it reads what came of the first."""
    found, _, state = await reacts(
        [
            ("thought_1", " both"),
            ("action_1", "add"),
            ("input_1", '{"a":1,"b":1}'),
            ("next_1", "Action:"),
            ("action_1_2", "capital"),
            ("input_1_2", '{"land":"France"}'),
            ("next_1_2", "Observation:"),
            ("thought_2", " done"),
            ("action_2", "finish"),
            ("answer", "ok"),
        ],
        parallel=3,
    )
    assert [one.value for one in found.steps[0].observations] == [2, "Paris"]
    assert state.messages()[-1]["content"].startswith(
        'Thought: both\nAction: add\nAction Input: {"a":1,"b":1}\nAction: capital\nAction Input: {"land":"France"}\n'
        "Observation: 2\nObservation: Paris\nThought: done"
    )


async def test_the_answer_may_have_a_type_and_the_prompt_no_turns() -> None:
    """`finish` is the gen that writes it; a state that holds plain text is gone on with in plain text."""
    found, _, state = await reacts(
        [("thought_1", " known"), ("action_1", "finish"), ("number", "42")],
        s="Be brief.",
        finish=sgl.gen("number", type=int),
    )
    assert found.value == 42
    assert state.text().startswith("Be brief.\n\nAnswer the question with the help of tools:")
    assert state.text().endswith("Question: What is it?\nThought: known\nAction: finish\nAnswer: 42")


async def test_a_loop_needs_tools() -> None:
    """Of different names."""
    with pytest.raises(InvalidPrimitive, match="no tools"):
        await reacts([], tools=())
    with pytest.raises(InvalidPrimitive, match="two tools"):
        await reacts([], tools=(add, add))
    with pytest.raises(InvalidPrimitive, match="with a name"):
        await reacts([], finish=sgl.gen())
