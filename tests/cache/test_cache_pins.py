"""Pins: what they hold, for how long, and for whom they give way."""

from __future__ import annotations

import math

import pytest

from sgl_actors.actors.cache import pins
from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import DEFAULT, Entry, More, Pin, Pinned, Probe, Want, pack
from sgl_actors.errors import InvalidRequest, NotReady, Overloaded


def fill(cache: RadixCache, lease: int, tokens: list[int], namespace: str = DEFAULT) -> None:
    """Compute `tokens` under a lease and leave them in the tree."""
    key = pack(tokens)
    assert cache.grant(Want(lease, key, len(tokens), len(tokens), namespace)) is not None
    assert cache.commit(Entry(lease, key))


def pin(
    cache: RadixCache,
    tokens: list[int],
    name: str = "p",
    *,
    ttl: float = 10.0,
    now: float = 0.0,
    namespace: str = DEFAULT,
) -> Pinned:
    return cache.pins.pin(Pin(key=pack(tokens), ttl=ttl, name=name, namespace=namespace), now)


def match(cache: RadixCache, tokens: list[int]) -> int:
    return cache.match([Probe(pack(tokens))])[0]


def rows(cache: RadixCache, now: float = 0.0) -> list[tuple[str, int]]:
    return [(row.name, row.held) for row in cache.pins.rows(None, now)]


def test_pinned_prefix_outlives_eviction_and_flush() -> None:
    """What is pinned is cached and locked, page for page; the rest of the same edge is not."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2, 3, 4])
    assert pin(cache, [1, 2, 3]) == Pinned("p", DEFAULT, 3, 3, 10.0)
    assert (cache.cached, cache.locked, cache.pins.held) == (4, 3, 3)
    cache.flush()
    assert match(cache, [1, 2, 3, 4]) == 3
    assert cache.check() == []
    cache.pins.unpin(DEFAULT, ["p", "unheard of"])
    cache.flush()
    assert match(cache, [1, 2, 3]) == 0
    assert cache.check() == []


def test_pin_holds_what_comes_later() -> None:
    """A prefix that is not cached is held as soon as it is inserted, as far as it is, also after the pool was made anew."""
    cache = RadixCache(8, 1)
    assert pin(cache, [1, 2, 3, 4]).held == 0
    fill(cache, 1, [1, 2, 9])
    assert rows(cache) == [("p", 2)]
    fill(cache, 2, [1, 2, 3, 4, 5])
    assert rows(cache) == [("p", 4)]
    assert cache.check() == []
    again = RadixCache(8, 1, pins=cache.pins)
    assert rows(again) == [("p", 0)]
    fill(again, 1, [1, 2, 3, 4])
    again.flush()
    assert (rows(again), again.cached, again.check()) == ([("p", 4)], 4, [])


def test_pin_of_another_namespace_holds_nothing() -> None:
    """The same tokens elsewhere are something else."""
    cache = RadixCache(8, 1)
    pin(cache, [1, 2], namespace="other")
    fill(cache, 1, [1, 2])
    assert rows(cache) == [("p", 0)]


def test_pins_expire() -> None:
    """A pin ends when its time is over, by the clock it is given; `next_expiry` says when to look."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2])
    pin(cache, [1, 2], "long", ttl=10)
    pin(cache, [1], "short", ttl=2)
    assert cache.pins.next_expiry() == 2
    assert [row.expires_in for row in cache.pins.rows(None, 1.5)] == [8.5, 0.5]
    assert [row.name for row in cache.pins.rows(None, 2.0)] == ["long"]
    assert [one.name for one in cache.pins.expire(2.0)] == ["short"]
    assert [one.name for one in cache.pins.expire(10.0)] == ["long"]
    assert (cache.locked, cache.pins.next_expiry()) == (0, None)


def test_pinning_a_live_name_replaces_it() -> None:
    """The old prefix is let go, unless the new one is refused."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2])
    fill(cache, 2, [7, 8])
    pin(cache, [1, 2])
    with pytest.raises(InvalidRequest):
        pin(cache, [7] * 5)
    assert cache.locked == 2
    pin(cache, [7, 8], ttl=20)
    cache.flush()
    assert [match(cache, key) for key in ([1, 2], [7, 8])] == [0, 2]
    assert cache.pins.next_expiry() == 20


def test_names_are_per_namespace() -> None:
    """Nobody unpins or replaces what another namespace has pinned under the same name."""
    cache = RadixCache(8, 1)
    pin(cache, [1], namespace="a")
    pin(cache, [2], namespace="b")
    cache.pins.unpin("a", ["p"])
    assert [row.namespace for row in cache.pins.rows(None, 0.0)] == ["b"]
    assert cache.pins.rows("a", 0.0) == []


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Pin(key=pack([1] * 4), ttl=0.0, name="p"), "seconds, not 0"),
        (Pin(key=pack([1] * 4), ttl=-1.0, name="p"), "seconds"),
        (Pin(key=pack([1] * 4), ttl=math.nan, name="p"), "seconds"),
        (Pin(key=pack([1] * 4), ttl=math.inf, name="p"), "seconds"),
        (Pin(key=pack([1] * 4), ttl=30 * 24 * 3600 + 1.0, name="p"), "seconds"),
        (Pin(key=pack([1] * 3), ttl=1.0, name="p"), "whole pages of 4 tokens"),
        (Pin(key=pack([1] * 4) + b"x", ttl=1.0, name="p"), "33 bytes"),
        (Pin(key=pack([1] * 4), ttl=1.0, name="n" * 65), "1 to 64"),
        (Pin(key=pack([1] * 4), ttl=1.0, name=""), "1 to 64"),
        (Pin(key=pack([1] * 24), ttl=1.0, name="p"), "24 tokens take 6 pages, more than the 4"),
    ],
)
def test_bad_pin_is_refused(wish: Pin, why: str) -> None:
    """The message names the limit, and nothing is pinned."""
    cache = RadixCache(8, 4)
    with pytest.raises(InvalidRequest, match=why):
        cache.pins.pin(wish, 0.0)
    assert cache.pins.count == 0


def test_pins_together_hold_a_share_of_the_pool() -> None:
    """Distinct pages count, cached or not; who asks for more is told the limit, what is pinned, and what to do."""
    cache = RadixCache(12, 1)
    pin(cache, [1, 2, 3], "one")
    pin(cache, [1, 2, 3, 4], "two")
    assert cache.pins.wished == 4
    with pytest.raises(Overloaded, match=r"4 of the 6 pages .* takes 3 more: unpin"):
        pin(cache, [7, 8, 9], "three")
    pin(cache, [7, 8], "three")
    with pytest.raises(Overloaded):
        pin(cache, [1], "four", namespace="other")
    pin(cache, [1], "four", namespace="other", now=10.0)


def test_number_of_pins_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it one has to go first; replacing is still possible."""
    monkeypatch.setattr(pins, "MOST_PINS", 2)
    cache = RadixCache(8, 1)
    pin(cache, [1], "a")
    pin(cache, [1], "b")
    with pytest.raises(Overloaded, match="2 prefixes"):
        pin(cache, [1], "c")
    pin(cache, [2], "b")


def test_pin_before_there_is_a_pool() -> None:
    """Whoever is too early is told so."""
    with pytest.raises(NotReady):
        pin(RadixCache(0, 1), [1])


def test_without_a_share_of_the_pool_nothing_can_be_pinned() -> None:
    """Trying again would never help: the error says which value has to change."""
    for share in (0.0, 0.1):
        with pytest.raises(InvalidRequest, match=f"pinned = {share:g} leaves no page; raise it in node.toml"):
            pin(RadixCache(8, 1, pins=pins.PinBoard(share)), [1])


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a b", "a/b", "a\n", "x" * 65])
def test_names_that_no_pin_has(name: str) -> None:
    """A name stands in a path of HTTP and in messages."""
    with pytest.raises(InvalidRequest, match="name: ") as caught:
        pin(RadixCache(8, 1), [1], name)
    assert caught.value.param == "name"


def test_smaller_pool_drops_the_oldest_wishes() -> None:
    """After a reset to fewer pages no more than the share of those is wished for."""
    cache = RadixCache(12, 1)
    pin(cache, [1, 2, 3], "old")
    pin(cache, [4, 5, 6], "new")
    again = RadixCache(8, 1, pins=cache.pins)
    assert rows(again) == [("new", 0)]
    assert [one.name for one in again.pins.yielded] == ["old"]


def test_oldest_pins_give_way_to_a_request_that_runs_alone() -> None:
    """A request that needs more than the pins leave waits while others run, and is served once nothing else is leased."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2])
    fill(cache, 2, [3, 4])
    pin(cache, [1, 2], "old")
    pin(cache, [3, 4], "new")
    assert cache.grant(Want(3, b"", 0, 1)) is not None
    big = Want(4, b"", 0, 6)
    assert cache.grant(big) is None
    cache.commit(Entry(3, b""))
    assert cache.grant(Want(5, b"", 0, 9)) is None
    assert cache.grant(Want(5, b"", 0, 1, least=1)) is None
    assert cache.pins.count == 2
    assert cache.grant(big) is not None
    assert rows(cache) == [("new", 2)]
    assert cache.pins.yielded_total == 1
    assert cache.check() == []


def test_pins_give_way_to_a_lease_that_grows_alone() -> None:
    """The only live lease may grow into pinned pages, up to the whole pool and no further; one of two may not."""
    cache = RadixCache(6, 1)
    fill(cache, 1, [1, 2, 3])
    pin(cache, [1, 2, 3])
    cache.grant(Want(2, pack([1, 2, 9]), 3, 3))
    cache.grant(Want(3, b"", 0, 1))
    assert cache.extend(More(2, 2)) is None
    cache.commit(Entry(3, b""))
    assert cache.extend(More(2, 4)) is None
    assert cache.pins.count == 1
    grown = cache.extend(More(2, 3))
    assert grown is not None
    assert (len(grown), cache.pins.count, cache.pins.yielded_total) == (3, 0, 1)
    assert cache.check() == []
