"""How often and when a request that failed is asked again. No I/O; time and chance are passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sgl_actors.errors import SglActorsError

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries at most, chance making it any number from 0 on; the most doubles from one to the next."""
LONGEST_WISH: Final = 600.0
"""Seconds that a provider may want to be left alone."""
RATIO: Final = 0.5
"""Of a failure that one success makes good."""


class Throttle:
    """A bound on the retries of all requests together, after gRPC's (its proposal A6, client-side retry throttling).

    Failures drain it, successes fill it, and nothing is asked again while it is less than half full. So an API that is down is asked little more often
    than it would be without retries, and one where up to a third of the tries fail is asked again as often as it takes.
    """

    def __init__(self, capacity: float) -> None:
        self.capacity = self.level = capacity

    def __repr__(self) -> str:
        return f"<Throttle {self.level:g} of {self.capacity:g}>"

    @property
    def open(self) -> bool:
        """Whether a request may be asked again."""
        return self.level > self.capacity / 2

    def failed(self) -> None:
        """A try has failed."""
        self.level = max(0.0, self.level - 1)

    def succeeded(self) -> None:
        """A try has not."""
        self.level = min(self.capacity, self.level + RATIO)


class Tries:
    """Those of one request.

    Args:
        most: further ones.
        deadline: nothing is tried behind it.
        throttle: of all requests.
        chance: numbers from 0 to 1.

    Attributes:
        retries: tries that failed and were followed by another one.
    """

    def __init__(self, most: int, deadline: float, throttle: Throttle, chance: Callable[[], float]) -> None:
        self._most, self._deadline, self._throttle, self._chance = most, deadline, throttle, chance
        self.retries = 0

    def again(self, error: SglActorsError, now: float) -> float:
        """Seconds until the next try; raises `error` if there is to be none.

        A provider that says when it wants to be asked sets the pace for all requests, so its refusals drain nothing.
        """
        if not error.retryable:
            raise error
        wish = wish_of(error)
        if not wish:
            self._throttle.failed()
        pause = max(wish, self._chance() * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**self.retries))
        if self.retries >= self._most or now + pause >= self._deadline or not (wish or self._throttle.open):
            raise error
        self.retries += 1
        return pause


def wish_of(error: SglActorsError) -> float:
    """Seconds after which the provider wants to be asked again; 0 if it did not say."""
    return min(max(getattr(error, "retry_after", 0.0), 0.0), LONGEST_WISH)
