"""Grammars over a vocabulary of bytes."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, LARK, REGEX, Constraint
from sgl_actors.lang.constraints.grammar import Grammar, mask_words
from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceCompiler
from tests.lang.byte_vocabulary import EOS, SIZE, byte_compiler, byte_tokenizer, ids_of, text_of

COMPILER = byte_compiler()
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
ASCII = {*ids_of("".join(map(chr, range(32, 127)))), EOS}
NESTED = 'start: "(" start? ")"'


def grammar(kind: str, source: str) -> Grammar:
    return COMPILER.compile(Constraint(kind, source))


def allowed(one: Grammar) -> set[int]:
    """Tokens that may come next."""
    row = np.full(mask_words(SIZE), -1, dtype=np.int32)
    one.mask_into(row)
    return set(np.unpackbits(row.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def write(one: Grammar, text: str) -> Grammar:
    for token in ids_of(text):
        assert token in allowed(one)
        one.advance(token)
    return one


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        (REGEX, r"[0-9]{4}-[0-9]{2}", ["2024-12"], ["2024-1", "2024-123", "", "x2024-12"]),
        (REGEX, "(yes|no|not sure)", ["yes", "no", "not sure"], ["not", "maybe"]),
        (REGEX, "é+", ["é", "éé"], ["e", "\ud800"]),
        (REGEX, "", [""], ["a"]),
        (JSON_SCHEMA, PERSON, ['{"name": "Zoë", "age": 7}'], ['{"name": "Zoë"}', '{"age": 7}', "[]", "{"]),
        (JSON_SCHEMA, '{"enum": [1, "x", null]}', ["1", '"x"', "null"], ["2", "x"]),
        (LARK, NESTED, ["()", "((()))"], ["(", ")(", "(()"]),
    ],
)
def test_what_matches_can_be_written(kind: str, source: str, good: list[str], bad: list[str]) -> None:
    """A text that matches is allowed token by token and is complete then; one that does not is refused on the way or incomplete."""
    fresh = grammar(kind, source)
    for text in good:
        one = write(fresh.copy(), text)
        assert fresh.matches(text)
        assert one.is_accepting
        assert EOS in allowed(one)
    assert not any(map(fresh.matches, bad))


def test_json_is_written_in_one_fixed_form() -> None:
    """White space is that of json.dumps, so a model cannot go on writing it; a schema may say otherwise."""
    fresh = grammar(JSON_SCHEMA, PERSON)
    assert fresh.matches(json.dumps({"name": "Ann", "age": 12}))
    for text in ('{"name":"Ann","age":12}', '{"name":  "Ann", "age": 12}', '{\n"name": "Ann", "age": 12}'):
        assert not fresh.matches(text)
    compact = json.loads(PERSON) | {"x-guidance": {"item_separator": ",", "key_separator": ":"}}
    assert grammar(JSON_SCHEMA, json.dumps(compact)).matches('{"name":"Ann","age":12}')


def test_end_is_allowed_where_the_output_is_complete() -> None:
    """Before that no end token may come; where nothing else can, only that, for ever."""
    one = write(grammar(REGEX, "ab?"), "")
    assert allowed(one) == set(ids_of("a"))
    write(one, "a")
    assert (one.is_accepting, one.is_over) == (True, False)
    assert allowed(one) == {*ids_of("b"), EOS}
    write(one, "b")
    assert (one.is_accepting, one.is_over) == (True, True)
    for _ in range(3):
        assert allowed(one) == {EOS}
        one.advance(EOS)
    assert one.is_over
    assert one.forced_text() == ""


def test_wrong_token_ends_a_grammar() -> None:
    """It is refused by name without quoting the output, an end token in the middle and a token after the end too."""
    for begun, token in (("", ids_of("z")[0]), ("a", EOS), ("ab", EOS)):
        one = write(grammar(REGEX, "abc"), begun)
        with pytest.raises(InvalidRequest, match=f"regex: token {token} is not allowed here"):
            one.advance(token)
    one = write(grammar(REGEX, "ab?"), "a")
    one.advance(EOS)
    with pytest.raises(InvalidRequest):
        one.advance(ids_of("b")[0])


def test_copies_move_by_themselves() -> None:
    """What is done to a copy does not show in the one it was made of, which goes on where it stood."""
    one = write(grammar(JSON_SCHEMA, PERSON), '{"name": "A')
    other = write(one.copy(), '", "age": 1')
    assert (one.forced_text(), other.is_over) == ("", False)
    write(one, 'nn", "age": 2}')
    write(other, "0}")
    assert one.is_over
    assert other.is_over


def test_forced_text() -> None:
    """What every way to go on begins with, in whole characters."""
    one = grammar(JSON_SCHEMA, PERSON)
    assert one.forced_text() == '{"name": "'
    assert write(one, '{"name": "x').forced_text() == ""
    assert write(one, '"').forced_text() == ', "age": '
    assert grammar(REGEX, "(né|nè)x").forced_text() == "n"


@settings(deadline=None, max_examples=60)
@given(st.text("ab", max_size=6), st.integers(0, 8), st.integers(0, 2))
def test_rollback_undoes_advance(text: str, back: int, ends: int) -> None:
    """After any tokens and as many taken back as one likes, the grammar is that of the tokens left; end tokens count."""
    one = write(grammar(REGEX, "[ab]*"), text)
    tokens = ids_of(text) + [EOS] * ends
    for _ in range(ends):
        one.advance(EOS)
    back = min(back, len(tokens))
    one.rollback(back)
    left = tokens[: len(tokens) - back]
    assert one.is_over == (EOS in left)
    assert allowed(one) == ({EOS} if EOS in left else {*ids_of("ab"), EOS})


def test_too_much_cannot_be_taken_back() -> None:
    """A rollback past the beginning is an error."""
    with pytest.raises(InvalidRequest, match="9 tokens cannot be taken back"):
        write(grammar(REGEX, "abc"), "ab").rollback(9)


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False))
def test_whatever_is_chosen_from_masks_is_valid(random: Random) -> None:
    """Random choices among allowed tokens end in an object of the schema, in keys' order."""
    one, ids = grammar(JSON_SCHEMA, PERSON), list[int]()
    while EOS not in ids:
        ids.append(random.choice(sorted(allowed(one) & ASCII)))
        one.advance(ids[-1])
        if len(ids) > 60:
            return
    value = json.loads(text_of(ids))
    assert list(value) == ["name", "age"]
    assert isinstance(value["age"], int)


@pytest.mark.parametrize(
    ("kind", "source", "problem"),
    [
        (REGEX, "a(b", "regex: unclosed group at character 2 of 3"),
        (REGEX, "(?=a)b", "regex: look-around, .* is not supported at character 1 of 6"),
        (REGEX, r"a\bc", r"regex: \\b is not supported inside an expression"),
        (REGEX, "a$b", r"regex: \$ is not supported inside an expression"),
        (REGEX, r"(a)\1", "regex: backreferences are not supported"),
        (JSON_SCHEMA, '{"type": ', "json_schema: no valid JSON: .* line 1 column 9"),
        (JSON_SCHEMA, "[1]", "json_schema: a schema has to be a JSON object"),
        (JSON_SCHEMA, '{"type": "thing"}', "json_schema: Invalid type: thing"),
        (JSON_SCHEMA, '{"not": {"type": "null"}}', r'json_schema: Unimplemented keys: \["not"\]'),
        (JSON_SCHEMA, '{"$ref": "#/x"}', "json_schema: Pointer '/x' does not exist"),
        (LARK, 'start: a\na: "x" c', 'lark: unknown name: "c" at line 2, column 4'),
        (LARK, "%%%", "lark: .* at line 1, column 2"),
        ("poem", "x", "constraint: 'poem' is none of regex, json_schema, lark"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(kind: str, source: str, problem: str) -> None:
    """A source that does not compile names its kind, the problem and, where known, the place."""
    with pytest.raises(InvalidRequest, match=problem) as caught:
        grammar(kind, source)
    assert caught.value.param == problem.partition(":")[0]


def test_too_complex_a_pattern_fails() -> None:
    """A limit ends the grammar at the latest when it is reached, in words; the process goes on."""
    one = grammar(REGEX, r"(\p{L}{0,900}){0,900}")
    with pytest.raises(InvalidRequest, match=r"regex: .* \(lexer error: too many expressions constructed\)"):
        write(one, "a" * 900)


def test_what_nothing_satisfies_cannot_begin() -> None:
    """An empty set of outputs shows at the first mask."""
    with pytest.raises(InvalidRequest, match=r"regex: no token can come next$"):
        allowed(grammar(REGEX, "[a&&b]"))


def test_a_vocabulary_that_cannot_be_used_is_said_so() -> None:
    """Without an end token, with a foreign tokenizer, or with more tokens than the model has rows nothing can be constrained."""
    with pytest.raises(InvalidRequest, match="no end token"):
        LlguidanceCompiler(byte_tokenizer().to_str(), [], SIZE)
    with pytest.raises(InvalidRequest, match="tokenizer cannot be used"):
        LlguidanceCompiler("{}", [EOS], SIZE)
    with pytest.raises(InvalidRequest, match="tokenizer cannot be used"):
        LlguidanceCompiler(byte_tokenizer().to_str(), [EOS], 9)
