"""Automata of regular expressions and choices: their language, that they are minimal, what they force, their limits."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.constraint.reference import SIX
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.automaton import DEAD, Automaton
from sgl_actors.lang.constraints.constraint import CHOICE, REGEX, Constraint
from sgl_actors.lang.constraints.deterministic import WORK
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regex_automaton import compile_choices, compile_regex
from sgl_actors.lang.constraints.utf8_automaton import STATES
from tests.lang.byte_vocabulary import byte_compiler, ids_of

COMPILER = byte_compiler()
ASCII_WORDS = r"[a-zA-Z0-9_ \t\n\r\f\v]"
ALPHABET = 'ab01_- .\n"é漢😀ß٣'
"""Characters that Rust and Python put into the same classes."""

chars = st.sampled_from([*map(re.escape, ALPHABET), ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S"])
members = st.sampled_from([*"ab01_é漢😀", r"\d", r"\w", r"\s", "a-f", "0-5", "à-ö", "一-龥", "😀-😎"])
classes = st.builds(
    lambda hat, parts: f"[{hat}{''.join(parts)}]",
    st.sampled_from(["", "^"]),
    st.lists(members, min_size=1, max_size=3),
)
atoms = st.one_of(chars, classes)
counts = st.sampled_from(["?", "*", "+", "{2}", "{0,3}", "{1,2}", "{2,}", "*?", "+?"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds(lambda body, count: f"(?:{body}){count}", inner, counts),
    ),
    max_leaves=8,
)


def built(constraint: Constraint) -> Automaton:
    if constraint.kind == CHOICE:
        return compile_choices(json.loads(constraint.source))
    return compile_regex(constraint.source)


def live(automaton: Automaton, state: int) -> list[int]:
    """The bytes that lead on."""
    return np.flatnonzero(automaton.table[state][automaton.classes] != DEAD).tolist()


def forced_bytes(automaton: Automaton, state: int) -> bytes:
    found = bytearray()
    while not automaton.accepting[state] and len(following := live(automaton, state)) == 1:
        found += bytes(following)
        state = automaton.step(state, bytes(following))
    return bytes(found)


def distances(automaton: Automaton) -> list[int]:
    """Bytes to the nearest end, for each state; it fails if there is none."""
    known = {int(state): 0 for state in np.flatnonzero(automaton.accepting)}
    while True:
        fresh = {
            state: 1 + min(known[one] for one in row if one in known)
            for state, row in enumerate(automaton.table.tolist())
            if state not in known and not known.keys().isdisjoint(row)
        }
        if not fresh:
            assert len(known) == len(automaton.accepting)
            return [known[state] for state in range(len(known))]
        known |= fresh


def walk(automaton: Automaton, random: Random, length: int = 8) -> str:
    """A text that it allows: steps at random, then the nearest end."""
    state, data, far = 0, bytearray(), distances(automaton)
    while not (automaton.accepting[state] and (len(data) >= length or random.random() < 0.2)):
        following = live(automaton, state)
        if not following:
            break
        if len(data) >= length:
            following = [
                byte for byte in following if far[automaton.step(state, bytes([byte]))] == far[state] - 1
            ]
        byte = random.choice(following)
        data.append(byte)
        state = automaton.step(state, bytes([byte]))
    return data.decode()


def is_minimal(automaton: Automaton) -> bool:
    """Whether all states are reached from the start and no two are alike (Moore's refinement, the plain way)."""
    reached, queue = {0}, [0]
    for state in queue:
        fresh = {*automaton.table[state].tolist()} - reached - {DEAD}
        reached |= fresh
        queue += fresh
    blocks = automaton.accepting.astype(int).tolist()
    while True:
        numbers: dict[tuple[int, ...], int] = {}
        rows = automaton.table.tolist()
        finer = [
            numbers.setdefault((block, *(blocks[one] if one != DEAD else DEAD for one in row)), len(numbers))
            for block, row in zip(blocks, rows, strict=True)
        ]
        if len({*finer}) == len({*blocks}):
            return len(reached) == len(rows) == len({*blocks})
        blocks = finer


@settings(max_examples=80, deadline=None)
@given(patterns, st.lists(st.text(ALPHABET, max_size=6), max_size=6), st.integers(0, 2**32))
@example("(?:a|b)*a(?:a|b){3}", ["abab", "baaa"], 0)
@example("(?:é|è)[à-ö]?", ["é", "èà", "\u00c3"], 0)
def test_three_engines_agree(pattern: str, texts: list[str], seed: int) -> None:
    """An automaton, llguidance and Python's re allow the same texts, and all that a walk through the automaton gives."""
    try:
        automaton = compile_regex(pattern)
    except InvalidRequest:
        assert not any(re.fullmatch(pattern, text) for text in texts)
        return
    grammar, expression = COMPILER.compile(Constraint(REGEX, pattern)), re.compile(pattern)
    random = Random(seed)
    for text in [*texts, *(walk(automaton, random) for _ in range(2))]:
        allowed = automaton.matches(text)
        assert allowed == grammar.matches(text) or not known(text), (pattern, text)
        if {*text} <= {*ALPHABET}:
            assert allowed == bool(expression.fullmatch(text)), (pattern, text)


def known(text: str) -> bool:
    """Whether Python's Unicode has all of its characters; llguidance's is newer and has more of them in its classes."""
    return not compile_regex(r"(?s).*\p{Cn}.*").matches(text)


@settings(max_examples=40, deadline=None)
@given(patterns)
@example("(?:ab|cb)*(?:é|ã)(?:xé|yé)")
@example("a(?:aa)*|b(?:aaa)*")
@example("(?:a(?:ab|b)*b)*")
def test_automata_are_minimal_and_trimmed(pattern: str) -> None:
    """No two states are alike, each is reached and reaches an end, and no two classes of bytes are alike."""
    try:
        automaton = compile_regex(pattern)
    except InvalidRequest:
        return
    distances(automaton)
    assert is_minimal(automaton)
    columns = automaton.table.T.tolist()
    assert len({*map(tuple, columns)}) == len(columns)
    assert {*automaton.classes.tolist()} == {*range(len(columns))}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text("abé漢字😀😎 ", max_size=6), min_size=1, max_size=12),
    st.lists(st.text("abé漢😀 ", max_size=6), max_size=5),
)
def test_choices_are_just_those_texts(choices: list[str], texts: list[str]) -> None:
    """Choices allow each of their texts and no other, and are the same automaton as the expression of them all."""
    automaton = compile_choices(choices)
    for text in [*choices, *texts]:
        assert automaton.matches(text) == (text in choices)
    assert is_minimal(automaton)
    expression = compile_regex("|".join(re.escape(choice) for choice in choices))
    assert automaton.table.shape == expression.table.shape


def test_thousands_of_choices_are_taken() -> None:
    """Many choices with common ends make a small automaton."""
    choices = [f"choice {number} of é漢😀" for number in range(5000)]
    automaton = compile_choices([*choices, *choices])
    assert all(automaton.matches(choice) for choice in choices)
    assert not automaton.matches("choice 5000 of é漢😀")
    assert len(automaton.accepting) < 60


@pytest.mark.parametrize(
    ("choices", "problem"), [([], "nothing to choose"), (["a", "\ud800"], "no valid Unicode")]
)
def test_choices_that_cannot_be_are_refused(choices: list[str], problem: str) -> None:
    """Choices have to be some, and texts."""
    with pytest.raises(InvalidRequest, match=problem) as caught:
        compile_choices(choices)
    assert caught.value.param == CHOICE


@pytest.mark.parametrize("choices", [["x" * (STATES + 1)], [f"{n:x}" * 40 for n in range(4000, 6000)]])
def test_choices_that_are_too_large_are_declined(choices: list[str]) -> None:
    """Choices with more states than the limit name it."""
    with pytest.raises(Declined, match=f"more than {STATES} states"):
        compile_choices(choices)


@pytest.mark.parametrize(
    ("name", "source", "counts"),
    [
        ("date", SIX["date"].constraint.source, (15, 4, 4, 11)),
        ("ipv4", SIX["ipv4"].constraint.source, (24, 3, 3, 21)),
        (
            "character",
            SIX["character"].constraint.source.replace(r"[\w\d\s]", ASCII_WORDS),
            (431, 342, 23, 89),
        ),
    ],
)
def test_states_are_those_of_the_reference(name: str, source: str, counts: tuple[int, ...]) -> None:
    """States, single ones, merged edges and states left are what another construction found over (ASCII) characters."""
    automaton = compile_regex(source)
    single = [
        not accepting and len(live(automaton, state)) == 1
        for state, accepting in enumerate(automaton.accepting)
    ]
    behind = {int(target) for state, row in enumerate(automaton.table) if single[state] for target in row}
    chains = sum(one and state not in behind for state, one in enumerate(single))
    states = len(single)
    assert (states, sum(single), chains, states - sum(single)) == counts, name


@pytest.mark.parametrize(
    ("name", "forced"), [("date", (3, 10, 3)), ("ipv4", (2, 13, 2)), ("character", (239, 296, 12))]
)
def test_forced_characters_are_those_of_the_reference(name: str, forced: tuple[int, int, int]) -> None:
    """Of the sample as many characters are forced, in as many jumps, as the reference counts."""
    automaton, sample = built(SIX[name].constraint), SIX[name].sample
    state, single = 0, [False]
    for byte in sample.encode():
        single.append(not automaton.accepting[state] and len(live(automaton, state)) == 1)
        state = automaton.step(state, bytes([byte]))
    jumps = sum(now and not before for before, now in pairwise(single))
    assert (sum(single), len(sample), jumps) == forced


@pytest.mark.parametrize("name", SIX)
def test_forced_text_is_that_of_llguidance(name: str) -> None:
    """At every place of the sample the automaton forces the same text as llguidance does."""
    constraint, sample = SIX[name].constraint, SIX[name].sample
    automaton = built(constraint)
    source = (
        "|".join(re.escape(one) for one in json.loads(constraint.source))
        if constraint.kind == CHOICE
        else constraint.source
    )
    grammar = COMPILER.compile(Constraint(REGEX, source))
    assert automaton.matches(sample)
    state = 0
    for token, byte in zip(ids_of(sample), sample.encode(), strict=True):
        assert forced_bytes(automaton, state).decode("utf-8", "ignore") == grammar.forced_text()
        grammar.advance(token)
        state = automaton.step(state, bytes([byte]))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("(a|b)*a(a|b){20}", f"more than {WORK} steps"),
        ("(a?|b?){5000}", f"more than {WORK} steps"),
        ("(?:(?:a{97})*|(?:a{89})*|(?:a{83})*)", f"more than {STATES} states"),
        (r"\w{1,300}", f"more than {STATES} states"),
        (
            "[^一][^丁][^七]" * 20 + "".join(f"[^{chr(0x4E00 + code)}]" for code in range(900)),
            f"more than {WORK} steps",
        ),
    ],
)
def test_what_grows_without_bounds_is_declined(source: str, reason: str) -> None:
    """Constructions end at a limit, which the reason names."""
    with pytest.raises(Declined, match=reason):
        compile_regex(source)


def test_an_automaton_survives_its_packing() -> None:
    """Packed and unpacked it is the same."""
    automaton = compile_regex(r"\w{2}|é")
    other = Automaton.unpack(automaton.pack())
    assert np.array_equal(automaton.table, other.table)
    assert [other.matches(text) for text in ("é", "ab", "a", "漢字", "")] == [True, True, False, True, False]
