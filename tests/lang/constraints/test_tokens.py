"""The vocabulary as constraints see it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.tokens import Tokens
from tests.lang.constraints.vocabularies import (
    LINES,
    byte_fallback,
    byte_level,
    default,
    default_tokens,
    id_of,
)

LEVEL = byte_level()
END, TURN, THINK, SPACES = (id_of(LEVEL, text) for text in ("<end>", "<turn>", "<think>", "    "))
SIZE = LEVEL.get_vocab_size() + 7
TOKENS = Tokens(LEVEL.to_str(), [END], SIZE)
FALLBACK = Tokens(byte_fallback().to_str(), [2], 300)
TEXTS = st.text("ab né日😀{\"' :,1", max_size=9) | st.text(max_size=9) | st.sampled_from(LINES)


@pytest.mark.parametrize("tokens", [TOKENS, FALLBACK])
def test_trie_spells_every_token(tokens: Tokens) -> None:
    """The way from the root to a token's node reads its bytes; children lie side by side in ascending order; others have no node."""
    trie = tokens.trie
    spelt = {0: b""}
    for node in range(len(trie.byte)):
        first, count = int(trie.first[node]), int(trie.count[node])
        assert sorted(trie.byte[first : first + count]) == trie.byte[first : first + count].tolist()
        for child in range(first, first + count):
            spelt[child] = spelt[node] + bytes([trie.byte[child]])
    assert len(spelt) == len(trie.byte) == len(set(spelt.values()))
    assert [spelt.get(int(node), b"") for node in trie.node] == tokens.raw


def test_raw_bytes() -> None:
    """Special tokens, marks, end tokens and ids of nobody have no bytes; other added tokens stand for their text; both kinds of vocabulary are read."""
    assert [TOKENS.raw[token] for token in (END, TURN, THINK, SIZE - 1)] == [b"", b"", b"", b""]
    assert TOKENS.raw[SPACES] == b"    "
    assert {bytes([byte]) for byte in range(256)} <= set(TOKENS.raw)
    assert b" name" not in TOKENS.raw
    assert "né".encode() in TOKENS.raw
    assert FALLBACK.raw[:4] == [b"", b"", b"", b"\x00"]
    assert sorted(token for token, raw in enumerate(FALLBACK.raw) if raw == b" ") == [3 + 32, 259]
    ended = Tokens(LEVEL.to_str(), [END, SPACES], SIZE)
    assert (ended.raw[SPACES], ended.eos_ids) == (b"", (END, SPACES))


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_canonical_ids(text: str) -> None:
    """They are the tokenizer's own and spell the text, whatever is written in it, and no space is put before it."""
    data = text.encode()
    assert b"".join(TOKENS.raw[token] for token in TOKENS.encode(data)) == data
    assert TOKENS.encode(data) == LEVEL.encode(text).ids
    ids = FALLBACK.encode(data)
    assert b"".join(FALLBACK.raw[token] for token in ids) == data
    behind = byte_fallback().encode("A" + text, add_special_tokens=False).ids
    assert behind[2:] == ids or text.startswith(" ")


def test_special_tokens_are_not_recognised_in_text() -> None:
    """Their text and that of marks is written with ordinary tokens; that of other added tokens is theirs, as the tokenizer has it."""
    for text in ("<end>", "a<turn>b", "<think>"):
        ids = TOKENS.encode(text.encode())
        assert not {END, TURN, THINK} & set(ids)
        assert len(ids) > 3
    assert TOKENS.encode(b"a    b")[1] == SPACES


def test_what_cannot_be_written_has_no_ids() -> None:
    """A text with bytes that no token has, which the library would leave out."""
    part = Tokens(byte_level(whole=False).to_str(), [0], SIZE)
    assert part.encode(b"ab") != []
    assert part.encode(b"a\x00b") == []


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([TOKENS, FALLBACK]), st.data())
def test_prefixes(tokens: Tokens, data: st.DataObject) -> None:
    """`starting_with` and `beginnings` are what a search through all tokens finds."""
    known = [raw for raw in tokens.raw if raw]
    prefix = data.draw(st.sampled_from(known)) if data.draw(st.booleans()) else data.draw(TEXTS).encode()
    prefix = prefix[: data.draw(st.integers(0, len(prefix)))]
    found = tokens.starting_with(prefix)
    assert sorted(found.tolist()) == [
        token for token, raw in enumerate(tokens.raw) if raw and raw.startswith(prefix)
    ]
    text = b"x" * data.draw(st.integers(0, 3)) + prefix
    places = [
        place
        for place in range(len(text))
        if any(raw.startswith(text[place:]) and raw != text[place:] for raw in known)
    ]
    assert tokens.beginnings(text) == tuple(places)


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([TOKENS, FALLBACK]), st.binary(min_size=1, max_size=2), st.frozensets(st.integers(0, 255))
)
def test_a_token_that_goes_on(tokens: Tokens, prefix: bytes, allowed: frozenset[int]) -> None:
    """`is_continued` is right for any beginning and any set of bytes that may follow, the last byte included."""

    def follow(rest: bytes) -> int:
        return next((at for at, byte in enumerate(rest) if byte not in allowed), len(rest))

    rests = [raw[len(prefix) :] for raw in tokens.raw if raw.startswith(prefix)]
    assert tokens.is_continued(prefix, follow) == any(rest and follow(rest) == len(rest) for rest in rests)


def test_the_default_model() -> None:
    """Its bytes and ids are those that the tokenizer actor has; its trie has the size that others measured."""
    tokens, vocabulary = default_tokens(), default()
    assert vocabulary is not None
    assert tokens.raw == [b"" if i in vocabulary.special else raw for i, raw in enumerate(vocabulary.raw)]
    assert len(tokens.trie.byte) == 100_298
    for line in LINES:
        assert tokens.encode(line.encode()) == vocabulary.encode(line)


def test_vocabularies_that_cannot_be_used() -> None:
    """Without an end token or with one out of range, broken, without bytes, or with more ids than the model."""
    words = Tokenizer.from_str(LEVEL.to_str())
    words.decoder = decoders.WordPiece()
    for source, ends, size, problem in (
        (LEVEL.to_str(), [], SIZE, "no end token"),
        (LEVEL.to_str(), [SIZE], SIZE, f"end token {SIZE} is none of {SIZE} ids"),
        (LEVEL.to_str(), [END], 9, "ids up to .*, the model 9 ids"),
        ("{}", [END], SIZE, "tokenizer cannot be used"),
        (json.dumps([1]), [END], SIZE, "tokenizer cannot be used"),
        (words.to_str(), [END], SIZE, "neither byte-level nor byte-fallback"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            Tokens(source, ends, size)
