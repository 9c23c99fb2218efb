"""What is kept for those who may come back, without actors."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.kept import Kept, Options, read_options
from sgl_actors.errors import ConfigError

keys = st.sampled_from("abcd")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), keys, st.integers(1, 50)),
        st.tuples(st.just("take"), keys, st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 6)),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_bounds_and_times_hold(script: list[tuple[str, str, int]]) -> None:
    """Against a plain list: whatever is added leaves once, by being taken, by its time, or as the oldest when there is no room."""
    kept: Kept[str] = Kept(Options(keep=5, keep_count=3, keep_bytes=100))
    model: list[tuple[str, int, int]] = []
    now = 0
    for what, key, number in script:
        model = [entry for entry in model if what == "wait" or entry[0] != key]
        if what == "take":
            kept.take(key)
        elif what == "wait":
            now += number
            over = [entry[0] for entry in model if entry[2] <= now]
            assert kept.expired(now) == over
            model = [entry for entry in model if entry[2] > now]
        else:
            gone = kept.add(key, key, number, now)
            model.append((key, number, now + 5))
            expected = []
            while len(model) > 3 or sum(entry[1] for entry in model) > 100:
                expected.append(model.pop(0)[0])
            assert gone == expected
        assert kept.keys() == [entry[0] for entry in model]
        assert kept.next() == (model[0][2] if model else None)
        assert [kept.get(entry[0]) for entry in model] == kept.keys()


def test_without_a_time_nothing_is_kept() -> None:
    """`keep = 0` turns it off: what is added goes at once, and so does what is larger than all room."""
    assert Kept[str](Options(keep=0)).add("a", "a", 1, 0.0) == ["a"]
    assert Kept[str](Options(keep_bytes=10)).add("a", "a", 11, 0.0) == ["a"]


def test_times_are_handed_over() -> None:
    """A successor keeps each for what is left of its time."""
    kept: Kept[str] = Kept(Options(keep=5))
    kept.add("a", "a", 1, 0.0)
    kept.add("b", "b", 1, 3.0)
    successor: Kept[str] = Kept(Options(keep=5))
    for value, left in kept.left(4.0):
        successor.add(value, value, 1, 4.0, left=left)
    assert successor.expired(4.9) == []
    assert successor.expired(5.0) == ["a"]
    assert successor.expired(8.0) == ["b"]


@pytest.mark.parametrize("options", [{"keep": -1}, {"keep_count": "many"}, {"kep": 5}])
def test_options_that_are_none_are_named(options: dict[str, object]) -> None:
    """A wrong setting ends the start with its place in node.toml."""
    with pytest.raises(ConfigError, match=r"actors\.tokenizer\.options"):
        read_options({"options": options})
    assert read_options({}) == Options()
