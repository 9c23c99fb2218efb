"""`Mock`: programs are tested without a model, and the mock says what was asked."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_actors as sgl
from sgl_actors.actors.programs.mock import Mock
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.errors import InvalidRequest, Overloaded, RemoteError
from sgl_actors.lang.backends.mock import MockCall, UnscriptedCall, at_once, logprobs_of, scores_of, write
from sgl_actors.lang.choices import METHODS, Scored, decide
from sgl_actors.lang.errors import InvalidPrimitive, PrimitiveFailed


@sgl.function
async def capital(s: sgl.ProgramState, country: str) -> None:
    """One chat turn."""
    s += sgl.user(f"Capital of {country}?") + sgl.assistant(sgl.gen("answer", max_tokens=8, stop="."))


@sgl.function
async def tips(s: sgl.ProgramState, count: int = 3) -> list[str]:
    """A gen in each branch; the last one is the first to ask."""
    s += "Tips."
    group = s.fork(count)
    for index in reversed(range(count)):
        if index < count - 1:
            group[index] += f"\n{index}: after " + group[index + 1]["tip"]
        group[index] += f"\n{index}:" + sgl.gen("tip")
    found: list[str] = await group.join("tip")
    return found


@sgl.function
async def grade(s: sgl.ProgramState, method: str = METHODS[0]) -> None:
    """One select."""
    s += "Grade: " + sgl.select("grade", ["good", "good enough", "poor"], choices_method=method)


# -- how it is used ---------------------------------------------------------------------------------------


def test_a_program_is_tested_in_three_lines() -> None:
    """In plain pytest, without an event loop of the test's own; a mock outlives the loop."""
    mock = Mock({"answer": "Paris. And more"})
    assert asyncio.run(capital.run(country="France", backend=mock))["answer"] == "Paris"
    assert asyncio.run(capital.run(country="France", backend=mock))["answer"] == "Paris"
    mock.assert_done()


async def test_it_is_the_default_within_a_with_block() -> None:
    """Like any backend."""
    async with Mock(["Rome"]) as mock:
        assert (await capital.run(country="Italy"))["answer"] == "Rome"
    assert len(mock.calls) == 1


async def test_it_says_what_was_asked() -> None:
    """Prompt in ChatML, variable, place and arguments; and what was answered."""
    mock = Mock(["Paris."])
    state = await capital.run(country="France", backend=mock, temperature=0.5)
    [call] = mock.calls
    assert call.prompt == "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert (call.kind, call.name, call.path, call.answer) == ("gen", "answer", "0", "Paris")
    assert (call.max_tokens, call.stop, call.sampling.temperature, call.constraint) == (8, (".",), 0.5, None)
    assert state.meta("answer")["finish_reason"] == {"type": "stop", "matched": "."}
    assert state.text() == call.prompt + "Paris<|im_end|>\n"


def test_it_needs_no_model() -> None:
    """Neither importing nor running it imports torch or transformers."""
    program = """
import asyncio, sys
import sgl_actors as sgl
@sgl.function
async def program(s):
    s += "a" + sgl.gen("x") + sgl.select("y", ["b", "c"])
assert asyncio.run(program.run(backend=sgl.Mock(["1", "c"])))["y"] == "c"
assert not {"torch", "transformers", "tokenizers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_examples_of_the_page_run() -> None:
    """As they stand in docs/testing-programs.md."""
    page = (Path(__file__).parents[2] / "docs" / "testing-programs.md").read_text()
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)  # our own page
    tests = [value for name, value in names.items() if name.startswith("test_")]
    tests = [test for test in tests if not test.__code__.co_argcount]  # one needs a node
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.mark.parametrize("script", ["Paris", 3, None, {1: "a"}, {("a", "b", "c"): "d"}])
def test_what_is_no_script_is_refused(script: Any) -> None:
    """When the mock is made."""
    with pytest.raises(InvalidPrimitive, match="Mock: a script"):
        Mock(script)


# -- who gets which answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [{"tip": ["a", "b", "c"]}, ["a", "b", "c"]])
async def test_branches_take_answers_by_their_number(script: Any) -> None:
    """Not by the order in which they ask, which here is the other way round; calls are told in program order."""
    mock = Mock(script)
    state = await tips.run(backend=mock)
    assert state.value == ["a", "b", "c"]
    assert [call.path for call in mock.calls] == ["0.0", "0.1", "0.2"]
    assert [call.path for call in mock._client.calls] == ["0.2", "0.1", "0.0"]
    mock.assert_done()


async def test_a_list_serves_streams_and_forks_one_after_the_other() -> None:
    """What a stream asks before a fork comes before its branches, what it asks after the join comes after them."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> list[Any]:
        s += "a" + sgl.gen("x") + sgl.gen("x")
        found = [await s.fork(2).__iadd__(sgl.gen("x")).join("x") for _ in range(2)]
        s += sgl.gen("x")
        return [*found, await s["x"]]

    mock = Mock([str(number) for number in range(7)])
    assert (await program.run(backend=mock)).value == [["2", "3"], ["4", "5"], "6"]
    assert [call.answer for call in mock.calls] == [str(number) for number in range(7)]


async def test_one_answer_without_a_list_is_for_every_call() -> None:
    """Also where a list would be refused."""
    mock = Mock({"tip": "walk"})
    assert (await tips.run(backend=mock)).value == ["walk"] * 3
    mock.assert_done()


async def test_a_branch_can_have_answers_of_its_own() -> None:
    """Under (path, variable); what it has not comes from the variable's, then from the default."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "a"
        group = s.fork(2)
        group += sgl.gen("x") + sgl.gen("x") + sgl.gen("y") + sgl.gen()
        await group.join()

    mock = Mock({("0.1", "x"): ["p", "q"], "x": "common", "y": ["r", "s"]}, default="rest")
    await program.run(backend=mock)
    assert [c.answer for c in mock.calls] == ["common", "common", "r", "rest", "p", "q", "s", "rest"]


async def test_a_list_that_does_not_say_which_answer_is_meant_is_refused() -> None:
    """Branches that take several each, and branches of branches, have no order among each other."""

    @sgl.function
    async def twice(s: sgl.ProgramState) -> None:
        s += "a"
        group = s.fork(2)
        group += sgl.gen("x") + sgl.gen("x")
        await group.join()

    @sgl.function
    async def nested(s: sgl.ProgramState) -> None:
        s += "a"
        for branch in s.fork(2):
            leaves = branch.fork(2)
            leaves += sgl.gen("x")

    for program in (twice, nested):
        mock = Mock({"x": ["1", "2", "3", "4"]})
        with pytest.raises(
            (PrimitiveFailed, UnscriptedCall), match=r"at the same time.*answer of its own goes under"
        ):
            await program.run(backend=mock)
        with pytest.raises(AssertionError, match="at the same time"):
            mock.assert_done()


def test_streams_have_an_order_or_none() -> None:
    """Below different branches of one fork, or in different runs of one batch, they go on at the same time."""
    assert at_once((1, 0, 4, 0), (1, 0, 4, 1, 2, 0))
    assert at_once((1, 0), (1, 1))
    assert not at_once((1, 0), (1, 0, 4, 1))
    assert not at_once((1, 0, 4, 0), (1, 0, 6, 1))
    assert not at_once((1, 0), (2, 3))


async def test_runs_of_a_batch_take_one_answer_each_and_runs_after_it_go_on() -> None:
    """Item i has answer i; two calls of a run beside others have no order."""
    mock = Mock({"answer": ["Paris", "Rome", "Bern", "Wien", "Oslo"]})
    states = await capital.run_batch([{"country": name} for name in ("F", "I", "CH")], backend=mock)
    assert [state["answer"] for state in states] == ["Paris", "Rome", "Bern"]
    assert (await capital.run(country="A", backend=mock))["answer"] == "Wien"
    assert (await capital.run(country="N", backend=mock))["answer"] == "Oslo"
    mock.assert_done()
    with pytest.raises(PrimitiveFailed, match="at the same time"):
        await tips.run_batch([{}, {}], backend=Mock({"tip": [["a"]] * 6}))


async def test_completions_of_one_gen_take_one_answer_each() -> None:
    """`n` of them, and the prompt goes on with the first."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "a" + sgl.gen("x", n=3)

    state = await program.run(backend=Mock(["1", "2", "3"]))
    assert state["x"] == ["1", "2", "3"]
    assert state.text() == "a1"


async def test_a_function_answers_whatever_it_likes() -> None:
    """It sees the call; it may wait; None is no answer."""

    async def answer(call: MockCall) -> str | None:
        await asyncio.sleep(0)
        if call.choices:
            return call.choices[-1]
        return None if call.name == "bad" else call.prompt[-1] + call.name

    @sgl.function
    async def program(s: sgl.ProgramState, bad: str) -> None:
        s += "a" + sgl.gen("x") + sgl.select("y", ["yes", "no"])
        s += sgl.gen(bad)

    mock = Mock(answer)
    state = await program.run(bad="good", backend=mock)
    assert (state["x"], state["y"], state["good"]) == ("ax", "no", "ogood")
    with pytest.raises(UnscriptedCall):
        await program.run(bad="bad", backend=Mock(lambda call: None))


# -- what an answer becomes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "text", "tokens", "finish"),
    [
        ({}, "one two. three\nfour", 5, Finish("stop")),
        ({"stop": (".", "two")}, "one ", 2, Finish("stop", "two")),
        ({"stop": (". three",), "no_stop_trim": True}, "one two. three", 4, Finish("stop", ". three")),
        ({"stop": ("ne",)}, "o", 1, Finish("stop", "ne")),
        ({"stop": ("five",)}, "one two. three\nfour", 5, Finish("stop")),
        ({"stop_regex": (r"t\w+e",)}, "one two. ", 4, Finish("stop", r"t\w+e")),
        ({"max_tokens": 3}, "one two.", 3, Finish("length")),
        ({"max_tokens": 5}, "one two. three\nfour", 5, Finish("stop")),
        ({"max_tokens": 3, "stop": ("\n",)}, "one two.", 3, Finish("length")),
        ({"max_tokens": 3, "stop": ("two",)}, "one ", 2, Finish("stop", "two")),
    ],
)
def test_an_answer_ends_as_a_model_s_text_would(
    sampling: dict[str, Any], text: str, tokens: int, finish: Finish
) -> None:
    """At the stop that is complete first, or after so many tokens."""
    written = write(["one two. three\nfour"], SamplingOptions(**{"max_tokens": None, **sampling}))
    assert (written.pieces[0][0], len(written.pieces[0][1]), written.finish) == (text, tokens, finish)


@given(st.lists(st.text(alphabet="ab. \n", max_size=5), min_size=1, max_size=5), st.integers(1, 12))
def test_pieces_end_where_the_whole_does(pieces: list[str], limit: int) -> None:
    """Wherever it is cut, a stop ends the same text; of tokens, which belong to one piece, there are never too many."""
    options = SamplingOptions(max_tokens=None, stop=(". ", "a\n"))
    [(text, _)], finish = write(["".join(pieces)], options)
    written = write(pieces, options)
    assert ("".join(piece for piece, _ in written.pieces), written.finish) == (text, finish)
    short = write(pieces, SamplingOptions(max_tokens=limit))
    count = sum(len(row) for _, row in short.pieces)
    assert count <= limit
    assert "".join(piece for piece, _ in short.pieces) == "".join(
        token for _, row in short.pieces for token in row
    )
    assert (short.finish.reason == "length") == (
        sum(map(len, pieces)) > sum(len(piece) for piece, _ in short.pieces)
    )


async def test_an_answer_in_pieces_is_streamed() -> None:
    """A list within the list."""
    mock = Mock([["Pa", "ris", ". More"]])
    pieces = [piece async for piece in capital.stream("answer", country="France", backend=mock)]
    assert "".join(pieces) == "Paris"
    assert mock.calls[0].answer == "Paris"


async def test_an_exception_is_raised_as_the_node_s() -> None:
    """An error of ours is the cause as it is; any other is what an actor's failure would be. The next call has the next answer."""
    mock = Mock([Overloaded("busy"), ValueError("odd"), "Paris"])
    for cause in (Overloaded, RemoteError):
        with pytest.raises(PrimitiveFailed) as caught:
            await capital.run(country="France", backend=mock)
        assert isinstance(caught.value.__cause__, cause)
    assert (await capital.run(country="France", backend=mock))["answer"] == "Paris"
    mock.assert_done()


async def test_data_is_answered_as_json() -> None:
    """For gens with a type."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "a" + sgl.gen("x", type=dict[str, int]) + sgl.gen_int("y")

    state = await program.run(backend=Mock({"x": {"b": 1}, "y": [41]}))
    assert (state["x"], state["y"]) == ({"b": 1}, 41)


async def test_log_probabilities_are_certain() -> None:
    """One per token, if asked for."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += "a b" + sgl.gen("x", logprobs=True, top_logprobs=2)

    meta = (await program.run(backend=Mock(["c d"]))).meta("x")
    assert [value for value, _ in meta["output_token_logprobs"]] == [0.0, 0.0]
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (2, 2)


# -- select -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("winner", ["good", "good enough", "poor"])
async def test_a_select_chooses_what_the_script_says(method: str, winner: str) -> None:
    """By its name or by weights, with each method, also where one choice is the beginning of another."""
    others = dict.fromkeys({"good", "good enough", "poor"} - {winner}, 0.2)
    for answer in (winner, {winner: 0.3, **others}):
        mock = Mock([answer])
        assert (await grade.run(method=method, backend=mock))["grade"] == winner
        [call] = mock.calls
        assert (call.kind, call.prompt, call.answer) == ("select", "Grade: ", winner)


async def test_scores_of_a_select_are_the_logarithms_of_its_weights() -> None:
    """Weights are shares of their sum; a loop of selects takes one answer each."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        for index in range(2):
            s += "Is it? " + sgl.select(f"x{index}", ["yes", "no way"])

    state = await program.run(backend=Mock([{"yes": 1, "no way": 3}, "yes"]))
    assert state.meta("x0")["scores"] == pytest.approx({"yes": -1.386294, "no way": -0.287682}, abs=1e-6)
    assert (state["x0"], state["x1"]) == ("no way", "yes")


@given(
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=2, max_size=6, unique=True).flatmap(
        lambda rows: st.tuples(
            st.just(rows), st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))
        )
    )
)
def test_the_heaviest_choice_wins_by_every_method(case: tuple[list[str], list[int]]) -> None:
    """Whatever the choices' tokens have in common; of equal weights the first wins; no probability is over 1."""
    rows, weights = case
    weights[-1] += not sum(weights)
    choices = [str(index) for index in range(len(rows))]
    scores = scores_of(choices, dict(zip(choices, weights, strict=True)))
    ids = [tuple(map(ord, row)) for row in rows]
    values = logprobs_of(ids, scores)
    assert all(value <= 0 for row in values for value in row)
    for method in METHODS:
        found = decide(
            method, [Scored(i, tuple(v), (0.0,) * len(i)) for i, v in zip(ids, values, strict=True)]
        )
        assert weights[found.index] == max(weights)
        assert found.index == weights.index(max(weights))


@pytest.mark.parametrize("answer", ["bad", {"bad": 1}, {"good": -1}, {"good": 0}, {"good": "much"}, 3])
async def test_an_answer_that_is_no_choice_is_refused(answer: Any) -> None:
    """And the message says so; the select is not decided by chance."""
    mock = Mock([answer])
    with pytest.raises(UnscriptedCall, match="variable 'grade'"):
        await grade.run(backend=mock)


# -- what goes wrong --------------------------------------------------------------------------------------


async def test_an_unscripted_call_fails_and_says_what_is_left() -> None:
    """The variable, the end of the prompt, and the answers that were not used."""
    with pytest.raises(UnscriptedCall) as caught:
        await capital.run(country="France", backend=Mock({"town": ["Paris", "Rome"]}))
    for part in ("'answer'", "France?", "not used: 'town': 'Paris', 'Rome'"):
        assert part in caught.value.message
    with pytest.raises(UnscriptedCall, match="all 0 answers"):
        await capital.run(country="France", backend=Mock([]))
    with pytest.raises(PrimitiveFailed, match="takes answer 3 of its list, which has 2"):
        await tips.run(backend=Mock({"tip": ["a", "b"]}))


async def test_assert_done_tells_of_answers_and_calls_that_were_left() -> None:
    """Also of a call whose failure the program caught, and of a function that raised."""
    mock = Mock({"answer": ["Paris", "Rome", "Oslo", "Bern", "Wien"], "other": "x"})
    await capital.run(country="France", backend=mock)
    with pytest.raises(AssertionError, match=r"'answer': 'Rome', 'Oslo', 'Bern' and 1 more; 'other': 'x'"):
        mock.assert_done()

    @sgl.function
    async def careless(s: sgl.ProgramState) -> None:
        branch = s.fork(1)[0]
        branch += "a" + sgl.gen("x")
        with pytest.raises(sgl.ProgramError):
            await branch["x"]

    def wrong(call: MockCall) -> str:
        assert call.prompt == "b"
        return "c"

    for script, message in (
        ([], "gen 'x' of stream 0.0 after 'a': all 0 answers"),
        (wrong, "raised AssertionError"),
    ):
        mock = Mock(script)
        await careless.run(backend=mock)
        with pytest.raises(AssertionError, match=message):
            mock.assert_done()


# -- usage and the cache ----------------------------------------------------------------------------------


async def test_cached_tokens_show_what_prompts_share() -> None:
    """With earlier prompts and answers of the same salt; the last token is always computed."""
    mock = Mock({"tip": "walk a lot"})
    state = await tips.run(backend=mock, fork_hint=False)
    assert [call.cached_tokens for call in mock.calls] == [2, 2, 0]
    assert state.usage.cached_tokens == 4
    again = await tips.run(backend=mock)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - again.usage.calls
    other = await capital.run(country="F", backend=Mock({"answer": "P"}), cache_salt="b")
    assert other.usage.cached_tokens == 0


async def test_a_flush_forgets_and_a_pin_computes() -> None:
    """As on a node."""

    @sgl.function
    async def program(s: sgl.ProgramState, text: str) -> str:
        s += text
        return await s.pin(ttl=60, name="p")

    mock = Mock({"answer": "P"})
    prompt = "<|im_start|>user\nCapital of F?<|im_end|>\n<|im_start|>assistant\n"
    assert (await program.run(text=prompt, backend=mock)).value == "p"
    assert (await capital.run(country="F", backend=mock)).usage.cached_tokens > 5
    await mock._client.flush()
    assert (await capital.run(country="F", backend=mock)).usage.cached_tokens == 0


async def test_a_request_is_answered_whole_too() -> None:
    """By text, by ids that the mock knows, or by a chat."""
    client = Mock({"": [["a", "b"], "c", "d"]})._client
    whole = await client.complete(Generate("1", text="hello you"))
    assert (whole.text, whole.completion_tokens, whole.finish) == ("ab", 2, Finish("stop"))
    assert (await client.complete(Generate("2", input_ids=client._words.ids("hello you")))).text == "c"
    assert client.calls[1].prompt == "hello you"
    with pytest.raises(InvalidRequest, match="knows no token 5"):
        await client.complete(Generate("3", input_ids=[5]))


async def test_images_are_taken_and_shown_to_the_test() -> None:
    """The mock looks at none of them."""
    png = b"\x89PNG\r\n\x1a\n"

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(png) + "What is it?") + sgl.assistant(sgl.gen("x"))

    mock = Mock(["a bee"])
    await program.run(backend=mock)
    assert [media.data for media in mock.calls[0].media] == [png]
