"""Each rule of pages, leases and the radix tree by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest

from sgl_actors.actors.cache import radix_tree
from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import DEFAULT, Entry, Lease, More, Probe, Want, pack
from sgl_actors.actors.cache.radix_tree import RadixTree
from sgl_actors.errors import ConfigError, InvalidRequest


def grant(
    cache: RadixCache,
    lease: int,
    tokens: Sequence[int],
    *,
    room: int = 0,
    limit: int | None = None,
    namespace: str = DEFAULT,
    priority: int = 0,
) -> Lease:
    """A lease over `tokens` and `room` more; it must fit."""
    limit = len(tokens) if limit is None else limit
    want = Want(lease, pack(tokens), limit, len(tokens) + room, namespace, priority=priority)
    got = cache.grant(want)
    assert got is not None
    return got


def commit(cache: RadixCache, lease: int, tokens: Sequence[int], *, release: bool = True) -> bool:
    return cache.commit(Entry(lease, pack(tokens), release))


def fill(
    cache: RadixCache, lease: int, tokens: Sequence[int], *, namespace: str = DEFAULT, priority: int = 0
) -> None:
    """Compute `tokens` under a lease and leave them in the tree."""
    grant(cache, lease, tokens, namespace=namespace, priority=priority)
    assert commit(cache, lease, tokens)


def match(cache: RadixCache, tokens: Sequence[int], namespace: str = DEFAULT) -> int:
    return cache.match([Probe(pack(tokens), namespace)])[0]


def test_second_request_finds_the_first_ones_prefix() -> None:
    """What one lease committed, the next one gets locked, in the same pages."""
    cache = RadixCache(16, 1)
    first = grant(cache, 1, [1, 2, 3, 4])
    commit(cache, 1, [1, 2, 3, 4])
    second = grant(cache, 2, [1, 2, 3, 9])
    assert second.cached == 3
    assert second.pages[:3] == first.pages[:3]
    assert (cache.free, cache.cached, cache.locked, cache.leased) == (11, 4, 3, 1)


@pytest.mark.parametrize(("page_size", "cached"), [(1, 7), (4, 4), (16, 0)])
def test_match_ends_at_a_page(page_size: int, cached: int) -> None:
    """Only whole pages of common tokens count."""
    cache = RadixCache(64, page_size)
    fill(cache, 1, range(20))
    assert match(cache, [*range(7), 99, 98]) == cached


def test_limit_caps_the_match_but_not_the_pages() -> None:
    """A lease takes at most `limit` tokens from the tree and still has room for all it asked for."""
    cache = RadixCache(32, 4)
    fill(cache, 1, range(16))
    lease = grant(cache, 2, range(16), limit=15, room=3)
    assert lease.cached == 12
    assert len(lease.pages) == 5
    assert cache.check() == []


def test_duplicates_stay_the_leases_until_it_ends() -> None:
    """Two leases compute the same; the second keeps its own pages, usable, and they are free when it ends."""
    cache = RadixCache(8, 1)
    one, two = grant(cache, 1, [1, 2, 3], room=1), grant(cache, 2, [1, 2, 3], room=1)
    assert not set(one.pages) & set(two.pages)
    commit(cache, 1, [1, 2, 3], release=False)
    commit(cache, 2, [1, 2, 3, 5], release=False)
    assert (cache.free, cache.cached, cache.leased) == (0, 4, 4)
    commit(cache, 2, [1, 2, 3, 5])
    assert (cache.free, cache.cached, cache.leased) == (3, 4, 1)
    assert cache.check() == []


def test_partial_commit_can_be_shared_at_once_and_continued() -> None:
    """A commit without release shows the prefix to others and leaves the lease its pages for more."""
    cache = RadixCache(16, 2)
    lease = grant(cache, 1, [1, 2, 3, 4, 5], room=4)
    commit(cache, 1, [1, 2, 3, 4, 5], release=False)
    other = grant(cache, 2, [1, 2, 3, 4, 8])
    assert other.pages[:2] == lease.pages[:2]
    commit(cache, 1, [1, 2, 3, 4, 5, 6, 7, 8])
    assert match(cache, [1, 2, 3, 4, 5, 6, 7, 8]) == 8
    assert cache.check() == []


def test_fewer_tokens_than_pages_gives_the_rest_back() -> None:
    """Pages that no committed token fills are free after the release."""
    cache = RadixCache(10, 4)
    grant(cache, 1, [1, 2, 3], room=20)
    commit(cache, 1, [1, 2, 3, 4, 5])
    assert (cache.free, cache.cached, cache.leased) == (9, 1, 0)


@pytest.mark.parametrize("key", [pack([9, 2, 3, 4, 5]), pack([1, 2, 3, 4, 5, 6, 7]), pack([1, 2, 3, 4])[:-1]])
def test_impossible_commit_inserts_nothing(key: bytes) -> None:
    """Tokens that part from the locked prefix, outnumber the pages or are torn are refused; the release counts all the same."""
    cache = RadixCache(16, 1)
    fill(cache, 1, [1, 2, 3])
    grant(cache, 2, [1, 2, 3], room=3)
    assert cache.commit(Entry(2, key)) is False
    assert (cache.cached, cache.leased, cache.leases) == (3, 0, 0)
    assert cache.counters.refused_commits == 1
    assert cache.check() == []


def test_lease_grows() -> None:
    """More pages come at the end of a lease, evicting what they must, and hold KV like the others."""
    cache = RadixCache(6, 1)
    fill(cache, 1, [7, 8])
    first = grant(cache, 2, [1, 2, 3])
    assert cache.extend(More(2, 4)) is None
    assert match(cache, [7, 8]) == 2
    pages = cache.extend(More(2, 2))
    assert pages is not None
    assert len({*first.pages, *pages}) == 5
    assert match(cache, [7, 8]) == 1
    assert commit(cache, 2, [1, 2, 3, 4, 5])
    assert match(cache, [1, 2, 3, 4, 5]) == 5
    assert cache.check() == []


def test_unknown_lease_does_not_grow() -> None:
    """Growing a lease that has ended counts as not fitting, and is counted."""
    cache = RadixCache(6, 1)
    assert cache.extend(More(3, 1)) is None
    assert cache.counters.unknown_leases == 1


def test_no_new_lease_while_one_cannot_grow() -> None:
    """Leases grow first and in order; behind the first that does not fit nothing is given out."""
    cache = RadixCache(6, 1)
    grant(cache, 1, [1])
    grant(cache, 2, [2])
    leases, grown = cache.serve([Want(3, b"", 0, 1)], [More(1, 1), More(2, 9), More(1, 1)])
    assert leases == []
    assert [len(pages) for pages in grown] == [1]
    leases, grown = cache.serve([Want(3, b"", 0, 1), Want(4, b"", 0, 9), Want(5, b"", 0, 1)], [More(2, 1)])
    assert [lease.lease for lease in leases] == [3]
    assert [len(pages) for pages in grown] == [1]


@pytest.mark.parametrize(
    ("wants", "more", "why"),
    [
        ([Want(2, b"", 0, 1), Want(3, b"123", 0, 1)], [], "3 bytes"),
        ([Want(2, b"", 0, 1), Want(2, b"", 0, 1)], [], "twice"),
        ([Want(2, b"", 0, 1), Want(1, b"", 0, 1)], [], "lease 1 is in use"),
        ([Want(2, b"", 0, -1)], [], "-1 tokens"),
        ([Want(2, b"", 0, 1)], [More(1, 2), More(1, -2)], "-2 pages"),
    ],
)
def test_bad_grant_changes_nothing(wants: list[Want], more: list[More], why: str) -> None:
    """One impossible row refuses the whole message before any page is given out: nobody would hear of those."""
    cache = RadixCache(8, 1)
    grant(cache, 1, [1])
    with pytest.raises(InvalidRequest, match=why):
        cache.serve(wants, more)
    assert (cache.free, cache.leases) == (7, 1)


def test_least_makes_a_short_match_not_fit() -> None:
    """A want that asks for at least so many cached tokens is left alone while there are fewer."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2, 3])
    want = Want(2, pack([1, 2, 3, 4]), 3, 4, least=4)
    assert cache.grant(want) is None
    fitting = cache.grant(Want(2, pack([1, 2, 3, 4]), 3, 4, least=3))
    assert fitting is not None
    assert fitting.cached == 3


def test_least_recently_used_leaf_goes_first_and_only_as_far_as_needed() -> None:
    """Eviction takes pages from the tail of the oldest leaf; a leaf used again meanwhile is not the oldest."""
    cache = RadixCache(12, 1)
    fill(cache, 1, [1, 2, 3, 4])
    fill(cache, 2, [5, 6, 7, 8])
    fill(cache, 3, [9, 10, 11, 12])
    fill(cache, 4, [1, 2, 3, 4])
    grant(cache, 5, [20, 21, 22])
    assert match(cache, [1, 2, 3, 4]) == 4
    assert match(cache, [5, 6, 7, 8]) == 1
    assert match(cache, [9, 10, 11, 12]) == 4
    assert cache.check() == []


def test_least_often_granted_leaf_goes_first() -> None:
    """By `lfu` a leaf granted often outlives one used later; among equals the least recently used goes."""
    cache = RadixCache(6, 1, "lfu")
    for lease in range(3):
        fill(cache, lease, [1, 2])
    fill(cache, 3, [3, 4])
    fill(cache, 4, [5, 6])
    grant(cache, 5, [20, 21, 22])
    assert [match(cache, key) for key in ([1, 2], [3, 4], [5, 6])] == [2, 0, 1]


def test_lowest_priority_leaf_goes_first() -> None:
    """By `priority` the greatest that ever inserted a prefix counts, also for a parent whose children are gone."""
    cache = RadixCache(6, 1, "priority")
    fill(cache, 1, [1, 2], priority=5)
    fill(cache, 2, [1, 3], priority=-1)
    fill(cache, 3, [4, 5])
    grant(cache, 4, [20, 21, 22])
    assert [match(cache, key) for key in ([1, 2], [1, 3], [4, 5])] == [2, 1, 1]


def test_duplicate_of_higher_priority_raises_what_is_cached() -> None:
    """Who computed the same under another lease counts too, even if the tree keeps the first one's pages."""
    cache = RadixCache(6, 1, "priority")
    grant(cache, 1, [1, 2])
    grant(cache, 2, [1, 2], priority=5)
    commit(cache, 1, [1, 2])
    commit(cache, 2, [1, 2])
    fill(cache, 3, [4, 5])
    grant(cache, 4, [20, 21, 22, 23])
    assert [match(cache, key) for key in ([1, 2], [4, 5])] == [2, 0]


def test_both_halves_of_an_edge_keep_its_priority() -> None:
    """Where a lower request begins within an edge, the beginning is not worth more than it was."""
    cache = RadixCache(6, 1, "priority")
    fill(cache, 1, [1, 2, 3], priority=-2)
    fill(cache, 2, [1, 4], priority=-2)
    fill(cache, 3, [7, 8], priority=-1)
    grant(cache, 4, [20, 21, 22, 23])
    assert [match(cache, key) for key in ([1, 2, 3], [7, 8])] == [0, 2]


def test_unknown_order_of_eviction_is_refused() -> None:
    """The message names the ones there are."""
    with pytest.raises(ConfigError, match="lru, lfu, priority"):
        RadixCache(1, 1, "fifo")


def test_touch_saves_what_waits() -> None:
    """What a touching match finds outlives what was used later; the first probe's is evicted last; nothing is split."""
    cache = RadixCache(9, 1)
    for lease, first in enumerate([10, 20, 30]):
        fill(cache, lease, [first, first + 1, first + 2])
    assert cache.match([Probe(pack([20, 99])), Probe(pack([10, 11, 12]))], touch=True) == [1, 3]
    assert cache.tree.nodes == 3
    grant(cache, 9, [90] * 5)
    assert [match(cache, [first, first + 1, first + 2]) for first in (10, 20, 30)] == [1, 3, 0]


def test_match_without_touch_changes_no_order() -> None:
    """Asking is free of consequences."""
    cache = RadixCache(4, 1)
    fill(cache, 1, [1, 2])
    fill(cache, 2, [3, 4])
    match(cache, [1, 2])
    grant(cache, 3, [9, 9])
    assert [match(cache, [1, 2]), match(cache, [3, 4])] == [0, 2]


def test_parent_becomes_a_leaf() -> None:
    """When the children are gone, the common prefix can be evicted too, and the empty namespace goes with it."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2, 3])
    fill(cache, 2, [1, 2, 4])
    assert cache.tree.nodes == 3
    grant(cache, 3, [7] * 8)
    assert (cache.cached, cache.tree.nodes) == (0, 0)
    cache.release_all()
    assert cache.tree.namespaces == 0


def test_locked_pages_are_never_evicted() -> None:
    """A want that would need locked pages does not fit, and asking changes nothing."""
    cache = RadixCache(6, 1)
    fill(cache, 1, [1, 2, 3, 4])
    grant(cache, 2, [1, 2, 3], room=1)
    nodes = cache.tree.nodes
    assert cache.grant(Want(3, pack([1, 8, 8, 8]), 3, 4)) is None
    assert cache.grant(Want(3, b"", 0, 7, "unheard of")) is None
    assert match(cache, [1, 2, 3, 4]) == 4
    assert (cache.tree.nodes, cache.tree.namespaces) == (nodes, 1)
    assert cache.check() == []


def test_namespaces_share_no_pages() -> None:
    """The same tokens in another namespace are not cached."""
    cache = RadixCache(16, 1)
    fill(cache, 1, [1, 2, 3], namespace="a")
    assert match(cache, [1, 2, 3], "a") == 3
    assert match(cache, [1, 2, 3], "b") == 0
    assert grant(cache, 2, [1, 2, 3], namespace="b").cached == 0


def test_negative_tokens_are_keys_like_others() -> None:
    """Content hashes, down to the least int64, match and part as any token does."""
    cache = RadixCache(16, 2)
    fill(cache, 1, [-1, -(2**63), 5, 2**63 - 1])
    assert match(cache, [-1, -(2**63), 5, 2**63 - 1]) == 4
    assert match(cache, [-1, -(2**63), 5, -2]) == 2


def test_torn_key_is_the_askers_error() -> None:
    """A key that is no sequence of int64 is refused by name."""
    cache = RadixCache(8, 1)
    with pytest.raises(InvalidRequest, match="9 bytes"):
        cache.match([Probe(b"123456789")])
    with pytest.raises(InvalidRequest, match="9 bytes"):
        cache.grant(Want(1, b"123456789", 1, 4))
    assert (cache.free, cache.leases) == (8, 0)


def test_lease_number_in_use_is_refused() -> None:
    """Two live leases never share a number."""
    cache = RadixCache(8, 1)
    grant(cache, 1, [1])
    with pytest.raises(InvalidRequest, match="lease 1"):
        cache.grant(Want(1, pack([2]), 1, 1))


def test_check_finds_and_repair_mends_a_lost_page() -> None:
    """A page that nobody owns is reported in words, and is free after a repair."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2])
    grant(cache, 2, [1, 2, 3])
    cache._pool.take(1)
    assert "total 8" in cache.check(full=False)[0]
    cache.repair()
    assert cache.check() == []
    assert cache.leased == 1


def test_check_finds_a_lock_nobody_holds() -> None:
    """A lock without a lease is named."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2])
    cache.tree.lock(cache.tree.find(DEFAULT, pack([1, 2])))
    assert any("should have 0 locks" in problem for problem in cache.check())


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of the tree's module `work` executes."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != radix_tree.__file__:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_operations_do_not_grow_with_the_tree() -> None:
    """Matching, locking, inserting and evicting in a tree 30 times as large run hardly more lines: only the heap is deeper."""

    def work(leaves: int) -> tuple[int, int, int]:
        tree = RadixTree(1)
        keys = [pack([leaf % 50, *([leaf] * 99)]) for leaf in range(leaves)]

        def insert(number: int, key: bytes) -> None:
            place = tree.find("t", key)
            node = tree.lock(place)
            end, _ = tree.insert(node, key, place.length, range(number * 100, number * 100 + 100), 0)
            tree.touch(end)
            tree.unlock(end)

        for number, key in enumerate(keys):
            insert(number, key)

        def read() -> None:
            for key in keys[:: leaves // 100]:
                tree.match("t", key, touch=True)
                tree.unlock(tree.lock(tree.find("t", key)))

        fresh = [pack([leaf % 50, *([leaves + leaf] * 99)]) for leaf in range(100)]

        def add() -> None:
            for number, key in enumerate(fresh):
                insert(leaves + number, key)

        return (
            lines_run(read),
            lines_run(add),
            lines_run(lambda: tree.evict(1000)),
        )

    for small, large in zip(work(100), work(3000), strict=True):
        assert 0 < large < 1.5 * small
