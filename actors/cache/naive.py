"""The cache as one dictionary of all cached prefixes: slow, and right at a glance. The oracle of the radix tree's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_actors.actors.cache.messages import Entry, Lease, Want
from sgl_actors.errors import InvalidRequest

Prefix = tuple[str, tuple[int, ...]]


@dataclass(slots=True)
class CachedPage:
    """The last page of one cached prefix."""

    page: int
    used: int
    locks: int = 0


@dataclass(slots=True)
class Holding:
    """What one lease has: the prefix it locks, all its pages, and which of them are its own."""

    tenant: str
    prefix: tuple[int, ...]
    pages: list[int]
    own: set[int]


class NaiveCache:
    """`contract.PrefixCache` with a page of every prefix under the prefix itself. Every operation looks at everything."""

    def __init__(self, total: int, page_size: int) -> None:
        self.total = total
        self.page_size = page_size
        self.prefixes: dict[Prefix, CachedPage] = {}
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

    def match(self, tenant: str, token_ids: Sequence[int]) -> int:
        """See the contract."""
        return len(self._longest(tenant, token_ids, len(token_ids)))

    def grant(self, want: Want) -> Lease | None:
        """See the contract."""
        if want.lease in self._held:
            raise InvalidRequest(f"lease {want.lease} is in use", param="lease")
        prefix = self._longest(want.tenant, want.token_ids, min(want.limit, want.tokens))
        pages = [entry.page for entry in self._path(want.tenant, prefix)]
        needed = -(-want.tokens // self.page_size) - len(pages)
        self._lock(want.tenant, prefix, 1)
        if needed > self.free + self.cached - self.locked:
            self._lock(want.tenant, prefix, -1)
            return None
        while self.free < needed:
            self._evict_one()
        own = [self._free.pop() for _ in range(needed)]
        self._touch(want.tenant, prefix)
        self._held[want.lease] = Holding(want.tenant, prefix, pages + own, set(own))
        return Lease(want.lease, len(prefix), pages + own)

    def commit(self, entry: Entry) -> bool:
        """See the contract."""
        held = self._held.get(entry.lease)
        if held is None:
            return False
        accepted = self._insert(held, entry.token_ids)
        self._touch(held.tenant, held.prefix)
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

    def _cuts(self, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
        """All prefixes that end with a whole page."""
        size = self.page_size
        return [tuple(token_ids[:end]) for end in range(size, len(token_ids) + 1, size)]

    def _path(self, tenant: str, prefix: tuple[int, ...]) -> list[CachedPage]:
        return [self.prefixes[tenant, cut] for cut in self._cuts(prefix)]

    def _longest(self, tenant: str, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        cuts = [cut for cut in self._cuts(token_ids[: max(0, limit)]) if (tenant, cut) in self.prefixes]
        return max(cuts, key=len, default=())

    def _lock(self, tenant: str, prefix: tuple[int, ...], by: int) -> None:
        for entry in self._path(tenant, prefix):
            entry.locks += by

    def _touch(self, tenant: str, prefix: tuple[int, ...]) -> None:
        self._clock += 1
        for entry in self._path(tenant, prefix):
            entry.used = self._clock

    def _insert(self, held: Holding, token_ids: Sequence[int]) -> bool:
        if len(token_ids) > len(held.pages) * self.page_size:
            return False
        whole = tuple(token_ids[: len(token_ids) // self.page_size * self.page_size])
        if len(whole) <= len(held.prefix):
            return True
        if whole[: len(held.prefix)] != held.prefix:
            return False
        for page, cut in zip(held.pages, self._cuts(whole), strict=False):
            if (held.tenant, cut) not in self.prefixes:
                self.prefixes[held.tenant, cut] = CachedPage(page, self._clock)
                held.own.discard(page)
        self._lock(held.tenant, held.prefix, -1)
        held.prefix = whole
        self._lock(held.tenant, held.prefix, 1)
        return True

    def _release(self, lease: int) -> None:
        held = self._held.pop(lease)
        self._lock(held.tenant, held.prefix, -1)
        self._free |= held.own

    def _evict_one(self) -> None:
        """Remove the least recently used prefix that nobody locks and that no other extends."""
        size = self.page_size
        inner = {(tenant, tokens[:-size]) for tenant, tokens in self.prefixes}
        leaves = [name for name, entry in self.prefixes.items() if not entry.locks and name not in inner]
        oldest = min(leaves, key=lambda name: self.prefixes[name].used)
        self._free.add(self.prefixes.pop(oldest).page)
