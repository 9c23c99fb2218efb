"""When an API may be asked: how many requests at a time, how much in a minute, and not at all while it has said so. No I/O; times are passed in.

Whoever wants to ask gets a `Place`. Places wait in one line per program, and the lines take turns, so that a program with a thousand requests does not keep out
one with three. Nobody overtakes the place whose turn it is, however much it needs, so that none waits for ever.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from sgl_actors.errors import Overloaded

MINUTE: Final = 60.0


@dataclass(slots=True)
class Use:
    """So much was used at that time."""

    time: float
    amount: int


class Window:
    """What was used in the last minute: never more than `limit` (0 for none), but for a single use that alone is more.

    A provider's token bucket of the same rate is never overdrawn either: what it refills within a minute is the limit.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0
        self._uses: deque[Use] = deque()

    def __repr__(self) -> str:
        return f"<Window {self.used} of {self.limit or 'any number'}>"

    def opens(self, amount: int, now: float) -> float:
        """When so much has room: `now`, or later."""
        self._forget(now)
        left = self.used + amount - self.limit
        if not self.limit or left <= 0:
            return now
        at = now
        for use in self._uses:
            at, left = use.time + MINUTE, left - use.amount
            if left <= 0:
                break
        return at

    def take(self, amount: int, now: float) -> Use:
        """Use so much."""
        use = Use(now, amount)
        if self.limit:
            self._uses.append(use)
            self.used += amount
        return use

    def correct(self, use: Use, amount: int, now: float) -> None:
        """It was that much, as is known now."""
        self._forget(now)
        if self._uses and use.time >= self._uses[0].time:
            self.used += amount - use.amount
            use.amount = amount

    def _forget(self, now: float) -> None:
        while self._uses and self._uses[0].time + MINUTE <= now:
            self.used -= self._uses.popleft().amount


@dataclass(eq=False, slots=True)
class Place:
    """One request's. `use` is what it took of the tokens when it was let in; None while it waits."""

    program: str
    tokens: int
    use: Use | None = None


class Limits:
    """See the module.

    Args:
        concurrency: most places that are let in at a time.
        queue: most that wait.
        requests, tokens: per minute; 0 for no limit.

    Attributes:
        paused: until when nobody is let in.
        waiting, running: places.
    """

    def __init__(self, concurrency: int, queue: int, requests: float = 0.0, tokens: float = 0.0) -> None:
        self.concurrency, self.queue = concurrency, queue
        self.requests, self.tokens = Window(requests), Window(tokens)
        self.paused = 0.0
        self.waiting = self.running = 0
        self._lines: OrderedDict[str, deque[Place]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Limits {self.running} of {self.concurrency} run, {self.waiting} of {self.queue} wait>"

    def enter(self, program: str, tokens: int, now: float, *, again: bool = False) -> Place:
        """Stand in line. `tokens`: as far as can be told before. `again`: one that was let in once and is not sent away now.

        Raises:
            Overloaded: the line is full.
        """
        place = Place(program, tokens)
        at_once = not self.waiting and self.running < self.concurrency and self._opens(place, now) <= now
        if not again and not at_once and self.waiting >= self.queue:
            raise Overloaded(f"{self.waiting} requests wait (options: queue)")
        self._lines.setdefault(program, deque()).append(place)
        self.waiting += 1
        return place

    def admit(self, now: float) -> list[Place]:
        """Who is let in now, in that order."""
        admitted = []
        while self._lines and self.running < self.concurrency:
            program, line = next(iter(self._lines.items()))
            place = line[0]
            if self._opens(place, now) > now:
                break
            self._drop(program, line, place)
            if line:
                self._lines.move_to_end(program)
            self.running += 1
            self.requests.take(1, now)
            place.use = self.tokens.take(place.tokens, now)
            admitted.append(place)
        return admitted

    def wakes(self, now: float) -> float | None:
        """When `admit` lets in another one though nobody leaves; None if it does not."""
        if not self._lines or self.running >= self.concurrency:
            return None
        return self._opens(next(iter(self._lines.values()))[0], now)

    def leave(self, place: Place, now: float, tokens: int | None = None) -> None:
        """Its request is over, or does not want to wait any more; it used so many `tokens`, if that is known."""
        if place.use is None:
            self._drop(place.program, self._lines[place.program], place)
            return
        self.running -= 1
        if tokens is not None:
            self.tokens.correct(place.use, tokens, now)

    def pause(self, until: float) -> None:
        """Let nobody in before."""
        self.paused = max(self.paused, until)

    def _opens(self, place: Place, now: float) -> float:
        return max(now, self.paused, self.requests.opens(1, now), self.tokens.opens(place.tokens, now))

    def _drop(self, program: str, line: deque[Place], place: Place) -> None:
        line.remove(place)
        self.waiting -= 1
        if not line:
            del self._lines[program]
