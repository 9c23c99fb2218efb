"""Stop strings across the borders of pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.stop_strings import StopStrings

alphabet = st.text("ab\n", max_size=12)
stops_of = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=0, max_size=4)


def naive(text: str, stops: list[str], begin: int = 0) -> tuple[int, str] | None:
    """(end, stop) of the match that is complete first after `begin`, the longest of those; by looking at every beginning of the text."""
    for end in range(begin + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=len)
    return None


def run(pieces: list[str], stops: list[str], *, keep: bool) -> tuple[str, str | None, int]:
    """Text, matched stop, and how many pieces it took."""
    matcher, out = StopStrings(stops, keep=keep), ""
    for n, piece in enumerate(pieces, 1):
        out += matcher.feed(piece)
        if matcher.matched is not None:
            return out, matcher.matched, n
    return out + matcher.finish(), None, len(pieces)


@settings(max_examples=800, deadline=None)
@given(pieces=st.lists(alphabet, max_size=10), stops=stops_of, keep=st.booleans())
def test_the_same_as_a_search_in_the_whole_text(pieces: list[str], stops: list[str], keep: bool) -> None:
    """Whatever the chunking, the text, the match and the piece that completed it are those of a naive search in the whole text."""
    text = "".join(pieces)
    out, matched, count = run(pieces, stops, keep=keep)
    expected = naive(text, stops)
    if expected is None:
        assert (out, matched) == (text, None)
        return
    end, stop = expected
    assert (out, matched) == (text[:end] if keep else text[: end - len(stop)], stop)
    assert len("".join(pieces[: count - 1])) < end <= len("".join(pieces[:count]))


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(alphabet, max_size=10), stops=stops_of)
def test_only_what_may_begin_a_stop_is_held_back(pieces: list[str], stops: list[str]) -> None:
    """Until a match, what is held back is the longest ending of the text that begins a stop string: no more, no less."""
    matcher, seen, out = StopStrings(stops), "", ""
    for piece in pieces:
        seen += piece
        out += matcher.feed(piece)
        if matcher.matched is not None:
            return
        held = max(
            (
                n
                for n in range(len(seen) + 1)
                if any(stop.startswith(seen[len(seen) - n :]) for stop in stops)
            ),
            default=0,
        )
        assert out == seen[: len(seen) - held]


@settings(max_examples=500, deadline=None)
@given(
    before=st.lists(alphabet, max_size=5),
    after=st.lists(alphabet, max_size=5),
    stops=stops_of,
    keep=st.booleans(),
)
def test_unarmed_matches_are_text(before: list[str], after: list[str], stops: list[str], keep: bool) -> None:
    """Only what is complete in an armed piece counts, wherever it began; all before it is given out."""
    matcher, begin, text = StopStrings(stops, keep=keep), len("".join(before)), "".join(before + after)
    out = "".join(matcher.feed(piece, armed=False) for piece in before)
    assert matcher.matched is None
    out += "".join(matcher.feed(piece) for piece in after)
    expected = naive(text, stops, begin)
    assert matcher.matched == (expected[1] if expected else None)
    if expected is None:
        assert out + matcher.finish() == text
    else:
        end, stop = expected
        assert out == (text[:end] if keep else text[: end - len(stop)])


def test_the_match_complete_first_wins() -> None:
    """Of overlapping stops the one complete earlier counts, of those complete at once the longest."""
    assert run(["xabcd"], ["abcd", "bc"], keep=False) == ("xa", "bc", 1)
    assert run(["xabcd"], ["bc", "abc"], keep=False) == ("x", "abc", 1)


def test_nothing_comes_after_a_match() -> None:
    """Text after the stop string is dropped, in the same piece and in later ones."""
    matcher = StopStrings(["\n"])
    assert matcher.feed("one\ntwo") == "one"
    assert matcher.feed("three") == ""
    assert matcher.finish() == ""
