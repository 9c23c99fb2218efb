"""The requests that wait, and who of them is admitted next: policy, bounded waiting and sharing put together."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from sgl_actors.actors.scheduler.fairness import Choice, admitted, bounded
from sgl_actors.actors.scheduler.generation import TOKEN_BYTES, Generation
from sgl_actors.actors.scheduler.policy import policy_named
from sgl_actors.actors.scheduler.prefix_trie import PrefixTrie

LOOK = 128
"""Requests of which a round looks up what the cache has, the first in line; later ones keep the hint they have."""
SHARED = 16
"""Tokens of an uncached common prefix for which it is worth to wait until another has computed them."""


class Queue:
    """Waiting requests in order of arrival.

    It also knows the prompts that are being computed, as far as they are not in the cache yet: who shares enough of one waits for it,
    or for the one that takes its place if it goes away.
    """

    def __init__(self, policy: str, overtake: int, *, sharing: bool) -> None:
        self.policy = policy_named(policy)
        self.overtake = overtake
        self.sharing = sharing
        self.waiting: list[Generation] = []
        self.deferring = False
        self.most_overtaken = 0
        self._computing: PrefixTrie[int] = PrefixTrie()

    def __repr__(self) -> str:
        return f"<Queue {self.policy.name} waiting={len(self.waiting)} overtake={self.overtake}>"

    def __len__(self) -> int:
        return len(self.waiting)

    def enter(self, generation: Generation) -> None:
        """It waits, in its place by arrival."""
        insort(self.waiting, generation, key=lambda one: one.arrival)

    def leave(self, generation: Generation) -> None:
        """It has ended."""
        self.waiting.remove(generation)

    def first(self, eligible: Sequence[Generation], processed: int) -> list[Generation]:
        """Whom to look up in the cache before `choose`; nobody where it would change nothing."""
        if len(eligible) == 1 and not len(self._computing):
            return []
        return self.policy.order(eligible, processed)[:LOOK]

    def choose(self, eligible: Sequence[Generation], room: int, processed: int) -> list[Choice[Generation]]:
        """At most `room` of `eligible`, in the order in which they are to be admitted; some may be left to wait for another's prefix."""
        self.deferring = False
        chosen: PrefixTrie[int] = PrefixTrie()
        choices: list[Choice[Generation]] = []
        ordered = self.policy.order(eligible, processed)
        for choice in bounded(ordered, self.overtake, room, lambda one: self._waits(one, chosen)):
            choices.append(choice)
            if self.sharing:
                request = choice.request
                chosen.add(request.arrival, request.namespace, request.key)
        return choices

    def admitted(self, generation: Generation, cached: int) -> None:
        """It runs, and `cached` of its tokens need not be computed."""
        self.waiting.remove(generation)
        admitted(generation, cached, self.waiting)
        if self.waiting and self.waiting[0].arrival < generation.arrival:
            self.most_overtaken = max(self.most_overtaken, self.waiting[0].overtaken)
        if cached < generation.usable:
            self._computing.add(generation.arrival, generation.namespace, generation.key)

    def computed(self, generation: Generation) -> None:
        """Its prompt is in the cache, or it does not run any more."""
        self._computing.discard(generation.arrival)

    def forget(self) -> None:
        """Nothing is being computed any more."""
        self._computing = PrefixTrie()

    def _waits(self, generation: Generation, chosen: PrefixTrie[int]) -> bool:
        """Whether another computes, or is to compute before it, a prefix that it would find in the cache if it waited."""
        worth = generation.hint + SHARED
        if not self.sharing or generation.usable < worth:
            return False
        key = generation.key[: TOKEN_BYTES * generation.usable]
        waits = any(trie.shared(generation.namespace, key) >= worth for trie in (self._computing, chosen))
        self.deferring = self.deferring or waits
        return waits
