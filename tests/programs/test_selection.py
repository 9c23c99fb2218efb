"""The primitive select on a node that is faked: what it asks, what it decides, what it reports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import Cancelled, ProtocolError
from sgl_actors.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Select
from tests.programs.fakes import FakeClient, backend_of

PROMPT = "Music is made with an"
CHOICES = [" organ", " organ grinder", " old thing like that one"]


class Model(FakeClient):
    """Scores a word by the text before it; `spoil` may change an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.says: Callable[[str, str], float] = lambda before, word: -1.0
        self.spoil: Callable[[Chunk], Chunk] = lambda chunk: chunk
        self.scored: list[tuple[list[str], list[str]]] = []

    async def generate(self, request: Generate, **more: Any) -> AsyncIterator[Chunk]:
        async for chunk in super().generate(request, **more):
            start = request.prompt_logprobs_start
            if start < 0:
                yield chunk
                continue
            words = [self._words[i] for i in request.input_ids or []]
            self.scored.append((words[:start], words[start:]))
            entries = [
                TokenLogprob(entry.token_id, self.says("".join(words[:at]), words[at]) if at else None)
                for at, entry in enumerate(chunk.prompt_logprobs, start)
            ]
            yield self.spoil(msgspec.structs.replace(chunk, prompt_logprobs=entries))


@pytest.fixture
def client() -> Model:
    return Model()


@pytest.fixture(autouse=True)
async def backend(client: Model) -> AsyncIterator[Backend]:
    async with backend_of(client) as backend:
        yield backend


async def choose(
    method: str = token_length_normalized, prompt: str = PROMPT, choices: list[str] = CHOICES
) -> tuple[str, dict[str, Any]]:
    """The value and the meta of a select after `prompt`."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += prompt
        s += sgl.select("x", choices, choices_method=method)

    state = await program.run()
    assert state.text() == prompt + state["x"]
    return state["x"], state.meta("x")


def musician(before: str, word: str) -> float:
    """The old thing surprises and is foregone from then on; the grinder is unlikely, but much more so out of the blue."""
    if before.startswith(PROMPT):
        return {" organ": -1.5, " grinder": -1.7, " old": -4.0}.get(word, -0.1)
    return {" grinder": -3.0, " thing": -0.3}.get(word, -0.1)


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        (token_length_normalized, " old thing like that one"),
        (greedy_token_selection, " organ"),
        (unconditional_likelihood_normalized, " organ grinder"),
    ],
)
async def test_each_method_chooses_its_own(client: Model, method: str, chosen: str) -> None:
    """The three disagree; `meta` names the method, and has the scores of all choices."""
    client.says = musician
    value, meta = await choose(method)
    assert value == chosen
    assert meta["method"] == method
    assert list(meta["scores"]) == CHOICES
    assert meta["lengths"] == dict(zip(CHOICES, [1, 2, 5], strict=True))
    assert meta["normalized_prompt_logprobs"] == pytest.approx([-1.5, -1.6, -4.4 / 5])
    assert [[value for value, _ in row] for row in meta["input_token_logprobs"]] == [
        [-1.5], [-1.5, -1.7], [-4.0, -0.1, -0.1, -0.1, -0.1],
    ]  # fmt: skip
    assert ("greedy_logprob_matrix" in meta) == (method == greedy_token_selection)
    assert ("unconditional_token_logprobs" in meta) == (method == unconditional_likelihood_normalized)


async def test_greedy_reports_what_it_compared(client: Model) -> None:
    """The matrix, short choices padded with their own mean."""
    client.says = musician
    _, meta = await choose(greedy_token_selection)
    assert meta["greedy_logprob_matrix"] == [
        pytest.approx([-1.5] * 5),
        pytest.approx([-1.5, -1.7, -1.6, -1.6, -1.6]),
        pytest.approx([-4.0, -0.1, -0.1, -0.1, -0.1]),
    ]


async def test_the_unconditional_scores_are_of_the_same_tokens(client: Model) -> None:
    """Each choice's tokens are scored once more without the prompt, together with the others; the first has no value."""
    client.says = musician
    client.hold("organ")
    client.hold("old")
    running = asyncio.ensure_future(choose(unconditional_likelihood_normalized))
    while client.running < 2 * len(CHOICES):
        await asyncio.sleep(0)
    client.release("organ")
    client.release("old")
    _, meta = await running
    after = [words for before, words in client.scored if before]
    bare = [words for before, words in client.scored if not before]
    assert sorted(after) == sorted(bare)
    assert [[value for value, _ in row] for row in meta["unconditional_token_logprobs"]] == [
        [None], [None, -3.0], [None, -0.3, -0.1, -0.1, -0.1],
    ]  # fmt: skip
    expected = [-1.5, (-1.5 + 1.3) / 2, (-4.0 + 0.2) / 5]
    assert meta["normalized_unconditional_prompt_logprobs"] == pytest.approx(expected)
    assert list(meta["scores"].values()) == pytest.approx(expected)


async def test_the_last_token_of_the_prompt_does_not_count(client: Model) -> None:
    """Where no choice changes the prompt's tokens, only what comes after them is asked for."""
    await choose()
    assert all("".join(before) == PROMPT for before, _ in client.scored)
    assert sorted("".join(words) for _, words in client.scored) == sorted(CHOICES)


async def test_a_border_that_one_choice_changes_counts_in_all(client: Model) -> None:
    """ "im" + "possible" is one token and "im" + " Auto" are two: both are scored from "im" on, after the same tokens."""
    client.says = lambda before, word: {" impossible": -2.0, " im": -6.0, " Auto": -0.5}[word]
    value, meta = await choose(prompt="That is im", choices=["possible", " Auto"])
    assert {tuple(before) for before, _ in client.scored} == {("That", " is")}
    assert meta["lengths"] == {"possible": 1, " Auto": 2}
    assert meta["scores"] == {"possible": -2.0, " Auto": -3.25}
    assert value == "possible"  # from its own first difference, " Auto" would have won with -0.5


async def test_last_digits_decide_nothing(client: Model) -> None:
    """Choices that begin alike differ by later tokens, whatever the node's rounding makes of the common ones."""
    noise = random.Random(0)
    client.says = lambda before, word: -1.0 - noise.random() * 1e-6 if word == " organ" else -0.5
    for _ in range(8):
        value, meta = await choose(greedy_token_selection, choices=CHOICES[:2])
        assert value == " organ grinder"
        assert meta["greedy_logprob_matrix"][0][0] == meta["greedy_logprob_matrix"][1][0]


async def test_usage_counts_every_scoring() -> None:
    """Prompt tokens of all requests, those without a prompt included."""

    @sgl.function
    async def program(s: sgl.ProgramState, method: str) -> None:
        s += PROMPT + sgl.select("x", [" a", " b"], choices_method=method)

    words = len(PROMPT.split())
    assert (await program.run(method=token_length_normalized)).usage.prompt_tokens == 2 * (words + 1)
    state = await program.run(method=unconditional_likelihood_normalized)
    assert state.usage.prompt_tokens == state.meta("x")["prompt_tokens"] == 2 * (words + 1) + 2


async def test_without_a_prompt_there_is_nothing_to_choose_by(client: Model) -> None:
    """A single first token has no log probability: the error says so instead of choosing the first."""
    with pytest.raises(InvalidPrimitive, match=r"select\('x'\).*put text before"):
        await choose(prompt="", choices=["a", "b"])
    with pytest.raises(InvalidPrimitive, match=r"with and without a prompt"):
        await choose(unconditional_likelihood_normalized, prompt="", choices=["a c", "b c"])
    assert (await choose(prompt="", choices=["a c", "b c"]))[0] == "a c"


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (Select("x", ("a", "b"), "best"), "choices_method is one of token_length_normalized, .* not 'best'"),
        (Select("x", ()), "choices is empty"),
        (Select("x", ("a", "a")), "equal"),
    ],
)
async def test_a_node_from_elsewhere_is_checked_too(client: Model, node: Select, says: str) -> None:
    """A graph that did not come through `select(…)` gets the same errors, before anything is asked."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        s += PROMPT
        s += node

    with pytest.raises(InvalidPrimitive, match=says):
        await program.run()
    assert client.requests == []


async def test_an_aborted_scoring_is_its_error(client: Model) -> None:
    """An operator's abort of one request fails the select as what it was, and no choice is made."""
    client.spoil = lambda chunk: msgspec.structs.replace(
        chunk, prompt_logprobs=[], finish=Finish("abort", code=Cancelled.code, message="by the operator")
    )
    with pytest.raises(sgl.ProgramError, match="by the operator") as caught:
        await choose()
    assert isinstance(caught.value.__cause__, Cancelled)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entries: entries[1:],
        lambda entries: [TokenLogprob(entry.token_id + 1, entry.logprob) for entry in entries],
        lambda entries: [TokenLogprob(entry.token_id, float("nan")) for entry in entries],
    ],
    ids=["missing", "of other tokens", "not a number"],
)
async def test_scores_of_something_else_are_refused(
    client: Model, spoil: Callable[[list[TokenLogprob]], list[TokenLogprob]]
) -> None:
    """What does not belong to the tokens asked for is no basis for a choice."""
    client.spoil = lambda chunk: msgspec.structs.replace(chunk, prompt_logprobs=spoil(chunk.prompt_logprobs))
    with pytest.raises(sgl.ProgramError, match="expected finite log probabilities") as caught:
        await choose()
    assert isinstance(caught.value.__cause__, ProtocolError)
