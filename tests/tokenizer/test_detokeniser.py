"""Incremental detokenisation."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.detokeniser import Detokeniser
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary

ids = st.lists(st.integers(0, 49_151), max_size=60)
byte_ids = st.one_of(
    st.lists(st.integers(0, 259), max_size=40),
    st.text(max_size=12).map(lambda text: list(text.encode())),
)


def token_of(vocabulary: Vocabulary, byte: int) -> int:
    return vocabulary.raw.index(bytes([byte]))


@settings(max_examples=200, deadline=None)
@given(ids=ids, skip=st.booleans())
def test_the_pieces_are_the_whole(vocabulary: Vocabulary, ids: list[int], skip: bool) -> None:
    """All pieces together are the one-shot decode of the ids, valid UTF-8 or not."""
    detokeniser = Detokeniser(vocabulary, skip_special_tokens=skip)
    text = "".join(detokeniser.feed(i) for i in ids) + detokeniser.finish()
    assert text == vocabulary.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=20))
def test_no_half_character_is_given_out(tiny: Vocabulary, text: str) -> None:
    """Fed one byte at a time, a piece is empty until its character is complete, and is that character then."""
    detokeniser = Detokeniser(tiny)
    for character in text:
        *begin, end = (token_of(tiny, byte) for byte in character.encode())
        assert [detokeniser.feed(i) for i in begin] == [""] * len(begin)
        assert detokeniser.feed(end) == character
    assert detokeniser.finish() == ""


@settings(max_examples=200, deadline=None)
@given(ids=byte_ids)
def test_what_is_out_never_changes(tiny: Vocabulary, ids: list[int]) -> None:
    """The text after any number of ids is a beginning of the whole text, and lacks only bytes that may still become a character."""
    whole = tiny.decode(ids)
    detokeniser, text = Detokeniser(tiny, skip_special_tokens=False), ""
    for n, i in enumerate(ids, 1):
        text += detokeniser.feed(i)
        assert whole.startswith(text)
        assert tiny.decode(ids[:n]).removeprefix(text).strip("\ufffd") == ""


def test_an_unfinished_character_shows_at_the_end(tiny: Vocabulary) -> None:
    """Bytes of a character that never came are one U+FFFD, as in a one-shot decode."""
    detokeniser = Detokeniser(tiny)
    assert [detokeniser.feed(token_of(tiny, byte)) for byte in "😀".encode()[:3]] == ["", "", ""]
    assert detokeniser.finish() == "\ufffd"


def test_special_tokens_are_left_out_on_request(vocabulary: Vocabulary) -> None:
    """A special token has no text if it is to be skipped, else its own."""
    assert Detokeniser(vocabulary, skip_special_tokens=True).feed(2) == ""
    assert Detokeniser(vocabulary, skip_special_tokens=False).feed(2) == "<|im_end|>"
