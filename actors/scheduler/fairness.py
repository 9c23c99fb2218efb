"""Bounded waiting, under any order: who may be admitted before whom.

**The bound.** A request is *overtaken* by every later arrival of its own priority class or below that is admitted while it
waits, by as many tokens as that one has to compute. No request is ever overtaken by more than `limit` tokens, over its whole
life. (Higher classes go first by intention and do not count; nor does an earlier arrival that comes back after a retraction.)

**Why it holds.** `bounded` chooses c only if, for every r that c would overtake, what r was overtaken by so far, plus
those chosen before c that overtake r, plus c, stays within `limit`; otherwise such an r is chosen before c. Nothing about
that depends on what is chosen afterwards, so it holds for every beginning of the list, which is what the cache grants. What
c is counted with is what it expects to compute; `Choice.least` makes the cache refuse it a lease with fewer
cached tokens, so that it never computes more.

**Why nobody starves.** Every admission computes at least one token. So at most `limit` later arrivals of its class or below are
admitted before r, and the earlier ones are finitely many. Then r is chosen before all that would overtake it, also if it
was to wait for another's prefix, and the cache grants nothing behind who does not fit.

**Why looking at the oldest of each class suffices.** Of two requests that wait in one class, who overtakes the younger overtakes
the older: he is later than both and not above their class. So the older one has been overtaken at least as much, unless it was
running meanwhile; one that comes back after a retraction is therefore taken to have been overtaken as much as anyone
behind it. Then who may overtake the oldest may overtake all. Choosing costs (classes × chosen) per choice, and one pass over the
waiting before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic

from sgl_actors.actors.scheduler.policy import W


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
    ordered: Sequence[W], limit: int, room: int, deferred: Callable[[W], bool]
) -> Iterator[Choice[W]]:
    """Choose at most `room` of `ordered`, all that wait, best first, so that nobody is overtaken by more than `limit` tokens.

    Args:
        ordered: every waiting request that may be admitted now; one that is kept out of it is not protected.
        limit: tokens; 0: no limit.
        room: how many to choose at most.
        deferred: whether a request had better wait for another's prefix. It is left out then, unless it may be overtaken
            no further. Asked anew after every choice, and only once that choice has been taken from the iterator: who
            iterates tells it of each before going on. Must not change anything itself.

    Yields:
        The first to admit first. Any beginning of them may be admitted.
    """
    line = Line(ordered, limit)
    for candidate in ordered:
        while room > 0 and not line.has_left(candidate) and not deferred(candidate):
            request = line.entitled(candidate)
            least = request.hint if line.overtakes(request) else 0
            line.leave(request)
            room -= 1
            yield Choice(request, least)


def admitted(request: W, cached: int, waiting: Iterable[W]) -> None:
    """Count that `request` was admitted with `cached` tokens, before those of `waiting` that it overtakes.

    `waiting`: those who were in the `ordered` that it was chosen from and still wait. Whoever came back meanwhile has not
    been overtaken: for the bound, a request leaves the line when it is chosen.
    """
    tokens = request.length - cached
    for one in waiting:
        if one.arrival < request.arrival and one.priority >= request.priority:
            one.overtaken += tokens


class Line(Generic[W]):
    """Who waits, class by class in order of arrival, and who has been chosen from it."""

    def __init__(self, waiting: Iterable[W], limit: int) -> None:
        self._limit = limit
        self._chosen: list[W] = []
        self._left: set[int] = set()
        classes: dict[int, list[W]] = {}
        for one in sorted(waiting, key=lambda one: one.arrival) if limit else ():
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

        Such a one is the oldest of its class, may overtake somebody of a higher class in turn, and so on upwards.
        """
        while (behind := self._breached(request)) is not None:
            request = behind
        return request

    def _breached(self, request: W) -> W | None:
        """One who would be overtaken too much, of the highest class that has such a one."""
        for group in self._overtaken(request):
            oldest = group.oldest(self._left)
            assert oldest is not None
            if group.overtaken + self._passed(oldest) + request.uncached > self._limit:
                return oldest
        return None

    def _overtaken(self, request: W) -> Iterator[Class[W]]:
        """Classes whose oldest would be overtaken by `request`, highest first."""
        for group in self._classes:
            if group.rank < request.priority:
                return
            oldest = group.oldest(self._left)
            if oldest is not None and oldest.arrival < request.arrival:
                yield group

    def _passed(self, request: W) -> int:
        """Tokens of those chosen here that overtake it."""
        return sum(
            one.uncached
            for one in self._chosen
            if one.arrival > request.arrival and one.priority <= request.priority
        )


class Class(Generic[W]):
    """Those who wait in one priority class, oldest first."""

    def __init__(self, rank: int, waiting: list[W]) -> None:
        self.rank = rank
        self._waiting = waiting
        most = list(accumulate((one.overtaken for one in reversed(waiting)), max))
        self._most = most[::-1]
        self._first = 0

    def oldest(self, left: set[int]) -> W | None:
        """The oldest who is not among those who `left` (their arrivals); they only grow."""
        waiting = self._waiting
        while self._first < len(waiting) and waiting[self._first].arrival in left:
            self._first += 1
        return waiting[self._first] if self._first < len(waiting) else None

    @property
    def overtaken(self) -> int:
        """By how much the oldest has been overtaken so far, or any behind it if that is more."""
        return self._most[self._first]
