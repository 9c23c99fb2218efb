"""Bounded waiting, under any order: who may be admitted before whom.

**The bound.** Every request has a `place` in line: the tokens that had been computed when it arrived, or for the later calls of a
program when that began. c is *later* than r if its place is more than `grace` behind r's. A request is *overtaken* by every later one of
its own priority class or below that is admitted while it waits, by as many tokens as that one has to compute. No
request is ever overtaken by more than `limit` tokens, over its whole life. (Higher classes go first by intention and do not count; nor
does an earlier one that comes back after a retraction.)

**Why it holds.** `bounded` chooses c only if, for every r that c would overtake, what r was overtaken by so far, plus
those chosen before c that overtake r, plus c, stays within `limit`; otherwise such an r is chosen before c, or if r had better wait
for another's prefix, c is left out. Nothing about that depends on what is chosen afterwards, so it holds for every
beginning of the list, which is what the cache grants. What c is counted with is what it expects to compute; `Choice.least` makes the
cache refuse it a lease with fewer cached tokens, so that it never computes more.

**Why nobody starves.** Every admission computes at least one token. So at most `limit` later ones of its class or below are
admitted before r, and those that are not later arrive before `grace` (and for programs `queue.SENIORITY`) more tokens have been computed: they
are finitely many. Then nothing that would overtake r is chosen before it, and the cache grants nothing behind who does not fit. It
may have to wait for the prefix that a running request computes; that ends with that request's prompt.

**Why looking at the first of each class suffices.** Of two requests that wait in one class, who is later than the one behind is
later than the one before it, and not above their class. So the first one has been overtaken at least as much, unless it was
running meanwhile; one that comes back after a retraction is therefore taken to have been overtaken as much as anyone
behind it. Then who may overtake the first may overtake all. Choosing costs (classes × chosen) per choice, and one pass over the
waiting before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic

from sgl_actors.actors.scheduler.policy import W, Waiting


@dataclass(frozen=True, slots=True)
class Choice(Generic[W]):
    """Who is to be admitted next.

    Attributes:
        request: who.
        least: with fewer cached tokens than that it must not be admitted (`Want.least`): it overtakes somebody,
            and was counted with no more. 0 if nobody is overtaken.
    """

    request: W
    least: int


def bounded(
    ordered: Sequence[W], limit: int, room: int, deferred: Callable[[W], bool], *, grace: int = 0
) -> Iterator[Choice[W]]:
    """Choose at most `room` of `ordered`, all that wait, best first, so that nobody is overtaken by more than `limit` tokens.

    Args:
        ordered: every waiting request that may be admitted now; one that is kept out of it is not protected.
        limit: tokens; 0: no limit.
        room: how many to choose at most.
        deferred: whether a request had better wait for another's prefix. It is left out then, and so is who may not overtake it. Asked
            anew after every choice, and only once that choice has been taken from the iterator: who iterates tells it of each before going
            on. Must not change anything itself.
        grace: tokens between two places that make no difference.

    Yields:
        The first to admit first. Any beginning of them may be admitted.
    """
    line = Line(ordered, limit, grace)
    for candidate in ordered:
        while room > 0 and not line.has_left(candidate) and not deferred(candidate):
            request = line.entitled(candidate)
            if request is not candidate and deferred(request):
                break
            least = request.hint if line.overtakes(request) else 0
            line.leave(request)
            room -= 1
            yield Choice(request, least)


def later(one: Waiting, than: Waiting, grace: int) -> bool:
    """Whether `one` came later in the sense of the bound."""
    return one.place > than.place + grace


def admitted(request: W, cached: int, line: Iterable[W], *, grace: int = 0) -> None:
    """Count that `request` was admitted with `cached` tokens, before those of `line` that it overtakes.

    `line`: those who were in the `ordered` that it was chosen from and still wait. Whoever came back meanwhile has not
    been overtaken: for the bound, a request leaves the line when it is chosen.
    """
    tokens = request.length - cached
    for one in line:
        if one.priority >= request.priority and later(request, one, grace):
            one.overtaken += tokens


class Line(Generic[W]):
    """Who waits, class by class in order of place, and who has been chosen from it."""

    def __init__(self, waiting: Iterable[W], limit: int, grace: int) -> None:
        self._limit = limit
        self._grace = grace
        self._chosen: list[W] = []
        self._left: set[int] = set()
        classes: dict[int, list[W]] = {}
        for one in sorted(waiting, key=lambda one: (one.place, one.arrival)) if limit else ():
            classes.setdefault(one.priority, []).append(one)
        self._classes = [Class(rank, classes[rank]) for rank in sorted(classes, reverse=True)]

    def has_left(self, request: W) -> bool:
        """It has been chosen."""
        return request.arrival in self._left

    def leave(self, request: W) -> None:
        """It is chosen."""
        self._left.add(request.arrival)
        self._chosen.append(request)

    def overtakes(self, request: W) -> bool:
        """Somebody who has not been chosen would be overtaken by it. False without a limit."""
        return any(True for _ in self._overtaken(request))

    def entitled(self, request: W) -> W:
        """Who has to be chosen now if `request` is to be: itself, or one that it may not overtake.

        Such a one is the first of its class, may overtake somebody of a higher class in turn, and so on upwards.
        """
        while (behind := self._breached(request)) is not None:
            request = behind
        return request

    def _breached(self, request: W) -> W | None:
        """One who would be overtaken too much, of the highest class that has such a one."""
        for group in self._overtaken(request):
            first = group.first(self._left)
            assert first is not None
            if group.overtaken + self._passed(first) + request.uncached > self._limit:
                return first
        return None

    def _overtaken(self, request: W) -> Iterator[Class[W]]:
        """Classes whose first would be overtaken by `request`, highest first."""
        for group in self._classes:
            if group.rank < request.priority:
                return
            first = group.first(self._left)
            if first is not None and later(request, first, self._grace):
                yield group

    def _passed(self, request: W) -> int:
        """Tokens of those chosen here that overtake it."""
        return sum(
            one.uncached
            for one in self._chosen
            if one.priority <= request.priority and later(one, request, self._grace)
        )


class Class(Generic[W]):
    """Those who wait in one priority class, in order of place."""

    def __init__(self, rank: int, waiting: list[W]) -> None:
        self.rank = rank
        self._waiting = waiting
        most = list(accumulate((one.overtaken for one in reversed(waiting)), max))
        self._most = most[::-1]
        self._first = 0

    def first(self, left: set[int]) -> W | None:
        """The first who is not among those who `left` (their arrivals); they only grow."""
        waiting = self._waiting
        while self._first < len(waiting) and waiting[self._first].arrival in left:
            self._first += 1
        return waiting[self._first] if self._first < len(waiting) else None

    @property
    def overtaken(self) -> int:
        """By how much the first has been overtaken so far, or any behind it if that is more."""
        return self._most[self._first]
