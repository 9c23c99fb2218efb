"""Pins: prefixes that stay in the tree until a clock says otherwise.

A pin is a wish. Of its prefix it locks what is cached, from the root on; what somebody computes later is locked as soon as it
is inserted. It outlives the tree (`attach` gives it another) with nothing held.

Pins never make a request wait for ever: together they wish for a share of the pool at most, and where a request that runs alone
needs their pages, the oldest give way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sgl_actors.actors.cache import messages
from sgl_actors.actors.cache.handover import LivePin
from sgl_actors.actors.cache.messages import LONGEST_PIN, PIN_NAME, PIN_NAME_WORDS, Pinned
from sgl_actors.actors.cache.radix_tree import TOKEN_BYTES, Node, RadixTree, common
from sgl_actors.errors import InvalidRequest, NotReady, Overloaded

MOST_PINS = 1024
"""Live pins at most."""


@dataclass(slots=True)
class PinnedPrefix:
    """One live pin.

    Attributes:
        key: its packed tokens, as they were given.
        expires: when, on the clock of who asks.
        node: the place in the tree that it locks, None while nothing is cached.
        held: bytes of the key from the root to there.
    """

    name: str
    namespace: str
    key: bytes
    expires: float
    node: Node | None = None
    held: int = 0

    def row(self, now: float) -> Pinned:
        """As who asks is told."""
        return Pinned(
            name=self.name,
            namespace=self.namespace,
            tokens=len(self.key) // TOKEN_BYTES,
            held=self.held // TOKEN_BYTES,
            expires_in=max(0.0, self.expires - now),
        )


class PinBoard:
    """All live pins, oldest first. Times are seconds of one clock, which is passed in.

    Attributes:
        yielded: pins that gave way since somebody last cleared this list.
        yielded_total: how many ever did.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share
        self.yielded: list[PinnedPrefix] = []
        self.yielded_total = 0
        self._pins: dict[tuple[str, str], PinnedPrefix] = {}
        self._short: dict[str, list[PinnedPrefix]] = {}
        self._total = 0
        self._limit = 0
        self._tree = RadixTree(1)

    def __repr__(self) -> str:
        return f"<PinBoard pins={self.count} wished={self.wished}/{self._limit} held={self.held}>"

    @property
    def count(self) -> int:
        """Live pins."""
        return len(self._pins)

    @property
    def wished(self) -> int:
        """Pages that would be locked if everything pinned were cached."""
        return self._distinct((pin.namespace, self._whole(pin.key)) for pin in self._pins.values())

    @property
    def held(self) -> int:
        """Pages that pins lock now."""
        seen: set[int] = set()
        pages = 0
        for node in self.nodes():
            place: Node | None = node
            while place is not None and id(place) not in seen:
                seen.add(id(place))
                pages += len(place.pages)
                place = place.parent
        return pages

    def attach(self, tree: RadixTree, total: int) -> None:
        """Forget what is held and hold in `tree` from now on, whose pool has `total` pages.

        Where that is too small for all wishes, the oldest give way.
        """
        self._tree, self._total, self._limit = tree, total, int(self.share * total)
        for pin in self._pins.values():
            pin.node, pin.held = None, 0
        while self.wished > self._limit:
            self.give_way()
        self._sort()

    def live(self, now: float) -> list[LivePin]:
        """All pins, oldest first."""
        return [
            LivePin(pin.namespace, pin.name, pin.key, max(0.0, pin.expires - now))
            for pin in self._pins.values()
        ]

    def resume(self, pins: Iterable[LivePin], now: float) -> None:
        """Go on with the pins of another board; where they may not hold as much here, the oldest give way."""
        for one in pins:
            pin = PinnedPrefix(one.name, one.namespace, one.key, now + one.left)
            self._pins[one.namespace, one.name] = pin
            self._hold(pin)
        while self.wished > self._limit:
            self.give_way()
        self._sort()

    def pin(self, wish: messages.Pin, now: float) -> Pinned:
        """Hold a prefix from now on; a live pin of that name (which must be given) and namespace is replaced.

        Raises:
            InvalidRequest: no share of the pool for pins, a ttl outside 0 (exclusive) … 30 days, a wrong name, a key that is torn, shorter than a page, or longer
                than pins may hold at all.
            Overloaded: the other pins leave no room for it.
            NotReady: there is no pool yet.
        """
        self._validate(wish)
        self.expire(now)
        name = (wish.namespace, wish.name)
        others = [pin for key, pin in self._pins.items() if key != name]
        self._fit(wish, others)
        old = self._pins.pop(name, None)
        pin = self._pins[name] = PinnedPrefix(wish.name, wish.namespace, wish.key, now + wish.ttl)
        self._hold(pin)
        if old is not None:
            self._let_go(old)
        self._sort()
        return pin.row(now)

    def unpin(self, namespace: str, names: Sequence[str]) -> None:
        """End these pins; those that are not live are ignored."""
        for name in names:
            self._drop((namespace, name))
        self._sort()

    def expire(self, now: float) -> list[PinnedPrefix]:
        """End the pins whose time is over; which those were."""
        over = [name for name, pin in self._pins.items() if pin.expires <= now]
        ended = [self._drop(name) for name in over]
        self._sort()
        return [pin for pin in ended if pin is not None]

    def next_expiry(self) -> float | None:
        """When `expire` is due next."""
        return min((pin.expires for pin in self._pins.values()), default=None)

    def rows(self, namespace: str | None, now: float) -> list[Pinned]:
        """The pins of one namespace, or with None all, oldest first."""
        return [
            pin.row(now)
            for pin in self._pins.values()
            if pin.expires > now and namespace in (None, pin.namespace)
        ]

    def nodes(self) -> Iterator[Node]:
        """Where each pin that holds something locks the tree."""
        return (pin.node for pin in self._pins.values() if pin.node is not None)

    def inserted(self, namespace: str, key: bytes) -> None:
        """The tree has `key` (whole pages) now: hold what it adds to pins that are not held whole."""
        pins = self._short.get(namespace, ())
        longer = [pin for pin in pins if key.startswith(pin.key[: pin.held + self._tree.stride])]
        for pin in longer:
            self._hold(pin)
        if longer:
            self._sort()

    def give_way(self) -> bool:
        """End the oldest pin, for a request that needs its pages; False if there is none."""
        name = next(iter(self._pins), None)
        pin = None if name is None else self._drop(name)
        if pin is None:
            return False
        self.yielded.append(pin)
        self.yielded_total += 1
        self._sort()
        return True

    def _validate(self, wish: messages.Pin) -> None:
        if not self._total:
            raise NotReady("there is no KV pool yet in which to pin")
        if not self._limit:
            raise InvalidRequest(f"[cache] pinned = {self.share:g} leaves no page; raise it in node.toml")
        if not (math.isfinite(wish.ttl) and 0 < wish.ttl <= LONGEST_PIN):
            raise InvalidRequest(
                f"a pin lives more than 0 and at most {LONGEST_PIN:.0f} seconds, not {wish.ttl}", param="ttl"
            )
        if not re.fullmatch(PIN_NAME, wish.name):
            raise InvalidRequest(f"name: {wish.name[:80]!r} is not {PIN_NAME_WORDS}", param="name")
        if len(wish.key) % TOKEN_BYTES or len(wish.key) < self._tree.stride:
            raise InvalidRequest(
                f"a pin holds whole pages of {self._tree.page_size} tokens ({TOKEN_BYTES} bytes each); "
                f"its key has {len(wish.key)} bytes",
                param="key",
            )

    def _fit(self, wish: messages.Pin, others: Sequence[PinnedPrefix]) -> None:
        """Raise unless `wish` may be live beside `others`."""
        own = self._whole(wish.key)
        if len(own) // self._tree.stride > self._limit:
            raise InvalidRequest(
                f"{len(wish.key) // TOKEN_BYTES} tokens take {len(own) // self._tree.stride} pages, more than the {self._limit} "
                "that pins may hold together ([cache] pinned, as a share of the pool): pin a shorter prefix, "
                "or raise [cache] pinned",
                param="key",
            )
        if len(others) >= MOST_PINS:
            raise Overloaded(f"{MOST_PINS} prefixes are pinned, and no more may be: unpin one or wait")
        keys = [(pin.namespace, self._whole(pin.key)) for pin in others]
        pinned, wanted = self._distinct(keys), self._distinct([*keys, (wish.namespace, own)])
        if wanted > self._limit:
            raise Overloaded(
                f"{pinned} of the {self._limit} pages that pins may hold together ([cache] pinned) are pinned, and this takes "
                f"{wanted - pinned} more: unpin something, wait for a pin to expire, or pin a shorter prefix"
            )

    def _hold(self, pin: PinnedPrefix) -> None:
        """Lock all of the pin's prefix that is cached."""
        place = self._tree.find(pin.namespace, self._whole(pin.key))
        if place.length == pin.held:
            return
        node = self._tree.lock(place)
        self._let_go(pin)
        pin.node, pin.held = node, place.length

    def _let_go(self, pin: PinnedPrefix) -> None:
        if pin.node is not None:
            self._tree.unlock(pin.node)
        pin.node, pin.held = None, 0

    def _drop(self, name: tuple[str, str]) -> PinnedPrefix | None:
        pin = self._pins.pop(name, None)
        if pin is not None:
            self._let_go(pin)
        return pin

    def _sort(self) -> None:
        """Find the pins that are not held whole: only they look at what is inserted."""
        self._short = {}
        for pin in self._pins.values():
            if pin.held < len(self._whole(pin.key)):
                self._short.setdefault(pin.namespace, []).append(pin)

    def _whole(self, key: bytes) -> bytes:
        return key[: len(key) // self._tree.stride * self._tree.stride]

    def _distinct(self, keys: Iterable[tuple[str, bytes]]) -> int:
        """Pages of a tree of just these keys."""
        pages, before = 0, ("", b"")
        for namespace, key in sorted(keys):
            same = common(before[1], key, 0, self._tree.stride) if namespace == before[0] else 0
            pages += (len(key) - same) // self._tree.stride
            before = (namespace, key)
        return pages
