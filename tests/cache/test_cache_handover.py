"""What one cache tells another that takes its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.handover import CachedEdge, Contents, HeldLease, LivePin
from sgl_actors.actors.cache.messages import Entry, Lease, Pin, Want, pack
from sgl_actors.actors.cache.naive import NaiveCache
from sgl_actors.actors.cache.pins import PinBoard
from sgl_actors.errors import SwapFailed


def filled() -> RadixCache:
    """Two branches behind [1, 2], a lease on the older one, and a pin."""
    cache = RadixCache(16, 1)
    for number, last in enumerate((3, 4)):
        cache.grant(Want(number, pack([1, 2, last]), 3, 3))
        cache.commit(Entry(number, pack([1, 2, last])))
    cache.grant(Want(9, pack([1, 2, 3, 5]), 3, 6))
    cache.pins.pin(Pin(pack([1, 2]), 10.0, name="kept"), 100.0)
    return cache


def via_naive(contents: Contents) -> Contents:
    return NaiveCache.taken(contents, 0.0).contents(0.0)


@pytest.mark.parametrize("way", [lambda contents: contents, via_naive])
def test_successor_goes_on_where_the_cache_was_left(way: Callable[[Contents], Contents]) -> None:
    """Leases keep their pages, pins the seconds that they have left, and of two branches the newer one is still the one to guess from."""
    old = filled()
    cache = RadixCache.taken(way(old.contents(104.0)), 0.0)
    assert cache.check() == []
    assert (cache.free, cache.cached, cache.leased) == (old.free, old.cached, old.leased)
    assert (cache.locked, cache.pins.held) == (old.locked, old.pins.held)
    (pin,) = cache.pins.rows(None, 0.0)
    assert (pin.name, pin.held, pin.expires_in) == ("kept", 2, 6.0)
    lease = cache.grant(Want(10, pack([1, 2]), 1, 3, follow=4))
    assert isinstance(lease, Lease)
    assert lease.continuation == [4]
    assert cache.commit(Entry(9, pack([1, 2, 3, 5])))
    assert old.commit(Entry(9, pack([1, 2, 3, 5])))
    assert cache.cached == old.cached


def test_pins_give_way_where_they_may_hold_less() -> None:
    """A successor with a smaller share for pins ends the oldest."""
    old = filled()
    old.pins.pin(Pin(pack([7]), 10.0, name="young"), 100.0)
    cache = RadixCache.taken(old.contents(100.0), 0.0, pins=PinBoard(1 / 16))
    assert [pin.name for pin in cache.pins.rows(None, 0.0)] == ["young"]
    assert cache.check() == []


SOUND = Contents(
    8,
    1,
    [CachedEdge("a", -1, pack([1, 2]), [0, 1]), CachedEdge("a", 0, pack([3]), [2])],
    [HeldLease(1, "a", pack([1, 2]), [0, 1, 5])],
    [LivePin("a", "p", pack([1]), 5.0)],
)


def test_sound_contents_are_taken() -> None:
    """The example that the cases below make wrong."""
    cache = RadixCache.taken(SOUND, 0.0)
    assert (cache.free, cache.cached, cache.leased, cache.locked) == (4, 3, 1, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 7, pack([4]), [3])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, pack([3]), [3])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, pack([4, 5]), [3])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, b"", [])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, pack([4]), [5])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, pack([4]), [8])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, pack([4]), [-1])]),
        replace(SOUND, edges=[*SOUND.edges, CachedEdge("a", 0, pack([4]), [2**40])]),
        replace(SOUND, leases=[HeldLease(1, "a", pack([1, 9]), [0, 1, 5])]),
        replace(SOUND, leases=[HeldLease(1, "a", pack([1, 2]), [0])]),
        replace(SOUND, leases=[HeldLease(1, "a", pack([1, 2]), [0, 1, 5], [5])]),
        replace(SOUND, leases=SOUND.leases * 2),
        replace(SOUND, leases=[HeldLease(1, "a", b"torn", [0])]),
        replace(SOUND, pages=2),
        replace(SOUND, page_size=4),
    ],
)
def test_contents_that_contradict_themselves_are_refused(wrong: Contents) -> None:
    """So that the swap comes to nothing, before a page is given to two."""
    with pytest.raises(SwapFailed, match="contradict"):
        RadixCache.taken(wrong, 0.0)
