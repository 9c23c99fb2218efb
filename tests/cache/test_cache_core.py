"""Each rule of pages, leases and the radix tree by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from sgl_actors.actors.cache import radix_tree
from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import Entry, Lease, Want
from sgl_actors.actors.cache.radix_tree import RadixTree, pack
from sgl_actors.errors import InvalidRequest


def grant(
    cache: RadixCache,
    lease: int,
    tokens: list[int],
    *,
    room: int = 0,
    limit: int | None = None,
    tenant: str = "default",
) -> Lease:
    """A lease over `tokens` and `room` more; it must fit."""
    limit = len(tokens) if limit is None else limit
    got = cache.grant(Want(lease, tokens, limit, len(tokens) + room, tenant))
    assert got is not None
    return got


def fill(cache: RadixCache, lease: int, tokens: list[int], tenant: str = "default") -> None:
    """Compute `tokens` under a lease and leave them in the tree."""
    grant(cache, lease, tokens, tenant=tenant)
    assert cache.commit(Entry(lease, tokens))


def test_second_request_finds_the_first_ones_prefix() -> None:
    """What one lease committed, the next one gets locked, in the same pages."""
    cache = RadixCache(16, 1)
    first = grant(cache, 1, [1, 2, 3, 4])
    cache.commit(Entry(1, [1, 2, 3, 4]))
    second = grant(cache, 2, [1, 2, 3, 9])
    assert second.cached == 3
    assert second.pages[:3] == first.pages[:3]
    assert (cache.free, cache.cached, cache.locked, cache.leased) == (11, 4, 3, 1)


@pytest.mark.parametrize(("page_size", "cached"), [(1, 7), (4, 4), (16, 0)])
def test_match_ends_at_a_page(page_size: int, cached: int) -> None:
    """Only whole pages of common tokens count."""
    cache = RadixCache(64, page_size)
    fill(cache, 1, list(range(20)))
    assert cache.match("default", [*range(7), 99, 98]) == cached


def test_limit_caps_the_match_but_not_the_pages() -> None:
    """A lease takes at most `limit` tokens from the tree and still has room for all it asked for."""
    cache = RadixCache(32, 4)
    fill(cache, 1, list(range(16)))
    lease = grant(cache, 2, list(range(16)), limit=15, room=3)
    assert lease.cached == 12
    assert len(lease.pages) == 5
    assert cache.check() == []


def test_duplicates_stay_the_leases_until_it_ends() -> None:
    """Two leases compute the same; the second keeps its own pages, usable, and they are free when it ends."""
    cache = RadixCache(8, 1)
    one, two = grant(cache, 1, [1, 2, 3], room=1), grant(cache, 2, [1, 2, 3], room=1)
    assert not set(one.pages) & set(two.pages)
    cache.commit(Entry(1, [1, 2, 3], release=False))
    cache.commit(Entry(2, [1, 2, 3, 5], release=False))
    assert (cache.free, cache.cached, cache.leased) == (0, 4, 4)
    cache.commit(Entry(2, [1, 2, 3, 5]))
    assert (cache.free, cache.cached, cache.leased) == (3, 4, 1)
    assert cache.check() == []


def test_partial_commit_can_be_shared_at_once_and_continued() -> None:
    """A commit without release shows the prefix to others and leaves the lease its pages for more."""
    cache = RadixCache(16, 2)
    lease = grant(cache, 1, [1, 2, 3, 4, 5], room=4)
    cache.commit(Entry(1, [1, 2, 3, 4, 5], release=False))
    other = grant(cache, 2, [1, 2, 3, 4, 8])
    assert other.pages[:2] == lease.pages[:2]
    cache.commit(Entry(1, [1, 2, 3, 4, 5, 6, 7, 8]))
    assert cache.match("default", [1, 2, 3, 4, 5, 6, 7, 8]) == 8
    assert cache.check() == []


def test_fewer_tokens_than_pages_gives_the_rest_back() -> None:
    """Pages that no committed token fills are free after the release."""
    cache = RadixCache(10, 4)
    grant(cache, 1, [1, 2, 3], room=20)
    cache.commit(Entry(1, [1, 2, 3, 4, 5]))
    assert (cache.free, cache.cached, cache.leased) == (9, 1, 0)


@pytest.mark.parametrize("tokens", [[9, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]])
def test_impossible_commit_inserts_nothing(tokens: list[int]) -> None:
    """Tokens that part from the locked prefix, or outnumber the pages, are refused; the release counts all the same."""
    cache = RadixCache(16, 1)
    fill(cache, 1, [1, 2, 3])
    grant(cache, 2, [1, 2, 3], room=3)
    assert cache.commit(Entry(2, tokens)) is False
    assert (cache.cached, cache.leased, cache.leases) == (3, 0, 0)
    assert cache.counters.refused_commits == 1
    assert cache.check() == []


def test_least_recently_used_leaf_goes_first_and_only_as_far_as_needed() -> None:
    """Eviction takes pages from the tail of the oldest leaf; a leaf used again meanwhile is not the oldest."""
    cache = RadixCache(12, 1)
    fill(cache, 1, [1, 2, 3, 4])
    fill(cache, 2, [5, 6, 7, 8])
    fill(cache, 3, [9, 10, 11, 12])
    fill(cache, 4, [1, 2, 3, 4])
    grant(cache, 5, [20, 21, 22])
    assert cache.match("default", [1, 2, 3, 4]) == 4
    assert cache.match("default", [5, 6, 7, 8]) == 1
    assert cache.match("default", [9, 10, 11, 12]) == 4
    assert cache.check() == []


def test_parent_becomes_a_leaf() -> None:
    """When the children are gone, the common prefix can be evicted too, and the empty tenant goes with it."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2, 3])
    fill(cache, 2, [1, 2, 4])
    assert cache.tree.nodes == 3
    grant(cache, 3, [7] * 8)
    assert (cache.cached, cache.tree.nodes) == (0, 0)
    cache.release_all()
    assert cache.tree.tenants == 0


def test_locked_pages_are_never_evicted() -> None:
    """A want that would need locked pages does not fit, and asking changes nothing."""
    cache = RadixCache(6, 1)
    fill(cache, 1, [1, 2, 3, 4])
    grant(cache, 2, [1, 2, 3], room=1)
    assert cache.grant(Want(3, [8, 8, 8, 8], 3, 4)) is None
    assert cache.match("default", [1, 2, 3, 4]) == 4
    assert cache.check() == []


def test_tenants_share_no_pages() -> None:
    """The same tokens under another tenant are not cached."""
    cache = RadixCache(16, 1)
    fill(cache, 1, [1, 2, 3], tenant="a")
    assert cache.match("a", [1, 2, 3]) == 3
    assert cache.match("b", [1, 2, 3]) == 0
    assert grant(cache, 2, [1, 2, 3], tenant="b").cached == 0


def test_negative_tokens_are_keys_like_others() -> None:
    """Content hashes, down to the least int64, match and part as any token does."""
    cache = RadixCache(16, 2)
    fill(cache, 1, [-1, -(2**63), 5, 2**63 - 1])
    assert cache.match("default", [-1, -(2**63), 5, 2**63 - 1]) == 4
    assert cache.match("default", [-1, -(2**63), 5, -2]) == 2


def test_token_beyond_64_bits_is_the_askers_error() -> None:
    """A key that cannot be packed is refused by name, and nothing is leased."""
    cache = RadixCache(8, 1)
    with pytest.raises(InvalidRequest, match="64 bits"):
        cache.grant(Want(1, [2**63], 1, 4))
    assert (cache.free, cache.leases) == (8, 0)


def test_lease_number_in_use_is_refused() -> None:
    """Two live leases never share a number."""
    cache = RadixCache(8, 1)
    grant(cache, 1, [1])
    with pytest.raises(InvalidRequest, match="lease 1"):
        cache.grant(Want(1, [2], 1, 1))


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
            place, pages = tree.lock("t", key)
            end, _ = tree.insert(place, key, len(pages), range(number * 100, number * 100 + 100))
            tree.unlock(end)

        for number, key in enumerate(keys):
            insert(number, key)

        def read() -> None:
            for key in keys[:: leaves // 100]:
                tree.match("t", key)
                tree.unlock(tree.lock("t", key)[0])

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
