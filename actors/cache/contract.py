"""What a prefix cache promises. `core.RadixCache` keeps it fast, `naive.NaiveCache` obviously."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sgl_actors.actors.cache.messages import Entry, Lease, Want


class PrefixCache(Protocol):
    """Pages of one pool epoch, what is cached in them, and who may use which.

    Guarantees. A page is at every moment exactly one of: free, cached (the tree's), leased (one lease's own). A page
    that a live lease was granted, or keeps after a commit without release, is given to nobody else before that lease
    ends, and its content is whatever the holder put there. Pages of a lease's first `cached` tokens, and those it
    has committed, may be read by others: the holder does not write to them again.
    """

    total: int
    page_size: int

    @property
    def free(self) -> int:
        """Pages that nobody uses."""

    @property
    def cached(self) -> int:
        """Pages that the tree owns."""

    @property
    def locked(self) -> int:
        """Cached pages that some lease locks."""

    @property
    def leased(self) -> int:
        """Pages that leases own."""

    @property
    def leases(self) -> int:
        """Live leases."""

    def match(self, tenant: str, token_ids: Sequence[int]) -> int:
        """Cached leading tokens, a multiple of the page size. A hint that changes nothing."""

    def grant(self, want: Want) -> Lease | None:
        """Lock what is cached and own the rest, evicting as needed; None, and nothing changed, if it does not fit now.

        Raises:
            InvalidRequest: the lease number is in use, or a token id is no int64.
        """

    def commit(self, entry: Entry) -> bool:
        """Insert whole pages of computed tokens; end the lease if `entry.release`.

        What the tree has already from elsewhere stays the lease's own until it ends. Nothing is inserted when the
        tokens do not begin with what the lease has locked or are more than its pages hold: such an entry claims
        KV that cannot be there. False for that and for an unknown lease; a release is honoured all the same.
        """

    def release_all(self) -> int:
        """End every lease without inserting anything (their owner is gone); how many there were."""

    def flush(self) -> int:
        """Evict all that no lease locks; how many pages that freed."""
