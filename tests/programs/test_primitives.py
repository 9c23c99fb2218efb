"""Primitives beyond gen and fork: completions, scopes, media, reasoning, cancellation, budgets, streaming, places of errors."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.lang.errors import BranchCancelled
from sgl_actors.lang.ir import Media
from sgl_actors.lang.reasoning import separate
from tests.programs.fakes import FakeClient, backend_of

PNG = bytes.fromhex("89504e470d0a1a0a")


class City(msgspec.Struct):
    """A value with two fields."""

    name: str
    people: int


def fixed(**answers: str) -> FakeClient:
    """Answers by the last word of the prompt."""
    return FakeClient(lambda prompt, request: answers[prompt.rstrip(":").rpartition(" ")[2]])


async def run(program: sgl.Program, client: FakeClient, **options: Any) -> sgl.FinishedState:
    async with backend_of(client) as backend:
        return await program.run(backend=backend, **options)


async def test_several_completions() -> None:
    """With n the variable is a list, each with a seed of its own; the prompt goes on with the first."""
    client = FakeClient(lambda prompt, request: f"<{request.sampling.seed}>")

    @sgl.function
    async def program(s: sgl.ProgramState) -> list[str]:
        s += "Q:" + sgl.gen("x", n=3) + "."
        found: list[str] = await s["x"]
        return found

    state = await run(program.bind(), client, seed=7)
    assert len(set(state["x"])) == 3
    assert state.value == state["x"]
    assert state.text() == f"Q:{state['x'][0]}."
    assert len(state.meta("x")["completions"]) == 3
    assert state.usage.calls == 3
    again = await run(program.bind(), FakeClient(client.answer), seed=7)
    assert again["x"] == state["x"]


async def test_a_scope_is_a_variable_of_all_that_is_added_inside() -> None:
    """With constants, gens and the marks of turns."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Before. "
        with s.var_scope("part"):
            s += "One" + sgl.gen("x")
        with s.var_scope("turn"):
            s.user("Hello")
        s += s["part"]

    state = await run(program.bind(), FakeClient(lambda prompt, request: " two"))
    assert state["part"] == "One two"
    assert "user\nHello" in state["turn"]
    assert state.text().endswith("One two")


async def test_turns_in_all_forms() -> None:
    """A call with an expression, a with block, begin and end: the same chat."""

    @sgl.function
    async def called(s: sgl.ProgramState) -> None:
        s.system("Be brief.")
        s.user("Hi")
        s.assistant(sgl.gen("x"))

    @sgl.function
    async def blocks(s: sgl.ProgramState) -> None:
        with s.system():
            s += "Be brief."
        with s.user():
            s += "Hi"
        with s.assistant():
            s += sgl.gen("x")

    @sgl.function
    async def added(s: sgl.ProgramState) -> None:
        s += sgl.system_begin() + "Be brief." + sgl.system_end() + sgl.user("Hi")
        s += sgl.assistant_begin() + sgl.gen("x") + sgl.assistant_end()

    states = [
        await run(program.bind(), FakeClient(lambda prompt, request: "Yes?"))
        for program in (called, blocks, added)
    ]
    assert len({state.text() for state in states}) == 1
    assert states[0].messages()[2] == {"role": "assistant", "content": "Yes?"}


async def test_a_turn_in_a_turn_is_refused_where_it_is_said() -> None:
    """Also by the with form, and a call's turn cannot be a block."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        with s.user():
            with pytest.raises(sgl.InvalidPrimitive, match="inside the user turn"):
                s.system("no")
            s += "Hi"
        with pytest.raises(sgl.InvalidPrimitive, match="takes no argument"), s.user("Hello"):
            pass

    await run(program.bind(), FakeClient())


async def test_a_typed_gen_gives_the_object_everywhere() -> None:
    """In the body, in the prompt as text, in joins and at the end; the slot says the same as the name."""
    text = '{"name":"Rome","people":3}'
    rome = City("Rome", 3)
    city = sgl.gen("city", type=City)

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "City:" + city
        assert await s["city"] == await s[city] == rome
        s += s["city"]
        group = s.fork(2)
        group += sgl.gen("more", type=City)
        assert await group.join("more") == [rome, rome]
        other = s.fork(1)
        other += sgl.gen("last", type=City)
        assert await other.join() == {"last": [rome]}

    client = FakeClient(lambda prompt, request: text)
    state = await run(program.bind(), client)
    assert state["city"] == state[city] == state.variables["city"] == rome
    assert state["more"] == [rome, rome]
    assert state.text() == f"City:{text}{text}"
    constraint = client.requests[0].sampling.constraint
    assert constraint is not None
    assert constraint.kind == "json_schema"


async def test_what_is_no_value_of_the_type_fails_the_gen() -> None:
    """With the type, what was found, and the program's line."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "City:" + sgl.gen("city", type=City)

    with pytest.raises(
        sgl.InvalidValue, match=r"program 'program', variable 'city', .*test_primitives.py:\d+"
    ):
        await run(program.bind(), FakeClient(lambda prompt, request: '{"name":"Ro'))


async def test_named_parts_of_a_constraint_are_variables() -> None:
    """One constrained gen over a template sets them all."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> str:
        shape = (
            "Name: "
            + sgl.regex("[a-z]+").named("name")
            + ", tone: "
            + sgl.choice("warm", "cold").named("tone")
        )
        s += sgl.gen("line", constraint=shape)
        found: str = await s["tone"]
        return found

    state = await run(program.bind(), FakeClient(lambda prompt, request: "Name: ada, tone: warm"))
    assert (state["name"], state["tone"], state.value) == ("ada", "warm", "warm")


async def test_images_stand_in_messages_and_text_only_models_refuse_them() -> None:
    """Before anything is asked; a model that takes them gets them with the call."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s.user(sgl.image(PNG) + "What is in it?")
        s.assistant(sgl.gen("x"))

    client = FakeClient()
    with pytest.raises(sgl.UnsupportedMedia, match="takes no images"):
        await run(program.bind(), client)
    assert not client.prompts
    client.takes = frozenset({"image"})
    state = await run(program.bind(), client)
    parts = state.messages()[0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert client.calls[-1].media == (Media("image", PNG, "image/png"),)


@pytest.mark.parametrize("source", [b"nothing known", "/no/such/file", 3, b""])
def test_what_is_no_image_is_refused_at_once(source: Any) -> None:
    """Unknown bytes, a file that is not there, a number."""
    with pytest.raises(sgl.InvalidPrimitive, match="image"):
        sgl.image(source)


async def test_reasoning_is_taken_out() -> None:
    """Of the variable and of the prompt; what follows sees the answer alone."""
    answers = iter(["<think>17 is prime</think>Yes", "Sure"])
    client = FakeClient(lambda prompt, request: next(answers))

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s.user("Is 17 prime?")
        s.assistant(sgl.separate_reasoning("Hm. " + sgl.gen("a") + "!", model_type="qwen3"))
        s.user("Sure?")
        s.assistant(sgl.gen("b"))

    state = await run(program.bind(), client)
    assert (state["a"], state["a_reasoning_content"], state["b"]) == ("Yes", "17 is prime", "Sure")
    assert state.messages()[1]["content"] == "Hm. Yes!"
    assert "think" not in client.prompts[-1]


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        ("<think>a</think>b", "qwen3", ("a", "b")),
        ("b", "qwen3", ("", "b")),
        ("a</think>b", "deepseek-r1", ("a", "b")),
        ("a", "deepseek-r1", ("a", "")),
        ("◁think▷a◁/think▷b", "kimi", ("a", "b")),
    ],
)
def test_where_reasoning_ends(text: str, model: str, expected: tuple[str, str]) -> None:
    """By the marks of the family; some begin inside it."""
    assert separate(text, model) == expected


async def test_a_cancelled_branch_is_no_failure_of_the_program() -> None:
    """What it asked is cancelled, also further below; the others and the program go on."""
    client = FakeClient(lambda prompt, request: " done")
    client.hold("slow")

    @sgl.function
    async def program(s: sgl.ProgramState) -> str:
        s += "Start"
        slow, quick = s.fork(2)
        slow += " slow" + sgl.gen("x")
        below = slow.fork(2)
        below += " more" + sgl.gen("y")
        quick += " quick" + sgl.gen("x")
        found: str = await quick["x"]
        await client.asked(2)
        slow.cancel("not needed")
        with pytest.raises(BranchCancelled, match="not needed"):
            await slow["x"]
        with pytest.raises(sgl.StreamEnded, match="cancelled"):
            slow += "more"
        assert isinstance(await slow.error(), BranchCancelled)
        return found

    state = await run(program.bind(), client)
    assert state.value == " done"
    assert client.cancelled == 1
    assert client.running == 0


async def test_a_branch_is_cancelled_before_it_has_begun() -> None:
    """Nothing is asked for it."""
    client = FakeClient(lambda prompt, request: " done")
    client.hold("Start")

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Start" + sgl.gen("a")
        one, two = s.fork(2)
        one += " first" + sgl.gen("x")
        two += " second" + sgl.gen("x")
        one.cancel()
        assert isinstance(await one.error(), BranchCancelled)
        client.release("Start")
        await two["x"]

    await run(program.bind(), client)
    assert not any("first" in prompt for prompt in client.prompts)


async def test_a_join_may_keep_failures() -> None:
    """An error stands in its branch's place, None in the variable."""
    client = FakeClient(lambda prompt, request: sgl.SglActorsError("no") if "bad" in prompt else " ok")

    @sgl.function
    async def program(s: sgl.ProgramState) -> list[Any]:
        group = s.fork(3)
        group += lambda index: ("bad" if index == 1 else "good") + sgl.gen("x")
        found: list[Any] = await group.join("x", return_exceptions=True)
        return found

    state = await run(program.bind(), client)
    assert [type(item).__name__ for item in state.value] == ["str", "PrimitiveFailed", "str"]
    assert state["x"] == [" ok", None, " ok"]


async def test_budgets() -> None:
    """Calls and generated tokens over all branches; what goes beyond fails, what was within stays."""

    @sgl.function
    async def program(s: sgl.ProgramState, times: int) -> None:
        for index in range(times):
            s += "Q" + sgl.gen(f"x{index}", max_tokens=4)

    client = FakeClient(lambda prompt, request: [" a", " b"])
    state = await run(program.bind(2), client, budget=sgl.Budget(calls=2, tokens=4))
    assert state.usage.completion_tokens == 4
    with pytest.raises(sgl.BudgetExceeded, match="2 calls"):
        await run(program.bind(3), client, budget=sgl.Budget(calls=2))
    with pytest.raises(sgl.BudgetExceeded, match="3 generated tokens"):
        await run(program.bind(9), client, budget=sgl.Budget(tokens=3))
    assert client.requests[-1].sampling.max_tokens == 1
    client.hold("Q")
    with pytest.raises(sgl.BudgetExceeded, match=r"0\.05 s"):
        await run(program.bind(1), client, budget=sgl.Budget(seconds=0.05))


async def test_text_as_it_is_written() -> None:
    """Of one variable, with what the node reported at the end; and of the whole prompt, template included."""
    client = FakeClient(lambda prompt, request: ["a", "b", "c"])

    @sgl.function
    async def program(s: sgl.ProgramState) -> tuple[list[Any], str]:
        branch = s.fork(1)
        branch += sgl.user("Hi") + sgl.assistant(sgl.gen("x"))
        whole = asyncio.ensure_future(collect(branch[0]))
        pairs = [pair async for pair in branch[0].text_iter("x", return_meta_data=True)]
        branch.join()
        return pairs, await whole

    async def collect(branch: sgl.ProgramState) -> str:
        return "".join([piece async for piece in branch.text_async_iter()])

    state = await run(program.bind(), client)
    pairs, whole = state.value
    assert "".join(text for text, _ in pairs) == "abc"
    assert pairs[-1][1]["finish_reason"]["type"] == "stop"
    assert whole == state.branches[0][0].text()


async def test_errors_name_the_line() -> None:
    """Of the primitive that failed, also in a branch that is joined."""
    client = FakeClient(lambda prompt, request: sgl.SglActorsError("no"))

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "some text"
        s += sgl.gen("x")
        await s.sync()

    @sgl.function
    async def forked(s: sgl.ProgramState) -> None:
        group = s.fork(2)
        group += "text"
        group += sgl.gen("x")
        group.join("x")

    lines = Path(__file__).read_text().split("\n")
    for body, text in ((program, "s += sgl.gen"), (forked, "group += sgl.gen")):
        with pytest.raises(sgl.PrimitiveFailed) as caught:
            await run(body.bind(), client)
        first = body.body.__code__.co_firstlineno
        line = next(n for n, source in enumerate(lines, 1) if n > first and text in source)
        assert f"{Path(__file__).name}:{line}:" in str(caught.value)


async def test_batches_in_generator_style() -> None:
    """Results come in order while others run; leaving early cancels the rest."""
    client = FakeClient(lambda prompt, request: prompt[-1])

    @sgl.function
    async def program(s: sgl.ProgramState, n: int) -> None:
        s += f"n{n}" + sgl.gen("x")

    async with backend_of(client) as backend:
        batch: list[Any] = [{"n": n} for n in range(4)] + [(n,) for n in range(4, 8)]
        states = [
            one["x"] async for one in await program.run_batch(batch, generator_style=True, backend=backend)
        ]
        assert states == [str(n) for n in range(8)]
        results = await program.run_batch(batch, generator_style=True, backend=backend, max_concurrency=2)
        assert (await anext(results))["x"] == "0"
        await results.aclose()
    assert client.running == 0


async def test_a_trace_of_the_program_without_running_it() -> None:
    """Open arguments stand for themselves, also in f-strings; it ends where a value is needed."""

    @sgl.function
    async def program(s: sgl.ProgramState, topic: str, style: str = "dry") -> None:
        s += f"Write about {topic} in a {style} style:" + sgl.gen("x")
        if await s["x"] == "?":
            s += "never known"

    recording = await program.trace()
    assert str(recording).startswith("0: 'Write about ' {topic} ' in a dry style:' gen(x)\n(ends here: ")
    assert [getattr(node, "text", "") for node in recording.prefix()] == ["Write about "]
    client = FakeClient()
    async with backend_of(client) as backend:
        assert await program.cache(backend=backend) == 3
    assert client.prompts == ["Write about "]


async def test_set_default_backend_and_flush() -> None:
    """What is set is where programs run; its cache is emptied."""
    client = FakeClient(lambda prompt, request: "x")
    backend = backend_of(client)

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "Q" + sgl.gen("x")

    sgl.set_default_backend(backend)
    try:
        await program.run()
        assert await sgl.flush_cache()
        assert client.flushed == 1
    finally:
        sgl.set_default_backend(None)
        await backend.close()
