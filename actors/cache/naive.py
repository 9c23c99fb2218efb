"""The cache as one dictionary of all cached prefixes: slow, and right at a glance. The oracle of the radix tree's tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sgl_actors.actors.cache.handover import CachedEdge, Contents, HeldLease, LivePin
from sgl_actors.actors.cache.messages import Entry, Lease, More, Pin, Probe, Want, pack, unpack
from sgl_actors.errors import InvalidRequest

Tokens = tuple[int, ...]
Prefix = tuple[str, Tokens]


@dataclass(slots=True)
class CachedPage:
    """The last page of one cached prefix."""

    page: int
    priority: int
    used: int = 0
    hits: int = 0
    locks: int = 0


@dataclass(slots=True)
class Holding:
    """What one lease has: the prefix it locks, all its pages, and which of them are its own."""

    namespace: str
    prefix: Tokens
    pages: list[int]
    own: set[int]
    priority: int


@dataclass(slots=True)
class PinnedPrefix:
    """One live pin: the whole pages it wishes for, when it ends, and what of them it locks."""

    namespace: str
    wish: Tokens
    expires: float
    held: Tokens = ()


class NaiveCache:
    """`contract.PrefixCache` with a page of every prefix under the prefix itself. Every operation looks at everything."""

    def __init__(self, total: int, page_size: int, eviction: str = "lru", pinned: float = 0.5) -> None:
        self.total = total
        self.page_size = page_size
        self.eviction = eviction
        self.prefixes: dict[Prefix, CachedPage] = {}
        self.ends: set[Prefix] = set()
        """Where an edge of a tree would end, beside where keys part."""
        self.pins: dict[tuple[str, str], PinnedPrefix] = {}
        self._limit = int(pinned * total)
        self._free = set(range(total))
        self._held: dict[int, Holding] = {}
        self._clock = 0

    @property
    def free(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Pages that the tree owns."""
        return len(self.prefixes)

    @property
    def locked(self) -> int:
        """Cached pages that some lease locks."""
        return sum(1 for entry in self.prefixes.values() if entry.locks)

    @property
    def leased(self) -> int:
        """Pages that leases own."""
        return sum(len(held.own) for held in self._held.values())

    @property
    def leases(self) -> int:
        """Live leases."""
        return len(self._held)

    def contents(self, now: float) -> Contents:
        """All that another cache has to know to take over."""
        size = self.page_size
        edges: list[CachedEdge] = []
        numbers: dict[Prefix, int] = {}
        for namespace, first in self.prefixes:
            above = (namespace, first[:-size])
            if first[:-size] and above not in numbers:
                continue
            end = self._edge_end(namespace, first)
            path = self._path(namespace, end)[len(first) // size - 1 :]
            last = path[-1]
            edges.append(
                CachedEdge(
                    namespace,
                    numbers.get(above, -1),
                    pack(end[len(first) - size :]),
                    [entry.page for entry in path],
                    last.used,
                    last.hits,
                    last.priority,
                )
            )
            numbers[namespace, end] = len(numbers)
        leases = [
            HeldLease(
                number,
                held.namespace,
                pack(held.prefix),
                list(held.pages),
                [page for page in held.pages[: len(held.prefix) // size] if page in held.own],
                held.priority,
            )
            for number, held in self._held.items()
        ]
        pins = [
            LivePin(pin.namespace, name, pack(pin.wish), pin.expires - now)
            for (_, name), pin in self.pins.items()
        ]
        return Contents(self.total, size, edges, leases, pins)

    @classmethod
    def taken(cls, contents: Contents, now: float, eviction: str = "lru", pinned: float = 0.5) -> NaiveCache:
        """Take over from another cache."""
        cache, size = cls(contents.pages, contents.page_size, eviction, pinned), contents.page_size
        ends: list[Prefix] = []
        for edge in contents.edges:
            above = ends[edge.parent][1] if edge.parent >= 0 else ()
            whole = above + _tokens(edge.key)
            for page, cut in zip(edge.pages, cache._cuts(whole)[len(above) // size :], strict=True):
                cache.prefixes[edge.namespace, cut] = CachedPage(page, edge.priority, edge.used, edge.hits)
            for entry in cache._path(edge.namespace, above):
                entry.used, entry.priority = max(entry.used, edge.used), max(entry.priority, edge.priority)
            ends.append((edge.namespace, whole))
        cache.ends |= set(ends)
        for lease in contents.leases:
            prefix = _tokens(lease.key)
            own = {*lease.spare, *lease.pages[len(prefix) // size :]}
            cache._held[lease.lease] = Holding(
                lease.namespace, prefix, list(lease.pages), own, lease.priority
            )
            cache._lock(lease.namespace, prefix, 1)
        for pin in contents.pins:
            wish = _tokens(pin.key)
            whole = wish[: len(wish) // size * size]
            cache.pins[pin.namespace, pin.name] = PinnedPrefix(pin.namespace, whole, now + pin.left)
        cache._hold_pins()
        cache._free -= {entry.page for entry in cache.prefixes.values()}
        cache._free -= {page for held in cache._held.values() for page in held.own}
        cache._clock = max((entry.used for entry in cache.prefixes.values()), default=0)
        return cache

    def match(self, probes: Sequence[Probe], touch: bool = False) -> list[int]:
        """See the contract."""
        found = [self._longest(probe.namespace, _tokens(probe.key)) for probe in probes]
        for probe, prefix in reversed(list(zip(probes, found, strict=True))):
            if touch and prefix:
                self._touch(probe.namespace, self._edge_end(probe.namespace, prefix))
        return [len(prefix) for prefix in found]

    def grant(self, want: Want) -> Lease | None:
        """See the contract."""
        if want.lease in self._held or want.tokens < 0:
            raise InvalidRequest(f"lease {want.lease} is in use, or of {want.tokens} tokens")
        usable = max(0, min(want.limit, want.tokens))
        prefix = self._longest(want.namespace, _tokens(want.key)[:usable])
        path = self._path(want.namespace, prefix)
        needed = -(-want.tokens // self.page_size) - len(path)
        if len(prefix) < want.least:
            return None
        while needed > self.free + self.cached - self.locked - sum(1 for entry in path if not entry.locks):
            if self._held or needed + len(path) > self.total or not self.give_way():
                return None
        self._lock(want.namespace, prefix, 1)
        follow = self._follow(want.namespace, _tokens(want.key), want.follow)
        own = self._take(needed)
        self._touch(want.namespace, prefix)
        for entry in path:
            entry.hits += 1
        pages = [entry.page for entry in path] + own
        self._held[want.lease] = Holding(want.namespace, prefix, pages, set(own), want.priority)
        return Lease(want.lease, len(prefix), list(pages), follow)

    def extend(self, more: More) -> list[int] | None:
        """See the contract."""
        if more.pages < 0:
            raise InvalidRequest(f"lease {more.lease} cannot grow by {more.pages} pages")
        held = self._held.get(more.lease)
        if held is None:
            return None
        used = len(self._path(held.namespace, held.prefix)) + len(held.own)
        while more.pages > self.free + self.cached - self.locked:
            if len(self._held) > 1 or used + more.pages > self.total or not self.give_way():
                return None
        pages = self._take(more.pages)
        held.pages += pages
        held.own |= set(pages)
        return pages

    def commit(self, entry: Entry) -> bool:
        """See the contract."""
        held = self._held.get(entry.lease)
        if held is None:
            return False
        accepted = len(entry.key) % 8 == 0 and self._insert(held, _tokens(entry.key))
        self._touch(held.namespace, held.prefix)
        if entry.release:
            self._release(entry.lease)
        return accepted

    def release_all(self) -> int:
        """See the contract."""
        count = len(self._held)
        for lease in list(self._held):
            self._release(lease)
        return count

    def flush(self) -> int:
        """See the contract."""
        before = self.free
        while self.cached > self.locked:
            self._evict_one()
        return self.free - before

    def pin(self, wish: Pin, now: float) -> bool:
        """Lock what is cached of a prefix, now and later; False if pins would wish for more pages than they may."""
        name = (wish.namespace, wish.name)
        tokens = _tokens(wish.key)
        pin = PinnedPrefix(
            wish.namespace, tokens[: len(tokens) // self.page_size * self.page_size], now + wish.ttl
        )
        others = {key: other for key, other in self.pins.items() if key != name}
        wishes = {(one.namespace, cut) for one in [*others.values(), pin] for cut in self._cuts(one.wish)}
        if len(wishes) > self._limit:
            return False
        self.unpin([name])
        self.pins[name] = pin
        self._hold_pins()
        return True

    def unpin(self, names: Iterable[tuple[str, str]]) -> None:
        """End the pins of these namespaces and names."""
        for name in names:
            pin = self.pins.pop(name, None)
            if pin is not None:
                self._lock(pin.namespace, pin.held, -1)

    def expire(self, now: float) -> None:
        """End the pins whose time is over."""
        self.unpin([name for name, pin in self.pins.items() if pin.expires <= now])

    def give_way(self) -> bool:
        """End the oldest pin; False if there is none."""
        oldest = list(self.pins)[:1]
        self.unpin(oldest)
        return bool(oldest)

    def _hold_pins(self) -> None:
        """Have every pin lock all of its prefix that is cached."""
        for pin in self.pins.values():
            self._lock(pin.namespace, pin.held, -1)
            pin.held = self._longest(pin.namespace, pin.wish)
            self._lock(pin.namespace, pin.held, 1)

    def _cuts(self, tokens: Tokens) -> list[Tokens]:
        """All prefixes that end with a whole page."""
        size = self.page_size
        return [tokens[:end] for end in range(size, len(tokens) + 1, size)]

    def _path(self, namespace: str, prefix: Tokens) -> list[CachedPage]:
        return [self.prefixes[namespace, cut] for cut in self._cuts(prefix)]

    def _longest(self, namespace: str, tokens: Tokens) -> Tokens:
        cuts = [cut for cut in self._cuts(tokens) if (namespace, cut) in self.prefixes]
        return max(cuts, key=len, default=())

    def _follow(self, namespace: str, tokens: Tokens, count: int) -> list[int]:
        """Of the tokens cached behind all of `tokens`, page by page the one that was added last."""
        prefix = self._longest(namespace, tokens)
        while len(prefix) < len(tokens) + count:
            size = len(prefix)
            nexts = [
                other
                for name, other in self.prefixes
                if name == namespace
                and len(other) == size + self.page_size
                and other[:size] == prefix
                and other[: len(tokens)] == tokens[: len(other)]
            ]
            if not nexts:
                break
            prefix = nexts[-1]
        return list(prefix[len(tokens) : len(tokens) + count])

    def _edge_end(self, namespace: str, prefix: Tokens) -> Tokens:
        """The end of the edge that the last page of `prefix` is on."""
        size = self.page_size
        while (namespace, prefix) not in self.ends:
            nexts = [
                tokens for name, tokens in self.prefixes if name == namespace and tokens[:-size] == prefix
            ]
            if len(nexts) != 1:
                break
            prefix = nexts[0]
        return prefix

    def _lock(self, namespace: str, prefix: Tokens, by: int) -> None:
        self.ends.add((namespace, prefix))
        for entry in self._path(namespace, prefix):
            entry.locks += by

    def _touch(self, namespace: str, prefix: Tokens) -> None:
        self._clock += 1
        for entry in self._path(namespace, prefix):
            entry.used = self._clock

    def _insert(self, held: Holding, tokens: Tokens) -> bool:
        if len(tokens) > len(held.pages) * self.page_size:
            return False
        whole = tokens[: len(tokens) // self.page_size * self.page_size]
        if len(whole) <= len(held.prefix):
            return True
        if whole[: len(held.prefix)] != held.prefix:
            return False
        self.ends.add((held.namespace, self._longest(held.namespace, whole)))
        for page, cut in zip(held.pages, self._cuts(whole), strict=False):
            if (held.namespace, cut) not in self.prefixes:
                self.prefixes[held.namespace, cut] = CachedPage(page, held.priority)
                held.own.discard(page)
        for entry in self._path(held.namespace, whole):
            entry.priority = max(entry.priority, held.priority)
        self._lock(held.namespace, held.prefix, -1)
        held.prefix = whole
        self._lock(held.namespace, held.prefix, 1)
        self._hold_pins()
        return True

    def _release(self, lease: int) -> None:
        held = self._held.pop(lease)
        self._lock(held.namespace, held.prefix, -1)
        self._free |= held.own

    def _take(self, count: int) -> list[int]:
        while self.free < count:
            self._evict_one()
        return [self._free.pop() for _ in range(count)]

    def _evict_one(self) -> None:
        """Remove the prefix of least rank that nobody locks and that no other extends."""
        size = self.page_size
        inner = {(namespace, tokens[:-size]) for namespace, tokens in self.prefixes}
        leaves = [name for name, entry in self.prefixes.items() if not entry.locks and name not in inner]
        oldest = min(leaves, key=lambda name: self._rank(self.prefixes[name]))
        self._free.add(self.prefixes.pop(oldest).page)
        self.ends.discard(oldest)

    def _rank(self, entry: CachedPage) -> tuple[int, int]:
        """What is least goes first."""
        return {"lru": 0, "lfu": entry.hits, "priority": entry.priority}[self.eviction], entry.used


def _tokens(key: bytes) -> Tokens:
    if len(key) % 8:
        raise InvalidRequest(f"a key of {len(key)} bytes is no sequence of 8-byte tokens")
    return tuple(unpack(key))
