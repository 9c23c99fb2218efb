"""Waits for a place under `Limits`; the only thing here that has a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sgl_actors.actors.api.limits import Limits, Place


class Gate:
    """Lets requests in when `limits` say so. `clock` is theirs."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits, self._clock = limits, clock
        self._futures: dict[Place, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Gate {self.limits!r}>"

    async def enter(self, program: str, tokens: int, *, again: bool = False) -> Place:
        """Wait for a place; who has it has to `leave`.

        Raises:
            Overloaded: too many wait.
        """
        place = self.limits.enter(program, tokens, self._clock(), again=again)
        future = self._futures[place] = asyncio.get_running_loop().create_future()
        self.admit()
        try:
            await future
        except asyncio.CancelledError:
            self.leave(place)
            raise
        return place

    def leave(self, place: Place, tokens: int | None = None) -> None:
        """Give it back; see `Limits.leave`."""
        self._futures.pop(place, None)
        self.limits.leave(place, self._clock(), tokens)
        self.admit()

    def pause(self, seconds: float) -> None:
        """Let nobody in for so long."""
        self.limits.pause(self._clock() + seconds)
        self.admit()

    def admit(self) -> None:
        """Let in who may come in, and look again when the next one may."""
        now = self._clock()
        for place in self.limits.admit(now):
            future = self._futures.pop(place)
            if not future.done():
                future.set_result(None)
        self.close()
        wakes = self.limits.wakes(now)
        if wakes is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wakes - now), self.admit)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
