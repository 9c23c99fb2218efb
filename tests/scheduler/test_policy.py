"""Orders of admission."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.scheduler.policy import policy_named
from sgl_actors.errors import ConfigError
from tests.scheduler.queued import Queued, packed

POLICIES = ("fcfs", "lpm", "dfs-weight", "hrrn")


@st.composite
def waiting_lines(draw: st.DrawFn) -> list[Queued]:
    """Some requests of few classes, namespaces and tokens, in any sequence."""
    count = draw(st.integers(0, 12))
    line = []
    for arrival in range(count):
        tokens = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
        line.append(
            Queued(
                arrival,
                len(tokens),
                draw(st.integers(0, len(tokens))),
                draw(st.integers(-1, 1)),
                draw(st.integers(0, 100)),
                packed(tokens),
                draw(st.sampled_from(["a", "b"])),
            )
        )
    return draw(st.permutations(line))


@pytest.mark.parametrize("name", POLICIES)
@given(line=waiting_lines())
def test_every_policy_orders_all_and_classes_come_first(name: str, line: list[Queued]) -> None:
    """Nobody is dropped or doubled, a higher class goes before a lower one, and the line itself stays as it was."""
    before = list(line)
    ordered = policy_named(name).order(line, 100)
    assert sorted(one.arrival for one in ordered) == sorted(one.arrival for one in before)
    assert all(one.priority >= two.priority for one, two in pairwise(ordered))
    assert line == before


@pytest.mark.parametrize("name", POLICIES)
@given(line=waiting_lines(), data=st.data())
def test_an_order_does_not_depend_on_the_sequence_it_is_given(
    name: str, line: list[Queued], data: st.DataObject
) -> None:
    """The same requests in another sequence come out in the same order."""
    policy = policy_named(name)
    assert policy.order(line, 100) == policy.order(data.draw(st.permutations(line)), 100)


@given(line=waiting_lines())
def test_first_come_is_the_order_of_arrival_within_a_class(line: list[Queued]) -> None:
    """fcfs looks at nothing but class and arrival."""
    ordered = policy_named("fcfs").order(line, 100)
    assert all((-one.priority, one.arrival) < (-two.priority, two.arrival) for one, two in pairwise(ordered))


@given(line=waiting_lines())
def test_longest_prefix_goes_first_within_a_class(line: list[Queued]) -> None:
    """lpm goes by the hint, and by arrival among equals."""
    for one, two in pairwise(policy_named("lpm").order(line, 100)):
        if one.priority == two.priority:
            assert (one.hint, -one.arrival) > (two.hint, -two.arrival)


@given(line=waiting_lines())
def test_highest_response_ratio_goes_first_within_a_class(line: list[Queued]) -> None:
    """hrrn goes by 1 + tokens processed since arrival over uncached tokens (at least one), by arrival among equals."""

    def ratio(one: Queued) -> float:
        return 1 + (100 - one.since) / max(1, one.uncached)

    for one, two in pairwise(policy_named("hrrn").order(line, 100)):
        if one.priority == two.priority:
            assert ratio(one) > ratio(two) or (ratio(one) == ratio(two) and one.arrival < two.arrival)


def test_who_waits_long_enough_goes_before_a_cached_one_under_hrrn() -> None:
    """A cold request's ratio grows with the tokens processed, until it beats a newcomer with little to compute."""
    cold, hot = Queued(0, 1000, 0), Queued(1, 1000, 990, since=900)
    assert policy_named("hrrn").order([cold, hot], 901) == [cold, hot]
    assert policy_named("hrrn").order([cold, hot], 1000) == [hot, cold]
    assert policy_named("hrrn").order([cold, Queued(2, 1000, 990, since=99_999)], 100_000)[0] is cold


def test_the_heaviest_subtree_is_walked_depth_first() -> None:
    """dfs-weight: the prefix most requests share first, inside it again, other namespaces apart, equals by arrival."""
    texts = [
        ("a", [9, 9]),
        ("a", [1, 2]),
        ("b", [1, 3, 4]),
        ("a", [1, 3, 5]),
        ("a", [1, 3, 4]),
        ("a", [1]),
        ("b", [1, 4]),
    ]
    line = [Queued(at, len(key), key=packed(key), namespace=space) for at, (space, key) in enumerate(texts)]
    ordered = policy_named("dfs-weight").order(line[::-1], 0)
    assert [one.arrival for one in ordered] == [5, 3, 4, 1, 2, 6, 0]


def test_subtrees_are_weighed_within_a_class() -> None:
    """Requests of another class add no weight to a prefix."""
    keys = [(0, [1, 1]), (0, [2, 1]), (1, [2, 2]), (1, [2, 3]), (0, [1, 2])]
    line = [Queued(at, 2, priority=rank, key=packed(key)) for at, (rank, key) in enumerate(keys)]
    assert [one.arrival for one in policy_named("dfs-weight").order(line, 0)] == [2, 3, 0, 4, 1]


def test_an_unknown_policy_is_refused_and_the_known_ones_are_named() -> None:
    """The error says what there is."""
    with pytest.raises(ConfigError, match="'random' is unknown; there are dfs-weight, fcfs, hrrn, lpm"):
        policy_named("random")
