"""Something that happens once, and whoever waits for it."""

from __future__ import annotations

import asyncio


class Once:
    """As `asyncio.Event`, but never cleared, and nearly free while nobody waits: every actor has two."""

    __slots__ = ("_event", "_happened")

    def __init__(self) -> None:
        self._happened = False
        self._event: asyncio.Event | None = None

    def set(self, _: object = None) -> None:
        """It has happened. The argument is for callbacks that get one."""
        self._happened = True
        if self._event is not None:
            self._event.set()

    def is_set(self) -> bool:
        """Whether it has."""
        return self._happened

    async def wait(self) -> None:
        """Return when it has."""
        if not self._happened:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()
