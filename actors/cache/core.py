"""The cache without its mailbox: page pool, radix tree and leases of one pool epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sgl_actors.actors.cache.handover import Contents, HeldLease
from sgl_actors.actors.cache.messages import Entry, Lease, More, Probe, Want, unpack
from sgl_actors.actors.cache.pins import PinBoard
from sgl_actors.actors.cache.pool import PagePool
from sgl_actors.actors.cache.radix_tree import TOKEN_BYTES, Node, RadixTree
from sgl_actors.errors import InvalidRequest, SwapFailed


@dataclass(slots=True)
class Holding:
    """What one lease has.

    Attributes:
        node: the place in the tree that it locks.
        namespace: whose root its key begins at.
        key: packed tokens from the root to there.
        depth: pages from the root to there.
        pages: all pages it was granted, in order; from `depth` on they are its own.
        priority: of what it inserts.
        spare: pages before `depth` that are its own: the tree holds the same tokens in others.
    """

    node: Node
    namespace: str
    key: bytes
    depth: int
    pages: list[int]
    priority: int
    spare: list[int] = field(default_factory=list)

    @property
    def own(self) -> list[int]:
        """Pages that become free when it ends."""
        return self.spare + self.pages[self.depth :]


@dataclass(slots=True)
class Totals:
    """Totals since the cache was made."""

    asked_tokens: int = 0
    hit_tokens: int = 0
    evicted_pages: int = 0
    inserted_pages: int = 0
    duplicate_pages: int = 0
    refused_commits: int = 0
    unknown_leases: int = 0


class RadixCache:
    """`contract.PrefixCache` over a radix tree, with the pins that survived the pool before (`pins`)."""

    def __init__(
        self, total: int, page_size: int, eviction: str = "lru", pins: PinBoard | None = None
    ) -> None:
        self.total = total
        self.page_size = page_size
        self.counters = Totals()
        self.tree = RadixTree(page_size, eviction)
        self.pins = PinBoard() if pins is None else pins
        self.pins.attach(self.tree, total)
        self._pool = PagePool(total)
        self._held: dict[int, Holding] = {}

    def contents(self, now: float) -> Contents:
        """All that another cache has to know to take over."""
        leases = [
            HeldLease(number, held.namespace, held.key, list(held.pages), list(held.spare), held.priority)
            for number, held in self._held.items()
        ]
        return Contents(self.total, self.page_size, self.tree.edges(), leases, self.pins.live(now))

    @classmethod
    def taken(
        cls, contents: Contents, now: float, eviction: str = "lru", pins: PinBoard | None = None
    ) -> RadixCache:
        """Take over from another cache; `pins` is an empty board.

        Raises:
            SwapFailed: the contents contradict themselves.
        """
        cache = cls(contents.pages, contents.page_size, eviction, pins)
        try:
            cache.tree.grow(contents.edges)
            for lease in contents.leases:
                cache._hold(lease)
        except (ValueError, OverflowError) as error:
            raise SwapFailed(f"the cache's contents contradict themselves: {error}") from None
        cache.pins.resume(contents.pins, now)
        owned = [page for edge in contents.edges for page in edge.pages]
        owned += [page for held in cache._held.values() for page in held.own]
        used = set(owned)
        if len(used) < len(owned) or not all(0 <= page < cache.total for page in used):
            raise SwapFailed("the cache's contents contradict themselves: a page has two owners, or is none")
        cache._pool.repair(used)
        if problems := cache.check(full=False) + cache.tree.check() + cache._check_locks():
            raise SwapFailed(f"the cache's contents contradict themselves: {'; '.join(problems[:3])}")
        return cache

    def _hold(self, lease: HeldLease) -> None:
        place = self.tree.find(lease.namespace, lease.key)
        depth = place.length // self.tree.stride
        if place.length != len(lease.key) or depth > len(lease.pages) or lease.lease in self._held:
            raise ValueError(f"lease {lease.lease} has what is not cached, or is there twice")
        self._held[lease.lease] = Holding(
            self.tree.lock(place),
            lease.namespace,
            lease.key,
            depth,
            list(lease.pages),
            lease.priority,
            list(lease.spare),
        )

    def __repr__(self) -> str:
        return f"<RadixCache free={self.free} cached={self.cached} leased={self.leased} total={self.total}>"

    @property
    def free(self) -> int:
        """Pages that nobody uses."""
        return self._pool.free

    @property
    def cached(self) -> int:
        """Pages that the tree owns."""
        return self.tree.cached

    @property
    def locked(self) -> int:
        """Cached pages that some lease or pin locks."""
        return self.tree.locked

    @property
    def leased(self) -> int:
        """Pages that leases own, added up over them (not inferred from the others)."""
        return sum(len(held.pages) - held.depth + len(held.spare) for held in self._held.values())

    @property
    def leases(self) -> int:
        """Live leases."""
        return len(self._held)

    def match(self, probes: Sequence[Probe], touch: bool = False) -> list[int]:
        """See the contract."""
        keys = [(probe.namespace, self._whole(probe.key)) for probe in probes]
        if touch:
            keys.reverse()
        lengths = [self.tree.match(namespace, key, touch=touch) // TOKEN_BYTES for namespace, key in keys]
        if touch:
            lengths.reverse()
        return lengths

    def serve(self, wants: Sequence[Want], more: Sequence[More] = ()) -> tuple[list[Lease], list[list[int]]]:
        """Answer one `Grant`: leases for the leading wants that fit, and pages for the leading `more`.

        Leases grow first; where one does not fit, no new lease is granted.

        Raises:
            InvalidRequest: as `grant` and `extend` do, before anything has changed.
        """
        numbers: set[int] = set()
        for want in wants:
            self._validate(want)
            if want.lease in numbers:
                raise InvalidRequest(f"lease {want.lease} is wanted twice", param="lease")
            numbers.add(want.lease)
        for growth in more:
            _validate_growth(growth)
        grown: list[list[int]] = []
        for growth in more:
            pages = self.extend(growth)
            if pages is None:
                return [], grown
            grown.append(pages)
        leases: list[Lease] = []
        for want in wants:
            lease = self.grant(want)
            if lease is None:
                break
            leases.append(lease)
        return leases, grown

    def grant(self, want: Want) -> Lease | None:
        """See the contract."""
        self._validate(want)
        needed = -(-want.tokens // self.page_size)
        usable = max(0, min(want.limit, want.tokens)) * TOKEN_BYTES
        key = self._whole(want.key[:usable])
        place = self.tree.find(want.namespace, key)
        depth = place.length // self.tree.stride
        own = needed - depth
        if depth * self.page_size < want.least:
            return None
        while own > self.free + self.tree.evictable - self.tree.unlocked(place):
            if self._held or needed > self.total or not self.pins.give_way():
                return None
        node = self.tree.lock(place)
        follow = (
            self.tree.follow(node, want.key, place.length, want.follow * TOKEN_BYTES) if want.follow else b""
        )
        self._evict(own - self.free)
        pages = self.tree.read(node) + self._pool.take(own)
        self.tree.touch(node)
        self._held[want.lease] = Holding(
            node, want.namespace, key[: place.length], depth, pages, want.priority
        )
        self.counters.asked_tokens += min(len(want.key), usable) // TOKEN_BYTES
        self.counters.hit_tokens += depth * self.page_size
        return Lease(want.lease, depth * self.page_size, list(pages), unpack(follow))

    def extend(self, more: More) -> list[int] | None:
        """See the contract."""
        _validate_growth(more)
        held = self._held.get(more.lease)
        if held is None:
            self.counters.unknown_leases += 1
            return None
        size = len(held.pages) + len(held.spare) + more.pages
        while more.pages > self.free + self.tree.evictable:
            if self.leases > 1 or size > self.total or not self.pins.give_way():
                return None
        self._evict(more.pages - self.free)
        pages = self._pool.take(more.pages)
        held.pages += pages
        return pages

    def commit(self, entry: Entry) -> bool:
        """See the contract."""
        held = self._held.get(entry.lease)
        if held is None:
            self.counters.unknown_leases += 1
            return False
        accepted = self._insert(held, entry.key)
        self.tree.touch(held.node)
        if entry.release:
            self._release(entry.lease)
        if not accepted:
            self.counters.refused_commits += 1
        return accepted

    def release_all(self) -> int:
        """See the contract."""
        count = len(self._held)
        for lease in list(self._held):
            self._release(lease)
        return count

    def flush(self) -> int:
        """See the contract."""
        return self._evict(self.tree.evictable)

    def check(self, *, full: bool = True) -> list[str]:
        """What is wrong with the accounts, in words; nothing if all is well.

        Counts only unless `full`, which looks at every node and page and costs as much as the pool is large.
        """
        found: list[str] = []
        if self.free + self.cached + self.leased != self.total:
            found.append(
                f"free {self.free} + cached {self.cached} + leased {self.leased} != total {self.total}"
            )
        return found + (self.tree.check() + self._check_pages() + self._check_locks() if full else [])

    def repair(self) -> None:
        """Make the totals what the tree holds, and free what tree and leases leave: the way out when `check` finds the sum wrong."""
        self.tree.recount()
        self._pool.repair({page for page, owner in self._ownership() if owner != "the pool"})

    def _validate(self, want: Want) -> None:
        if want.lease in self._held:
            raise InvalidRequest(f"lease {want.lease} is in use", param="lease")
        if want.tokens < 0:
            raise InvalidRequest(f"lease {want.lease} cannot hold {want.tokens} tokens", param="tokens")
        if want.follow < 0:
            raise InvalidRequest(f"lease {want.lease} cannot see {want.follow} tokens on", param="follow")
        _validate_key(want.key)

    def _whole(self, key: bytes) -> bytes:
        """The whole pages at the beginning of a packed key."""
        _validate_key(key)
        return key[: len(key) // self.tree.stride * self.tree.stride]

    def _insert(self, held: Holding, tokens: bytes) -> bool:
        """Move whole pages of packed `tokens` into the tree, and the lease's lock to their end."""
        if len(tokens) % TOKEN_BYTES or len(tokens) > len(held.pages) * self.tree.stride:
            return False
        key = self._whole(tokens)
        if len(key) <= len(held.key):
            return True
        if not key.startswith(held.key):
            return False
        depth = len(key) // self.tree.stride
        held.node, taken = self.tree.insert(held.node, key, len(held.key), held.pages, held.priority)
        held.spare += held.pages[held.depth : taken]
        self.counters.duplicate_pages += taken - held.depth
        self.counters.inserted_pages += depth - taken
        held.key, held.depth = key, depth
        self.pins.inserted(held.namespace, key)
        return True

    def _release(self, lease: int) -> None:
        held = self._held.pop(lease)
        self._pool.give(held.own)
        self.tree.unlock(held.node)

    def _evict(self, count: int) -> int:
        if count <= 0:
            return 0
        freed = self.tree.evict(count)
        self._pool.give(freed)
        self.counters.evicted_pages += len(freed)
        return len(freed)

    def _check_pages(self) -> list[str]:
        """Pages with no owner or two."""
        found: list[str] = []
        owners: dict[int, str] = {}
        for page, owner in self._ownership():
            if page in owners:
                found.append(f"page {page} belongs to {owners[page]} and to {owner}")
            owners[page] = owner
        if lost := set(owners) ^ set(range(self.total)):
            found.append(f"pages lost or invented: {sorted(lost)[:10]}")
        return found

    def _check_locks(self) -> list[str]:
        """Edges that are locked by more or fewer than those who hold them."""
        locks = Counter(id(held.node) for held in self._held.values())
        locks.update(id(node) for node in self.pins.nodes())
        found: list[str] = []
        for node in self.tree.walk():
            due = locks.pop(id(node), 0) + sum(1 for child in node.children.values() if child.locks)
            if node.locks != due:
                found.append(f"{node!r} should have {due} locks")
        return found + [f"{len(locks)} locks end outside the tree"] * bool(locks)

    def _ownership(self) -> list[tuple[int, str]]:
        """Every page with its owner, as often as it has one."""
        rows = [(page, "the pool") for page in self._pool.snapshot()]
        rows += [(page, "the tree") for node in self.tree.walk() for page in node.pages]
        rows += [(page, f"lease {lease}") for lease, held in self._held.items() for page in held.own]
        return rows


def _validate_key(key: bytes) -> None:
    if len(key) % TOKEN_BYTES:
        raise InvalidRequest(
            f"a key of {len(key)} bytes is no sequence of {TOKEN_BYTES}-byte tokens", param="key"
        )


def _validate_growth(more: More) -> None:
    if more.pages < 0:
        raise InvalidRequest(f"lease {more.lease} cannot grow by {more.pages} pages", param="more")
