"""The checker finds what it is there for."""

from __future__ import annotations

import pytest

from benchmarks.chaos.history import History, Life


def life_of(history: History, *attempts: tuple[list[tuple[int, list[int]]], list[str]]) -> Life:
    """A request whose attempts had these (first index, ids) and ends."""
    life = history.begin("one", "test", expected=[5, 6, 7])
    for number, (pieces, ends) in enumerate(attempts):
        if number:
            life.again("broken")
        for first, ids in pieces:
            history.piece(life, first, ids)
        for end in ends:
            history.end(life, end)
    return life


@pytest.fixture
def history() -> History:
    return History(lambda: 1.0)


@pytest.mark.parametrize(
    ("attempts", "kinds"),
    [
        ([([(0, [5, 6]), (2, [7])], ["length"])], []),
        ([([(0, [5]), (2, [7])], ["length"])], ["lost"]),
        ([([(1, [6, 7])], ["length"])], ["lost"]),
        ([([(0, [5, 6]), (1, [6, 7])], ["length"])], ["doubled"]),
        ([([(0, [5, 6])], ["length"])], ["lost"]),
        ([([(0, [5, 9, 7])], ["length"])], ["differs"]),
        ([([(0, [5, 6, 7, 8])], ["length"])], ["differs"]),
        ([([(0, [5, 6, 7])], [])], ["unfinished"]),
        ([([(0, [5, 6, 7])], ["length", "length"])], ["ended twice"]),
        ([([(0, [5])], ["overloaded"])], ["failed"]),
        ([([(0, [5, 6])], []), ([(0, [5, 6, 7])], ["length"])], []),
        ([([(0, [5, 6])], []), ([(2, [7])], ["length"])], []),
        ([([(0, [5, 6])], []), ([(1, [6, 7])], ["length"])], []),
        ([([(0, [5])], []), ([(2, [7])], ["length"])], ["lost"]),
        ([([(0, [5, 9])], []), ([(0, [5, 6, 7])], ["length"])], ["differs", "differs"]),
        ([([(0, [5, 6, 7])], ["length"]), ([(0, [5, 6, 7])], ["length"])], ["ended twice"]),
    ],
)
def test_the_checker(
    history: History, attempts: list[tuple[list[tuple[int, list[int]]], list[str]]], kinds: list[str]
) -> None:
    """Gaps, overlaps, other tokens, missing and second ends are each found, in one attempt and over several; a good history has none."""
    life_of(history, *attempts)
    verdict = history.check()
    assert [found.partition(":")[0] for found in verdict.failures] == kinds


def test_who_has_left_may_have_less(history: History) -> None:
    """A request that was given up needs no end, but what came has to be in order."""
    life = life_of(history, ([(0, [5]), (1, [6])], []))
    life.over = True
    assert not history.check().failures
    history.piece(life, 1, [6])
    assert history.check().kinds["doubled"] == 1


def test_a_programs_outcome_is_compared(history: History) -> None:
    """A program that returns something else than without faults is found."""
    life = history.begin("story", "program", wanted="the end")
    history.end(life, "stop")
    life.outcome = "the end"
    assert not history.check().failures
    life.outcome = "another end"
    assert history.check().kinds["differs"] == 1
