"""Again, until it will do; what did not is taken back."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded, SglActorsError
from sgl_actors.lang.errors import PrimitiveFailed
from sgl_actors.lang.patterns import NoValidResult, retry_until
from sgl_actors.lang.typed import InvalidValue
from tests.lang.patterns.conftest import Runs, ScoredClient, in_turn


async def test_a_refused_try_is_in_no_later_prompt(client: ScoredClient, run: Runs) -> None:
    """Every try begins with what `s` holds and nothing else, with a seed of its own."""
    client.answer = in_turn(" 3", " many", " 4", " end")

    async def body(s: sgl.ProgramState) -> Any:
        s += "Even:"
        s += await retry_until(s, sgl.gen("n", stop="."), lambda text: int(text) % 2 == 0)
        s += sgl.gen("more")
        return int(await s["n"])

    state = await run(body)
    assert client.gens() == ["Even:", "Even:", "Even:", "Even: 4"]
    assert len({request.sampling.seed for request in client.requests}) == 4
    assert state.text() == "Even: 4 end"
    assert state.value == 4


async def test_feedback_begins_the_next_try_and_stays_out_of_the_result(
    client: ScoredClient, run: Runs
) -> None:
    """It gets the refused value and the error; `result.state` shows how the value came about, `s += result` does not."""
    client.answer = in_turn(" 3", " 5", " 4")
    heard: list[tuple[Any, SglActorsError]] = []

    def feedback(value: Any, error: SglActorsError) -> str:
        heard.append((value, error))
        return f" (not{value})"

    async def body(s: sgl.ProgramState) -> Any:
        s += "Even:"
        result = await retry_until(s, sgl.gen("n"), lambda text: int(text) % 2 == 0, feedback=feedback)
        s += result
        return await result.state.text(), result.usage.calls, len(result.candidates)

    state = await run(body)
    assert client.gens() == ["Even:", "Even: (not 3)", "Even: (not 5)"]
    assert state.text() == "Even: 4"
    assert state.value == ("Even: (not 5) 4", 3, 3)
    assert [value for value, _ in heard] == [" 3", " 5"]
    assert all(isinstance(error, InvalidValue) for _, error in heard)


async def test_a_failed_gen_is_tried_again(client: ScoredClient, run: Runs) -> None:
    """Without a check, whatever does not fail passes."""
    client.answer = in_turn(Overloaded("full"), " fine")

    async def body(s: sgl.ProgramState) -> Any:
        result = await retry_until(
            s, sgl.gen("v"), feedback=lambda value, error: "" if value is None else "?"
        )
        return result.value, result.candidates[0].error

    value, error = (await run(body)).value
    assert value == " fine"
    assert isinstance(error, PrimitiveFailed)


async def test_a_text_that_is_no_value_of_the_type_is_tried_again(client: ScoredClient, run: Runs) -> None:
    """The result is the value; the text that is none is taken back."""
    client.answer = in_turn("x", "12")

    async def body(s: sgl.ProgramState) -> Any:
        result = await retry_until(s, sgl.gen("v", type=int))
        s += result
        return result.value, [type(one.error) for one in result.candidates]

    state = await run(body)
    assert state.value == (12, [InvalidValue, type(None)])
    assert state.text() == "12"


async def test_when_no_try_passes_the_tries_are_in_the_error(client: ScoredClient, run: Runs) -> None:
    """`tries` bounds them; a check may be async and raise `InvalidValue` itself."""

    async def never(value: str) -> bool:
        raise InvalidValue(f"never {value.strip()}")

    async def body(s: sgl.ProgramState) -> Any:
        s += "x"
        await retry_until(s, sgl.gen("v"), never, tries=2)

    with pytest.raises(NoValidResult, match=r"none of 2 .* never echo1") as caught:
        await run(body)
    assert [one.value for one in caught.value.candidates] == [" echo1", " echo1"]
    assert len(client.requests) == 2


async def test_a_function_can_be_retried_in_chat_turns(client: ScoredClient, run: Runs) -> None:
    """Turns of the winning try become turns of `s`."""
    client.answer = in_turn("no", "yes")

    async def turn(branch: sgl.ProgramState) -> str:
        branch += sgl.user("Well?") + sgl.assistant(sgl.gen("a"))
        return str(await branch["a"])

    async def body(s: sgl.ProgramState) -> Any:
        s += await retry_until(s, turn, lambda value: value == "yes")

    state = await run(body)
    assert state.messages() == [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "yes"}]
    assert state["a"] == "yes"
