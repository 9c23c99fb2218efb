"""Where a text ends, whoever finds it out: as a node finds it, in whatever pieces the text came."""

from __future__ import annotations

import pytest

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.stops import Cutter, find_stop


@pytest.mark.parametrize("pieces", [["xaaab"], list("xaaab"), ["xa", "aab"]])
def test_a_text_ends_where_an_expression_first_matches(pieces: list[str]) -> None:
    """The output ends with the first character that makes a match, not with the longest one that the piece happened to hold."""
    cutter = Cutter(SamplingOptions(stop_regex=("a+",), no_stop_trim=True))
    shown = "".join(map(cutter.feed, pieces)) + cutter.end()
    assert shown == cutter.kept == "xa"


def test_the_stop_that_is_complete_first_ends_it() -> None:
    """Strings and expressions alike."""
    found = find_stop("1, 2; 3", SamplingOptions(stop=(";",), stop_regex=(r"\d,",)))
    assert found is not None
    assert (found.keep, found.start, found.end, found.matched) == (0, 0, 2, r"\d,")


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "does not compile"), ("x*", "empty string"), ("(a|a)+$x", "backtracks")]
)
def test_an_expression_that_makes_no_sense_is_refused(pattern: str, words: str) -> None:
    """Nor does one that backtracks for ever hold up the program."""
    with pytest.raises(InvalidRequest, match=words):
        find_stop("a" * 64 + "b", SamplingOptions(stop_regex=(pattern,)))
