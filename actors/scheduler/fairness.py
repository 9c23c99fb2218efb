"""Bounded waiting, under any order: who may be admitted before whom.

**The bound.** Every request has a `place` in line, in tokens: as many as had been computed when it arrived, or for the later calls of a
program, when that began (but see `queue.SENIORITY`). c *overtakes* r if its place is more than `grace` behind r's, it is of r's
priority class or below, and it is chosen while r waits and then admitted. No request is ever overtaken by more than `limit` tokens over
its whole life, counting what each that overtakes it has to compute. (Higher classes go first by intention and do not count; nor does
one no later than `grace`, nor an earlier one that comes back after a retraction.)

**Why it holds.** `bounded` chooses c only if, for every r that c would overtake, what r was overtaken by so far, plus
those chosen before c that overtake r, plus c, stays within `limit`. Otherwise such an r is chosen before c; or, if that one had better
wait for another's prefix, c is left out. Nothing about that depends on what is chosen afterwards, so it holds for every
beginning of the list, which is what the cache grants. What c is counted with is what it expects to compute; `Choice.least` makes the
cache refuse it a lease with fewer cached tokens, so that it never computes more.

**Why nobody starves.** Every admission computes at least one token. So at most `limit` that are later than r and not above its class
are admitted before it, and then none. Those that are not later are finitely many: they arrive before `grace` tokens more have
been computed, or for programs `grace` and what `queue.SENIORITY` grants. A request waits for a prefix only while a running one computes it or
one chosen before it is to, so if nobody computes, the first of the order, or whoever is to go before it, is chosen: there is
no standstill.

Choosing costs one sort by place, and per choice a pass over those of its class and above; to leave a candidate out costs two searches per
class.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
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
        deferred: whether a request had better wait for another's prefix. It is left out then, and so is who may not overtake it.
            Asked anew after every choice, and only once that choice has been taken from the iterator: who iterates tells it
            of each before going on. Must not change who is deferred.
        grace: tokens by which a place may be behind another and make no difference; 0 or more.

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
    """Who waits, class by class, who has been chosen from it, and by how much that overtakes the others. Empty without a limit."""

    def __init__(self, waiting: Iterable[W], limit: int, grace: int) -> None:
        self._limit = limit
        self._left: set[int] = set()
        classes: dict[int, list[W]] = {}
        for one in sorted(waiting, key=position) if limit else ():
            classes.setdefault(one.priority, []).append(one)
        self._classes = [Class(rank, classes[rank], grace) for rank in sorted(classes, reverse=True)]

    def has_left(self, request: W) -> bool:
        """It has been chosen."""
        return request.arrival in self._left

    def leave(self, request: W) -> None:
        """It is chosen: it overtakes those that are left."""
        self._left.add(request.arrival)
        for group in self._above(request):
            group.leave(request)

    def overtakes(self, request: W) -> bool:
        """Somebody who has not been chosen would be overtaken by it."""
        return any(group.ahead(request) for group in self._above(request))

    def entitled(self, request: W) -> W:
        """Who has to be chosen now if `request` is to be: itself, or one that it may not overtake.

        Such a one may have to go behind another in turn, whose place is further ahead, and so on.
        """
        while (behind := self._breached(request)) is not None:
            request = behind
        return request

    def _breached(self, request: W) -> W | None:
        """The first of those who would be overtaken too much, of the highest class that has such a one."""
        found = (group.breached(request, self._limit) for group in self._above(request))
        return next((one for one in found if one is not None), None)

    def _above(self, request: W) -> Iterator[Class[W]]:
        """Its class and those above, highest first: those in which it can overtake."""
        return (group for group in self._classes if group.rank >= request.priority)


class Class(Generic[W]):
    """Those who wait in one priority class, in order of place."""

    def __init__(self, rank: int, waiting: list[W], grace: int) -> None:
        self.rank = rank
        self._grace = grace
        self._waiting = waiting
        self._places = [one.place for one in waiting]
        self._overtaken = [one.overtaken for one in waiting]
        self._records: list[tuple[int, int]] = []

    def ahead(self, request: W) -> int:
        """How many `request` would overtake: those are the first."""
        return bisect_left(self._places, request.place - self._grace)

    def breached(self, request: W, limit: int) -> W | None:
        """The first whom `request` would take beyond `limit`."""
        ahead = self.ahead(request)
        if not ahead:
            return None
        self._records = self._records or list(records(self._overtaken))
        over = bisect_right(self._records, limit - request.uncached, key=itemgetter(0))
        at = self._records[over][1] if over < len(self._records) else ahead
        return self._waiting[at] if at < ahead else None

    def leave(self, request: W) -> None:
        """It is chosen, from here or from a class below."""
        if request.priority == self.rank:
            at = bisect_left(self._waiting, position(request), key=position)
            del self._waiting[at], self._places[at], self._overtaken[at]
        ahead = self.ahead(request)
        self._overtaken[:ahead] = [tokens + request.uncached for tokens in self._overtaken[:ahead]]
        self._records = []


def records(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Each of `numbers`, 0 or more, that is greater than all before it, and where it is."""
    most = -1
    for at, number in enumerate(numbers):
        if number > most:
            most = number
            yield number, at


def position(request: Waiting) -> tuple[int, int]:
    """By this a line is sorted."""
    return request.place, request.arrival
