"""Stop patterns, alone and beside stop strings."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.stops import Stops
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang import stop_patterns
from sgl_actors.lang.stop_patterns import MAX_QUANTIFIERS, compile_pattern

PATTERNS = ["ab", "b+a", "[bc]c", "a.*c", "(?<=a)b", r"\n+", "ca|b"]


def feed(stops: Stops, parts: Sequence[str]) -> str:
    """All that is given out."""
    return "".join(stops.feed(part) for part in parts) + stops.finish()


def naive(
    text: str, strings: Sequence[str], patterns: Sequence[str], *, keep: bool
) -> tuple[str, str | None]:
    """Output and what ended it: the first beginning of the text that holds a match decides."""
    for end in range(1, len(text) + 1):
        found = [(text.find(string, 0, end), 0, string) for string in strings if text[:end].endswith(string)]
        found = [(end - len(string), 0, string) for _, _, string in found]
        for pattern in patterns:
            match = re.search(pattern, text[:end])
            if match:
                found.append((match.start(), match.end(), pattern))
        if found:
            begin, stop, matched = min(found)
            return text[: (stop or end) if keep else begin], matched
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("abc\n", max_size=14),
    cuts=st.lists(st.integers(0, 14), max_size=5),
    strings=st.lists(st.text("abc", min_size=1, max_size=3), max_size=2, unique=True),
    patterns=st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True),
    keep=st.booleans(),
)
def test_whatever_pieces_the_text_comes_in_the_first_match_ends_it(
    text: str, cuts: list[int], strings: list[str], patterns: list[str], keep: bool
) -> None:
    """The output and its end are those of a search at every character, whatever the pieces; nothing after the end is given out."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stops = Stops(strings, patterns, keep=keep)
    given = feed(stops, [text[a:b] for a, b in pairwise(edges)])
    assert (given, stops.matched) == naive(text, strings, patterns, keep=keep)
    if stops.matched is not None:
        assert stops.feed("more") == ""


def test_exactly_what_may_begin_a_match_is_held_back() -> None:
    """Text comes out as soon as no match can begin in it any more, and not before."""
    stops = Stops((), [r"\n\n+Question: \d"])
    assert [stops.feed(part) for part in ("ab\n", "\nQue", "ry\n", "x")] == ["ab", "", "\n\nQuery", "\nx"]
    stops = Stops(["xyz"], ["abc"])
    assert [stops.feed(part) for part in ("a", "bx", "y", "-")] == ["", "ab", "", "xy-"]


def test_matched_is_the_pattern() -> None:
    """The pattern that matched is reported, and the text up to its match; no_stop_trim keeps the match."""
    stops = Stops((), ["zzz", r"Answer: \d+"])
    assert feed(stops, ["So. Ans", "wer: ", "42"]) == "So. "
    assert stops.matched == r"Answer: \d+"
    assert feed(Stops((), [r"Answer: \d+"], keep=True), ["So. Ans", "wer: ", "4"]) == "So. Answer: 4"


def test_a_match_before_min_tokens_is_text() -> None:
    """One that is complete while not armed is text as any other; one that only begins there still counts."""
    stops = Stops((), [r"\d+;"])
    assert stops.feed("a 1; b 2", armed=False) == "a 1; b "
    assert stops.feed("3; c") == ""
    assert stops.matched == r"\d+;"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a(b", r"'a\(b' does not compile: missing \) at position 3"),
        ("a*", "matches the empty string"),
        ("$", "matches the empty string"),
        ("(" * 400 + ")" * 400, "does not compile"),
        (r"\p{Nothing}", "does not compile: unknown property"),
        ("((a{1000}){1000}){1000}x", "counts multiply to more than 10,000"),
        ("(" * 60 + "a" + "+)" * 60, f"60 repetitions; at most {MAX_QUANTIFIERS}"),
    ],
)
def test_patterns_that_cannot_be_are_refused(source: str, problem: str) -> None:
    """What does not compile, would end every output at once, or would take for ever to compile is refused by name."""
    with pytest.raises(InvalidRequest, match=problem) as caught:
        compile_pattern(source)
    assert caught.value.param == "stop_regex"


def test_a_pattern_that_backtracks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes longer than its time is an error of that request."""
    monkeypatch.setattr(stop_patterns, "SECONDS", 0.01)
    stops = Stops((), ["(a|aa)+!"])
    began = time.process_time()
    with pytest.raises(InvalidRequest, match=r"'\(a\|aa\)\+!' takes more than 0.01 s"):
        stops.feed("a" * 60)
    assert time.process_time() - began < 5
