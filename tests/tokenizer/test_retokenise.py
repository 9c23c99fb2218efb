"""Canonical ids of texts that grow, shrink and change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer import vocabulary as vocabularies
from sgl_actors.actors.tokenizer.retokenise import retokenise
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary

PIECES = [
    "the",
    " the",
    " ",
    "  ",
    "1",
    " 2",
    "\n",
    "\n ",
    ".",
    " .",
    "'",
    "s",
    " s",
    "é",
    " é",
    "e\u0301",
    "😀",
    "\u00a0",
    "<|im_end|>",
    "<s>",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


def check(vocabulary: Vocabulary, old: list[int], text: str, canonical: int) -> int:
    keep, new = retokenise(vocabulary, old, text, canonical=canonical)
    expected = vocabulary.encode(text)
    assert old[:keep] + new == expected
    assert keep == len(old) or keep == len(expected) or old[keep] != expected[keep]
    return keep


@settings(max_examples=400, deadline=None)
@given(old=texts, more=texts, cut=st.integers(0, 60))
def test_equals_encoding_the_whole_text(vocabulary: Vocabulary, old: str, more: str, cut: int) -> None:
    """A text that was cut anywhere and went on otherwise has the ids of the whole new text, and as many old ones as can be are kept."""
    ids = vocabulary.encode(old)
    assume(vocabulary.decode(ids) == old)
    check(vocabulary, ids, old[:cut] + more, len(ids))
    check(vocabulary, ids, old + more, len(ids))


@settings(max_examples=200, deadline=None)
@given(old=texts, more=texts, sampled=st.lists(st.integers(0, 49_151), max_size=6))
def test_sampled_ids_need_not_be_canonical(
    vocabulary: Vocabulary, old: str, more: str, sampled: list[int]
) -> None:
    """Ids after the canonical ones may be anything a model can sample."""
    ids = vocabulary.encode(old)
    assume(vocabulary.decode(ids) == old)
    text = vocabulary.decode(ids + sampled) + more
    check(vocabulary, ids + sampled, text, len(ids))
    check(vocabulary, ids + sampled, text, 0)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2"])
def test_holds_for_every_known_pre_tokenizer(write_gguf: Callable[..., Path], pre: str) -> None:
    """The seams are seams for all pre-tokenizers that are read, not only the default model's."""
    merges = ["a b", "Ġ a", "Ġ Ġ", "1 2", "Ċ Ċ", "Ġ .", "t h", "th e", "Ġ the", ". Ċ"]
    alphabet = list(vocabularies.byte_alphabet())
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<s>", "</s>"]
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    types = [1] * (len(tokens) - 2) + [3, 3]
    vocabulary = vocabularies.load(
        write_gguf(pre=pre, tokens=tokens, merges=merges, token_type=types, **ends)
    )

    @settings(max_examples=150, deadline=None)
    @given(old=texts, more=texts, cut=st.integers(0, 40))
    def holds(old: str, more: str, cut: int) -> None:
        ids = vocabulary.encode(old)
        assume(vocabulary.decode(ids) == old)
        check(vocabulary, ids, old[:cut] + more, len(ids))

    holds()


def test_only_what_follows_the_last_seam_is_encoded(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on after a space or a special token encodes the new part only; going on within a word encodes that word again."""
    encoded: list[str] = []
    encode = Vocabulary.encode

    def record(self: Vocabulary, text: str) -> list[int]:
        encoded.append(text)
        return encode(self, text)

    monkeypatch.setattr(Vocabulary, "encode", record)
    for old, more, part in (
        ("A long story, told", " again", " again"),
        ("A long story<|im_end|>", "\nx", "\nx"),
        ("A long stor", "y", " story"),
    ):
        ids = encode(vocabulary, old)
        encoded.clear()
        keep, new = retokenise(vocabulary, ids, old + more, canonical=len(ids))
        assert encoded == [part]
        assert ids[:keep] + new == encode(vocabulary, old + more)


def test_a_word_cut_short_is_encoded_again(write_gguf: Callable[..., Path]) -> None:
    """A beginning of a word's ids need not be the ids of that beginning: some tokens stand for whole words only."""
    tokens = [*vocabularies.byte_alphabet(), "th", "<s>", "</s>", "ab"]
    path = write_gguf(
        pre="llama-bpe", tokens=tokens, merges=["t h"], token_type=[1, 1] * 130, bos_token_id=257
    )
    vocabulary = vocabularies.load(path)
    ids = vocabulary.encode("abx")
    assert (len(ids), vocabulary.encode("ab")) == (3, [259])
    check(vocabulary, ids, "ab y", 3)


def test_a_token_that_is_part_of_a_longer_one_is_no_seam(write_gguf: Callable[..., Path]) -> None:
    """After `<a>` there is no seam if `<a>b` is a token too: it may become that one."""
    tokens = [*vocabularies.byte_alphabet(), "ab", "<a>", "<a>b", "<c>"]
    vocabulary = vocabularies.load(write_gguf(tokens=tokens))
    assert vocabulary.seams.tokens == {258, 259}
    check(vocabulary, vocabulary.encode("x<a>"), "x<a>b", 2)
