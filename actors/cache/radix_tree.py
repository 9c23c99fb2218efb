"""A radix tree from token ids to the KV pages that hold them (SGLang, arXiv 2312.07104, section 3).

Every edge holds whole pages: its tokens as packed int64 and one page number per `page_size` tokens. Children are
found by their first page, so two keys that part within a page part before it. Roots are per tenant.

Packed keys make the cost of an operation that of a few `memcmp`s: it grows with the length of the key and the
number of edges on its path, never with the tree. A cached token costs 8 bytes, a page 4, an edge some 300.

Eviction takes the least recently used leaf without locks, from its tail and only as many pages as are needed; a
parent left without children is a leaf in its turn. The heap is lazy: an edge stands in it at most once (`queued`),
with the time it had when it was pushed. Times only grow, so an entry that turns out too old is pushed again with the
right one, and the order is still exact. Edges never leave the tree but through the heap, hence it holds no dead ones
and stays as small as the tree.

Splitting keeps the *lower* half's identity: whoever holds an edge holds the place where it ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

TOKEN_BYTES = 8
"""Bytes of one token in a packed key."""


def pack(token_ids: Sequence[int]) -> bytes:
    """Token ids as a key. Raises `OverflowError` for one that is no int64."""
    return array("q", token_ids).tobytes()


class Node:
    """One edge of the tree and the place where it ends.

    Attributes:
        parent: None for a root.
        key: packed tokens of the edge, whole pages.
        pages: their pages.
        children: by the packed tokens of their first page.
        locks: leases that end here or below.
        used: logical time of the last use.
        queued: stands in the eviction heap.
    """

    __slots__ = ("children", "key", "locks", "pages", "parent", "queued", "used")

    def __init__(
        self, parent: Node | None, key: bytearray, pages: array[int], used: int, locks: int = 0
    ) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children: dict[bytes, Node] = {}
        self.locks = locks
        self.used = used
        self.queued = False

    def __repr__(self) -> str:
        return f"<Node pages={len(self.pages)} children={len(self.children)} locks={self.locks} used={self.used}>"


class Root(Node):
    """Where one tenant's keys begin."""

    __slots__ = ("tenant",)

    def __init__(self, tenant: str) -> None:
        super().__init__(None, bytearray(), array("i"), 0)
        self.tenant = tenant


class RadixTree:
    """See the module. It owns the pages inserted into it until `evict` gives them back.

    Positions and lengths in this interface are in pages; keys are packed and cut to whole pages by the caller.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._stride = TOKEN_BYTES * page_size
        self._roots: dict[str, Root] = {}
        self._heap: list[tuple[int, int, Node]] = []
        self._clock = 0
        self._pushes = 0
        self.cached = 0
        self.locked = 0
        self.nodes = 0

    def __repr__(self) -> str:
        return f"<RadixTree cached={self.cached} locked={self.locked} nodes={self.nodes} tenants={len(self._roots)}>"

    @property
    def evictable(self) -> int:
        """Pages that `evict` could give back now."""
        return self.cached - self.locked

    @property
    def tenants(self) -> int:
        """Roots that hold something."""
        return len(self._roots)

    def match(self, tenant: str, key: bytes) -> int:
        """Length of the longest cached prefix of `key`. Changes nothing, not even the time of last use."""
        root = self._roots.get(tenant)
        if root is None:
            return 0
        _, reached, edge = self._descend(root, key, 0)
        if edge is not None:
            reached += self._common(edge, key, reached)
        return reached // self._stride

    def lock(self, tenant: str, key: bytes) -> tuple[Node, list[int]]:
        """Lock the longest cached prefix of `key`; the place where it ends, and its pages in order."""
        root = self._roots.get(tenant)
        if root is None:
            root = self._roots[tenant] = Root(tenant)
        node, _ = self._reach(root, key, 0)
        self._lock(node, None)
        return node, self._pages_to(node)

    def unlock(self, node: Node) -> None:
        """Undo one `lock` (or the last `insert`) that ended at `node`."""
        place: Node | None = node
        while place is not None:
            place.locks -= 1
            assert place.locks >= 0, f"{place!r} unlocked once too often"
            if not place.locks:
                self.locked -= len(place.pages)
                self._now_free(place)
            place = place.parent

    def insert(self, node: Node, key: bytes, start: int, pages: Sequence[int]) -> tuple[Node, int]:
        """Insert `key` below `node`, which the caller has locked and which ends at page `start` of it.

        ``pages[i]`` holds page i of the key. The lock moves on to the place where `key` ends. Returns that place and
        the page `taken` from which on the tree took over `pages`; for those before, it has pages of its own.
        """
        end, reached = self._reach(node, key, start * self._stride)
        taken = reached // self._stride
        if reached < len(key):
            leaf = Node(
                end, bytearray(key[reached:]), array("i", pages[taken : len(key) // self._stride]), end.used
            )
            end.children[key[reached : reached + self._stride]] = leaf
            self.cached += len(leaf.pages)
            self.nodes += 1
            end = leaf
        self._lock(end, node)
        return end, taken

    def spells(self, node: Node, key: bytes, length: int) -> bool:
        """Whether the way from the root to `node` is exactly the first `length` pages of `key`."""
        end = length * self._stride
        place = node
        while place.parent is not None:
            start = end - len(place.key)
            if start < 0 or not key.startswith(place.key, start):
                return False
            end, place = start, place.parent
        return end == 0

    def touch(self, node: Node) -> None:
        """Make `node` and all above it the most recently used."""
        self._clock += 1
        place: Node | None = node
        while place is not None:
            place.used = self._clock
            place = place.parent

    def evict(self, count: int) -> list[int]:
        """Give back `count` pages, least recently used first; fewer if the rest is locked."""
        freed: list[int] = []
        while len(freed) < count and self._heap:
            used, _, node = heappop(self._heap)
            node.queued = False
            if node.locks or node.children:
                continue
            if used != node.used:
                self._queue(node)
                continue
            missing = count - len(freed)
            if missing < len(node.pages):
                freed.extend(node.pages[-missing:])
                del node.pages[-missing:]
                del node.key[-missing * self._stride :]
                self.cached -= missing
                self._queue(node)
            else:
                freed.extend(node.pages)
                self._remove(node)
        return freed

    def walk(self) -> Iterator[Node]:
        """Every node, roots included, parents before children."""
        stack: list[Node] = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> list[str]:
        """What is wrong with the tree itself, in words; costs as much as the tree is large."""
        found: list[str] = []
        cached = locked = nodes = 0
        for node in self.walk():
            cached += len(node.pages)
            locked += len(node.pages) if node.locks else 0
            nodes += node.parent is not None
            if len(node.key) != len(node.pages) * self._stride:
                found.append(f"{node!r} has {len(node.key)} bytes of key")
            if node.locks < sum(child.locks for child in node.children.values()):
                found.append(f"{node!r} has fewer locks than its children")
            if node.parent is not None and not node.pages:
                found.append(f"{node!r} is empty")
            if node.parent is not None and not node.children and not node.locks and not node.queued:
                found.append(f"{node!r} could be evicted but is in no queue")
            for first, child in node.children.items():
                if (
                    child.parent is not node
                    or bytes(child.key[: self._stride]) != first
                    or child.used > node.used
                ):
                    found.append(f"{child!r} does not fit below {node!r}")
        for name, counted, kept in (
            ("cached", cached, self.cached),
            ("locked", locked, self.locked),
            ("nodes", nodes, self.nodes),
            ("queued", sum(1 for node in self.walk() if node.queued), len(self._heap)),
        ):
            if counted != kept:
                found.append(f"tree counts {kept} {name}, has {counted}")
        return found

    def _descend(self, node: Node, key: bytes, start: int) -> tuple[Node, int, Node | None]:
        """Follow `key` from byte `start` below `node`: last node reached whole, where, and an edge that fits in part."""
        stride = self._stride
        while start < len(key):
            child = node.children.get(key[start : start + stride])
            if child is None:
                return node, start, None
            if not key.startswith(child.key, start):
                return node, start, child
            node = child
            start += len(child.key)
        return node, start, None

    def _common(self, edge: Node, key: bytes, start: int) -> int:
        """Bytes of whole pages that `edge` and ``key[start:]`` have in common; their first page is known to be."""
        stride = self._stride
        same, end = 1, min(len(edge.key), len(key) - start) // stride + 1
        while end - same > 1:
            middle = (same + end) // 2
            if key.startswith(edge.key[same * stride : middle * stride], start + same * stride):
                same = middle
            else:
                end = middle
        return same * stride

    def _reach(self, node: Node, key: bytes, start: int) -> tuple[Node, int]:
        """`_descend`, with an edge that fits in part split where it stops fitting."""
        node, reached, edge = self._descend(node, key, start)
        if edge is not None:
            common = self._common(edge, key, reached)
            node = self._split(edge, common)
            reached += common
        return node, reached

    def _split(self, lower: Node, at: int) -> Node:
        """Put a new node above `lower` that takes the first `at` bytes of its edge."""
        assert lower.parent is not None
        count = at // self._stride
        upper = Node(lower.parent, lower.key[:at], lower.pages[:count], lower.used, lower.locks)
        upper.parent.children[bytes(lower.key[: self._stride])] = upper  # type: ignore[union-attr]
        del lower.key[:at]
        del lower.pages[:count]
        upper.children[bytes(lower.key[: self._stride])] = lower
        lower.parent = upper
        self.nodes += 1
        return upper

    def _lock(self, node: Node, above: Node | None) -> None:
        """Lock from `node` up to, but without, `above`."""
        place: Node | None = node
        while place is not above:
            assert place is not None
            if not place.locks:
                self.locked += len(place.pages)
            place.locks += 1
            place = place.parent

    def _pages_to(self, node: Node) -> list[int]:
        """All pages from the root to the end of `node`."""
        parts: list[array[int]] = []
        place: Node | None = node
        while place is not None:
            parts.append(place.pages)
            place = place.parent
        return [page for part in reversed(parts) for page in part]

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[bytes(leaf.key[: self._stride])]
        self.cached -= len(leaf.pages)
        self.nodes -= 1
        self._now_free(parent)

    def _now_free(self, node: Node) -> None:
        """`node` lost a lock or a child: if it has none left it may be evicted, and an empty root goes."""
        if node.locks or node.children:
            return
        if isinstance(node, Root):
            self._roots.pop(node.tenant, None)
        else:
            self._queue(node)

    def _queue(self, node: Node) -> None:
        if not node.queued:
            node.queued = True
            self._pushes += 1
            heappush(self._heap, (node.used, self._pushes, node))
