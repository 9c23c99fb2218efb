"""Export: everything that is cached, as it was at one moment, in messages of bounded size."""

from __future__ import annotations

import random

import pytest

from sgl_actors.actors.cache import export
from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.export import snapshot
from sgl_actors.actors.cache.messages import Edge, Entry, Want, pack


def fill(cache: RadixCache, lease: int, tokens: list[int], namespace: str) -> None:
    key = pack(tokens)
    assert cache.grant(Want(lease, key, len(tokens), len(tokens), namespace)) is not None
    assert cache.commit(Entry(lease, key))


def prefixes(edges: list[Edge]) -> set[tuple[str, tuple[int, ...]]]:
    """All prefixes that the edges spell, by following numbers; parents must come first."""
    ends: list[tuple[int, ...]] = []
    spelled: set[tuple[str, tuple[int, ...]]] = set()
    for edge in edges:
        assert edge.number == len(ends)
        above = () if edge.parent == -1 else ends[edge.parent]
        ends.append((*above, *edge.token_ids))
        spelled |= {
            (edge.namespace, ends[-1][:length]) for length in range(len(above) + 1, len(ends[-1]) + 1)
        }
    return spelled


def test_edges_spell_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tree's shape, the edges give all prefixes back; no message and no edge is longer than its limit."""
    monkeypatch.setattr(export, "LONGEST_EDGE", 5)
    monkeypatch.setattr(export, "TOKENS_PER_MESSAGE", 12)
    monkeypatch.setattr(export, "EDGES_PER_MESSAGE", 4)
    chance = random.Random(5)
    cache = RadixCache(2000, 1)
    due: set[tuple[str, tuple[int, ...]]] = set()
    for lease in range(60):
        key = [chance.randrange(2) for _ in range(chance.randint(1, 30))]
        name = chance.choice(["a", "b"])
        fill(cache, lease, key, name)
        due |= {(name, tuple(key[:length])) for length in range(1, len(key) + 1)}
    messages = list(snapshot(cache.tree).exported())
    edges = [edge for message in messages for edge in message.edges]
    assert prefixes(edges) == due
    assert max(len(edge.token_ids) for edge in edges) == 5
    assert max(len(message.edges) for message in messages) <= 4
    assert max(sum(len(edge.token_ids) for edge in message.edges) for message in messages) <= 12
    only = [edge for message in snapshot(cache.tree, "b").exported() for edge in message.edges]
    assert prefixes(only) == {prefix for prefix in due if prefix[0] == "b"}


def test_snapshot_is_of_one_moment() -> None:
    """What is evicted or inserted while somebody reads does not change what is read."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2, 3, 4], "a")
    pages = snapshot(cache.tree).exported()
    fill(cache, 2, [5, 6, 7, 8, 9, 10], "a")
    assert [edge.token_ids for page in pages for edge in page.edges] == [[1, 2, 3, 4]]


def test_edges_say_who_uses_them() -> None:
    """Hits count the leases that were granted with an edge, locks those that end there and children that are locked."""
    cache = RadixCache(8, 1)
    fill(cache, 1, [1, 2, 3], "a")
    for lease in (2, 3):
        cache.grant(Want(lease, pack([1, 2, 3, 4]), 3, 4, "a"))
    cache.grant(Want(4, pack([1, 2]), 2, 2, "a"))
    edges = [edge for page in snapshot(cache.tree).exported() for edge in page.edges]
    assert [(edge.token_ids, edge.hits, edge.locks) for edge in edges] == [([1, 2], 3, 2), ([3], 2, 2)]


def test_empty_tree_exports_nothing() -> None:
    """No message at all."""
    assert list(snapshot(RadixCache(4, 1).tree).exported()) == []
