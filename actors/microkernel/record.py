"""What the actors of a process do for a while: which messages they handled and when, and the process's CPU time. For profiles.

Nothing is noted while nobody asks; then the cost is one look at an empty tuple per message.
"""

from __future__ import annotations

import time

import msgspec

from sgl_actors.actors.microkernel.wire import Message

MOST_HANDLED = 100_000
"""Messages of one process that are kept of one recording; what comes after them is only counted."""


class Record(Message):
    """Call to the root, answered by `Recorded` after `seconds`: what happens in all processes of the node. Kernels take it, too."""

    seconds: float


class Handled(msgspec.Struct, frozen=True, array_like=True):
    """One message in one actor; times are monotonic seconds, the same clock in all processes of a machine."""

    actor: str
    tag: str
    began: float
    ended: float


class ProcessRecord(msgspec.Struct, frozen=True):
    """One process.

    Attributes:
        name: the process's.
        cpu: CPU seconds of all its threads.
        seconds: how long was recorded.
        handled: in the order of their end.
        lost: messages beyond `MOST_HANDLED`.
    """

    name: str
    cpu: float
    seconds: float
    handled: list[Handled]
    lost: int = 0


class Recorded(Message):
    """Processes that ran from beginning to end, and were not too busy to answer."""

    processes: list[ProcessRecord]


class Recorder:
    """Notes what the actors of this process handle, from its making to `finish`."""

    def __init__(self) -> None:
        self._handled: list[Handled] = []
        self._lost = 0
        self._began, self._cpu = time.monotonic(), time.process_time()

    def note(self, actor: str, tag: str, began: float, ended: float) -> None:
        """An actor has handled a message."""
        if len(self._handled) < MOST_HANDLED:
            self._handled.append(Handled(actor, tag, began, ended))
        else:
            self._lost += 1

    def finish(self, process: str) -> ProcessRecord:
        """What was noted."""
        seconds, cpu = time.monotonic() - self._began, time.process_time() - self._cpu
        return ProcessRecord(process, cpu, seconds, self._handled, self._lost)
