"""When to ask a node over HTTP again, and when to give up. No I/O but the waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from sgl_actors.errors import NotReady, Overloaded, SglActorsError
from sgl_actors.lang.backends.native import failure

PATIENCE = 60.0
"""Seconds that a node which has answered once may be away."""
FIRST_PATIENCE = 5.0
"""Seconds until the first answer, before it counts as the wrong address."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts, doubled from one to the next; chance makes each 0.5 to 1.5 times that."""


class Attempts:
    """How often and how long one request is tried.

    Args:
        deadline: by the loop's clock; nothing is tried behind it.
        patience: seconds that failures may follow each other.
    """

    def __init__(self, deadline: float, patience: float) -> None:
        self.deadline = deadline
        self.patience = patience
        self._until: float | None = None
        self._pause = SHORTEST_PAUSE
        self._begun = False

    def progressed(self) -> None:
        """Something came."""
        self._begun, self._until, self._pause = True, None, SHORTEST_PAUSE

    async def again(self, error: SglActorsError, after: float = 0.0) -> None:
        """Wait until it is time for the next attempt, not less than `after` seconds; raise `error` if there is to be none.

        A node that has no room is asked again only for what it had taken already.
        """
        now = asyncio.get_running_loop().time()
        self._until = now + self.patience if self._until is None else self._until
        pause = max(after, self._pause * random.uniform(0.5, 1.5))
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        asks_again = isinstance(error, NotReady) or (isinstance(error, Overloaded) and self._begun)
        if not asks_again or now + pause > min(self._until, self.deadline):
            raise error
        await asyncio.sleep(pause)


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> tuple[SglActorsError, float]:
    """What an answer other than 200 stands for, and the seconds after which the node wants to be asked again."""
    try:
        after = float(headers.get("retry-after", "0"))
    except ValueError:  # a date; we send none
        after = 0.0
    return failure(status, body), max(0.0, min(after, 600.0))
