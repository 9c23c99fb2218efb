"""A radix trie of the keys of requests: how much of a key others have as well, and which prefixes most of them share.

It knows nothing of pages or of what is cached; that is the cache's tree. Keys are packed int64 tokens, edges are
compared as bytes, and the place where an edge stops fitting is found by halving, so an operation costs a few `memcmp`s
of the key's length and about a microsecond per edge on its path. No node but the root is without items and has a single
child: what splits on `add` is merged on `discard`, so that a hot prefix does not collect the branches of the past.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

TOKEN_BYTES = 8
"""Bytes of one token in a packed key."""

T = TypeVar("T", bound=Hashable)


class Node(Generic[T]):
    """One edge of the trie and the place where it ends.

    Attributes:
        parent: None for the root.
        head: under which the parent has it: the edge's first token, below the root with the namespace before it.
        edge: packed tokens of the edge.
        children: by their heads, in the order in which they were added.
        items: those whose key ends here, in the order in which they were added.
        count: items here and below.
    """

    __slots__ = ("children", "count", "edge", "head", "items", "parent")

    def __init__(self, parent: Node[T] | None, head: bytes, edge: bytes, count: int = 0) -> None:
        self.parent = parent
        self.head = head
        self.edge = edge
        self.children: dict[bytes, Node[T]] = {}
        self.items: dict[T, None] = {}
        self.count = count

    def __repr__(self) -> str:
        return (
            f"<Node tokens={len(self.edge) // TOKEN_BYTES} children={len(self.children)} count={self.count}>"
        )


class PrefixTrie(Generic[T]):
    """See the module. Keys of different namespaces share nothing."""

    def __init__(self) -> None:
        self._root: Node[T] = Node(None, b"", b"")
        self._places: dict[T, Node[T]] = {}

    def __repr__(self) -> str:
        return f"<PrefixTrie items={len(self._places)}>"

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: T) -> bool:
        return item in self._places

    def shared(self, namespace: str, key: bytes) -> int:
        """Leading tokens that `key` has in common with whichever key here shares most with it."""
        node, start = self._root, 0
        head = namespace.encode() + key[:TOKEN_BYTES]
        while start < len(key):
            child = node.children.get(head)
            if child is None:
                break
            if not key.startswith(child.edge, start):
                start += _common(child.edge, key, start)
                break
            start += len(child.edge)
            head = key[start : start + TOKEN_BYTES]
            node = child
        return start // TOKEN_BYTES

    def add(self, item: T, namespace: str, key: bytes) -> None:
        """Enter `key` (packed tokens, at least one) as that of `item`, which is not here yet."""
        assert item not in self._places, f"{item!r} is in the trie already"
        node, start = self._root, 0
        head = namespace.encode() + key[:TOKEN_BYTES]
        node.count += 1
        while start < len(key):
            child = node.children.get(head)
            if child is None:
                child = node.children[head] = Node(node, head, key[start:])
            elif not key.startswith(child.edge, start):
                child = _split(child, _common(child.edge, key, start))
            child.count += 1
            start += len(child.edge)
            head = key[start : start + TOKEN_BYTES]
            node = child
        node.items[item] = None
        self._places[item] = node

    def discard(self, item: T) -> None:
        """Take `item` out; nothing happens if it is not here."""
        node = self._places.pop(item, None)
        if node is None:
            return
        del node.items[item]
        place: Node[T] | None = node
        while place is not None:
            place.count -= 1
            place = place.parent
        if not node.count and node.parent is not None:
            del node.parent.children[node.head]
            node = node.parent
        if node.parent is not None and not node.items and len(node.children) == 1:
            _merge(node)

    def depth_first(self) -> Iterator[T]:
        """All items, those below the heaviest child first at every node; of equals, those added first."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            yield from node.items
            children = list(node.children.values())
            children.reverse()
            children.sort(key=_count)
            stack += children


def _count(node: Node[T]) -> int:
    return node.count


def _common(edge: bytes, key: bytes, start: int) -> int:
    """Bytes of whole tokens that `edge` and ``key[start:]`` have in common; their first token is known to be."""
    same, end = 1, min(len(edge), len(key) - start) // TOKEN_BYTES + 1
    while end - same > 1:
        middle = (same + end) // 2
        if key.startswith(edge[same * TOKEN_BYTES : middle * TOKEN_BYTES], start + same * TOKEN_BYTES):
            same = middle
        else:
            end = middle
    return same * TOKEN_BYTES


def _split(lower: Node[T], at: int) -> Node[T]:
    """Put a new node above `lower` that takes the first `at` bytes of its edge, and its place among its siblings."""
    assert lower.parent is not None
    upper = Node(lower.parent, lower.head, lower.edge[:at], lower.count)
    lower.parent.children[upper.head] = upper
    lower.edge = lower.edge[at:]
    lower.head = lower.edge[:TOKEN_BYTES]
    lower.parent = upper
    upper.children[lower.head] = lower
    return upper


def _merge(upper: Node[T]) -> None:
    """Undo a split: the only child of `upper` takes its edge and its place."""
    (lower,) = upper.children.values()
    assert upper.parent is not None
    lower.parent = upper.parent
    lower.edge = upper.edge + lower.edge
    lower.head = upper.head
    upper.parent.children[lower.head] = lower
