"""Aborts that came before their requests."""

from __future__ import annotations

from collections import OrderedDict

TIME_TO_LIVE = 30.0
"""Seconds that an abort waits for its request."""
CAPACITY = 4096
"""Most aborts waiting, and most ended requests remembered; the oldest give way."""


class Tombstones:
    """Tells an abort that overtook its request from one that came after its end."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def set(self, request: str, now: float) -> None:
        """An abort for an id that is not live; nothing is left behind if it has ended lately."""
        if request in self._ended:
            return
        self._waiting[request] = now + TIME_TO_LIVE
        self._waiting.move_to_end(request)
        if len(self._waiting) > CAPACITY:
            self._waiting.popitem(last=False)

    def take(self, request: str, now: float) -> bool:
        """A request arrives: whether it was aborted before. Its id is no longer an ended one."""
        self._ended.pop(request, None)
        return self._waiting.pop(request, 0.0) > now

    def ended(self, request: str) -> None:
        """A request has ended."""
        self._ended[request] = None
        self._ended.move_to_end(request)
        if len(self._ended) > CAPACITY:
            self._ended.popitem(last=False)
