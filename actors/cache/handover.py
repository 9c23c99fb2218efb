"""What a cache hands to the class that takes its place in a running node: layout ``cache/1``.

Plain: `CacheState`, msgpack of maps by field name. The KV itself lies in the worker and does not move: every page stays what it is, free, cached or leased. Handles:
``readers``, a list of the `Request`s that subscribe to events, as long as `CacheState.readers`; ``exports``, a list of (`Request`, iterator of the `Exported` that it has not been sent yet).

A successor must keep `epoch`, `owner`, the leases with their pages in order, and which page holds which tokens; what neither an edge nor a lease has is free. It locks the key of
every lease, and of every pin as much as is cached. It goes on counting events where `events` ends; a reader who has not read up to there begins anew, as when it was too slow.
It may ignore `used`, `hits`, `priority` (then it evicts in another order), `counters`, pins (then they are gone), and fail readers and exports.
"""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel import Address

LAYOUT = "cache/1"


class CachedEdge(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Some whole pages of cached tokens, from a place where keys part (or a lease or pin ended) to the next.

    Attributes:
        namespace: whose root it is below.
        parent: number of the edge that it continues, -1 at a root. Edges are numbered as they stand, parents first, of siblings the oldest.
        key: packed tokens.
        pages: where their KV is.
        used: logical time of the last use; greater is later.
        hits: leases that were granted with it.
        priority: the greatest that inserted it.
    """

    namespace: str
    parent: int
    key: bytes
    pages: list[int]
    used: int = 0
    hits: int = 0
    priority: int = 0


class HeldLease(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A live lease.

    Attributes:
        lease: its number.
        namespace: whose root its key begins at.
        key: packed tokens that it has locked: cached ones that it was granted, and committed ones.
        pages: all that it was granted, in order; those behind `key` are its own.
        spare: those of the first ones that are its own, too: the tree holds the same tokens in others.
        priority: of what it inserts.
    """

    lease: int
    namespace: str
    key: bytes
    pages: list[int]
    spare: list[int] = []
    priority: int = 0


class LivePin(msgspec.Struct, frozen=True, array_like=True):
    """A pin, and the seconds that it has left."""

    namespace: str
    name: str
    key: bytes
    left: float


class Contents(msgspec.Struct, frozen=True, omit_defaults=True):
    """One pool: `pages` of `page_size` tokens, and what is in them; pins oldest first."""

    pages: int
    page_size: int
    edges: list[CachedEdge] = []
    leases: list[HeldLease] = []
    pins: list[LivePin] = []


class EventsState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The events that have been told.

    Attributes:
        incarnation: as in `messages.Events`.
        number: of the last one.
        recording: somebody has subscribed of late.
    """

    incarnation: int
    number: int = 0
    recording: bool = False


class CacheState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cache between two messages.

    Attributes:
        epoch: of the pool.
        contents: of the pool.
        events: told so far.
        revision: part of every digest (`messages.Reset`).
        owner: who may write; None if it is gone, or nobody came yet.
        readers: the last event that each subscriber has been sent; -1: it is in the middle of everything of then.
        counters: totals of its statistics, by name without "_total".
    """

    epoch: int
    contents: Contents
    events: EventsState
    revision: str = ""
    owner: Address | None = None
    readers: list[int] = []
    counters: dict[str, int] = {}
