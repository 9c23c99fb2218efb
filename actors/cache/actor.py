"""The cache actor. It owns the radix tree, the page table and the leases; the KV itself lies in the worker.

In: `Reset`, `Grant`, `Commit` from the scheduler, its only writer, which becomes the owner with its first `Reset`;
`Match`, `Flush`, `Inspect` from anyone. Out: answers only. Until the first `Reset` there are no pages.

When the owner goes down, its leases end: what they had committed stays in the tree, evictable. When the cache itself
crashes, everything is forgotten; the scheduler sees it go, resets worker and cache under a new epoch and computes anew
what its requests still need.
"""

from __future__ import annotations

from sgl_actors.actors.cache.core import Counters, RadixCache
from sgl_actors.actors.cache.messages import (
    CheckAccounts,
    Commit,
    Flush,
    Grant,
    Granted,
    Inspect,
    Lease,
    Match,
    Matched,
    Pool,
    Reset,
)
from sgl_actors.actors.microkernel import Actor, Address, Context, Down, MailboxSpec, Message, Request
from sgl_actors.errors import InvalidRequest

CHECK_PERIOD = 30.0
"""Seconds between two looks at the sum of the accounts."""


class CacheActor(Actor):
    """See the module."""

    mailbox = MailboxSpec(capacity=8192)
    """The scheduler, with one question at a time and one `Commit` per step, has the control lane to itself."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.epoch = 0
        self.core = RadixCache(0, 1)
        self._owner: Address | None = None
        self._refused = 0
        self._stale = 0
        self._repairs = 0

    async def start(self) -> None:
        """Begin the periodic check."""
        self.ctx.after(CHECK_PERIOD, CheckAccounts())

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Handle one message; see the module."""
        match message:
            case Grant():
                return self._grant(message, request.sender)
            case Commit():
                self._commit(message, request.sender)
            case Match():
                return Matched([self.core.match(message.tenant, key) for key in message.keys])
            case Reset():
                return self._reset(message, request.sender)
            case Flush():
                self.core.flush()
                return self._pool()
            case Inspect():
                return self._pool()
            case CheckAccounts():
                self._check()
            case Down():
                if message.address == self._owner:
                    self._owner = None
                    self.log.info("owner down", leases=self.core.release_all(), reason=message.reason)
            case _:
                return await super().receive(message, request)
        return None

    def statistics(self) -> dict[str, float]:
        """Pages by state, and totals since the start."""
        core, counters = self.core, self.core.counters
        return {
            "pages": core.total,
            "pages_free": core.free,
            "pages_cached": core.cached,
            "pages_leased": core.leased,
            "pages_locked": core.locked,
            "leases": core.leases,
            "nodes": core.tree.nodes,
            "tenants": core.tree.tenants,
            "asked_tokens_total": counters.asked_tokens,
            "hit_tokens_total": counters.hit_tokens,
            "inserted_pages_total": counters.inserted_pages,
            "duplicate_pages_total": counters.duplicate_pages,
            "evicted_pages_total": counters.evicted_pages,
            "refused_commits_total": counters.refused_commits,
            "unknown_leases_total": counters.unknown_leases,
            "stale_messages_total": self._stale,
            "refused_messages_total": self._refused,
            "repairs_total": self._repairs,
        }

    def _reset(self, message: Reset, sender: Address) -> Pool:
        if message.pages < 1 or message.page_size < 1:
            raise InvalidRequest(
                f"a pool of {message.pages} pages of {message.page_size} tokens holds nothing"
            )
        counters: Counters = self.core.counters
        self.epoch = message.epoch
        self.core = RadixCache(message.pages, message.page_size)
        self.core.counters = counters
        if sender != self._owner:
            self._owner = sender
            self.ctx.monitor(sender)
        self.log.info(
            "pool reset", pool_epoch=message.epoch, pages=message.pages, page_size=message.page_size
        )
        return self._pool()

    def _grant(self, message: Grant, sender: Address) -> Granted:
        """Leases for the leading wants that fit; none for another epoch, whose answer names the one that is."""
        if sender != self._owner:
            self._refused += 1
            raise InvalidRequest(f"{sender} does not own the pool, {self._owner} does")
        leases: list[Lease] = []
        if message.epoch != self.epoch:
            self._stale += 1
            return Granted(self.epoch, leases)
        for want in message.wants:
            lease = self.core.grant(want)
            if lease is None:
                break
            leases.append(lease)
        return Granted(self.epoch, leases)

    def _commit(self, message: Commit, sender: Address) -> None:
        if sender != self._owner:
            self._refused += 1
            return
        if message.epoch != self.epoch:
            self._stale += 1
            return
        for entry in message.entries:
            if not self.core.commit(entry):
                self.log.warning("commit refused", lease=entry.lease, tokens=len(entry.token_ids))

    def _check(self) -> None:
        for problem in self.core.check(full=False):
            self._repairs += 1
            self.log.error("accounts wrong", problem=problem)
            self.core.repair()
        self.ctx.after(CHECK_PERIOD, CheckAccounts())

    def _pool(self) -> Pool:
        core = self.core
        return Pool(
            epoch=self.epoch,
            total=core.total,
            page_size=core.page_size,
            free=core.free,
            cached=core.cached,
            leased=core.leased,
            locked=core.locked,
            tokens=core.cached * core.page_size,
            leases=core.leases,
        )
