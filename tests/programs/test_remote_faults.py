"""Where texts of API models could have been what no node would have written, or usage what nobody paid for: programs over the model's actor."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Generate, TokenIds, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, TEXT
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Event, Text, Tokens
from sgl_actors.lang.protocols import Call
from tests.api.fake_vendor import Fake, FakeVendor, end
from tests.programs.api_mock import ApiMock


async def test_what_was_left_early_is_no_end_of_the_model() -> None:
    """An answer that was not read any further ends no later gen: one without a stop has to ask."""

    def answers(ask: Ask) -> list[Event]:
        if (ask.text or "").endswith("Name:"):
            pieces = (" Ada", "\nJob:", " poet", "\n", "never")
            return [Text(piece, Tokens(5, 0, number)) for number, piece in enumerate(pieces, 1)]
        return [end("And so on.")]

    @sgl.function
    async def goes_on(s: sgl.ProgramState) -> str:
        s += (
            "Name:"
            + sgl.gen("name", stop="\n", max_tokens=8)
            + "\nJob:"
            + sgl.gen("job", stop="\n", max_tokens=8)
        )
        await s["job"]
        s += "\n" + sgl.gen("rest", max_tokens=8)
        return str(await s["rest"])

    vendor = FakeVendor(answers, counting=True)
    async with Fake(vendor) as backend:
        state = await goes_on.run(backend=backend)
    assert (state["name"], state["job"], state.value) == (" Ada", " poet", "And so on.")
    assert len(vendor.asked) == 2


async def test_a_gen_that_samples_in_another_way_asks_for_itself() -> None:
    """What was written at one temperature is no text of a gen at another, though it stands there already."""
    card = "Name: Ada\nJob: poet\nAge: 36\n"

    def writes(request: Generate, _call: Call) -> str:
        return card[len(request.text or "") :] if request.sampling.temperature else " 40\n"

    @sgl.function
    async def mixed(s: sgl.ProgramState) -> None:
        s += "Name:" + sgl.gen("name", stop="\n") + "\nJob:" + sgl.gen("job", stop="\n")
        s += "\nAge:" + sgl.gen("age", stop="\n", temperature=0)

    backend = ApiMock(writes, continuation=TEXT)
    state = await mixed.run(backend=backend)
    assert (state["job"], state["age"]) == (" poet", " 40")
    assert [request.sampling.temperature for request in backend.requests] == [1.0, 0]


async def test_what_a_form_has_filled_in_is_not_asked_for_again_by_going_on() -> None:
    """A model that goes on with a turn gets its selects by a form, and all texts of that form belong together."""

    def writes(request: Generate, _call: Call) -> str:
        if request.continue_final:
            return " it rains\n"
        return '{"mood": "calm", "why": "it is sunny", "score": "good"}'

    @sgl.function
    async def turn(s: sgl.ProgramState) -> None:
        s += sgl.user("Well?")
        with s.assistant():
            s += "Mood: " + sgl.select("mood", ["calm", "angry"])
            s += "\nWhy: " + sgl.gen("why", stop="\n") + "\nScore: " + sgl.select("score", ["good", "bad"])

    backend = ApiMock(writes, continuation=PREFILL, schema=True)
    state = await turn.run(backend=backend)
    assert state.messages()[-1]["content"] == "Mood: calm\nWhy: it is sunny\nScore: good"
    assert state.usage.calls == 1


@sgl.function
async def two(s: sgl.ProgramState) -> None:
    s += (
        "Name:"
        + sgl.gen("name", stop="\n", max_tokens=8)
        + "\nJob:"
        + sgl.gen("job", stop="\n", max_tokens=8)
    )


async def test_a_budget_that_suffices_without_speculation_suffices_with_it() -> None:
    """What the program has left is not reserved, or spent, for more than its gens may have."""
    backend = ApiMock(lambda _r, _c: "word " * 40, continuation=TEXT)
    state = await two.run(backend=backend, budget=sgl.Budget(tokens=16))
    assert [len(str(state[name]).split()) for name in ("name", "job")] == [8, 8]
    assert [request.sampling.max_tokens for request in backend.requests] == [8, 8]


async def test_a_text_that_is_read_while_it_is_written_is_not_longer_than_its_gen_s() -> None:
    """Where nobody counts tokens on the way, a gen with a limit that somebody reads is asked for by itself."""
    calls = iter(range(9))

    def writes(_request: Generate, _call: Call) -> str:
        call = next(calls)
        return " ".join(f"{call}w{number}" for number in range(40))

    backend = ApiMock(writes, continuation=TEXT)
    pieces = [piece async for piece in two.bind().stream("name", backend=backend)]
    assert "".join(pieces) == " ".join(f"0w{number}" for number in range(8))


async def test_a_constrained_gen_is_not_asked_for_twice() -> None:
    """`num_api_spec_tokens` has no use for a text whose end only its constraint tells."""
    backend = ApiMock(lambda _r, _c: "42", continuation=TEXT, constraints=("regex",))

    @sgl.function(num_api_spec_tokens=64)
    async def age(s: sgl.ProgramState) -> None:
        s += "Age:" + sgl.gen("age", regex="[0-9]+", max_tokens=8)

    state = await age.run(backend=backend)
    assert (state.usage.calls, state.usage.wasted_tokens) == (1, 0)


async def test_a_text_that_its_constraint_forbids_is_asked_for_with_another_seed() -> None:
    """The same request with the same seed would be answered alike by a model that keeps to seeds."""
    backend = ApiMock(
        lambda _r, call: "42" if call.part == 2 else "old", continuation=NONE, constraints=("regex",)
    )

    @sgl.function
    async def age(s: sgl.ProgramState) -> None:
        s += sgl.user("Age?") + sgl.assistant(sgl.gen("age", regex="[0-9]+", max_tokens=8))

    state = await age.run(backend=backend)
    assert state["age"] == "42"
    assert len({request.sampling.seed for request in backend.requests}) == 3


async def test_a_stop_before_min_tokens_is_none() -> None:
    """The server tells whether a stop came too early; what it has gone over is not cut here."""
    vendor = FakeVendor(
        [[end("a\nb c d e f")]], sampling=("temperature", "top_p", "min_tokens", "no_stop_trim")
    )

    @sgl.function
    async def long(s: sgl.ProgramState) -> None:
        s += (
            "A"
            + sgl.gen("text", stop="\n", min_tokens=5, max_tokens=20)
            + "\nB"
            + sgl.gen("none", max_tokens=0)
        )

    async with Fake(vendor) as backend:
        state = await long.run(backend=backend)
    assert state["text"] == "a\nb c d e f"
    assert vendor.asked[0].sampling.stop == ("\n",)


async def test_what_is_cut_off_on_our_side_is_wasted() -> None:
    """Text behind a stop that the API does not take was paid for and is used by nobody."""

    @sgl.function
    async def line(s: sgl.ProgramState) -> None:
        s += sgl.user("Count.") + sgl.assistant(sgl.gen("text", stop="\n"))

    for continuation in (NONE, TEXT):
        vendor = FakeVendor([[end("one\n" + "more" * 4, output=5)]], stops=0, continuation=continuation)
        vendor.chat = (
            "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
            {},
        )
        async with Fake(vendor) as backend:
            state = await line.run(backend=backend)
        assert (state["text"], state.usage.completion_tokens, state.usage.wasted_tokens) == ("one", 5, 4)


async def test_a_select_counts_in_the_budget() -> None:
    """What scoring its choices costs is spent, so that nothing is asked for behind a budget's end."""
    vendor = FakeVendor(lambda _ask: [end("red", prompt=10, output=1)], constraints=("choice",))

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += "The sky is " + sgl.select("colour", ["red", "blue"]) + "." + sgl.gen("why", max_tokens=4)

    async with Fake(vendor, prices=sgl.Prices(input=1.0, output=1.0)) as backend:
        with pytest.raises(sgl.BudgetExceeded, match="why"):
            await pick.run(backend=backend, budget=sgl.Budget(cost=5e-6))
    assert len(vendor.asked) == 1


def _bytewise(text: str) -> End:
    """Scores of a model whose tokens are single bytes: a character's text is its last byte's. One byte is unlikely."""
    parts = [(letter, number, byte) for letter in text for number, byte in enumerate(letter.encode())]
    texts = tuple(letter if number == len(letter.encode()) - 1 else "" for letter, number, _ in parts)
    scores = tuple(TokenLogprob(byte, -1.0 if byte != 0xA9 else -9.0) for _, _, byte in parts)
    return End((Completion("", Finish("length")),), Tokens(len(parts)), scores, texts)


async def test_choices_are_scored_though_their_tokens_are_parts_of_characters() -> None:
    """Parts that have no text of their own are told apart, and counted as tokens."""

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += "né" + sgl.select("end", ["ü", "é"])

    async with Fake(FakeVendor(lambda ask: [_bytewise(ask.text or "")], scoring=True)) as backend:
        state = await pick.run(backend=backend)
    assert state["end"] == "ü"
    assert state.meta("end")["scores"] == {"ü": -1.0, "é": -5.0}


async def test_a_choice_is_constrained_where_scores_cannot_be_told_apart() -> None:
    """A server that shows other texts than those of the prompt is asked to write one of the choices; without such constraints it is an error."""

    def answers(ask: Ask) -> list[Event]:
        if ask.sampling.constraint is not None:
            return [end("é")]
        whole = _bytewise(ask.text or "")
        return [msgspec.structs.replace(whole, scored=tuple(text or "\ufffd" for text in whole.scored))]

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += "né" + sgl.select("end", ["ü", "é"])

    async with Fake(FakeVendor(answers, scoring=True, constraints=("choice",))) as backend:
        state = await pick.run(backend=backend)
    assert (state["end"], state.meta("end")["by"]) == ("é", "schema")
    async with Fake(FakeVendor(answers, scoring=True)) as backend:
        with pytest.raises(sgl.PrimitiveFailed, match="other texts for some tokens"):
            await pick.run(backend=backend)


async def test_completions_of_one_request_are_one_call(tmp_path: Path) -> None:
    """`n` is one request of an API that takes it; usage says so, also of a replay."""
    vendor = FakeVendor(
        lambda ask: [end(*"abc"[: ask.count], prompt=10, output=6)], continuation=NONE, count=8
    )

    @sgl.function
    async def several(s: sgl.ProgramState) -> None:
        s += sgl.user("Three?") + sgl.assistant(sgl.gen("text", n=3, max_tokens=8))

    file = tmp_path / "three.jsonl"
    async with sgl.record(file, Fake(vendor)) as backend:
        state = await several.run(backend=backend)
    assert (len(vendor.asked), state.usage.calls) == (1, 1)
    assert (state.usage.prompt_tokens, state.usage.completion_tokens) == (10, 6)
    async with sgl.replay(file) as replayed:
        assert (await several.run(backend=replayed)).usage == state.usage


async def test_a_blank_with_more_words_than_tokens_is_asked_for_again() -> None:
    """`max_tokens` holds for a gen in a form, too: what is too long for sure is no value of it, and the model is told so."""
    answers = iter(['{"a": "one two three", "b": "x"}', '{"a": "one two", "b": "x"}'])
    backend = ApiMock(lambda _r, _c: next(answers), continuation=NONE, schema=True)

    @sgl.function
    async def card(s: sgl.ProgramState) -> None:
        s += sgl.user("?") + sgl.assistant("A: " + sgl.gen("a", max_tokens=2) + "\nB: " + sgl.gen("b"))

    state = await card.run(backend=backend)
    assert (state["a"], state["b"], state.usage.calls) == ("one two", "x", 2)
    last = (backend.requests[1].messages or [])[-1].content
    assert "at most 2 tokens" in last


async def test_completions_of_one_request_are_one_call_of_the_budget() -> None:
    """A budget of one call suffices for them; one of tokens has to have room for all, for none can be cut short alone."""
    backend = ApiMock(lambda _r, call: f"text {call.part}", continuation=NONE, count=8)

    @sgl.function
    async def several(s: sgl.ProgramState) -> None:
        s += sgl.user("?") + sgl.assistant(sgl.gen("text", n=5, max_tokens=50))

    assert len((await several.run(backend=backend, budget=sgl.Budget(calls=1)))["text"]) == 5
    asked = len(backend.requests)
    with pytest.raises(sgl.BudgetExceeded, match="5 completions of up to 50 tokens are more than the 120"):
        await several.run(backend=backend, budget=sgl.Budget(tokens=120))
    assert len(backend.requests) == asked


@pytest.mark.parametrize(
    ("tokenizer", "code"), [(True, "4711"), (True, "471"), (False, "47 11 47 11"), (False, "47")]
)
async def test_a_text_of_many_short_tokens_is_no_longer_than_its_limit(tokenizer: bool, code: str) -> None:
    """Its share of the characters says little: where the tokenizer can be asked it is, else only what is far below is taken."""
    whole = f" a rather long description\nCode:{code}\n"

    def writes(request: Generate, call: Call) -> str:
        return whole if call.follow else "4"

    backend = ApiMock(writes, continuation=TEXT, tokenizer=tokenizer)

    async def digits(request: Tokenize) -> TokenIds:
        return TokenIds([ord(letter) for letter in request.text or ""], request.text or "")

    backend.client.tokenize = digits  # type: ignore[method-assign]

    @sgl.function
    async def coded(s: sgl.ProgramState) -> None:
        s += (
            "Is:"
            + sgl.gen("what", stop="\n", max_tokens=None)
            + "\nCode:"
            + sgl.gen("code", stop="\n", max_tokens=3)
        )

    state = await coded.run(backend=backend)
    assert state["code"] == (code if len(code) <= 3 else "4")
