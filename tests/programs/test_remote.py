"""Programs on API models: how many calls a program takes, what they ask, and that no text is filled in that the model did not mean."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs import stream_actor
from sgl_actors.actors.tokenizer.messages import Generate
from sgl_actors.errors import NoContinuation, NotReady
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, TEXT, Capabilities
from sgl_actors.lang.backends.vendor import Text
from sgl_actors.lang.errors import SpeculationMiss, Unsupported
from sgl_actors.lang.ir import Media
from sgl_actors.lang.protocols import ApiModel, Call
from tests.api.fake_vendor import Fake, FakeVendor, end
from tests.programs.api_mock import ApiMock

FACTS = {"Name": "Ada", "Job": "poet", "Age": "36"}
CARD = " Ada\nJob: poet\nAge: 36\n\nName: Bob\nJob: none\n"


@sgl.function
async def card(s: sgl.ProgramState) -> None:
    s += "A card of Ada.\nName:" + sgl.gen("name", stop="\n", max_tokens=8)
    s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
    s += "\nAge:" + sgl.gen("age", stop="\n", max_tokens=8)


@sgl.function
async def chat_card(s: sgl.ProgramState) -> None:
    s += sgl.user("A card of Ada.")
    with s.assistant():
        s += "Name:" + sgl.gen("name", stop="\n", max_tokens=8)
        s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
        s += "\nAge:" + sgl.gen("age", stop="\n", max_tokens=8)


def goes_on(request: Generate, _call: Call) -> str:
    """Writes the card on from where the prompt is."""
    whole = "A card of Ada.\nName:" + CARD
    text = request.text or "A card of Ada.\n" + request.messages[-1].content  # type: ignore[index]
    return whole[len(text) :] if whole.startswith(text) else " what?\n"


async def test_three_slots_take_one_call_of_a_model_that_goes_on_with_text() -> None:
    """What was written past the first stop is what the next gens get; tokens nobody took are counted as wasted."""
    backend = ApiMock(goes_on, continuation=TEXT)
    state = await card.run(backend=backend)
    assert [state[name].strip() for name in ("name", "job", "age")] == ["Ada", "poet", "36"]
    assert state.text() == "A card of Ada.\nName: Ada\nJob: poet\nAge: 36"
    (request,) = backend.requests
    assert request.sampling.stop == ()
    assert request.sampling.max_tokens is not None
    assert 24 <= request.sampling.max_tokens <= 36
    assert state.usage.calls == 1
    assert 0 < state.usage.wasted_tokens < state.usage.completion_tokens
    assert state.meta("job")["speculated"] is True
    assert "speculated" not in state.meta("name")


async def test_without_speculation_each_gen_is_a_call() -> None:
    """`speculation=False` asks for each gen with its own stops and limit, and gives the same text."""
    backend = ApiMock(goes_on, continuation=TEXT)
    state = await card.run(backend=backend, speculation=False)
    assert state.text() == "A card of Ada.\nName: Ada\nJob: poet\nAge: 36"
    assert [(r.sampling.stop, r.sampling.max_tokens) for r in backend.requests] == [(("\n",), 8)] * 3
    assert (state.usage.calls, state.usage.wasted_tokens) == (3, 0)


async def test_a_number_of_tokens_is_asked_for_at_least() -> None:
    """`num_api_spec_tokens` goes on past the stop although the program shows no further gen yet."""

    @sgl.function(num_api_spec_tokens=64)
    async def step_by_step(s: sgl.ProgramState) -> str:
        s += "A card of Ada.\nName:" + sgl.gen("name", stop="\n", max_tokens=8)
        name = await s["name"]
        s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
        return f"{name}, {await s['job']}"

    backend = ApiMock(goes_on, continuation=TEXT)
    state = await step_by_step.run(backend=backend)
    assert state.value == " Ada,  poet"
    assert [request.sampling.max_tokens for request in backend.requests] == [64]


async def test_what_only_one_gen_is_asked_for_is_not_asked_for_ahead() -> None:
    """With a number of tokens to ask for, too, a gen has as many completions as it says, and log probabilities of its own text only."""

    @sgl.function(num_api_spec_tokens=64)
    async def several(s: sgl.ProgramState) -> None:
        s += "A card of Ada.\nName:" + sgl.gen("name", stop="\n", max_tokens=8, n=3)
        s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8, logprobs=True)

    backend = ApiMock(goes_on, continuation=TEXT, logprobs=True)
    state = await several.run(backend=backend)
    assert (state["name"], state["job"]) == ([" Ada"] * 3, " poet")
    assert [(r.sampling.stop, r.sampling.max_tokens) for r in backend.requests] == [(("\n",), 8)] * 4
    assert state.usage.wasted_tokens == 0


async def test_a_miss_asks_again_from_where_the_prompt_is() -> None:
    """Template text that the model did not write costs a call, and nothing of what it wrote instead gets in."""

    def writes(request: Generate, call: Call) -> str:
        if request.text is not None and request.text.endswith("Town:"):
            return " London\n"
        return goes_on(request, call)

    @sgl.function
    async def other(s: sgl.ProgramState) -> None:
        s += "A card of Ada.\nName:" + sgl.gen("name", stop="\n", max_tokens=8)
        s += "\nTown:" + sgl.gen("town", stop="\n", max_tokens=8)

    backend = ApiMock(writes, continuation=TEXT)
    state = await other.run(backend=backend)
    assert (state["name"], state["town"]) == (" Ada", " London")
    assert backend.requests[1].text == "A card of Ada.\nName: Ada\nTown:"
    assert state.usage.calls == 2


async def test_a_gen_that_would_have_been_cut_is_asked_for_alone() -> None:
    """If not even its own text came of the shared call, a gen asks again with its own limits."""
    long = " ".join(["word"] * 40)

    def writes(_request: Generate, call: Call) -> str:
        return long if call.follow else " x\n"

    backend = ApiMock(writes, continuation=TEXT)
    state = await card.run(backend=backend)
    assert [state[name] for name in ("name", "job", "age")] == [" x", " x", " x"]
    assert backend.requests[1].sampling.max_tokens == 8
    assert state.usage.wasted_tokens > 0


async def test_a_constrained_gen_takes_only_what_its_constraint_allows() -> None:
    """Text that was written ahead is no value of a typed gen unless it is one."""

    def writes(request: Generate, call: Call) -> str:
        if request.sampling.constraint is not None:
            return "36"
        return " Ada\nAge:old\n"

    @sgl.function
    async def typed(s: sgl.ProgramState) -> int:
        s += "Name:" + sgl.gen("name", stop="\n") + "\nAge:" + sgl.gen("age", type=int, stop="\n")
        return await s["age"]  # type: ignore[no-any-return]

    backend = ApiMock(writes, continuation=TEXT, constraints=("regex", "json_schema"))
    assert (await typed.run(backend=backend)).value == 36
    assert len(backend.requests) == 2


async def test_branches_differ_though_their_parent_knew_more() -> None:
    """What was written ahead belongs to one stream; a fork's branches ask for themselves."""
    backend = ApiMock(goes_on, continuation=TEXT)

    @sgl.function(num_api_spec_tokens=64)
    async def forked(s: sgl.ProgramState) -> Any:
        s += "A card of Ada.\nName:" + sgl.gen("name", stop="\n", max_tokens=8)
        await s["name"]
        branches = s.fork(2)
        branches += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
        return await branches.join("job")

    state = await forked.run(backend=backend)
    assert len(backend.requests) == 3
    assert {request.sampling.seed for request in backend.requests[1:]} != {backend.requests[0].sampling.seed}
    assert state.usage.calls == 3


async def test_text_is_streamed_up_to_its_stop_while_more_is_written() -> None:
    """Who reads a variable sees its own text, in pieces, and nothing of what was written ahead."""
    backend = ApiMock(goes_on, continuation=TEXT)
    pieces = [piece async for piece in card.bind().stream("name", backend=backend)]
    assert "".join(pieces) == " Ada"
    assert all(call.live for request, call in backend.client.asked[:1])


async def test_prefill_goes_on_with_the_turn_and_not_over_its_end() -> None:
    """A chat model that goes on with the assistant's turn gets it as the last message, and one call is for the turn."""
    backend = ApiMock(goes_on, continuation=PREFILL)
    state = await chat_card.run(backend=backend)
    assert [state[name] for name in ("name", "job", "age")] == [" Ada", " poet", " 36"]
    (request,) = backend.requests
    assert request.messages is not None
    assert [(m.role, m.content) for m in request.messages] == [
        ("user", "A card of Ada."),
        ("assistant", "Name:"),
    ]
    assert request.continue_final


async def test_a_gen_that_a_selects_form_has_filled_is_not_asked_for_again() -> None:
    """Also of a model whose gens by themselves go on with the turn: one call is for both, and no text is thrown away."""

    @sgl.function
    async def verdict(s: sgl.ProgramState) -> None:
        s += sgl.user("Is it so?")
        s += sgl.assistant(
            "I say " + sgl.select("verdict", choices=["yes", "no"]) + "," + sgl.gen("why", stop=".") + "."
        )

    backend = ApiMock(
        lambda _request, _call: '{"verdict": "no", "why": " it never was"}', continuation=PREFILL, schema=True
    )
    state = await verdict.run(backend=backend)
    assert state.text().endswith("I say no, it never was.<|im_end|>\n")
    assert state.meta("why")["speculated"] is True
    assert (state.usage.calls, state.usage.wasted_tokens) == (1, 0)


async def test_a_model_that_turns_out_to_go_on_with_nothing_writes_whole_turns() -> None:
    """A 400 to a prefill is learnt from: the same gen is had by a form, and the program knows nothing of it."""

    def writes(request: Generate, _call: Call) -> str:
        if request.continue_final:
            backend.client.api = ApiModel("mock api", Capabilities(continuation=NONE, schema=True))
            raise NoContinuation("the final message must be the user's")
        return '{"name": "Ada", "job": "poet", "age": "36"}'

    backend = ApiMock(writes, continuation=PREFILL, schema=True)
    state = await chat_card.run(backend=backend)
    assert state.messages()[-1]["content"] == "Name:Ada\nJob:poet\nAge:36"
    assert [request.continue_final for request in backend.requests] == [True, False]


async def test_one_call_per_assistant_turn_of_a_model_that_writes_whole_turns() -> None:
    """A turn's blanks become one JSON object, selects and types included; the template is put around them here."""

    @sgl.function
    async def two_turns(s: sgl.ProgramState) -> None:
        s += sgl.user("A card of Ada.")
        with s.assistant():
            s += "Name: " + sgl.gen("name", stop="\n") + "\nMood: " + sgl.select("mood", ["calm", "angry"])
            s += "\nAge: " + sgl.gen("age", type=int)
        s += sgl.user("And in one word?") + sgl.assistant(sgl.gen("word", stop="."))

    def writes(request: Generate, _call: Call) -> str:
        if request.sampling.constraint is None:
            return "Brilliant. Truly."
        return '{"name": "Ada\\nByron", "mood": "calm", "age": 36}'

    backend = ApiMock(writes, continuation=NONE, schema=True)
    state = await two_turns.run(backend=backend)
    assert state.messages()[1]["content"] == "Name: Ada\nMood: calm\nAge: 36"
    assert (state["age"], state["mood"], state["word"]) == (36, "calm", "Brilliant")
    assert state.usage.calls == 2
    assert state.meta("mood")["by"] == "schema"
    form, plain = backend.requests
    assert form.messages is not None
    assert [m.role for m in form.messages] == ["user", "user"]
    assert plain.messages is not None
    assert plain.messages[1].content == "Name: Ada\nMood: calm\nAge: 36"
    assert plain.sampling.stop == (".",)


async def test_without_schemas_the_turn_is_matched_with_its_template() -> None:
    """The whole turn is asked for as text; what is not in its form is asked for again, with the reason."""
    answers = iter(["Sure! Her name is Ada.", "Name: Ada\nJob: poet\nAge: 36"])
    backend = ApiMock(lambda _r, _c: next(answers), continuation=NONE)
    state = await chat_card.run(backend=backend)
    assert [state[name].strip() for name in ("name", "job", "age")] == ["Ada", "poet", "36"]
    first, second = backend.requests
    assert first.messages is not None
    assert second.messages is not None
    assert [m.role for m in second.messages] == ["user", "user", "assistant", "user"]
    assert (state.usage.calls, state.usage.wasted_tokens) == (2, 7)


async def test_a_form_that_is_never_kept_to_is_an_error_and_no_guess() -> None:
    """After three tries the gen that asked fails with `SpeculationMiss`, which shows the turn and what came."""
    backend = ApiMock(lambda _r, _c: "Her name is Ada.", continuation=NONE)
    with pytest.raises(SpeculationMiss, match=r"'Name:\{name\}\\nJob:\{job\}.*3 tries") as caught:
        await chat_card.run(backend=backend)
    assert caught.value.param == "name"
    assert len(backend.requests) == 3


async def test_a_turn_that_is_read_in_its_middle_goes_on_with_what_it_holds() -> None:
    """The second call's form shows what the turn holds already."""

    @sgl.function
    async def reads(s: sgl.ProgramState) -> str:
        s += sgl.user("A card of Ada.") + sgl.assistant_begin()
        s += "Name: " + sgl.gen("name", stop="\n")
        name = await s["name"]
        s += f"\nInitial of {name}: " + sgl.gen("initial", stop="\n") + sgl.assistant_end()
        return str(await s["initial"])

    def writes(request: Generate, _call: Call) -> str:
        assert request.messages is not None
        return '{"initial": "A"}' if "Initial of Ada" in request.messages[-1].content else '{"name": "Ada"}'

    backend = ApiMock(writes, continuation=NONE, schema=True)
    state = await reads.run(backend=backend)
    assert state.value == "A"
    assert state.messages()[-1]["content"] == "Name: Ada\nInitial of Ada: A"


@pytest.mark.parametrize("continuation", [PREFILL, NONE])
async def test_text_outside_of_turns_has_no_place_in_a_chat(continuation: str) -> None:
    """The gen that is to go on with plain text fails, and says what to write instead."""
    backend = ApiMock(goes_on, continuation=continuation)
    with pytest.raises(Unsupported, match=r"outside of turns.*sgl\.user"):
        await card.run(backend=backend)


async def test_completions_of_one_gen_are_told_apart_by_their_parts() -> None:
    """Each of n completions has its part and seed, and says how many there are, so that one request can be for all."""
    backend = ApiMock(lambda _r, call: f"text {call.part}", continuation=NONE)

    @sgl.function
    async def several(s: sgl.ProgramState) -> None:
        s += sgl.user("Three?") + sgl.assistant(sgl.gen("text", n=3))

    state = await several.run(backend=backend)
    assert sorted(state["text"]) == ["text 0", "text 1", "text 2"]
    assert {call.completions for _, call in backend.client.asked} == {3}
    assert len({request.sampling.seed for request in backend.requests}) == 3


async def test_select_scores_the_choices_where_the_api_tells_log_probabilities() -> None:
    """The choice whose tokens are the likeliest after the prompt wins; the shared prompt does not count."""
    backend = ApiMock(goes_on, continuation=TEXT, scoring=True)

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += "The colour is" + sgl.select("colour", [" ultramarine", " red"])

    state = await pick.run(backend=backend)
    assert state["colour"] == " red"
    meta = state.meta("colour")
    assert (meta["by"], meta["scores"]) == ("logprobs", {" ultramarine": -12.0, " red": -4.0})
    assert state.text() == "The colour is red"


async def test_select_steps_through_tokens_where_only_a_bias_is_taken() -> None:
    """Each step leaves the model the choices' next tokens; the last one left is taken without asking."""

    def writes(request: Generate, _call: Call) -> str:
        assert request.text is not None
        return " north" if request.text.endswith("go") else " west"

    backend = ApiMock(writes, continuation=TEXT, logit_bias=True, tokenizer=True)

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += "We go" + sgl.select("way", [" north east", " north west", " south"])

    state = await pick.run(backend=backend)
    assert state["way"] == " north west"
    assert state.meta("way")["by"] == "logit_bias"
    assert [len(request.sampling.logit_bias) for request in backend.requests] == [2, 2]


async def test_select_by_schema_alone_in_a_turn() -> None:
    """Without anything else a select is a form of one blank."""
    backend = ApiMock(lambda _r, _c: '{"answer": "no"}', continuation=NONE, schema=True)

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += sgl.user("Is it?") + sgl.assistant(sgl.select("answer", ["yes", "no"]))

    state = await pick.run(backend=backend)
    assert state["answer"] == "no"
    scores = state.meta("answer")["scores"]
    assert scores["no"] > scores["yes"]


async def test_select_into_the_template_of_a_model_without_schemas() -> None:
    """What is no choice is asked for again."""
    answers = iter(["Maybe", "no"])
    backend = ApiMock(lambda _r, _c: next(answers), continuation=NONE)

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += sgl.user("Is it?") + sgl.assistant(sgl.select("answer", ["yes", "no"]))

    state = await pick.run(backend=backend)
    assert (state["answer"], state.meta("answer")["by"], state.usage.calls) == ("no", "template", 2)


async def test_select_under_a_constraint_where_text_is_gone_on_with() -> None:
    """A model of text that keeps to choices is left nothing else to write."""
    backend = ApiMock(lambda _r, _c: "blue", continuation=TEXT, constraints=("choice",))

    @sgl.function
    async def pick(s: sgl.ProgramState) -> None:
        s += "The sky is " + sgl.select("colour", ["red", "blue"])

    state = await pick.run(backend=backend)
    assert (state["colour"], state.meta("colour")["by"]) == ("blue", "schema")


async def test_json_is_written_as_our_nodes_write_it() -> None:
    """A schema's answer in another white space is the same text in the prompt as anywhere else."""
    backend = ApiMock(lambda _r, _c: '{\n  "a":1}', continuation=NONE, schema=True)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }

    @sgl.function
    async def structured(s: sgl.ProgramState) -> None:
        s += sgl.user("a?") + sgl.assistant(sgl.gen("out", json_schema=schema))

    assert (await structured.run(backend=backend))["out"] == '{"a": 1}'


async def test_images_go_with_the_message_they_stand_in() -> None:
    """A message's media are told with their offsets in its text."""
    backend = ApiMock(lambda _r, _c: "A dot.", continuation=NONE, images=True)
    dot = b"\x89PNG\r\n\x1a\n" + bytes(8)

    @sgl.function
    async def look(s: sgl.ProgramState) -> None:
        s += sgl.user("See " + sgl.image(dot) + " and say") + sgl.assistant(sgl.gen("seen"))

    await look.run(backend=backend)
    (request,) = backend.requests
    assert request.messages is not None
    ((offset, media),) = request.messages[0].media
    assert offset == len("See ")
    assert isinstance(media, Media)


async def test_gens_at_the_same_time_do_not_wait_for_each_other() -> None:
    """An open turn that nobody reads yet goes on by itself after a moment: streams of one program ask at the same time."""
    both = asyncio.Event()
    asked: list[str] = []

    class Meets(ApiMock):
        pass

    def writes(request: Generate, call: Call) -> str:
        asked.append(call.stream)
        if len(asked) == 2:
            both.set()
        return " x\n"

    backend = Meets(writes, continuation=TEXT)

    @sgl.function
    async def branches(s: sgl.ProgramState) -> None:
        forks = s.fork(2)
        forks[0] += "a" + sgl.gen("x", stop="\n")
        forks[1] += "b" + sgl.gen("y", stop="\n")
        async with asyncio.timeout(30):
            await both.wait()

    await branches.run(backend=backend)
    assert sorted(asked) == ["0.0", "0.1"]


async def test_a_budget_of_cost_and_calls_counts_api_calls() -> None:
    """A call beyond the budget fails the gen that would have made it."""
    backend = ApiMock(goes_on, continuation=TEXT)
    with pytest.raises(sgl.BudgetExceeded, match="2 calls"):
        await card.run(backend=backend, speculation=False, budget=sgl.Budget(calls=2))
    state = await card.run(backend=backend, budget=sgl.Budget(calls=1))
    assert re.fullmatch(r" \d+", state["age"])


async def test_a_stop_that_is_to_stay_is_looked_for_on_our_side() -> None:
    """An API that trims stops is sent none then, and what it wrote beyond is cut here; so are more stops and expressions than it takes."""
    backend = ApiMock(lambda _r, _c: "One. Two. Three", continuation=NONE)

    @sgl.function
    async def keep(s: sgl.ProgramState) -> None:
        s += sgl.user("Count.") + sgl.assistant(sgl.gen("x", stop=".", no_stop_trim=True))
        s += sgl.user("Again.") + sgl.assistant(sgl.gen("y", stop_regex=r" T\w+"))

    state = await keep.run(backend=backend)
    assert (state["x"], state["y"]) == ("One.", "One.")
    assert [request.sampling.stop for request in backend.requests] == [(), ()]
    assert state.meta("y")["finish_reason"] == {"type": "stop", "matched": r" T\w+"}


async def test_a_durable_program_goes_on_without_paying_twice(tmp_path: Path) -> None:
    """What a call for several gens was answered is recorded once; a resumed run takes all of it from there and asks only for what is missing."""
    down = True

    def writes(request: Generate, call: Call) -> str:
        if down and request.text is not None and request.text.endswith("Town:"):
            raise NotReady("away")
        return (
            " London\n"
            if request.text is not None and request.text.endswith("Town:")
            else goes_on(request, call)
        )

    @sgl.function
    async def longer(s: sgl.ProgramState) -> None:
        s += "A card of Ada.\nName:" + sgl.gen("name", stop="\n", max_tokens=8)
        s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
        s += "\nTown:" + sgl.gen("town", stop="\n", max_tokens=8)

    backend = ApiMock(writes, continuation=TEXT)
    options: dict[str, Any] = {"durable": tmp_path / "journal.db", "id": "card", "seed": 1, "timeout": 0.5}
    with pytest.raises(sgl.SglActorsError):
        await longer.run(backend=backend, **options)
    asked, down = len(backend.requests), False
    state = await longer.run(backend=backend, **options | {"timeout": 60})
    assert [state[name] for name in ("name", "job", "town")] == [" Ada", " poet", " London"]
    assert [request.text for request in backend.requests[asked:]] == [
        "A card of Ada.\nName: Ada\nJob: poet\nTown:"
    ]


@pytest.mark.parametrize("able", [{"continuation": TEXT}, {"schema": True}, {}])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_resumed_run_asks_for_as_much_at_once_as_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: dict[str, Any], at_once: bool
) -> None:
    """Whatever its body takes its time for: what was one call is one, and what were two are two."""
    monkeypatch.setattr(stream_actor, "DURABLE_HOLD", 0.01)
    resumed = False

    def writes(request: Generate, _call: Call) -> str:
        if request.text is not None:
            return goes_on(request, _call)
        if request.sampling.constraint is not None:
            fields = msgspec.json.decode(request.sampling.constraint.source)["properties"]
            return msgspec.json.encode({name: FACTS[name.title()] for name in fields}).decode()
        assert request.messages is not None
        return "Name:Ada\nJob:poet" if "Job:" in request.messages[-1].content else "Name:Ada"

    @sgl.function
    async def pausing(s: sgl.ProgramState) -> list[str]:
        turns = "continuation" not in able
        s += sgl.user("A card of Ada.") + sgl.assistant_begin() if turns else "A card of Ada.\n"
        s += "Name:" + sgl.gen("name", stop="\n", max_tokens=8)
        while not (resumed or at_once or backend.requests):  # the first call is made before the body goes on
            await asyncio.sleep(0)
        if resumed and at_once:
            await asyncio.sleep(0.1)  # ten times as long as a stream would wait that did not know better
        s += "\nJob:" + sgl.gen("job", stop="\n", max_tokens=8)
        facts = [await s["name"], await s["job"]]
        if not resumed:
            raise ValueError("the end of the first run")
        return facts

    backend = ApiMock(writes, **able)
    options: dict[str, Any] = {"durable": tmp_path / "journal.db", "id": "card", "seed": 1}
    with pytest.raises(sgl.SglActorsError, match="the end of the first run"):
        await pausing.run(backend=backend, **options)
    calls, resumed = len(backend.requests), True
    state = await pausing.run(backend=backend, **options)
    assert [fact.strip() for fact in state.value] == ["Ada", "poet"]
    assert (len(backend.requests), calls) == (calls, 1 if at_once else 2)


async def test_text_of_a_durable_program_stands_once(tmp_path: Path) -> None:
    """A model that goes away while it writes is asked anew, from the beginning: what was read already is read once, and kept once."""
    answers = [[Text("The c"), NotReady("away")], [Text("The"), Text(" cat sits"), end("The cat sits")]]
    backend = Fake(FakeVendor(answers), retries=0)
    options: dict[str, Any] = {"durable": tmp_path / "journal.db", "id": "cat", "seed": 1}
    resumed = False

    @sgl.function
    async def reads(s: sgl.ProgramState) -> list[str]:
        s += "Write:" + sgl.gen("text", max_tokens=8)
        pieces = [piece async for piece in s.text_iter("text")]
        if not resumed:
            raise ValueError("".join(pieces))
        return pieces

    with pytest.raises(sgl.SglActorsError, match="ValueError: The cat sits;"):
        await reads.run(backend=backend, **options)
    resumed = True
    state = await reads.run(backend=backend, **options)
    assert ("".join(state.value), state["text"]) == ("The cat sits", "The cat sits")
    await backend.close()


async def test_text_of_a_durable_program_that_was_read_stands(tmp_path: Path) -> None:
    """If the new answer is another one, the gen fails, and it is not asked a third time; a resumed run asks anew."""
    answers = [[Text("The c"), NotReady("away")], [Text("The dog"), end("The dog")], end("The dog")]
    vendor = FakeVendor(answers)
    backend = Fake(vendor, retries=0)

    @sgl.function
    async def reads(s: sgl.ProgramState) -> list[str]:
        s += "Write:" + sgl.gen("text", max_tokens=8)
        return [piece async for piece in s.text_iter("text")]

    options: dict[str, Any] = {"durable": tmp_path / "journal.db", "id": "cat", "seed": 1}
    with pytest.raises(sgl.SglActorsError, match="not the one that was handed out"):
        await reads.run(backend=backend, **options)
    assert len(vendor.asked) == 2
    assert (await reads.run(backend=backend, **options))["text"] == "The dog"
    await backend.close()
