"""What a prefix cache promises. `core.RadixCache` keeps it fast, `naive.NaiveCache` obviously."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sgl_actors.actors.cache.messages import Entry, Lease, More, Probe, Want


class PrefixCache(Protocol):
    """Pages of one pool epoch, what is cached in them, and who may use which.

    Guarantees. A page is at every moment exactly one of: free, cached (the tree's), leased (one lease's own). A page
    that a live lease was granted, or keeps after a commit without release, is given to nobody else before that lease
    ends, and its content is whatever the holder put there. Pages of a lease's first `cached` tokens, and those it
    has committed, may be read by others: the holder does not write to them again.

    Order of eviction. Among cached pages that nobody locks and nothing cached continues, the one of least rank goes
    first: least recently used (`lru`), granted to the fewest leases and then least recently used (`lfu`), or of the
    lowest priority and then least recently used (`priority`). A grant uses its prefix, a commit what it has committed.
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
        """Cached pages that some lease or pin locks."""

    @property
    def leased(self) -> int:
        """Pages that leases own."""

    @property
    def leases(self) -> int:
        """Live leases."""

    def match(self, probes: Sequence[Probe], touch: bool = False) -> list[int]:
        """Cached leading tokens of each key, multiples of the page size. A hint.

        With `touch`, what was found becomes the most recently used, the first probe's last. An edge of the tree (that
        which lies between two places where keys part, or where a lease began, a commit or a pin ended) is then used
        whole, even if the key matches only its beginning: its tail is evicted first anyway. It counts as no hit.

        Raises:
            InvalidRequest: a key is no sequence of int64.
        """

    def grant(self, want: Want) -> Lease | None:
        """Lock what is cached and own the rest, evicting as needed; None, and nothing changed, if it does not fit now.

        What the lease names as `continuation` may be evicted for it: these are tokens to guess with, no KV.

        Raises:
            InvalidRequest: the lease number is in use, the key is no sequence of int64, or `tokens` or `follow` is negative.
        """

    def extend(self, more: More) -> list[int] | None:
        """Own some more pages at the end of a live lease, evicting as needed; None, and nothing changed, if they do not fit now.

        A lease that is not known (any more) counts as one that does not fit.

        Raises:
            InvalidRequest: a negative number of pages.
        """

    def commit(self, entry: Entry) -> bool:
        """Insert whole pages of computed tokens; end the lease if `entry.release`.

        What the tree has already from elsewhere stays the lease's own until it ends. Nothing is inserted when the key is no
        sequence of int64, does not begin with what the lease has locked, or is more than its pages hold: such an entry claims
        KV that cannot be there. False for that and for an unknown lease; a release is honoured all the same.
        """

    def release_all(self) -> int:
        """End every lease without inserting anything (their owner is gone); how many there were."""

    def flush(self) -> int:
        """Evict all that no lease or pin locks; how many pages that freed."""
