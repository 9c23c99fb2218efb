"""One request's way from tokens to chunks, without actors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.scheduler.messages import Decoding, Finish, Logprobs, Sampling, Sequence, Stop, Update
from sgl_actors.actors.tokenizer.generation import Generation, OutOfStep
from sgl_actors.actors.tokenizer.messages import Chunk, SamplingOptions
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.actors.worker.messages import TokenLogprob

EOS = 258
NO_LOGPROBS = Logprobs()


def generation(
    vocabulary: Vocabulary,
    output: list[int] | None = None,
    *,
    max_tokens: int = 100,
    logprobs: Logprobs = NO_LOGPROBS,
    **options: Any,
) -> Generation:
    sampling = Sampling(0, end_ids=(EOS,), min_tokens=options.get("min_tokens", 0))
    sequence = Sequence("r", [97, 98, 99], max_tokens, sampling, logprobs, output or [])
    return Generation(vocabulary, sequence, SamplingOptions(**options))


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    """One token per byte."""
    return [vocabulary.raw.index(bytes([byte])) for byte in text.encode()]


def scores(ids: list[int]) -> list[TokenLogprob]:
    return [TokenLogprob(i, -float(i)) for i in ids]


texts = st.text("ab\né😀", max_size=20)
ends = st.sampled_from(
    [
        Finish("stop", EOS),
        Finish("length"),
        Finish("abort", code="cancelled"),
        Finish("error", code="remote_error"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    text=texts,
    stops=st.lists(st.text("ab\né", min_size=1, max_size=3), max_size=2),
    finish=ends,
)
def test_however_updates_and_chunks_are_cut_the_answer_is_the_same(
    tiny: Vocabulary, data: st.DataObject, text: str, stops: list[str], finish: Finish
) -> None:
    """Updates of any size, repeated ones, and chunks asked for at any time give the tokens, log probabilities and text of one go."""
    ids = ids_of(tiny, text) + ([EOS] if finish.matched == EOS else [])
    whole = generation(tiny, stop=tuple(stops), logprobs=Logprobs(output=True))
    whole.update(Update("r", 0, ids, scores(ids), finish=finish))
    expected = whole.chunk()

    cut = generation(tiny, stop=tuple(stops), logprobs=Logprobs(output=True))
    chunks: list[Chunk] = []
    stop = None
    position = 0
    while cut.finish is None:
        first = data.draw(st.integers(0, position))
        position = len(ids) - data.draw(st.integers(0, max(0, len(ids) - position - 1)))
        last = finish if position == len(ids) else None
        stop = cut.update(Update("r", first, ids[first:position], scores(ids[first:position]), finish=last))
        if cut.finish is None and cut.has_news and data.draw(st.booleans()):
            chunks.append(cut.chunk())
    chunks.append(cut.chunk())

    assert "".join(chunk.text for chunk in chunks) == expected.text
    assert [i for chunk in chunks for i in chunk.token_ids] == expected.token_ids
    assert (
        [score for chunk in chunks for score in chunk.logprobs]
        == expected.logprobs
        == scores(expected.token_ids)
    )
    assert [chunk.finish for chunk in chunks] == [None] * (len(chunks) - 1) + [expected.finish]
    assert chunks[-1].completion_tokens == expected.completion_tokens == len(expected.token_ids)
    for one, two in pairwise(chunks):
        assert two.first_index == one.first_index + len(one.token_ids)
        assert (two.prompt_ids, one.prompt_tokens) == ([], 3)
    if stop is not None:
        assert stop == Stop("r", expected.completion_tokens, str(cut.finish and cut.finish.matched))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=texts, stops=st.lists(st.text("ab\né", min_size=1, max_size=3), max_size=2))
def test_a_rebuilt_generation_goes_on_where_the_asker_stands(
    tiny: Vocabulary, data: st.DataObject, text: str, stops: list[str]
) -> None:
    """What an asker has after k tokens, and what comes from one rebuilt with those k, is the text of an undisturbed run."""
    ids = ids_of(tiny, text)
    whole = generation(tiny, stop=tuple(stops))
    whole.update(Update("r", 0, ids, finish=Finish("length")))
    expected = whole.chunk()
    before = generation(tiny, stop=tuple(stops))
    known = data.draw(st.integers(0, len(ids)))
    before.update(Update("r", 0, ids[:known]))
    if before.finish is not None:
        return
    had = before.chunk()
    if data.draw(st.booleans()):
        after = generation(tiny, ids[:known], stop=tuple(stops))
        after.update(Update("r", known, ids[known:]))
    else:
        after = before
        after.update(Update("r", known, ids[known:]))
        after.chunk()
        assert after.begins_with(ids[:known])
        after.rejoin(ids[:known])
    if after.finish is None:
        after.update(Update("r", len(ids), [], finish=Finish("length")))
        rest = after.chunk()
        assert had.text + rest.text == expected.text
        assert (had.token_ids + rest.token_ids, rest.first_index) == (expected.token_ids, known)
        assert rest.prompt_ids == [97, 98, 99]


def test_the_stop_string_is_trimmed_or_kept(tiny: Vocabulary) -> None:
    """The text ends before the stop string, or after it with no_stop_trim; tokens count to the one that completed it."""
    for keep, text in ((False, "say "), (True, "say STOP")):
        one = generation(tiny, stop=("STOP",), no_stop_trim=keep)
        stop = one.update(Update("r", 0, ids_of(tiny, "say STOP it")))
        chunk = one.chunk()
        assert stop == Stop("r", 8, "STOP")
        assert (chunk.text, chunk.completion_tokens, chunk.finish) == (text, 8, Finish("stop", "STOP"))
        assert one.update(Update("r", 0, [1, 2], finish=Finish("length"))) is None
        assert one.finish == Finish("stop", "STOP")


def test_tokens_behind_a_stop_inside_of_a_jump_do_not_count(tiny: Vocabulary) -> None:
    """However an output was made, its tokens are those sampled and those forced."""
    one = generation(tiny, stop=("STOP",))
    one.update(Update("r", 0, ids_of(tiny, "sa"), decoding=Decoding(2, 2, 0)))
    one.update(Update("r", 2, ids_of(tiny, "y STOP it"), decoding=Decoding(3, 3, 8, 1)))
    chunk = one.chunk()
    assert (chunk.completion_tokens, chunk.decoding) == (8, Decoding(3, 3, 5, 1))


def test_a_stop_string_before_min_tokens_is_text(tiny: Vocabulary) -> None:
    """It ends the output only if a token after the first min_tokens completes it, also when the state is rebuilt."""
    text = "a\nb\nc\n"
    one = generation(tiny, stop=("\n",), min_tokens=3)
    one.update(Update("r", 0, ids_of(tiny, text)))
    chunk = one.chunk()
    assert (chunk.text, chunk.completion_tokens, chunk.finish) == ("a\nb", 4, Finish("stop", "\n"))
    again = generation(tiny, ids_of(tiny, text[:3]), stop=("\n",), min_tokens=3)
    assert again.finish is None
    assert again.update(Update("r", 3, ids_of(tiny, text[3:]))) == Stop("r", 4, "\n")


def test_the_end_token_has_no_text(tiny: Vocabulary) -> None:
    """An end token counts, but is not part of the text, even if special tokens are to be shown."""
    one = generation(tiny, skip_special_tokens=False)
    one.update(Update("r", 0, [*ids_of(tiny, "x"), 257, EOS], finish=Finish("stop", EOS)))
    chunk = one.chunk()
    assert (chunk.text, chunk.completion_tokens, chunk.finish) == ("x<s>", 3, Finish("stop", EOS))


def test_held_text_is_given_out_at_the_end(tiny: Vocabulary) -> None:
    """Half a stop string and half a character are part of the text when nothing follows."""
    one = generation(tiny, stop=("STOP", "\ufffd!"))
    one.update(Update("r", 0, [*ids_of(tiny, "ST"), *ids_of(tiny, "é")[:1]]))
    assert one.chunk().text == ""
    one.update(Update("r", 3, [], finish=Finish("length")))
    assert one.chunk().text == "ST\ufffd"


def test_a_missing_update_is_noticed(tiny: Vocabulary) -> None:
    """Tokens that come after a gap are refused, nothing is skipped; the request can be submitted again with what there is."""
    one = generation(tiny)
    one.update(Update("r", 0, [5, 6]))
    with pytest.raises(OutOfStep):
        one.update(Update("r", 3, [8]))
    assert one.resubmission().output == [5, 6]
    one.update(Update("r", 2, [7, 8]))
    assert one.ids == [5, 6, 7, 8]


def test_known_output_that_is_whole_ends_at_once(tiny: Vocabulary) -> None:
    """An asker who has everything but the end gets the end: stop string, end token, length; and the text that was held back."""
    stop = generation(tiny, ids_of(tiny, "a\nb"), stop=("\n",))
    assert (stop.finish, stop.chunk().completion_tokens) == (Finish("stop", "\n"), 2)
    assert generation(tiny, [5, EOS]).finish == Finish("stop", EOS)
    length = generation(tiny, ids_of(tiny, "ST"), stop=("STOP",), max_tokens=2)
    assert (length.finish, length.chunk().text) == (Finish("length"), "ST")
    assert generation(tiny, [], max_tokens=0).finish is None


def test_prompt_logprobs_come_once_and_whole(tiny: Vocabulary) -> None:
    """They are collected over the chunks of a prefill, given in the first chunk, and not doubled by a second submission."""
    one = generation(tiny, logprobs=Logprobs(prompt_start=1))
    one.update(Update("r", 0, [], prompt_logprobs=scores([98])))
    assert not one.has_news
    assert one.resubmission().output == []
    one.update(Update("r", 0, [], prompt_logprobs=scores([98])))
    one.update(Update("r", 0, [], prompt_logprobs=scores([99])))
    one.update(Update("r", 0, [5], cached=2))
    assert one.resubmission().output == [5]
    one.update(Update("r", 1, [], prompt_logprobs=scores([98, 99])))
    first = one.chunk()
    assert (first.prompt_logprobs, first.cached_tokens) == (scores([98, 99]), 2)
    one.update(Update("r", 1, [6]))
    assert one.chunk().prompt_logprobs == []


def test_a_stranger_cannot_rejoin(tiny: Vocabulary) -> None:
    """Another output than this one's beginning, or log probabilities that were never here, do not fit."""
    one = generation(tiny, [5], logprobs=Logprobs(output=True))
    one.update(Update("r", 1, [6], scores([6])))
    assert not one.begins_with([7])
    assert not one.begins_with([5, 6, 7])
    assert one.begins_with([])
    assert not one.can_tell([])
    assert one.can_tell([5])
    one.rejoin([5])
    assert one.chunk().logprobs == scores([6])
    one.rejoin([5, 6])
    assert not one.has_news
