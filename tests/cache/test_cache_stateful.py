"""The radix cache against the dictionary of prefixes, in random histories at page sizes 1, 4 and 16 and all orders of eviction."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.handover import Contents
from sgl_actors.actors.cache.messages import Entry, Lease, More, Pin, Probe, Want, pack
from sgl_actors.actors.cache.naive import NaiveCache
from sgl_actors.errors import InvalidRequest, Overloaded


def plain(contents: Contents) -> Contents:
    """As they come out of a snapshot."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(contents), type=Contents)


ALPHABET = (-(2**63), 0, 2**63 - 1)


@dataclass
class Holder:
    """A lease as its holder knows it: the key it asked with, its pages, and how many tokens it has computed."""

    namespace: str
    tokens: list[int]
    lease: Lease
    computed: int
    shared: int


class CacheMachine(RuleBasedStateMachine):
    """Both caches hear the same; a shadow memory shows what every page holds."""

    page_size = 1
    eviction = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.total = 14
        self.real = RadixCache(self.total, self.page_size, self.eviction)
        self.oracle = NaiveCache(self.total, self.page_size, self.eviction)
        self.memory: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.holders: dict[int, Holder] = {}
        self.known: list[tuple[int, ...]] = [()]
        self.number = 0
        self.now = 0.0

    def tokens(self, data: st.DataObject) -> list[int]:
        """A key that often shares a prefix with an earlier one; parts within pages as well as between them."""
        base = data.draw(st.sampled_from(self.known))
        blocks = data.draw(st.lists(st.sampled_from(ALPHABET), max_size=6))
        tail = [token for token in blocks for _ in range(self.page_size)]
        odd = data.draw(st.lists(st.sampled_from(ALPHABET), max_size=min(3, self.page_size)))
        return [*base, *tail, *odd][: 12 * self.page_size]

    @rule(
        data=st.data(),
        extra=st.integers(0, 20),
        cap=st.integers(0, 60),
        namespace=st.sampled_from(["a", "b"]),
        least=st.sampled_from([0, 0, 0, 4, 17]),
        priority=st.integers(-1, 2),
        follow=st.integers(0, 40),
    )
    def grant(
        self,
        data: st.DataObject,
        extra: int,
        cap: int,
        namespace: str,
        least: int,
        priority: int,
        follow: int,
    ) -> None:
        self.number += 1
        tokens = self.tokens(data)
        limit = min(cap, len(tokens))
        want = Want(self.number, pack(tokens), limit, len(tokens) + extra, namespace, least, priority, follow)
        lease, expected = self.real.grant(want), self.oracle.grant(want)
        assert (lease is None) == (expected is None)
        if lease is None or expected is None:
            return
        assert lease.cached == expected.cached
        assert lease.continuation == expected.continuation
        assert lease.cached % self.page_size == 0
        assert least <= lease.cached <= limit
        assert len(lease.pages) == len(expected.pages) == -(-want.tokens // self.page_size)
        for index in range(lease.cached // self.page_size):
            held = self.memory[lease.pages[index]]
            assert held == (namespace, tuple(tokens[: (index + 1) * self.page_size]))
        self.holders[self.number] = Holder(namespace, tokens, lease, lease.cached, lease.cached)
        self.known = [*self.known[-8:], tuple(tokens)]

    @rule(seed=st.integers(0, 2**32))
    def traffic(self, seed: int) -> None:
        """Whole requests, one after the other, and questions between them: the everyday way into the tree, and out again."""
        chance = random.Random(seed)
        for _ in range(12):
            base = chance.choice(self.known)
            tail = [
                chance.choice(ALPHABET) for _ in range(chance.randint(0, 5)) for _ in range(self.page_size)
            ]
            key = [*base[: chance.randint(0, 12) * self.page_size], *tail][: 12 * self.page_size]
            namespace = chance.choice("aab")
            if chance.random() < 0.4:
                probes = [Probe(pack(key), namespace)]
                assert self.real.match(probes, touch=True) == self.oracle.match(probes, touch=True)
            else:
                self.complete(key, namespace, chance.randint(-1, 2))

    def complete(self, key: list[int], namespace: str, priority: int) -> None:
        self.number += 1
        want = Want(self.number, pack(key), len(key), len(key), namespace, priority=priority)
        lease, expected = self.real.grant(want), self.oracle.grant(want)
        assert (lease is None) == (expected is None)
        if lease is None or expected is None:
            return
        assert lease.cached == expected.cached
        for index in range(lease.cached // self.page_size, len(key) // self.page_size):
            self.memory[lease.pages[index]] = (namespace, tuple(key[: (index + 1) * self.page_size]))
        assert self.both(Entry(self.number, pack(key)))
        self.known = [*self.known[-8:], tuple(key)]

    @rule(data=st.data(), count=st.integers(0, 6))
    def extend(self, data: st.DataObject, count: int) -> None:
        number = data.draw(st.sampled_from([*sorted(self.holders), -1]))
        more = More(number, count)
        pages, expected = self.real.extend(more), self.oracle.extend(more)
        assert (pages is None) == (expected is None)
        if pages is not None:
            assert len(pages) == count
            self.holders[number].lease.pages.extend(pages)

    @rule(data=st.data(), release=st.booleans(), more=st.integers(0, 20))
    def commit(self, data: st.DataObject, release: bool, more: int) -> None:
        """Compute some more tokens (or none), write them to the lease's own pages, commit what is computed."""
        if not self.holders:
            return
        number = data.draw(st.sampled_from(sorted(self.holders)))
        holder = self.holders[number]
        room = len(holder.lease.pages) * self.page_size
        upto = min(room, holder.computed + more)
        fresh = data.draw(st.sampled_from(ALPHABET))
        holder.tokens += [fresh] * (upto - len(holder.tokens))
        holder.computed = max(holder.computed, upto)
        for index in range(holder.shared // self.page_size, holder.computed // self.page_size):
            prefix = tuple(holder.tokens[: (index + 1) * self.page_size])
            self.memory[holder.lease.pages[index]] = (holder.namespace, prefix)
        count = data.draw(st.integers(0, holder.computed))
        self.both(Entry(number, pack(holder.tokens[:count]), release))
        holder.shared = max(holder.shared, count)
        self.known = [*self.known[-8:], tuple(holder.tokens[:count])]
        if release:
            del self.holders[number]

    @rule(data=st.data(), release=st.booleans())
    def commit_nonsense(self, data: st.DataObject, release: bool) -> None:
        """Tokens that part from what the lease has locked, or more of them than it has pages."""
        if not self.holders:
            return
        number = data.draw(st.sampled_from(sorted(self.holders)))
        holder = self.holders[number]
        if data.draw(st.booleans()):
            tokens = [5] * (len(holder.lease.pages) * self.page_size + 1)
        elif holder.shared >= self.page_size:
            tokens = [1234, *holder.tokens[1:]]
            tokens += [0] * (len(holder.lease.pages) * self.page_size - len(tokens))
            if len(tokens) // self.page_size <= holder.shared // self.page_size:
                return
        else:
            return
        assert self.both(Entry(number, pack(tokens), release)) is False
        if release:
            del self.holders[number]

    @rule(number=st.integers(-3, 0), release=st.booleans())
    def commit_unknown(self, number: int, release: bool) -> None:
        assert self.both(Entry(number, pack([1, 2, 3]), release)) is False

    @rule(data=st.data(), count=st.integers(0, 4), touch=st.booleans())
    def match(self, data: st.DataObject, count: int, touch: bool) -> None:
        namespaces = st.sampled_from(["a", "b", "c"])
        probes = [Probe(pack(self.tokens(data)), data.draw(namespaces)) for _ in range(count)]
        assert self.real.match(probes, touch) == self.oracle.match(probes, touch)

    @rule(
        data=st.data(),
        name=st.sampled_from("xyz"),
        namespace=st.sampled_from(["a", "b"]),
        ttl=st.integers(1, 9),
    )
    def pin(self, data: st.DataObject, name: str, namespace: str, ttl: int) -> None:
        tokens = self.tokens(data)
        wish = Pin(key=pack(tokens), ttl=ttl, namespace=namespace, name=name)
        if len(tokens) < self.page_size:
            with pytest.raises(InvalidRequest):
                self.real.pins.pin(wish, self.now)
        elif self.oracle.pin(wish, self.now):
            pinned = self.real.pins.pin(wish, self.now)
            assert (pinned.tokens, pinned.expires_in) == (len(tokens), ttl)
        else:
            with pytest.raises((InvalidRequest, Overloaded), match="pages"):
                self.real.pins.pin(wish, self.now)

    @rule(names=st.lists(st.sampled_from("xyz")), namespace=st.sampled_from(["a", "b"]))
    def unpin(self, names: list[str], namespace: str) -> None:
        self.real.pins.unpin(namespace, names)
        self.oracle.unpin([(namespace, name) for name in names])

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.real.pins.expire(self.now)
        self.oracle.expire(self.now)

    @rule()
    def flush(self) -> None:
        assert self.real.flush() == self.oracle.flush()
        assert self.real.cached == self.real.locked

    @rule()
    def owner_gone(self) -> None:
        assert self.real.release_all() == self.oracle.release_all() == len(self.holders)
        self.holders.clear()
        assert self.real.leased == 0
        assert self.real.locked == self.real.pins.held

    @rule(direct=st.booleans())
    def swap(self, direct: bool) -> None:
        """Another cache takes over each of them from plain data: one of its kind, or one of the other kind and then one of its kind."""
        real, oracle = plain(self.real.contents(self.now)), plain(self.oracle.contents(self.now))
        if not direct:
            real = plain(NaiveCache.taken(real, self.now, self.eviction).contents(self.now))
            oracle = plain(RadixCache.taken(oracle, self.now, self.eviction).contents(self.now))
        self.real = RadixCache.taken(real, self.now, self.eviction)
        self.oracle = NaiveCache.taken(oracle, self.now, self.eviction)

    def both(self, entry: Entry) -> bool:
        accepted = self.real.commit(entry)
        assert accepted == self.oracle.commit(entry)
        return accepted

    @invariant()
    def accounts_agree(self) -> None:
        assert self.real.check() == []
        for name in ("free", "cached", "locked", "leased", "leases"):
            assert getattr(self.real, name) == getattr(self.oracle, name), name

    @invariant()
    def the_same_is_pinned(self) -> None:
        rows = {(pin.namespace, pin.name): pin.held for pin in self.real.pins.rows(None, self.now)}
        assert list(rows.items()) == [(name, len(pin.held)) for name, pin in self.oracle.pins.items()]
        held = {
            (pin.namespace, tokens)
            for pin in self.oracle.pins.values()
            for tokens in (pin.held[:end] for end in range(self.page_size, len(pin.held) + 1, self.page_size))
        }
        assert self.real.pins.held == len(held)
        assert self.real.pins.held <= self.real.pins.wished <= self.total // 2

    @invariant()
    def the_same_is_cached(self) -> None:
        probes = [Probe(pack(tokens), namespace) for namespace, tokens in self.oracle.prefixes]
        assert self.real.match(probes) == [len(tokens) for _, tokens in self.oracle.prefixes]

    @invariant()
    def nobody_writes_over_a_live_lease(self) -> None:
        for holder in self.holders.values():
            for index in range(holder.computed // self.page_size):
                prefix = tuple(holder.tokens[: (index + 1) * self.page_size])
                assert self.memory[holder.lease.pages[index]] == (holder.namespace, prefix)


@pytest.mark.parametrize("eviction", ["lru", "lfu", "priority"])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_radix_cache_equals_the_dictionary_of_prefixes(page_size: int, eviction: str) -> None:
    """Whatever happens in whatever order, lengths, accounts and evictions are those of the naive cache."""
    machine: Any = type("Machine", (CacheMachine,), {"page_size": page_size, "eviction": eviction})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
