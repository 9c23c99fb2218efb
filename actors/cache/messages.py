"""What the cache understands and answers. The scheduler is its only writer.

Invariant: free + cached + leased == total pages. A page is *leased* while exactly one lease owns it and the tree does not,
*cached* while the tree owns it (leases may lock it there), else free.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel.wire import Message


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cache]` of node.toml.

    Attributes:
        page_size: tokens per page, from 1.
        memory: bytes of the KV pool (node.toml also takes "1GiB").
        pages: number of pages instead of `memory`, 0 to use `memory`.
    """

    page_size: int = 1
    memory: int = 1 << 30
    pages: int = 0


class Reset(Message):
    """Call, answered by `Pool`. Forget everything: the pool has `pages` pages of `page_size` tokens with unknown content.

    Leases of the time before are void; messages that name them are ignored and counted.
    """

    epoch: int
    pages: int
    page_size: int


class Pool(Message):
    """Page accounting."""

    epoch: int
    total: int
    page_size: int
    free: int
    cached: int
    leased: int
    locked: int = 0
    tokens: int = 0
    leases: int = 0


class Match(Message):
    """Call, answered by `Matched`: how much of each key is cached. A hint; only a lease binds."""

    tenant: str
    keys: list[list[int]]


class Matched(Message):
    """Cached leading tokens per key."""

    lengths: list[int]


class Want(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Ask for a lease.

    Attributes:
        lease: number chosen by the scheduler, unique in its epoch.
        token_ids: key to match; at most `limit` tokens of it are taken from the cache.
        limit: most cached tokens that are of use (at least one prompt token has to be computed).
        tokens: how many tokens in all the request may come to hold; pages are reserved for them.
        tenant: cache namespace.
    """

    lease: int
    token_ids: list[int]
    limit: int
    tokens: int
    tenant: str = "default"


class Grant(Message):
    """Call, answered by `Granted`: leases in the order asked for, up to the first that does not fit."""

    epoch: int
    wants: list[Want]


class Lease(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Pages a request may use until it commits with `release`.

    Attributes:
        cached: leading tokens whose KV is in the first pages (a multiple of the page size); those pages are locked in the tree
            and read-only.
        pages: all pages in order, cached ones first; len(pages) * page_size >= tokens asked for.
    """

    lease: int
    cached: int
    pages: list[int]


class Granted(Message):
    """`leases` for the first len(leases) wants; the rest did not fit now."""

    epoch: int
    leases: list[Lease]


class Entry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """KV that has been computed under a lease: token_ids[i] lives in the lease's page i // page_size.

    Attributes:
        release: the lease ends; pages that hold no whole page of committed tokens, or duplicate what the tree
            has already, become free. Without it the pages stay usable to the lease.
    """

    lease: int
    token_ids: list[int]
    release: bool = True


class Commit(Message):
    """Cast on the control lane, as everything that the scheduler sends. Insert into the tree. Unknown leases are ignored and counted."""

    epoch: int
    entries: list[Entry]


class Flush(Message):
    """Call, answered by `Pool`. Evict everything that no lease locks."""


class Inspect(Message):
    """Call, answered by `Pool`."""


class CheckAccounts(Message):
    """Cast by the cache to itself every `CHECK_PERIOD` seconds: look whether the accounts add up, repair them if not."""
