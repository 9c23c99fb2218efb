"""Guesses at what comes next, and how often they are right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.drafts import LEAST, LONGEST, Acceptance, Drafter

FEW = st.lists(st.integers(0, 3), max_size=40)


def longest(tokens: list[int]) -> int:
    """Most of the last tokens, up to `LONGEST`, that stand somewhere before as well; 0 below `LEAST`."""
    found = 0
    for end in range(LEAST, len(tokens)):
        equal = 0
        while equal < min(end, LONGEST) and tokens[end - 1 - equal] == tokens[-1 - equal]:
            equal += 1
        found = max(found, equal)
    return found if found >= LEAST else 0


def followed(tokens: list[int], guess: list[int], matched: int) -> bool:
    """Whether the guess followed the last `matched` tokens somewhere before, or repeats what is between there and the end."""
    tail = tokens[len(tokens) - matched :]
    for end in range(matched, len(tokens)):
        if tokens[end - matched : end] == tail:
            piece = tokens[end:]
            if guess == (piece * len(guess))[: len(guess)]:
                return True
    return False


@settings(max_examples=300, deadline=None)
@given(begin=FEW, more=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8))
def test_a_guess_is_what_followed_the_last_tokens_before(begin: list[int], more: list[list[int]]) -> None:
    """However the sequence came about; there is one exactly when the last two tokens stood like that before."""
    drafter, tokens = Drafter(begin), list(begin)
    for part in [[], *more]:
        drafter.append(part)
        tokens += part
        guess, matched = drafter.propose(6)
        assert bool(guess) == bool(longest(tokens))
        if guess:
            assert len(guess) == 6
            assert LEAST <= matched <= longest(tokens)
            assert followed(tokens, guess, matched)


@settings(max_examples=100, deadline=None)
@given(begin=FEW, more=FEW)
def test_appending_is_the_same_as_beginning_with_all(begin: list[int], more: list[int]) -> None:
    """The index of a sequence does not depend on when its tokens came."""
    one, other = Drafter(begin), Drafter(begin + more)
    one.append(more)
    assert one.propose(5) == other.propose(5)


def test_of_many_places_the_one_with_most_equal_tokens_is_taken() -> None:
    """Not the latest, if that has fewer."""
    tokens = [7, 8, 1, 2, 3, 4, 9, 5, 1, 2, 6, 9, 7, 8, 1, 2]
    assert Drafter(tokens).propose(2) == ([3, 4], 4)


def test_what_repeats_itself_is_taken_to_go_on() -> None:
    """A guess may be longer than the tokens that it is made of."""
    assert Drafter([1, 2, 3, 1, 2, 3, 1, 2]).propose(7)[0] == [3, 1, 2, 3, 1, 2, 3]


def test_a_continuation_is_followed_and_found_again() -> None:
    """What followed the tokens another time comes first; after another token it is taken up where the text meets it again."""
    drafter = Drafter([1, 2, 3, 4], [10, 11, 12, 13, 14, 15, 16, 17])
    assert drafter.propose(3) == ([10, 11, 12], 4)
    drafter.append([10, 11])
    assert drafter.propose(3)[0] == [12, 13, 14]
    drafter.append([99, 14, 15])
    assert drafter.propose(2)[0] == [16, 17]


def test_a_sequence_is_followed_without_a_search() -> None:
    """Once enough tokens are equal, the guess goes on from its place as long as the text does."""
    text = list(range(100))
    drafter = Drafter([*text, *text[:10]])
    for token in text[10:60]:
        assert drafter.propose(1) == ([token], LONGEST)
        drafter.append([token])


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3]])
def test_nothing_is_guessed_from_nothing(tokens: list[int]) -> None:
    """Few tokens, or none that stood before."""
    assert Drafter(tokens).propose(4) == ([], 0)


def test_no_room_for_a_guess() -> None:
    """None is asked for."""
    assert Drafter([1, 2, 1, 2]).propose(0) == ([], 0)


def test_a_sequence_is_believed_more_the_longer_it_runs() -> None:
    """Until then it is taken to be like the others, and it teaches about them."""
    everyone = Acceptance(1000.0)
    for _ in range(200):
        everyone.note(3, right=False)
    one = Acceptance(32.0, everyone)
    assert one.chance(3) == pytest.approx(everyone.chance(3))
    for _ in range(40):
        one.note(3, right=True)
    assert one.chance(3) > 0.8
    assert 0.1 < everyone.chance(3) < 0.3
    assert one.chance(2) == 0.5


def test_what_was_long_ago_counts_little() -> None:
    """Acceptance follows a text that changes."""
    one = Acceptance(32.0)
    for right in [True] * 200 + [False] * 48:
        one.note(LONGEST + 5, right=right)
    assert one.chance(LONGEST) < 0.3
