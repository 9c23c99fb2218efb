"""What a recorded request is known by, the form of its line, and how a replay finds it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.scheduler.messages import Decoding, Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate, SamplingOptions, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.backends.recorded_request import asked_of, pinning, tokenizing
from sgl_actors.lang.backends.recording import (
    VERSION,
    Header,
    Line,
    NotRecorded,
    answered,
    decode,
    encode,
    joined,
    tokenized,
)
from sgl_actors.lang.backends.replaying import Answers, Place, difference, nearest, place_of, prefix
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.ir import Media
from sgl_actors.lang.protocols import ApiModel, Call

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
"""Any text, halves of surrogate pairs and line separators included."""
CAT, DOG = (Media("image", name, "image/png") for name in (b"cat", b"dog"))
CHAT = Generate("1", messages=[ChatMessage("user", "Who?")])
TEXT = Generate("1", text="Who?")


def key(request: Generate = TEXT, call: Call | None = None, **changes: Any) -> str:
    """Of a request with changes; names of sampling arguments are those of the sampling."""
    names = SamplingOptions.__struct_fields__
    sampling = msgspec.structs.replace(
        request.sampling, **{name: value for name, value in changes.items() if name in names}
    )
    others = {name: value for name, value in changes.items() if name not in names}
    return asked_of(msgspec.structs.replace(request, sampling=sampling, **others), call).key


@pytest.mark.parametrize("name", ["id", "tenant", "program", "salt", "priority", "known", "seed"])
def test_what_is_another_one_in_each_run_is_no_part_of_the_key(name: str) -> None:
    """Ids, tenants and seeds."""
    changes: dict[str, Any] = {name: 7 if name in {"priority", "known", "seed"} else "other"}
    assert key(**changes) == key()


def test_all_else_is_part_of_the_key() -> None:
    """Each of these is another request."""
    schema, regex = Constraint("json_schema", "x"), Constraint("regex", "x")
    user = [ChatMessage("user", "Who?")]
    keys = [
        key(), key(text="who?"), key(CHAT), key(text=None, input_ids=[1]), key(text=None, input_ids=[2]),
        key(CHAT, messages=[ChatMessage("system", "Who?")]), key(CHAT, messages=user * 2),
        key(CHAT, messages=[ChatMessage("user", "Who?", media=((0, CAT),))]),
        key(CHAT, messages=[ChatMessage("user", "Who?", media=((0, DOG),))]),
        key(CHAT, messages=[ChatMessage("user", "Who?", media=((1, CAT),))]),
        key(CHAT, messages=[ChatMessage("tool", "Who?", tool_call_id="1")]), key(CHAT, continue_final=True),
        key(max_tokens=8), key(max_tokens=None), key(temperature=0.5), key(stop=("a", "b")), key(stop=("ab",)),
        key(logit_bias=((1, 2.0),)), key(constraint=schema), key(constraint=regex), key(logprobs=True),
        key(top_logprobs=2), key(prompt_logprobs_start=0), key(tools="[]"), key(output=[1]),
        key(call=Call("gen", part=1)), key(call=Call("gen", completions=2)), key(call=Call("gen", tools="[]")),
        key(call=Call("gen", follow=("a", ("b",)))), key(call=Call("gen", media=(CAT,))),
        key(call=Call("gen", media=(DOG,))), tokenizing(Tokenize("Who?")).key,
        tokenizing(Tokenize("Who?", add_special_tokens=True)).key, pinning([1], 2.0).key, pinning([1], 3.0).key,
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    elsewhere = Call("gen", "x", "0.1", (0, 1, 5), live=True)
    assert key(call=elsewhere) == key()
    assert tokenizing(Tokenize("Who?", tenant="a", salt="b")) == tokenizing(Tokenize("Who?"))


@given(prompt=TEXTS, pieces=st.lists(TEXTS, min_size=1, max_size=3), keep=st.booleans(), chat=st.booleans())
def test_lines_come_back_as_they_were(prompt: str, pieces: list[str], *, keep: bool, chat: bool) -> None:
    """Whatever characters are in them; and so do the chunks."""
    messages = [ChatMessage("user", prompt, media=((0, CAT),))] if chat else None
    request = Generate(
        "1", text=None if chat else prompt, messages=messages, sampling=SamplingOptions(stop=(prompt,))
    )
    asked = asked_of(request, None)
    chunks = [Chunk(0, [], piece, prompt_tokens=3) for piece in pieces]
    chunks[-1] = Chunk(
        0, [5, 6], pieces[-1], [TokenLogprob(5, -0.1, ((5, -0.1), (7, float("-inf")))), TokenLogprob(6, None)], 3, 2,
        [TokenLogprob(1, -1.5)], Finish("stop", "."), 2, decoding=Decoding(1, 2, 3, 4, 5, 6), tokens=["a", "b"],
        retries=2, cost=0.25,
    )  # fmt: skip
    line = Line(
        number=3,
        kind="gen",
        prompt=asked.prompt,
        options=asked.options,
        key=asked.key,
        **answered(chunks, pieces=keep),
    )
    header = Header(VERSION, "m", ["image"], ApiModel("m", Capabilities(schema=True, stops=None)))
    found, [again] = decode(encode(header) + encode(line), "x.jsonl")
    assert (found, again) == (header, line)
    assert again.asked.key == asked.key
    assert joined([*again.chunks()]) == joined(chunks)
    if keep:
        assert "".join(chunk.text for chunk in again.chunks()) == "".join(pieces)


def test_a_text_that_is_tokenized_stands_there_once() -> None:
    """As it nearly always is what it was."""
    assert tokenized(Line(number=0, kind="tokenize", prompt="ab", token_ids=[1])).text == "ab"
    assert (
        tokenized(Line(number=0, kind="tokenize", prompt="ab", text="<s>ab", token_ids=[1])).text == "<s>ab"
    )


@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_where_two_prompts_part(one: str, two: str) -> None:
    """As a loop over their characters says."""
    parted = (index for index, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert prefix(one, two) == next(parted, min(len(one), len(two)))


def test_differences_are_shown_with_what_is_around_them() -> None:
    """But not with all of a long prompt."""
    found = difference("x" * 100 + "France" + "y" * 100, "x" * 100 + "Spain")
    assert (
        found == f"from character 100 on: recorded …'{'x' * 24}France{'y' * 18}'…, asked …'{'x' * 24}Spain'"
    )


def test_the_nearest_prompt_may_differ_at_its_beginning() -> None:
    """It is the one that has most in common with what is asked at both ends."""
    rows = [
        Line(number=n, kind="gen", prompt=text)
        for n, text in enumerate(["Be brief. Who?", "You are kind. Where is it?"])
    ]
    assert nearest("Be very kind. Where is it?", rows) is rows[1]
    assert nearest("Be brief. What?", rows) is rows[0]
    assert nearest("x", []) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=12), st.data())
def test_each_answer_is_given_once(recorded: list[tuple[str, int]], data: st.DataObject) -> None:
    """To an equal request: of the same node if one is left, else the earliest; whatever the order of the lines."""
    rows = [
        Line(number=n, kind="gen", node=node, prompt=text, key=text)
        for n, (text, node) in enumerate(recorded)
    ]
    rows = [msgspec.structs.replace(row, key=row.asked.key) for row in rows]
    answers, left = Answers(data.draw(st.permutations(rows))), list(rows)
    for text, node in data.draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=14)):
        equal = [row for row in left if row.prompt == text]
        place = Place("gen", node=node)
        asked = Line(number=0, kind="gen", prompt=text).asked
        if not equal:
            with pytest.raises(NotRecorded):
                answers.take(asked, place)
            continue
        wanted = next((row for row in equal if row.node == node), equal[0])
        assert answers.take(asked, place) is wanted
        left.remove(wanted)


def test_places_have_titles() -> None:
    """For messages."""
    assert place_of(Call("select", "x", "0.1", (0, 1, 5))).title == "select 'x' of stream 0.1"
    assert [place_of(call).title for call in (Call("prefix"), None)] == ["prefix of stream 0", "gen"]
