"""In which order waiting requests are to be admitted.

A policy only orders. That nobody is overtaken without bound is seen to afterwards, whatever the order (`fairness`), and so
is waiting for a prefix that another request computes. Higher priority classes come first under every policy.

- `fcfs`: in order of arrival.
- `lpm`: longest expected cached prefix first (SGLang, arXiv 2312.07104, section 3: the depth-first order of the tree, optimal
  where the cache holds the longest request). Of equals the older goes first: once it has computed its prefix, those that share
  it expect more than the others and follow at once, so neighbours need no sorting of their own.
- `dfs-weight`: depth first through the trie of the waiting requests, the child with most requests below it first.
- `hrrn`: highest response ratio next (Brinch Hansen 1971), time counted in tokens: waiting grows it, work to do shrinks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from sgl_actors.actors.scheduler.prefix_trie import PrefixTrie
from sgl_actors.errors import ConfigError


class Waiting(Protocol):
    """What policies and fairness see of a waiting request. Only `overtaken` is theirs to change."""

    overtaken: int
    """Tokens that those had to compute that overtook it, in the sense of bounded waiting (`fairness`)."""

    @property
    def arrival(self) -> int:
        """Number in the order of arrival, unique; kept when it is retracted."""

    @property
    def priority(self) -> int:
        """Class; higher ones first."""

    @property
    def hint(self) -> int:
        """Leading tokens expected in the cache; no more than it can use, so at least one of `length` is left to compute."""

    @property
    def length(self) -> int:
        """Tokens it has to have KV of before its first sample: prompt and output so far."""

    @property
    def uncached(self) -> int:
        """Tokens that are to be computed: `length` - `hint`."""

    @property
    def place(self) -> int:
        """Place in line in the sense of bounded waiting (`fairness`), in tokens processed; lower is earlier. Kept when it is retracted."""

    @property
    def since(self) -> int:
        """Tokens the node had processed when it arrived."""

    @property
    def key(self) -> bytes:
        """Its tokens, packed."""

    @property
    def namespace(self) -> str:
        """Whose cached prefixes it may use."""


W = TypeVar("W", bound=Waiting)


class Policy(Protocol):
    """An order of admission."""

    name: str

    def order(self, waiting: Sequence[W], processed: int) -> list[W]:
        """All of `waiting`, the first to admit first. `processed`: tokens the node has processed so far."""


class FirstCome:
    """In order of arrival."""

    name = "fcfs"

    def order(self, waiting: Sequence[W], processed: int) -> list[W]:  # noqa: ARG002  time plays no part
        """See `Policy.order`."""
        return sorted(waiting, key=lambda one: (-one.priority, one.arrival))


class LongestPrefix:
    """Longest expected prefix first, then in order of arrival."""

    name = "lpm"

    def order(self, waiting: Sequence[W], processed: int) -> list[W]:  # noqa: ARG002  time plays no part
        """See `Policy.order`."""
        return sorted(waiting, key=lambda one: (-one.priority, -one.hint, one.arrival))


class HeaviestSubtree:
    """Depth first, most requests below first; a request whose key others continue goes before them, equals in order of arrival.

    Namespaces share no prefix: their first edges compete as those of one root do.
    """

    name = "dfs-weight"

    def __init__(self) -> None:
        self._last: tuple[list[tuple[int, int]], list[int]] = ([], [])

    def order(self, waiting: Sequence[W], processed: int) -> list[W]:  # noqa: ARG002  time plays no part
        """See `Policy.order`. The last order is kept: a round asks twice for that of the same requests."""
        requests = {one.arrival: one for one in sorted(waiting, key=lambda one: one.arrival)}
        asked = [(arrival, one.length) for arrival, one in requests.items()]
        if self._last[0] != asked:
            tries: dict[int, PrefixTrie[int]] = {}
            for arrival, one in requests.items():
                tries.setdefault(one.priority, PrefixTrie()).add(arrival, one.namespace, one.key)
            order = [a for rank in sorted(tries, reverse=True) for a in tries[rank].depth_first()]
            self._last = asked, order
        return [requests[arrival] for arrival in self._last[1]]


class HighestResponseRatio:
    """Highest 1 + (tokens processed since its arrival) / (its uncached tokens) first, then in order of arrival."""

    name = "hrrn"

    def order(self, waiting: Sequence[W], processed: int) -> list[W]:
        """See `Policy.order`."""
        return sorted(
            waiting,
            key=lambda one: (-one.priority, (one.since - processed) / max(1, one.uncached), one.arrival),
        )


_POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (FirstCome, LongestPrefix, HeaviestSubtree, HighestResponseRatio)
}


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises `ConfigError` for an unknown one."""
    if name not in _POLICIES:
        known = ", ".join(sorted(_POLICIES))
        raise ConfigError(f"[scheduler] policy: {name!r} is unknown; there are {known}", param="policy")
    return _POLICIES[name]()
