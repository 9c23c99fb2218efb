"""The cache without its mailbox: page pool, radix tree and leases of one pool epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sgl_actors.actors.cache.messages import Entry, Lease, Want
from sgl_actors.actors.cache.pool import PagePool
from sgl_actors.actors.cache.radix_tree import TOKEN_BYTES, Node, RadixTree, pack
from sgl_actors.errors import InvalidRequest


@dataclass(slots=True)
class Holding:
    """What one lease has.

    Attributes:
        node: the place in the tree that it locks.
        depth: pages from the root to there.
        pages: all pages it was granted, in order; from `depth` on they are its own.
        spare: pages before `depth` that are its own: the tree holds the same tokens in others.
    """

    node: Node
    depth: int
    pages: list[int]
    spare: list[int] = field(default_factory=list)

    @property
    def own(self) -> list[int]:
        """Pages that become free when it ends."""
        return self.spare + self.pages[self.depth :]


@dataclass(slots=True)
class Counters:
    """Totals since the cache was made."""

    asked_tokens: int = 0
    hit_tokens: int = 0
    evicted_pages: int = 0
    inserted_pages: int = 0
    duplicate_pages: int = 0
    refused_commits: int = 0
    unknown_leases: int = 0


class RadixCache:
    """`contract.PrefixCache` over a radix tree."""

    def __init__(self, total: int, page_size: int) -> None:
        self.total = total
        self.page_size = page_size
        self.counters = Counters()
        self.tree = RadixTree(page_size)
        self._pool = PagePool(total)
        self._held: dict[int, Holding] = {}

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
        """Cached pages that some lease locks."""
        return self.tree.locked

    @property
    def leased(self) -> int:
        """Pages that leases own, added up over them (not inferred from the others)."""
        return sum(len(held.pages) - held.depth + len(held.spare) for held in self._held.values())

    @property
    def leases(self) -> int:
        """Live leases."""
        return len(self._held)

    def match(self, tenant: str, token_ids: Sequence[int]) -> int:
        """See the contract."""
        return self.tree.match(tenant, self._key(token_ids, len(token_ids))) * self.page_size

    def grant(self, want: Want) -> Lease | None:
        """See the contract."""
        if want.lease in self._held:
            raise InvalidRequest(f"lease {want.lease} is in use", param="lease")
        needed = -(-want.tokens // self.page_size)
        key = self._key(want.token_ids, max(0, min(want.limit, want.tokens)))
        node, pages = self.tree.lock(want.tenant, key)
        depth = len(pages)
        own = needed - depth
        if own > self.free + self.tree.evictable:
            self.tree.unlock(node)
            return None
        self._evict(own - self.free)
        pages += self._pool.take(own)
        self.tree.touch(node)
        self._held[want.lease] = Holding(node, depth, pages)
        self.counters.asked_tokens += len(want.token_ids)
        self.counters.hit_tokens += depth * self.page_size
        return Lease(want.lease, depth * self.page_size, list(pages))

    def commit(self, entry: Entry) -> bool:
        """See the contract."""
        held = self._held.get(entry.lease)
        if held is None:
            self.counters.unknown_leases += 1
            return False
        accepted = self._insert(held, entry.token_ids)
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
        if not full:
            return found
        found += self.tree.check()
        owners: dict[int, str] = {}
        for page, owner in self._ownership():
            if page in owners:
                found.append(f"page {page} belongs to {owners[page]} and to {owner}")
            owners[page] = owner
        if found_pages := set(owners) ^ set(range(self.total)):
            found.append(f"pages lost or invented: {sorted(found_pages)[:10]}")
        locks: dict[int, int] = {}
        for held in self._held.values():
            place: Node | None = held.node
            while place is not None:
                locks[id(place)] = locks.get(id(place), 0) + 1
                place = place.parent
        found += [
            f"{node!r} is locked by {locks.get(id(node), 0)} leases"
            for node in self.tree.walk()
            if node.locks != locks.get(id(node), 0)
        ]
        return found

    def repair(self) -> None:
        """Make the free pages what tree and leases leave: the way out when `check` finds the sum wrong."""
        self._pool.repair({page for page, owner in self._ownership() if owner != "the pool"})

    def _key(self, token_ids: Sequence[int], limit: int) -> bytes:
        """The whole pages among the first `limit` tokens, packed."""
        whole = min(len(token_ids), limit) // self.page_size * self.page_size
        try:
            return pack(token_ids[:whole])
        except OverflowError:
            raise InvalidRequest("a token id does not fit into 64 bits", param="token_ids") from None

    def _insert(self, held: Holding, token_ids: Sequence[int]) -> bool:
        """Move whole pages of `token_ids` into the tree, and the lease's lock to their end."""
        if len(token_ids) > len(held.pages) * self.page_size:
            return False
        key = self._key(token_ids, len(token_ids))
        depth = len(key) // (TOKEN_BYTES * self.page_size)
        if depth <= held.depth:
            return True
        if not self.tree.spells(held.node, key, held.depth):
            return False
        held.node, taken = self.tree.insert(held.node, key, held.depth, held.pages)
        held.spare += held.pages[held.depth : taken]
        self.counters.duplicate_pages += taken - held.depth
        self.counters.inserted_pages += depth - taken
        held.depth = depth
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

    def _ownership(self) -> list[tuple[int, str]]:
        """Every page with its owner, as often as it has one."""
        rows = [(page, "the pool") for page in self._pool.snapshot()]
        rows += [(page, "the tree") for node in self.tree.walk() for page in node.pages]
        rows += [(page, f"lease {lease}") for lease, held in self._held.items() for page in held.own]
        return rows
