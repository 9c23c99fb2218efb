"""The syntax of regular expressions: what is taken, what is refused with its place, what is left to llguidance."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from functools import cache

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints import characters, regex_syntax
from sgl_actors.lang.constraints.constraint import REGEX, Constraint
from sgl_actors.lang.constraints.grammar import Declined, Grammar
from sgl_actors.lang.constraints.regex_automaton import compile_regex
from sgl_actors.lang.constraints.regex_syntax import NESTING, SIZE, parse
from tests.lang.byte_vocabulary import byte_compiler

COMPILER = byte_compiler()


@cache
def llguidance(source: str) -> Grammar:
    return COMPILER.compile(Constraint(REGEX, source))


@pytest.mark.parametrize(
    ("source", "position", "problem"),
    [
        ("(?=a)b", 1, "look-ahead"),
        ("b(?<!a)", 2, "look-behind"),
        (r"(a)\1", 4, "back reference"),
        ("(?P<n>a)(?P=n)", 9, "back reference"),
        ("ab(c", 3, "a group is not closed"),
        ("ab)", 3, "a group is closed"),
        ("a|*", 3, "nothing to repeat"),
        ("(?i)*", 5, "nothing to repeat"),
        ("{2}", 1, "nothing to repeat"),
        ("a{,3}", 2, "no valid repeat"),
        ("a{2", 2, "no valid repeat"),
        ("a{3,1}", 2, "at least 3 and at most 1"),
        ("a{4294967296}", 2, "more than 9 digits"),
        ("x[ab", 2, "a class is not closed"),
        ("[]", 1, "a class is not closed"),
        ("[a-", 2, "a range has no end"),
        ("[z-a]", 2, "ends before it begins"),
        (r"[a-\d]", 2, "from one character to another"),
        (r"a\y", 2, "unknown escape"),
        (r"[\b]", 2, "unknown escape"),
        (r"\x4", 1, "no code in hexadecimal"),
        (r"\x{110000}", 1, "no character's code"),
        (r"\uD800", 1, "no character's code"),
        ("(?ii)a", 1, "wrong flags"),
        ("(?)a", 1, "wrong flags"),
        ("(?#c)", 1, "without valid flags"),
        ("(?>a)", 1, "without valid flags"),
        ("(?<n>a)(?<n>b)", 8, "a second group"),
        ("(" * (NESTING + 1) + ")" * (NESTING + 1), NESTING + 1, f"more than {NESTING} groups"),
        ("[" * (NESTING + 2) + "a" + "]" * (NESTING + 2), NESTING + 2, f"more than {NESTING} brackets"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(source: str, position: int, problem: str) -> None:
    """An error in the expression names the problem and the character, and llguidance does not take it either."""
    with pytest.raises(InvalidRequest) as caught:
        parse(source)
    assert problem in caught.value.message
    assert caught.value.message.endswith(f" at character {position} of {len(source)}")
    assert caught.value.param == REGEX
    if str(NESTING) not in problem:
        with pytest.raises(InvalidRequest):
            llguidance(source)


def test_an_unfinished_escape_is_refused() -> None:
    """A backslash at the end is an error."""
    with pytest.raises(InvalidRequest, match="inside of an escape at character 2 of 2"):
        parse("a\\")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (r"\bword", "a word boundary at character 1"),
        (r"a\<b", "a word boundary at character 2"),
        ("a^b", "a start anchor inside"),
        ("a$b", "an end anchor inside"),
        ("(^)*a", "a repeated anchor"),
        ("(a|^b){2}", "a start anchor inside"),
        (r"\p{Greek}", "no general category"),
        (r"\p{^L}", "no general category"),
        ("(?x) a b", "the flag 'x'"),
        (r"(?-u)\w", "the flag 'u'"),
        ("(?m)^a$", "the flag 'm'"),
        ("ab{1,100000}", f"more than {SIZE} characters when written out at character 3"),
        ("((a{100}){100}){100}", f"more than {SIZE} characters"),
        ("a" * (SIZE + 1), f"more than {SIZE} characters"),
        ("a" + "{2}" * 1000, f"more than {SIZE} characters"),
    ],
)
def test_what_is_rare_or_large_is_declined(source: str, reason: str) -> None:
    """What is left to llguidance says why, before anything is built."""
    with pytest.raises(Declined, match=regex.escape(reason)):
        parse(source)


@pytest.mark.parametrize(
    ("source", "same"),
    [
        (r"^ab$", "ab"),
        (r"\A(a|b)\z", "[ab]"),
        ("(^a)|(b$)", "a|b"),
        ("^$", ""),
        ("a+?b*?c??d{1,2}?", "a+b*c?d{1,2}"),
        ("a{ 1, 2 }b{01}", "a{1,2}b"),
        ("(?P<n>a)(?<m.x>b)(?:c)", "abc"),
        (r"\x41\x{42}\u0043\u{44}\U00000045", "ABCDE"),
        (r"\n\t\r\f\v\a", "[\n][\t][\r][\f][\v][\a]"),
        (r"\.\+\-\/\ \"\&", '[.][+][-][/][ ]["][&]'),
        ("]}", r"\]\}"),
        ("[]a][^]a][a-][-a]", r"[\]a][^\]a][a\-][\-a]"),
        ("[a-c[x-z]&&[^b]]", "[ac]|[xz]|y"),
        (r"[\w--[a-z]]", r"[\w&&[^a-z]]"),
        ("[a-d~~c-f]", "[abef]"),
        ("[[:alpha:]][[:^digit:]]", "[a-zA-Z][^0-9]"),
        ("(?i)ab(?-i)c|d", "[aA][bB]c|d"),
        ("((?i)a|b)c", "[aAbB]c"),
        ("(?i:k)(?i)[^s]", "[kK\u212a][^sSſ]"),
        ("(?s).(?-s:.)", r"[\x{0}-\x{10FFFF}][^\n]"),
        (r"\pL\p{Letter}\P{gc=L}", r"\p{L}\p{L}[^\p{L}]"),
        ("a**", "a*"),
        ("(a?){3}", "a{0,3}"),
        ("(a{1,2}){2,}", "a{2,}"),
        ("(|a)+", "a*"),
        ("a{0}b(){5}", "b"),
        ("[a&&b]*c", "c"),
    ],
)
def test_what_says_the_same_is_the_same_automaton(source: str, same: str) -> None:
    """Two ways to write a language give the same minimal automaton, and llguidance takes both."""
    one, other = compile_regex(source), compile_regex(same)
    assert one.pack() == other.pack()
    llguidance(source)


@pytest.mark.parametrize("source", ["[a&&b]", r"[^\s\S]", "a[a&&]|[b&&a]{2}"])
def test_an_expression_without_any_text_is_refused(source: str) -> None:
    """If nothing can match there is nothing to generate."""
    with pytest.raises(InvalidRequest, match="there is no text that it allows"):
        compile_regex(source)


@pytest.mark.parametrize("letter", ["d", "s", "w"])
def test_perl_classes_are_those_of_unicode(letter: str) -> None:
    r"""``\d``, ``\s`` and ``\w`` have the characters that the `regex` module gives them, of those that Python knows."""
    everything = "".join(chr(code) for low, high in characters.ANY for code in range(low, high + 1))
    found = [one for one in regex.findall(rf"\{letter}", everything) if unicodedata.category(one) != "Cn"]
    mine = [one for one in found_in(characters.perl(letter)) if unicodedata.category(one) != "Cn"]
    assert mine == found
    both = characters.union(characters.perl(letter), characters.perl(letter.upper()))
    assert both == characters.ANY


def found_in(ranges: characters.Characters) -> list[str]:
    return [chr(code) for low, high in ranges for code in range(low, high + 1)]


def test_general_categories_are_those_of_unicodedata() -> None:
    """Each category has just the characters that unicodedata gives it, private and unassigned ones as well."""
    codes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for low, high in characters.ANY:
        for code in range(low, high + 1):
            codes[unicodedata.category(chr(code))].append((code, code))
    for name, ranges in codes.items():
        assert characters.named(name) == characters.union(ranges)
    assert characters.named("Letter") == characters.union(*(codes[kind] for kind in codes if kind[0] == "L"))
    assert characters.named("Uppercase_Letter") == characters.named("gc=Lu") == characters.named("lu")


def test_classes_that_are_costly_to_compute_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work on classes has a limit, which the reason names."""
    monkeypatch.setattr(regex_syntax, "RANGES", 5000)
    with pytest.raises(Declined, match="classes of more than 5000 ranges in all at character"):
        parse(r"[\w]" * 10)


@pytest.mark.parametrize("one", "aKsßẞσςİıiΐﬅǅᾀµͅⅠⓐ1é")
def test_case_is_folded_as_llguidance_does(one: str) -> None:
    """A letter without regard to case is what llguidance takes for it."""
    source = f"(?i){one}"
    near = {
        one,
        one.lower(),
        one.upper(),
        one.swapcase(),
        one.casefold(),
        *"aAkKKsSſßẞσςΣİıiIΐΐﬅﬆǅǄǆµμΜᾀᾈ1éÉⅰⅠⓐⒶ",
    }
    automaton, grammar = compile_regex(source), llguidance(source)
    for text in near:
        assert automaton.matches(text) == grammar.matches(text), (source, text)


PIECES = [
    *"ab|*+?(){}[]^$.-&~:,12é😀 \n/AkKßs", r"\d", r"\w", r"\s", r"\W", r"\S", r"\D", "(?i)", "(?i:", "(?s)", "(?:",
    "[^", "&&", "--", "~~", "{1,2}", "{2}", "{0,}", r"\p{L}", r"\x41", r"\u00e9", r"\x{1F600}", "[:alpha:]",
    "[[:^digit:]", r"\-", r"\]", r"\n", "a-z", "(a|b)", "[a-é]", "$)", "(^", "(?P<n>", r"\b",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    st.lists(st.text("abAkKKsSß12é😀-&~:,]^[ \n/().", max_size=5), max_size=6),
)
def test_any_text_is_taken_as_llguidance_takes_it(source: str, texts: list[str]) -> None:
    """Whatever the text, it is taken with llguidance's meaning, refused if llguidance refuses it, or declined."""
    try:
        automaton = compile_regex(source)
    except Declined:
        return
    except InvalidRequest as error:
        if "no text" not in error.message and "inside of an escape" not in error.message:
            with pytest.raises(InvalidRequest):
                COMPILER.compile(Constraint(REGEX, source))
        return
    grammar = COMPILER.compile(Constraint(REGEX, source))
    for text in texts:
        assert automaton.matches(text) == grammar.matches(text)
