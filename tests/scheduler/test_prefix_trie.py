"""The trie of waiting requests against lists of tokens."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sgl_actors.actors.scheduler.prefix_trie import TOKEN_BYTES, Node, PrefixTrie
from tests.scheduler.queued import packed

NAMESPACES = st.sampled_from(["", "default", "other"])
KEYS = st.lists(st.integers(-1, 1), min_size=1, max_size=12)


def in_common(one: list[int], two: list[int]) -> int:
    """Leading tokens of both."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))))


class TrieComparison(RuleBasedStateMachine):
    """Everything asked of the trie is asked of a dictionary of keys too."""

    def __init__(self) -> None:
        super().__init__()
        self.trie: PrefixTrie[int] = PrefixTrie()
        self.keys: dict[int, tuple[str, list[int]]] = {}
        self.added = 0

    @rule(namespace=NAMESPACES, key=KEYS)
    def add(self, namespace: str, key: list[int]) -> None:
        self.added += 1
        self.trie.add(self.added, namespace, packed(key))
        self.keys[self.added] = (namespace, key)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        item = data.draw(st.integers(1, self.added + 1))
        self.trie.discard(item)
        self.keys.pop(item, None)

    @rule(namespace=NAMESPACES, key=KEYS)
    def shared(self, namespace: str, key: list[int]) -> None:
        expected = max(
            (in_common(key, other) for room, other in self.keys.values() if room == namespace), default=0
        )
        assert self.trie.shared(namespace, packed(key)) == expected

    @invariant()
    def holds_what_was_added(self) -> None:
        assert len(self.trie) == len(self.keys)
        assert sorted(self.trie.depth_first()) == sorted(self.keys)
        assert all(item in self.trie for item in self.keys)

    @invariant()
    def is_compact(self) -> None:
        """Edges are not empty, counts add up, and a node without items has two children."""
        root: Node[int] = self.trie._root
        stack = [root]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            assert node.count == len(node.items) + sum(child.count for child in node.children.values())
            for head, child in node.children.items():
                assert child.parent is node
                assert child.head == head
                assert head.endswith(child.edge[:TOKEN_BYTES])
                assert child.items or len(child.children) > 1


TestTrieComparison = TrieComparison.TestCase


@given(st.lists(st.tuples(NAMESPACES, KEYS), max_size=12))
def test_depth_first_takes_the_heaviest_child_first(keys: list[tuple[str, list[int]]]) -> None:
    """At every token the group that most keys go on with comes first, of equals the one that was added first."""
    trie: PrefixTrie[int] = PrefixTrie()
    for item, (namespace, key) in enumerate(keys):
        trie.add(item, namespace, packed(key))
    assert list(trie.depth_first()) == naive_order(keys, list(range(len(keys))), 0)


def naive_order(keys: list[tuple[str, list[int]]], items: list[int], depth: int) -> list[int]:
    """Token by token: who ends here, then group by group."""
    ended = [item for item in items if len(keys[item][1]) == depth]
    groups: dict[tuple[str, int], list[int]] = {}
    for item in items:
        namespace, key = keys[item]
        if len(key) > depth:
            groups.setdefault((namespace, key[depth]), []).append(item)
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    return ended + [item for group in ordered for item in naive_order(keys, group, depth + 1)]


def test_an_edge_is_left_at_any_token() -> None:
    """A long key is found to share exactly the tokens it shares, wherever it departs and however long it is."""
    tokens = list(range(300))
    trie: PrefixTrie[str] = PrefixTrie()
    trie.add("one", "default", packed(tokens))
    for at in range(1, 300):
        assert trie.shared("default", packed([*tokens[:at], -1, *tokens[at:]])) == at
        assert trie.shared("default", packed(tokens[:at])) == at
    assert trie.shared("other", packed(tokens)) == 0
