"""What an API model wrote beyond what it was asked for, and how much of it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.constraints.constraint import REGEX, Constraint
from sgl_actors.lang.speculation import DONE, MISSED, OPEN, Ahead, Follower, alike, follow_up
from sgl_actors.lang.stops import Cutter, find_stop

LINE = SamplingOptions(max_tokens=16, stop=("\n",))


def ahead(text: str, *, ended_by: tuple[str, ...] | None = None, tokens: int = 10) -> Ahead:
    return Ahead((), "Q: x\nName:", text, LINE, ended_by=ended_by, tokens=tokens)


def test_text_is_taken_slot_by_slot_while_the_prompt_keeps_to_it() -> None:
    """Each gen gets its own text up to its stop; template text in between has to be there letter by letter."""
    known = ahead(" Ada\nJob: poet\nAge: 36\n\nName: Bob")
    prompt = "Q: x\nName:"
    for expected, template in ((" Ada", "\nJob:"), (" poet", "\nAge:"), (" 36", "")):
        taken = known.find((), prompt, LINE)
        assert taken is not None
        assert (taken.text, taken.finish.matched) == (expected, "\n")
        prompt += expected + template


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ("Q: x\nName: Ada\nTown:", LINE),
        ("Q: x\nName: Ad", SamplingOptions(stop=("#",))),
        ("Q: x\nNam", LINE),
        ("Q: y\nName: Ada\nJob:", LINE),
        ("Q: x\nName: Ada\nJob:", SamplingOptions(stop=("#",))),
        ("Q: x\nName: Ada\nJob:", SamplingOptions(temperature=0.0, stop=("\n",))),
        ("Q: x\nName: Ada\nJob:", SamplingOptions(logit_bias=((7, 5.0),), stop=("\n",))),
        (
            "Q: x\nName: Ada\nJob:",
            SamplingOptions(stop=("\n",), constraint=Constraint(REGEX, " [0-9]+")),
        ),
    ],
)
def test_what_was_not_written_is_not_taken(prompt: str, sampling: SamplingOptions) -> None:
    """Another template, another prompt, a stop that was not written, another way to sample, or a text its constraint forbids: the gen has to ask."""
    assert ahead(" Ada\nJob: a poet and mathematician\nAge:").find((), prompt, sampling) is None


def test_what_stands_before_has_to_be_the_same() -> None:
    """Text of one chat is not taken in another."""
    known = Ahead(("one",), "", "Ada\n", LINE, ended_by=None, tokens=2)
    assert known.find(("two",), "", LINE) is None
    assert known.find(("one",), "", LINE) is not None


def test_the_end_of_the_model_ends_only_the_slot_that_would_have_ended_there() -> None:
    """An end that may have been another gen's stop says nothing about this one."""
    prompt = "Q: x\nName: Ada\nJob:"
    own, other = SamplingOptions(stop=("\n", "END")), SamplingOptions(stop=("\n",))
    by_stop = ahead(" Ada\nJob: poet", ended_by=("END",))
    assert by_stop.find((), prompt, other) is None
    taken = by_stop.find((), prompt, own)
    assert taken is not None
    assert (taken.text, taken.finish.matched) == (" poet", None)
    assert ahead(" Ada\nJob: poet", ended_by=()).find((), prompt, SamplingOptions()) is not None
    assert ahead(" Ada\nJob: poet", ended_by=None).find((), prompt, SamplingOptions()) is None


def test_waste_is_what_nobody_took() -> None:
    """All tokens are waste until they are taken; what is saved adds up."""
    known = ahead("aaaa\nbbbb\ncccccccccc", tokens=20)
    assert known.wasted == 20
    one = known.find((), "Q: x\nName:", LINE)
    assert one is not None
    assert known.wasted == 20
    assert (known.use(one), known.wasted) == (5, 15)
    two = known.find((), "Q: x\nName:aaaa\n", LINE)
    assert two is not None
    assert (known.use(two), known.wasted) == (5, 10)
    assert known.use(one) == 0


def test_the_stop_that_ends_the_whole_stands_nowhere_before() -> None:
    """A stop of the last slot is sent only if it cannot end an earlier one or stand in the template."""
    mine = SamplingOptions(max_tokens=8, stop=("\n",))
    last = SamplingOptions(max_tokens=8, stop=("\n", "END", "Job"))
    plan = follow_up([mine, last], ["\nJob:"])
    assert plan.parts == (("\n",), "\nJob:", ("\n", "END", "Job"))
    assert plan.stop == ("END",)
    assert plan.max_tokens is not None
    assert 16 < plan.max_tokens < 24
    assert follow_up([mine], []) == ((("\n",),), 8, ("\n",))
    assert follow_up([mine], [], least=256)[1:] == (256, ())
    assert follow_up([mine, SamplingOptions(max_tokens=None)], ["\n"]).max_tokens is None


def test_gens_that_sample_differently_do_not_share_a_call() -> None:
    """Stops, lengths, seeds and constraints may differ, a temperature may not."""
    assert alike(LINE, SamplingOptions(stop=("x",), seed=3, max_tokens=4))
    assert not alike(LINE, SamplingOptions(temperature=0.5))


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (" Ada", OPEN),
        (" Ada\nJob", OPEN),
        (" Ada\nJob: poet", OPEN),
        (" Ada\nJob: poet\n", DONE),
        (" Ada\nTown", MISSED),
        (" Ada\nJob: poet\nTown: Rome", DONE),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_template_is_followed_however_the_text_is_cut(text: str, state: str, size: int) -> None:
    """Open, done and missed do not depend on the pieces."""
    follower = Follower([("\n",), "\nJob:", ("\n",)])
    for start in range(0, len(text), size):
        follower.feed(text[start : start + size])
    assert follower.state == state


@given(
    st.text("ab\n#", max_size=30), st.integers(1, 7), st.sampled_from([("\n",), ("#b", "\n\n"), ("ab",), ()])
)
def test_a_cut_text_is_shown_in_pieces_up_to_its_stop(text: str, size: int, stops: tuple[str, ...]) -> None:
    """What is shown piece by piece is the text up to its first stop, and is never taken back."""
    sampling = SamplingOptions(stop=stops)
    cutter, shown = Cutter(sampling), ""
    for start in range(0, len(text), size):
        shown += cutter.feed(text[start : start + size])
        whole = find_stop(text, sampling)
        assert (text if whole is None else text[: whole.keep]).startswith(shown)
    shown += cutter.end()
    stop = find_stop(text, sampling)
    assert shown == cutter.kept == (text if stop is None else text[: stop.keep])


@given(
    st.lists(st.text("ab c", min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.sampled_from(["\nx:", "\n", "\n\ny"]), min_size=4, max_size=4),
    st.text("ab\n", max_size=5),
)
def test_a_whole_template_is_taken_as_it_was_written(
    values: list[str], templates: list[str], rest: str
) -> None:
    """Whatever the values, each gen gets its own, or has to ask."""
    text = "".join(value + template for value, template in zip(values, templates, strict=False)) + rest
    known = Ahead((), "P:", text, LINE, ended_by=None, tokens=len(text))
    prompt = "P:"
    for value, template in zip(values, templates, strict=False):
        taken = known.find((), prompt, SamplingOptions(max_tokens=None, stop=("\n",)))
        assert taken is not None
        assert taken.text == value
        prompt += value + template
