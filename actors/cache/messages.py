"""What the cache understands and answers. The scheduler is its only writer.

Invariant: free + cached + leased == total pages. A page is *leased* while exactly one lease owns it and the tree does not,
*cached* while the tree owns it (leases may lock it there), else free.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal

import msgspec

from sgl_actors.actors.microkernel.wire import Message

BLOCK = 64
"""Tokens of a block that has a digest."""
DEFAULT = "default"
"""The namespace of requests without tenant and salt."""
PIN_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
"""What a pin's name matches as a whole: it stands in a path of HTTP."""
PIN_NAME_WORDS = "1 to 64 letters, digits, dots, dashes and underscores, the first no dot or dash"
SHORTEST_PIN, LONGEST_PIN = 1.0, 30 * 24 * 3600.0
"""Seconds that a pin may be asked for; the cache itself takes any fraction of the first."""


def pack(token_ids: Sequence[int]) -> bytes:
    """Token ids as a key: int64 in native byte order. Raises `OverflowError` for one that does not fit."""
    return array("q", token_ids).tobytes()


def unpack(key: bytes) -> list[int]:
    """The token ids of a key."""
    return array("q", key).tolist()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cache]` of node.toml.

    Attributes:
        page_size: tokens per page, from 1.
        memory: bytes of the KV pool (node.toml also takes "1GiB").
        pages: number of pages instead of `memory`, 0 to use `memory`.
        claim: take the pool's memory from the system in the background after the start, not as it is first used; on a CPU.
        eviction: which unlocked leaf goes first: least recently used, least often used, or lowest priority.
        pinned: most of the pool that pins may hold together, as a share.
        events: events kept for subscribers that come back.
    """

    page_size: int = 1
    memory: int = 1 << 30
    pages: int = 0
    claim: bool = True
    eviction: Literal["lru", "lfu", "priority"] = "lru"
    pinned: float = 0.5
    events: int = 65536


class Reset(Message):
    """Call, answered by `Pool`. Forget everything: the pool has `pages` pages of `page_size` tokens with unknown content.

    Leases of the time before are void; messages that name them are ignored and counted.

    Attributes:
        revision: whatever makes the KV of the same tokens another one (model, adapter, data type); part of every digest.
    """

    epoch: int
    pages: int
    page_size: int
    revision: str = ""


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
    pinned: int = 0
    evicted: int = 0


class Probe(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A key to look for: packed tokens (`pack`), and the namespace whose root they begin at."""

    key: bytes
    namespace: str = DEFAULT


class Match(Message):
    """Call, answered by `Matched`: how much of each key is cached. A hint; only a lease binds.

    Attributes:
        probes: the keys.
        touch: what was found becomes the most recently used, the first probe's last: who waits says so, and what nobody
            waits for is evicted before. Only the pool's owner may.
    """

    probes: list[Probe]
    touch: bool = False


class Matched(Message):
    """Cached leading tokens per probe."""

    lengths: list[int]


class Want(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Ask for a lease.

    Attributes:
        lease: number chosen by the scheduler, unique in its epoch.
        key: packed tokens to match; at most `limit` tokens of it are taken from the cache.
        limit: most cached tokens that are of use (at least one prompt token has to be computed).
        tokens: how many tokens in all the lease is to hold; pages are reserved for them. `More` adds to it.
        namespace: whose root the key begins at.
        least: with fewer cached tokens than that the lease is not wanted, and counts as one that does not fit.
        priority: for eviction by priority: what it inserts has at least that.
        follow: most tokens wanted of what is cached behind all of `key`.
    """

    lease: int
    key: bytes
    limit: int
    tokens: int
    namespace: str = DEFAULT
    least: int = 0
    priority: int = 0
    follow: int = 0


class More(msgspec.Struct, frozen=True, array_like=True):
    """Ask for `pages` more pages at the end of a lease. One that is not known (any more) counts as not fitting."""

    lease: int
    pages: int


class Grant(Message):
    """Call, answered by `Granted`: pages for leases that grow, then new leases, in order, up to the first that does not fit."""

    epoch: int
    wants: list[Want]
    more: list[More] = []


class Lease(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Pages a request may use until it commits with `release`.

    Attributes:
        cached: leading tokens whose KV is in the first pages (a multiple of the page size); those pages are locked in the tree
            and read-only.
        pages: all pages in order, cached ones first; len(pages) * page_size >= tokens asked for.
        continuation: tokens that are cached behind the whole key, if that is: wherever keys part, of the branch that was added last.
    """

    lease: int
    cached: int
    pages: list[int]
    continuation: list[int] = []


class Granted(Message):
    """`leases` for the first len(leases) wants, pages for the first len(more) of `more`; the rest did not fit now."""

    epoch: int
    leases: list[Lease]
    more: list[list[int]] = []


class Entry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """KV that has been computed under a lease: token i lives in the lease's page i // page_size.

    Attributes:
        key: the packed tokens.
        release: the lease ends; pages that hold no whole page of committed tokens, or duplicate what the tree
            has already, become free. Without it the pages stay usable to the lease.
    """

    lease: int
    key: bytes
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


class Pin(Message):
    """Call, answered by `Pinned`: keep a prefix from eviction for a while. What is not cached yet is held as soon as it is.

    Only pins have a time to live. They outlive `Reset` as wishes: the pages are gone, and held again once somebody computes them.

    Attributes:
        key: packed tokens; whole pages of them are held.
        ttl: seconds from now.
        namespace: whose root the key begins at.
        name: pinning a live name again replaces it; "" draws one.
    """

    key: bytes
    ttl: float
    namespace: str = DEFAULT
    name: str = ""


class Pinned(Message):
    """One pin.

    Attributes:
        tokens: length of its key.
        held: leading tokens that are cached and locked now.
        expires_in: seconds left.
    """

    name: str
    namespace: str
    tokens: int
    held: int
    expires_in: float


class Unpin(Message):
    """Call, answered by the `Pins` of that namespace that are left. Unknown names are no error."""

    names: list[str]
    namespace: str = DEFAULT


class ListPins(Message):
    """Call, answered by `Pins`; of one namespace, or with None of all."""

    namespace: str | None = None


class Pins(Message):
    """Pins that have not expired, oldest first."""

    pins: list[Pinned]


class Event(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One change of what is cached, in blocks of `BLOCK` tokens.

    Attributes:
        kind: "stored", "removed" (one block each) or "cleared" (everything; the other fields are empty). A block may be told as
            stored again while it is; removed is told once.
        namespace: of the block.
        digest: SHA-256 of the parent's digest and the block's packed tokens; a first block's parent is the digest of revision and
            namespace.
        parent: digest of the block before.
        token_ids: of a stored block.
    """

    kind: Literal["stored", "removed", "cleared"]
    namespace: str = ""
    digest: bytes = b""
    parent: bytes = b""
    token_ids: list[int] = []


class Subscribe(Message):
    """Stream of `Events` without end: those after number `since`, then whatever happens.

    Where they are no longer kept, or with -1, the stream begins with "cleared" and a "stored" for every block of now.
    It does so again whenever the reader has become so slow that what it should read next is no longer kept.

    Attributes:
        since: the last `Events.number` that was read, unless that is -1.
        incarnation: the `Events.incarnation` it belongs to; None does not compare.
    """

    since: int = -1
    incarnation: int | None = None


class Events(Message):
    """Consecutive events; `number` is that of the last one. In the middle of "everything of now" it is -1.

    Numbers grow by one per event, also over a `Reset`, not over a restart of the cache: `incarnation` tells.
    """

    incarnation: int
    number: int
    events: list[Event]


class ExpirePins(Message):
    """Cast by the cache to itself when the next pin's time is over."""


class Export(Message):
    """Stream of `Exported`: everything cached in one namespace, or with None in all."""

    namespace: str | None = None


class Edge(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One edge of the tree. `parent` is the number of the edge it continues, -1 at a root; numbers count up from 0, parents first."""

    namespace: str
    number: int
    parent: int
    token_ids: list[int]
    locks: int = 0
    hits: int = 0


class Exported(Message):
    """Some edges."""

    edges: list[Edge]
