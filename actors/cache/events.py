"""Numbered changes of what is cached, kept for a while, and readers that never make the cache buffer for them.

`EventLog` hears the tree while it records. Nothing is hashed or kept before the first reader, and of the tree as it was then only what
a change needs. A `Subscription` reads on from a number; where the log has passed it by, it begins again with a `Snapshot`. It holds a
place in the log, never messages: a slow reader costs nothing but its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

from sgl_actors.actors.cache.blocks import Change, root_digest, stored
from sgl_actors.actors.cache.export import snapshot
from sgl_actors.actors.cache.handover import EventsState
from sgl_actors.actors.cache.messages import BLOCK, Events
from sgl_actors.actors.cache.radix_tree import TOKEN_BYTES, Node, RadixTree, Root

EVENTS_PER_MESSAGE = 64
"""Some 40 kB of tokens."""


class Chain(NamedTuple):
    """Digests along one edge.

    Attributes:
        tokens: from the root to the end of the edge.
        above: digest of the last block before those that end on the edge.
        digests: of the blocks that end on the edge.
    """

    namespace: str
    tokens: int
    above: bytes
    digests: list[bytes]

    @property
    def last(self) -> bytes:
        """Digest of the last block that ends on the edge or above it."""
        return self.digests[-1] if self.digests else self.above


class EventLog:
    """The last `kept` changes of a tree (a `radix_tree.Observer`) and of those that come after it.

    Attributes:
        incarnation: tells numbers of one log from those of another.
        number: of the last change.
    """

    def __init__(self, kept: int, incarnation: int = 0) -> None:
        self.kept = kept
        self.incarnation = incarnation
        self.number = 0
        self.recording = False
        self.revision = ""
        self.tree = RadixTree(1)
        self._changes: dict[int, Change] = {}
        self._chains: dict[Node, Chain] = {}

    def __repr__(self) -> str:
        return f"<EventLog number={self.number} kept={len(self._changes)} recording={self.recording}>"

    def follow(self, tree: RadixTree, revision: str) -> None:
        """Everything cached until now is gone; from now on this tree is listened to."""
        self.tree.observer = None
        self.tree, self.revision = tree, revision
        self._chains.clear()
        if self.recording:
            self._append(Change("cleared"))
            tree.observer = self

    @property
    def state(self) -> EventsState:
        """For a successor."""
        return EventsState(self.incarnation, self.number, self.recording)

    def resume(self, state: EventsState) -> None:
        """Go on counting where another log has ended; what it has kept is not here."""
        self.incarnation, self.number, self.recording = state.incarnation, state.number, state.recording
        self.tree.observer = self if state.recording else None

    def start(self) -> None:
        """Record from now on. What happened before gets a number of its own, so that nobody reads on across it."""
        if not self.recording:
            self.recording = True
            self.number += 1
            self.tree.observer = self

    def stop(self) -> None:
        """Forget everything, until the next `start`."""
        self.recording = False
        self.tree.observer = None
        self._changes.clear()
        self._chains.clear()

    def since(self, number: int, count: int) -> list[Change] | None:
        """Up to `count` changes after `number`; None if they are not kept (any more), or there was no such number."""
        if not self.number - len(self._changes) <= number <= self.number:
            return None
        return [self._changes[index] for index in range(number + 1, min(number + count, self.number) + 1)]

    def stored(self, leaf: Node) -> None:
        """See `radix_tree.Observer`."""
        assert leaf.parent is not None
        for change in self._add(leaf, self._chain(leaf.parent)):
            self._append(change)

    def removed(self, leaf: Node, pages: int) -> None:
        """See `radix_tree.Observer`. The last block goes first."""
        known = self._chain(leaf)
        left = known.tokens - pages * self.tree.page_size
        start = known.tokens - len(leaf.key) // TOKEN_BYTES
        keep = left // BLOCK - start // BLOCK
        line = [known.above, *known.digests]
        for index in range(len(known.digests), keep, -1):
            if self._elsewhere(leaf, (start // BLOCK + index) * BLOCK - start):
                continue
            self._append(Change("removed", known.namespace, line[index], line[index - 1]))
        if pages == len(leaf.pages):
            del self._chains[leaf]
        else:
            self._chains[leaf] = known._replace(tokens=left, digests=known.digests[:keep])

    def _elsewhere(self, leaf: Node, tokens: int) -> bool:
        """Whether a sibling begins with the same `tokens` tokens: pages that cross the borders of blocks part behind them."""
        if BLOCK % self.tree.page_size == 0 or tokens >= self.tree.page_size:
            return False
        assert leaf.parent is not None
        same = bytes(leaf.key[: tokens * TOKEN_BYTES])
        return any(one is not leaf and one.key.startswith(same) for one in leaf.parent.children.values())

    def split(self, lower: Node) -> None:
        """See `radix_tree.Observer`. Both halves are hashed anew when they are needed."""
        self._chains.pop(lower, None)

    def _append(self, change: Change) -> None:
        self.number += 1
        self._changes[self.number] = change
        self._changes.pop(self.number - self.kept, None)

    def _chain(self, node: Node) -> Chain:
        """The digests along `node`, computed as far as they are not known."""
        missing: list[Node] = []
        while node not in self._chains and node.parent is not None:
            missing.append(node)
            node = node.parent
        if isinstance(node, Root):
            known = Chain(node.namespace, 0, root_digest(self.revision, node.namespace), [])
        else:
            known = self._chains[node]
        for below in reversed(missing):
            self._add(below, known)
            known = self._chains[below]
        return known

    def _add(self, node: Node, above: Chain) -> list[Change]:
        """Hash the blocks that end on `node`."""
        assert node.parent is not None
        changes = stored(above.namespace, above.last, _tail(node.parent, above.tokens % BLOCK) + node.key)
        digests = [change.digest for change in changes]
        tokens = above.tokens + len(node.key) // TOKEN_BYTES
        self._chains[node] = Chain(above.namespace, tokens, above.last, digests)
        return changes


class Subscription:
    """One reader's place: the changes after number `since`, or everything if those are not kept."""

    def __init__(self, log: EventLog, since: int) -> None:
        self._log = log
        self._number = since
        self._rest: Iterator[Change] | None = None

    @property
    def place(self) -> int:
        """The last event that was read; -1 in the middle of everything of some moment."""
        return self._number if self._rest is None else -1

    def next(self) -> Events | None:
        """The next message; None while there is no news."""
        if self._rest is None:
            changes = self._log.since(self._number, EVENTS_PER_MESSAGE)
            if changes is not None:
                self._number += len(changes)
                return self._message(changes, self._number) if changes else None
            self._number = self._log.number
            everything = snapshot(self._log.tree).blocks(self._log.revision)
            self._rest = chain([Change("cleared")], everything)
        changes = list(islice(self._rest, EVENTS_PER_MESSAGE))
        if len(changes) == EVENTS_PER_MESSAGE:
            return self._message(changes, -1)
        self._rest = None
        return self._message(changes, self._number)

    def _message(self, changes: list[Change], number: int) -> Events:
        return Events(self._log.incarnation, number, [change.event() for change in changes])


def _tail(node: Node, tokens: int) -> bytes:
    """The last `tokens` packed tokens of the way from the root to the end of `node`."""
    missing, parts = tokens * TOKEN_BYTES, list[bytes]()
    while missing:
        assert node.parent is not None
        parts.append(node.key[-missing:])
        missing -= len(parts[-1])
        node = node.parent
    return b"".join(reversed(parts))
