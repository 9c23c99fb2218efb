"""The requests that wait, and who of them is admitted next: policy, bounded waiting and sharing put together."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sgl_actors.actors.scheduler.fairness import Choice, admitted, bounded
from sgl_actors.actors.scheduler.generation import TOKEN_BYTES, Generation
from sgl_actors.actors.scheduler.policy import policy_named
from sgl_actors.actors.scheduler.prefix_trie import PrefixTrie

LOOK = 64
"""Requests of which a round looks up what the cache has: that many of the first in line, and as many of the others in turn."""
SENIORITY = 1 << 16
"""A program's calls stand in line where it began, but no further ahead of their arrival than that many computed tokens."""
PROGRAMS = 4096
"""Programs of which it is known where they began."""
GRACE = 512
"""Who came less than that many computed tokens apart, or than `overtake`, came at the same time."""
SHARED = 8
"""Tokens of an uncached common prefix for which it is worth to wait until another has computed them."""


class Queue:
    """Waiting requests in order of arrival.

    It also knows the prompts that are being computed, as far as they are not in the cache yet: who shares enough of one waits for it,
    or for the one that takes its place if it goes away.

    Attributes:
        deferring: somebody waits for another's prefix.
        changes: how often something has changed that may let others be admitted: while it is the same, nobody need be looked at again.
    """

    def __init__(self, policy: str, overtake: int, *, sharing: bool) -> None:
        self.policy = policy_named(policy)
        self.overtake = overtake
        self.sharing = sharing
        self.most_grace = GRACE
        self.seniority = SENIORITY
        self.waiting: list[Generation] = []
        self.deferring = False
        self.changes = 0
        self.most_overtaken = 0
        self._computing: PrefixTrie[int] = PrefixTrie()
        self._programs: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._turn = 0

    def __repr__(self) -> str:
        return f"<Queue {self.policy.name} waiting={len(self.waiting)} overtake={self.overtake}>"

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def grace(self) -> int:
        """Tokens between two places in line that make no difference (`fairness`)."""
        return min(self.most_grace, self.overtake)

    @property
    def programs(self) -> list[tuple[str, str, int]]:
        """Namespace, name and beginning of the programs that are remembered, the longest silent first."""
        return [(*program, began) for program, began in self._programs.items()]

    @programs.setter
    def programs(self, programs: Iterable[tuple[str, str, int]]) -> None:
        self._programs = OrderedDict(((space, name), began) for space, name, began in programs)

    def arrive(self, generation: Generation, processed: int) -> None:
        """It is new; `processed` tokens have been computed so far."""
        generation.since = generation.place = processed
        program = (generation.namespace, generation.spec.program)
        if generation.spec.program:
            began = self._programs.setdefault(program, processed)
            generation.place = max(began, processed - self.seniority)
            self._programs.move_to_end(program)
            if len(self._programs) > PROGRAMS:
                self._programs.popitem(last=False)
        self.enter(generation)

    def enter(self, generation: Generation) -> None:
        """It waits, again or for the first time."""
        insort(self.waiting, generation, key=lambda one: one.arrival)

    def leave(self, generation: Generation) -> None:
        """It has ended."""
        self.waiting.remove(generation)

    def changed(self) -> None:
        """Look again at those that wait."""
        self.changes += 1

    def first(self, eligible: Sequence[Generation], processed: int) -> list[Generation]:
        """Whom to look up in the cache before `choose`; nobody where it would change nothing."""
        if len(eligible) == 1 and not len(self._computing):
            return []
        ordered = self.policy.order(eligible, processed)
        if len(ordered) <= 2 * LOOK:
            return ordered
        others = sorted(ordered[LOOK:], key=lambda one: one.arrival)
        start = self._turn = self._turn % len(others)
        self._turn += LOOK
        return [*ordered[:LOOK], *(others + others)[start : start + LOOK]]

    def choose(
        self, eligible: Sequence[Generation], room: int, tokens: int, processed: int
    ) -> list[Choice[Generation]]:
        """At most `room` of `eligible`, in the order in which they are to be admitted, until they have `tokens` to compute.

        Some may be left to wait for another's prefix.
        """
        self.deferring = False
        chosen: PrefixTrie[int] = PrefixTrie()
        choices: list[Choice[Generation]] = []
        ordered = self.policy.order(eligible, processed)
        for choice in bounded(
            ordered, self.overtake, room, lambda one: self._waits(one, chosen), grace=self.grace
        ):
            choices.append(choice)
            request = choice.request
            tokens -= request.uncached
            if tokens <= 0:
                break
            if self.sharing:
                chosen.add(request.arrival, request.namespace, request.key)
        return choices

    def admitted(self, generation: Generation, cached: int, line: Sequence[Generation]) -> None:
        """It runs, and `cached` of its tokens need not be computed; `line` was what it was chosen from, and still waits."""
        self.waiting.remove(generation)
        admitted(generation, cached, line, grace=self.grace)
        self.most_overtaken = max(self.most_overtaken, max((one.overtaken for one in line), default=0))
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
