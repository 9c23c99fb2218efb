"""Wrong keys, by address: who guesses is slowed down.

Each address has a bucket that runs out steadily; a wrong key fills it by one. While it is full no key from there is looked at, so that
a right guess looks like a wrong one. The table is bounded: the address that was heard of least recently is forgotten first.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from sgl_actors.actors.gateway.errors import later

ADDRESSES = 4096
"""Addresses that are remembered."""
MINUTE = 60.0
NETWORK_BITS = 64
"""Of an IPv6 address: one customer has at least all addresses of such a network."""


class Failures:
    """Counts wrong keys.

    Args:
        per_minute: how many an address may send; 0 for any number.
        now: monotonic seconds.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, address: str) -> None:
        """Raise `Overloaded` while no key from `address` is looked at."""
        place = network(address)
        level = self._level(place)
        if self.per_minute and place in self._buckets and level > self.per_minute - 1:
            wait = (level - self.per_minute + 1) * MINUTE / self.per_minute
            raise later("too many wrong API keys came from this address", wait)

    def note(self, address: str) -> None:
        """A wrong key came from `address`."""
        if not self.per_minute:
            return
        place = network(address)
        self._buckets[place] = (self._level(place) + 1, self._now())
        self._buckets.move_to_end(place)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)

    def _level(self, place: str) -> float:
        level, at = self._buckets.get(place, (0.0, 0.0))
        return max(0.0, level - (self._now() - at) * self.per_minute / MINUTE)


def network(address: str) -> str:
    """What counts as one place: an IPv4 address, an IPv6 network; anything else as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, NETWORK_BITS), strict=False))
    return str(parsed)
