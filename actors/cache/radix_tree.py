"""A radix tree from token ids to the KV pages that hold them (SGLang, arXiv 2312.07104, section 3).

Every edge holds whole pages: its tokens as packed int64 and one page number per `page_size` tokens. Children are
found by their first page, so two keys that part within a page part before it. Roots are per namespace.

Packed keys make the cost of an operation that of a few `memcmp`s: it grows with the length of the key and the
number of edges on its path, never with the tree. A cached token costs 8 bytes, a page 4, an edge some 400.

Two things spare the way up to the root. A lock is counted where it ends and once per locked child, so locking stops
at the first edge that was locked already. Use and priority are noted where a key ends, and an edge that loses a child
inherits the child's: when it is a leaf itself, and only then does its rank matter, it has the greatest of all that
ever hung below it.

Eviction takes the leaf of least rank without locks, from its tail and only as many pages as are needed; a parent left
without children is a leaf in its turn. The heap is lazy: an edge stands in it at most once (`queued`), with the rank
it had when it was pushed. Ranks only grow, so an entry that turns out too low is pushed again with the right one, and
the order is still exact. Edges never leave the tree but through the heap, hence it holds no dead ones and stays as
small as the tree.

Splitting keeps the *lower* half's identity: whoever holds an edge holds the place where it ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol

from sgl_actors.actors.cache.handover import CachedEdge
from sgl_actors.errors import ConfigError

TOKEN_BYTES = 8
"""Bytes of one token in a packed key."""
LOOK = 64
"""Branches looked at for one that goes on with the beginning of a page."""


class Node:
    """One edge of the tree and the place where it ends.

    Attributes:
        parent: None for a root.
        key: packed tokens of the edge, whole pages.
        pages: their pages.
        children: by the packed tokens of their first page.
        locks: locks that end here, and children with locks.
        used: logical time of the last use, not counting what still hangs below.
        hits: leases that were granted with it.
        priority: the greatest that inserted it, not counting what still hangs below.
        queued: stands in the eviction heap.
    """

    __slots__ = ("children", "hits", "key", "locks", "pages", "parent", "priority", "queued", "used")

    def __init__(self, parent: Node | None, key: bytes, pages: array[int]) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children = CHILDLESS
        self.locks = 0
        self.used = 0
        self.hits = 0
        self.priority = 0
        self.queued = False

    def __repr__(self) -> str:
        return f"<Node pages={len(self.pages)} children={len(self.children)} locks={self.locks} used={self.used}>"

    def __lt__(self, other: Node) -> bool:
        """Edges of the same rank are equal to the heap."""
        return False


CHILDLESS: dict[bytes, Node] = {}
"""The children of every leaf. Nobody writes to it: a leaf's first child brings a dictionary (64 bytes less per leaf)."""


class Root(Node):
    """Where one namespace's keys begin."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: str) -> None:
        super().__init__(None, b"", array("i"))
        self.namespace = namespace


def common(one: bytes, other: bytes, start: int, stride: int) -> int:
    """Bytes of whole pages at the beginning of both `one` and ``other[start:]``, found by halving."""
    same, end = 0, min(len(one), len(other) - start) // stride + 1
    while end - same > 1:
        middle = (same + end) // 2
        if other.startswith(one[same * stride : middle * stride], start + same * stride):
            same = middle
        else:
            end = middle
    return same * stride


class Place(NamedTuple):
    """How far a key is in the tree: to the end of `node`, and `fits` bytes into the `edge` below it; `length` bytes in all."""

    node: Node
    edge: Node | None
    fits: int
    length: int


class Observer(Protocol):
    """Hears of each change of what is cached, while the tree is as the argument says."""

    def stored(self, leaf: Node) -> None:
        """A new leaf is in the tree."""

    def removed(self, leaf: Node, pages: int) -> None:
        """The last `pages` pages of this leaf are about to go."""

    def split(self, lower: Node) -> None:
        """This edge has lost its first part to a new parent."""


RANKS: dict[str, Callable[[Node], int]] = {
    "lru": lambda _: 0,
    "lfu": attrgetter("hits"),
    "priority": attrgetter("priority"),
}
"""What comes before the time of last use in the order of eviction. It may only grow."""


class RadixTree:
    """See the module. It owns the pages inserted into it until `evict` gives them back.

    Keys are packed and cut to whole pages by the caller; lengths are in bytes of them, unless they count pages.
    """

    def __init__(self, page_size: int, eviction: str = "lru") -> None:
        if eviction not in RANKS:
            raise ConfigError(
                f"[cache] eviction: one of {', '.join(RANKS)}, not {eviction!r}", param="eviction"
            )
        self.page_size = page_size
        self.stride = TOKEN_BYTES * page_size
        self.observer: Observer | None = None
        self._rank = RANKS[eviction]
        self._roots: dict[str, Root] = {}
        self._heap: list[tuple[int, int, Node]] = []
        self._clock = 0
        self.cached = 0
        self.locked = 0
        self.nodes = 0

    def __repr__(self) -> str:
        return f"<RadixTree cached={self.cached} locked={self.locked} nodes={self.nodes} namespaces={self.namespaces}>"

    @property
    def evictable(self) -> int:
        """Pages that `evict` could give back now."""
        return self.cached - self.locked

    @property
    def namespaces(self) -> int:
        """Roots that hold something."""
        return len(self._roots)

    def match(self, namespace: str, key: bytes, *, touch: bool = False) -> int:
        """Length of the longest cached prefix of `key`.

        With `touch` it becomes the most recently used; an edge that fits in part counts as used whole (nothing is split).
        """
        place = self.find(namespace, key)
        if touch and place.length:
            self.touch(place.edge or place.node)
        return place.length

    def find(self, namespace: str, key: bytes) -> Place:
        """Where the longest cached prefix of `key` ends. Changes nothing; valid until the next insertion or eviction."""
        root = self._roots.get(namespace)
        return Place(Root(namespace), None, 0, 0) if root is None else self._descend(root, key, 0)

    def unlocked(self, place: Place) -> int:
        """Pages on the way to `place` that would no longer be evictable if it were locked."""
        node, edge = place.node, place.edge
        if edge is not None and edge.locks:
            return 0
        count = place.fits // self.stride
        while node.parent is not None and not node.locks:
            count += len(node.pages)
            node = node.parent
        return count

    def lock(self, place: Place) -> Node:
        """Lock the way to `place`; the node that ends there, for `unlock`."""
        node = place.node if place.edge is None else self._split(place.edge, place.fits)
        if isinstance(node, Root):
            self._roots[node.namespace] = node
        self._lock(node)
        return node

    def unlock(self, node: Node) -> None:
        """Undo one `lock` (or the last `insert`) that ended at `node`."""
        place: Node | None = node
        while place is not None:
            assert place.locks > 0, f"{place!r} unlocked once too often"
            place.locks -= 1
            if place.locks:
                return
            self.locked -= len(place.pages)
            self._now_free(place)
            place = place.parent

    def insert(
        self, node: Node, key: bytes, start: int, pages: Sequence[int], priority: int
    ) -> tuple[Node, int]:
        """Insert `key` below `node`, which the caller has locked and which ends at byte `start` of it.

        ``pages[i]`` holds page i of the key. The lock moves on to the place where `key` ends. Returns that place and
        the page `taken` from which on the tree took over `pages`; for those before, it has pages of its own.
        """
        place = self._descend(node, key, start)
        end = place.node if place.edge is None else self._split(place.edge, place.fits)
        taken = place.length // self.stride
        if place.length < len(key):
            own = array("i", pages[taken : len(key) // self.stride])
            end = self._attach(Node(end, key[place.length :], own), priority)
        elif priority > end.priority:
            end.priority = priority
        if end is not node:
            self._lock(end)
            self.unlock(node)
        return end, taken

    def touch(self, node: Node) -> None:
        """Make `node` and all above it the most recently used."""
        self._clock += 1
        node.used = self._clock

    def read(self, node: Node) -> list[int]:
        """All pages from the root to the end of `node`; counts as a hit of each edge."""
        parts: list[array[int]] = []
        place = node
        while place.parent is not None:
            place.hits += 1
            parts.append(place.pages)
            place = place.parent
        pages = array("i")
        for part in reversed(parts):
            pages.extend(part)
        return pages.tolist()

    def follow(self, node: Node, key: bytes, start: int, count: int) -> bytes:
        """At most `count` bytes of what is cached behind all of `key`, which goes on below `node` from byte `start`; nothing if `key` is not.

        `key` need not end with a page. Wherever keys part, the branch that was added last is followed.
        """
        place = self._descend(node, key, start)
        rest, edge = key[place.length :], place.edge
        node, found = place.node, b""
        if edge is not None:
            node, found = edge, edge.key[place.fits :]
        elif rest:
            newest = islice(reversed(node.children.values()), LOOK)
            node = next((child for child in newest if child.key.startswith(rest)), node)
            found = node.key if node is not place.node else b""
        if not found.startswith(rest):
            return b""
        found = found[len(rest) :]
        while len(found) < count and node.children:
            node = next(reversed(node.children.values()))
            found += node.key
        return found[:count]

    def evict(self, count: int) -> list[int]:
        """Give back `count` pages, those of least rank first; fewer if the rest is locked."""
        freed: list[int] = []
        while len(freed) < count and self._heap:
            _, used, node = heappop(self._heap)
            node.queued = False
            if node.locks or node.children:
                continue
            if used != node.used:  # whatever raises a rank is a use
                self._queue(node)
                continue
            missing = min(count - len(freed), len(node.pages))
            if self.observer is not None:
                self.observer.removed(node, missing)
            freed.extend(node.pages[-missing:])
            self.cached -= missing
            if missing < len(node.pages):
                del node.pages[-missing:]
                node.key = node.key[: -missing * self.stride]
                self._queue(node)
            else:
                self._remove(node)
        return freed

    def roots(self) -> list[Root]:
        """Where each namespace's keys begin."""
        return list(self._roots.values())

    def walk(self) -> Iterator[Node]:
        """Every node, roots included, parents before children."""
        stack: list[Node] = list(self.roots())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> list[str]:
        """What is wrong with the tree itself, in words; costs as much as the tree is large."""
        found: list[str] = ["a leaf has written its children into the common empty dictionary"] * bool(
            CHILDLESS
        )
        cached = locked = nodes = 0
        for node in self.walk():
            cached += len(node.pages)
            locked += len(node.pages) if node.locks else 0
            nodes += node.parent is not None
            if len(node.key) != len(node.pages) * self.stride:
                found.append(f"{node!r} has {len(node.key)} bytes of key")
            if node.parent is not None and not node.pages:
                found.append(f"{node!r} is empty")
            if not node.children and not node.locks and not node.queued:
                found.append(f"{node!r} could be evicted but is in no queue")
            for first, child in node.children.items():
                if child.parent is not node or child.key[: self.stride] != first:
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

    def recount(self) -> None:
        """Make the totals what the edges say: the way out when they are found wrong."""
        nodes = [node for node in self.walk() if node.parent is not None]
        self.nodes = len(nodes)
        self.cached = sum(len(node.pages) for node in nodes)
        self.locked = sum(len(node.pages) for node in nodes if node.locks)

    def edges(self) -> list[CachedEdge]:
        """All edges, parents first, of siblings the oldest."""
        found: list[CachedEdge] = []
        stack = [(node, -1, root.namespace) for root in self.roots() for node in root.children.values()]
        stack.reverse()
        while stack:
            node, parent, name = stack.pop()
            number = len(found)
            pages = node.pages.tolist()
            found.append(CachedEdge(name, parent, node.key, pages, node.used, node.hits, node.priority))
            stack += [(child, number, name) for child in reversed(node.children.values())]
        return found

    def grow(self, edges: Iterable[CachedEdge]) -> None:
        """Take over the edges of another tree, while this one is empty. Nobody is told of them. Raises `ValueError` for edges that make no tree."""
        nodes: list[Node] = []
        for edge in edges:
            if edge.parent >= len(nodes) or not edge.pages or len(edge.key) != len(edge.pages) * self.stride:
                raise ValueError(
                    f"edge {len(nodes)} of {len(edge.pages)} pages does not fit below {edge.parent}"
                )
            above = nodes[edge.parent] if edge.parent >= 0 else self._root(edge.namespace)
            if edge.key[: self.stride] in above.children:
                raise ValueError(f"edge {len(nodes)} begins as another below {edge.parent} does")
            node = Node(above, edge.key, array("i", edge.pages))
            node.used, node.hits = edge.used, edge.hits
            self._attach(node, edge.priority)
            self._clock = max(self._clock, edge.used)
            nodes.append(node)
        for node in nodes:
            self._now_free(node)

    def _root(self, namespace: str) -> Root:
        return self._roots.setdefault(namespace, Root(namespace))

    def _descend(self, node: Node, key: bytes, start: int) -> Place:
        """Follow `key` from byte `start` below `node`."""
        stride, end, has = self.stride, len(key), key.startswith
        while start < end:
            child = node.children.get(key[start : start + stride])
            if child is None:
                break
            edge = child.key
            if not has(edge, start):
                fits = common(edge, key, start, stride)
                return Place(node, child, fits, start + fits)
            node = child
            start += len(edge)
        return Place(node, None, 0, start)

    def _split(self, lower: Node, at: int) -> Node:
        """Put a new node above `lower` that takes the first `at` bytes of its edge."""
        parent, count = lower.parent, at // self.stride
        assert parent is not None
        upper = Node(parent, lower.key[:at], lower.pages[:count])
        upper.used, upper.hits, upper.priority = lower.used, lower.hits, lower.priority
        upper.locks = 1 if lower.locks else 0
        parent.children[lower.key[: self.stride]] = upper
        lower.key = lower.key[at:]
        lower.pages = lower.pages[count:]
        lower.parent = upper
        upper.children = {lower.key[: self.stride]: lower}
        self.nodes += 1
        if self.observer is not None:
            self.observer.split(lower)
        return upper

    def _attach(self, leaf: Node, priority: int) -> Node:
        parent = leaf.parent
        assert parent is not None
        leaf.priority = priority
        if parent.children is CHILDLESS:
            parent.children = {}
        parent.children[leaf.key[: self.stride]] = leaf
        self.cached += len(leaf.pages)
        self.nodes += 1
        if self.observer is not None:
            self.observer.stored(leaf)
        return leaf

    def _lock(self, node: Node) -> None:
        place: Node | None = node
        while place is not None:
            place.locks += 1
            if place.locks > 1:
                return
            self.locked += len(place.pages)
            place = place.parent

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key[: self.stride]]
        parent.used = max(parent.used, leaf.used)
        parent.priority = max(parent.priority, leaf.priority)
        self.nodes -= 1
        self._now_free(parent)

    def _now_free(self, node: Node) -> None:
        """`node` lost its last lock or a child: if it has neither it may be evicted, and an empty root goes."""
        if node.locks or node.children:
            return
        if isinstance(node, Root):
            self._roots.pop(node.namespace, None)
        else:
            self._queue(node)

    def _queue(self, node: Node) -> None:
        if not node.queued:
            node.queued = True
            heappush(self._heap, (self._rank(node), node.used, node))
