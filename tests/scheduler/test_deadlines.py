"""Whose time is up."""

from __future__ import annotations

from sgl_actors.actors.scheduler.deadlines import SLACK, Deadlines
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.messages import Sampling, Sequence


def generation(arrival: int) -> Generation:
    return Generation(Sequence(f"r{arrival}", [1], 1, Sampling(0)), None, arrival, [1])


def test_the_last_time_that_was_said_counts() -> None:
    """One that is added, dropped and added again is due at the second time, once."""
    deadlines, one = Deadlines(), generation(1)
    deadlines.add(one, 5.0)
    deadlines.drop(one)
    deadlines.add(one, 9.0)
    assert deadlines.next() == 9.0
    assert deadlines.expired(8.0) == []
    assert deadlines.expired(9.0) == [one]
    assert (deadlines.next(), deadlines.expired(99.0)) == (None, [])


def test_dropped_ones_do_not_pile_up() -> None:
    """Entries of those that ended are swept, those of the others stay."""
    deadlines, lasting = Deadlines(), generation(0)
    deadlines.add(lasting, 1000.0)
    for arrival in range(1, 1000):
        deadlines.add(generation(arrival), 500.0)
        deadlines.drop(generation(arrival))
    assert len(deadlines._heap) <= SLACK + 3
    assert deadlines.expired(2000.0) == [lasting]
