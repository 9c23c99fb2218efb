"""What the scheduler's core wants done. The shell does it; the simulation looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgl_actors.actors.cache.messages import Commit, Grant, Match
from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.messages import Progress
from sgl_actors.actors.worker.messages import Describe, Step
from sgl_actors.actors.worker.messages import Reset as ResetWorker


@dataclass(frozen=True, slots=True)
class ToWorker:
    """Cast a `Step`; or call with `Describe` or `Reset` and hand the answer back to the core."""

    message: Step | Describe | ResetWorker


@dataclass(frozen=True, slots=True)
class ToCache:
    """Cast a `Commit`; or call with `Match`, `Grant` or `Reset` and hand the answer back to the core."""

    message: Commit | Match | Grant | ResetCache


@dataclass(frozen=True, slots=True)
class Report:
    """Cast `progress` to a submitter."""

    owner: Address
    progress: Progress


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log, bound to a request if `request` is set. Lengths and reasons, never tokens."""

    event: str
    request: str = ""
    program: str = ""
    trace: str = ""
    fields: dict[str, int | float | str] = field(default_factory=dict)


Effect = ToWorker | ToCache | Report | Note
