"""Events: a mirror that applies them is always equal to what is cached, and nothing is buffered for a slow reader."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.cache import events as events_module
from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.events import EventLog, Subscription
from sgl_actors.actors.cache.export import snapshot
from sgl_actors.actors.cache.messages import BLOCK, DEFAULT, Entry, Events, Want, pack, unpack

REVISION = "model@1"
Block = tuple[str, tuple[int, ...]]


def digest_of(namespace: str, tokens: tuple[int, ...], revision: str = REVISION) -> bytes:
    """The digest of the block that ends `tokens`, straight from the definition."""
    parent = sha256(sha256(revision.encode()).digest() + sha256(namespace.encode()).digest()).digest()
    for start in range(0, len(tokens), BLOCK):
        parent = sha256(parent + pack(tokens[start : start + BLOCK])).digest()
    return parent


class Mirror:
    """What a subscriber knows: the blocks, by digest; it insists that every event makes sense."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.blocks: dict[bytes, Block] = {}
        self.parents: dict[bytes, bytes] = {}
        self.whole = False
        self.number = -1
        self.subscription = Subscription(log, -1)

    def subscribe(self) -> None:
        """Come back after a while, to where the last message left off."""
        self.subscription = Subscription(self.log, self.number)

    def read(self, messages: int = 1 << 30) -> None:
        """Take so many messages, or all there are."""
        while messages > 0 and (message := self.subscription.next()) is not None:
            messages -= 1
            self.apply(message)

    def apply(self, message: Events) -> None:
        for event in message.events:
            if event.kind == "cleared":
                self.blocks.clear()
                self.parents.clear()
            elif event.kind == "removed":
                del self.blocks[event.digest]
                assert self.parents.pop(event.digest) == event.parent
                assert event.digest not in self.parents.values(), "the end of a prefix goes first"
            else:
                above = self.blocks.get(event.parent, (event.namespace, ()))[1]
                assert len(event.token_ids) == BLOCK
                block = (event.namespace, (*above, *event.token_ids))
                assert event.digest not in self.blocks or BLOCK % self.log.tree.page_size, "told twice"
                assert event.digest == digest_of(*block, self.log.revision)
                self.blocks[event.digest] = block
                self.parents[event.digest] = event.parent
        self.number = message.number
        self.whole = message.number == self.log.number


def blocks_of(cache: RadixCache) -> set[Block]:
    """All blocks whose last token is cached."""
    spelled: list[tuple[int, ...]] = []
    found: set[Block] = set()
    for edge in snapshot(cache.tree).edges:
        spelled.append((*(spelled[edge.parent] if edge.parent >= 0 else ()), *unpack(edge.key)))
        ends = range(BLOCK, len(spelled[-1]) + 1, BLOCK)
        found |= {(edge.namespace, spelled[-1][:end]) for end in ends}
    return found


@pytest.mark.parametrize("page_size", [1, 4, 16, 24, 48])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mirror_equals_the_tree(page_size: int, seed: int) -> None:
    """From any beginning, over any evictions, splits, flushes and resets, however fast it reads and wherever it was cut off."""
    chance = random.Random(seed)
    log = EventLog(chance.choice([1, 8, 1000]))
    total = 640 // page_size

    def fresh() -> RadixCache:
        made = RadixCache(total, page_size)
        log.follow(made.tree, REVISION)
        return made

    cache = fresh()
    mirrors: list[Mirror] = []
    known: list[list[int]] = [[]]
    for lease in range(40):
        if chance.random() < 0.15:
            log.start()
            mirrors.append(Mirror(log))
        base = chance.choice(known)
        key = base[: chance.randint(0, len(base))]
        key += [chance.randrange(3)] * chance.choice([1, 16, 63, 64, 130])
        namespace = chance.choice(["a", "b"])
        want = Want(lease, pack(key), len(key), len(key), namespace)
        if cache.grant(want) is not None:
            cache.commit(Entry(lease, pack(key)))
        known.append(key)
        if chance.random() < 0.1:
            cache.flush()
        elif chance.random() < 0.05:
            cache = fresh()
        for mirror in mirrors:
            if chance.random() < 0.2:
                mirror.subscribe()
            mirror.read(chance.choice([0, 0, 1, 1 << 30]))
            if mirror.whole and mirror.number == log.number:
                assert set(mirror.blocks.values()) == blocks_of(cache)
    log.start()
    mirrors.append(Mirror(log))
    for mirror in mirrors:
        mirror.read()
        assert set(mirror.blocks.values()) == blocks_of(cache)
        assert mirror.number == log.number


def fill(cache: RadixCache, lease: int, tokens: list[int], namespace: str = DEFAULT) -> None:
    key = pack(tokens)
    assert cache.grant(Want(lease, key, len(tokens), len(tokens), namespace)) is not None
    assert cache.commit(Entry(lease, key))


def recorded(kept: int = 100, total: int = 1000) -> tuple[RadixCache, EventLog]:
    cache, log = RadixCache(total, 1), EventLog(kept)
    log.follow(cache.tree, REVISION)
    log.start()
    return cache, log


def kinds(message: Events | None) -> list[str]:
    assert message is not None
    return [event.kind for event in message.events]


def test_nothing_is_hashed_while_nobody_reads() -> None:
    """Without a reader the tree has no observer and the log keeps nothing."""
    cache, log = RadixCache(1000, 1), EventLog(100)
    log.follow(cache.tree, REVISION)
    fill(cache, 1, [1] * 200)
    assert (cache.tree.observer, log.number, log._changes, log._chains) == (None, 0, {}, {})
    log.start()
    fill(cache, 2, [2] * 200)
    assert len(log._changes) == 3
    assert len(log._chains) == 1, "only what changes need is hashed"
    log.stop()
    assert (cache.tree.observer, log._changes, log._chains) == (None, {}, {})


def test_events_of_one_request() -> None:
    """Three blocks are stored in order, each continuing the one before; the last token of a block decides, so 63 make none."""
    cache, log = recorded()
    reader = Subscription(log, log.number)
    fill(cache, 1, [1] * 63)
    assert reader.next() is None
    fill(cache, 2, [1] * 63 + [2] * 130)
    message = reader.next()
    assert message is not None
    assert kinds(message) == ["stored"] * 3
    assert [len(event.token_ids) for event in message.events] == [64] * 3
    assert message.events[0].token_ids == [1] * 63 + [2]
    assert message.events[2].parent == message.events[1].digest
    assert message.number == log.number
    assert reader.next() is None
    cache.flush()
    removed = reader.next()
    assert kinds(removed) == ["removed"] * 3
    assert removed is not None
    assert [event.digest for event in removed.events] == [event.digest for event in reversed(message.events)]


def test_reader_comes_back_to_where_it_was() -> None:
    """While what it missed is kept, it gets just that; otherwise, or under another number, everything of now."""
    cache, log = recorded(kept=4)
    fill(cache, 1, [1] * 128)
    first = Subscription(log, -1).next()
    assert kinds(first) == ["cleared", "stored", "stored"]
    assert first is not None
    fill(cache, 2, [2] * 128)
    assert kinds(Subscription(log, first.number).next()) == ["stored", "stored"]
    fill(cache, 3, [3] * 192)
    assert kinds(Subscription(log, first.number).next()) == ["cleared", *["stored"] * 7]
    assert kinds(Subscription(log, log.number + 1).next()) == ["cleared", *["stored"] * 7]
    assert Subscription(log, log.number).next() is None


def test_nobody_reads_on_across_a_pause() -> None:
    """What happened while nothing was recorded has a number, so an old reader begins anew."""
    cache, log = recorded()
    before = log.number
    log.stop()
    fill(cache, 1, [1] * 64)
    log.start()
    assert kinds(Subscription(log, before).next()) == ["cleared", "stored"]


def test_slow_reader_gets_everything_of_now_instead_of_a_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log keeps so many events and no more; a reader that fell behind begins again, and is not cut off in the middle."""
    monkeypatch.setattr(events_module, "EVENTS_PER_MESSAGE", 2)
    cache, log = recorded(kept=3)
    reader = Subscription(log, -1)
    fill(cache, 1, [1] * 192)
    first = reader.next()
    assert (kinds(first), first and first.number) == (["cleared", "stored"], -1)
    for lease in range(2, 7):
        fill(cache, lease, [lease] * 64)
    assert len(log._changes) == 3
    assert kinds(reader.next()) == ["stored", "stored"], "the moment it began with, to its end"
    assert kinds(reader.next()) == []
    assert kinds(reader.next()) == ["cleared", "stored"], "what came then is gone, so it begins again"


def test_reset_clears_and_revision_changes_digests() -> None:
    """Numbers go on; the same tokens under another model are other blocks."""
    cache, log = recorded()
    reader = Subscription(log, log.number)
    fill(cache, 1, [1] * 64)
    before = reader.next()
    again = RadixCache(1000, 1)
    log.follow(again.tree, "model@2")
    assert log._chains == {}, "no edge of the old tree is kept alive"
    fill(cache, 2, [5] * 64)
    fill(again, 1, [1] * 64)
    after = reader.next()
    assert kinds(after) == ["cleared", "stored"]
    assert before is not None
    assert after is not None
    assert after.number == before.number + 2
    assert after.events[1].digest != before.events[0].digest
