"""Where a node's time goes: what worker and kernels noted, put together as a table and as a trace for Chrome or Perfetto.

The table divides the worker's wall time without a rest. Within a step: the kinds of operation, sampling, grammar, and "other", which is what is in
none of them. Between two steps: "hand-over" (between the worker's loop and its thread), "scheduler" (while it handles a message), "bus"
(on the way), and "idle": a wait before a step that goes on with nothing from before, when nobody had asked for anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sgl_actors.actors.microkernel.record import Handled, ProcessRecord, Recorded
from sgl_actors.actors.worker.messages import PartTime, Profiled, StepTime

OTHER, HANDOVER, SCHEDULER, BUS, IDLE = "other", "hand-over", "scheduler", "bus", "idle"
ORDER = (
    "embed", "norm", "qkv", "attention", "output", "gate_up", "activation", "down", "head", "rank",
    "sampling", "draft", "grammar", "scoring", "batch", OTHER, HANDOVER, SCHEDULER, BUS, IDLE,
)  # fmt: skip
"""Of the table's rows."""
WORKER = "worker"
MICRO = 1e6


class Row(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        part: what was done.
        seconds: in the worker's wall time.
        share: of it, 0 to 1; those of all rows add up to 1.
        calls: how often, 0 where that means nothing.
        bytes_per_second, operations_per_second: while it was done; 0 where not known.
    """

    part: str
    seconds: float
    share: float
    calls: int = 0
    bytes_per_second: float = 0.0
    operations_per_second: float = 0.0


class ProcessRow(msgspec.Struct, frozen=True):
    """A process of the node meanwhile: CPU `load` in cores (all its threads), and seconds that each of its actors was handling messages."""

    process: str
    load: float
    handled: int
    busy: dict[str, float]


class NodeProfile(msgspec.Struct, frozen=True):
    """A profile of a node.

    Attributes:
        seconds: wall time of the worker.
        steps, tokens, sampled: what it did in it.
        threads: compute threads.
        rows: see the module.
        processes: beside it, not part of the wall time.
        profiled, recorded: what it was made from.
    """

    seconds: float
    steps: int
    tokens: int
    sampled: int
    threads: int
    rows: list[Row]
    processes: list[ProcessRow]
    profiled: Profiled
    recorded: Recorded


def summarise(profiled: Profiled, recorded: Recorded) -> NodeProfile:
    """Divide the worker's time."""
    wall = max(profiled.ended - profiled.began, 1e-9)
    parts = {part.part: part for part in profiled.parts}
    seconds = divide_steps(profiled.steps, profiled.parts)
    for name, own in divide_gaps(profiled, handled_by(recorded, SCHEDULER)).items():
        seconds[name] = seconds.get(name, 0.0) + own
    seconds[IDLE] = max(0.0, wall - sum(own for name, own in seconds.items() if name != IDLE))
    whole = sum(seconds.values())
    names = [name for name in ORDER if name in seconds] + sorted(seconds.keys() - set(ORDER))
    return NodeProfile(
        wall,
        len(profiled.steps),
        sum(step.tokens for step in profiled.steps),
        sum(step.sampled for step in profiled.steps),
        profiled.threads,
        [_row(name, seconds[name], whole, parts.get(name)) for name in names],
        [_process(process) for process in recorded.processes],
        profiled,
        recorded,
    )


def divide_steps(steps: Iterable[StepTime], parts: Iterable[PartTime]) -> dict[str, float]:
    """Seconds of the steps by part; parts that claim more than the steps took (two clocks) are cut to it in proportion."""
    within = sum(step.ended - step.began for step in steps)
    seconds = {part.part: max(0.0, part.seconds) for part in parts}
    claimed = sum(seconds.values())
    if claimed > within:
        return {part: own * within / claimed for part, own in seconds.items()} | {OTHER: 0.0}
    return seconds | {OTHER: within - claimed}


def divide_gaps(profiled: Profiled, scheduler: Sequence[Handled]) -> dict[str, float]:
    """Seconds between the steps by what was waited for."""
    found = dict.fromkeys((HANDOVER, SCHEDULER, BUS, IDLE), 0.0)
    busy = Overlap(scheduler)
    free, sent = profiled.began, profiled.began
    for step in profiled.steps:
        left = min(max(sent, free), step.began)
        came = min(max(step.received, left), step.began)
        found[HANDOVER] += (left - free) + (step.began - came)
        ordering = busy.within(left, came)
        found[SCHEDULER] += ordering
        found[BUS if step.goes_on else IDLE] += came - left - ordering
        free, sent = step.ended, step.sent
    found[IDLE] += max(0.0, profiled.ended - free)
    return found


class Overlap:
    """How much of a span of time an actor spent handling messages; spans are asked for in order."""

    def __init__(self, handled: Sequence[Handled]) -> None:
        self._handled = sorted(handled, key=lambda one: one.began)
        self._next = 0

    def within(self, began: float, ended: float) -> float:
        """Seconds; 0 to ended - began."""
        while self._next < len(self._handled) and self._handled[self._next].ended <= began:
            self._next += 1
        total = 0.0
        for one in self._handled[self._next :]:
            if one.began >= ended:
                break
            total += max(0.0, min(one.ended, ended) - max(one.began, began))
        return min(total, max(0.0, ended - began))


def handled_by(recorded: Recorded, actor: str) -> list[Handled]:
    """What that actor handled."""
    return [one for process in recorded.processes for one in process.handled if one.actor == actor]


def _row(name: str, seconds: float, whole: float, part: PartTime | None) -> Row:
    share = seconds / whole if whole else 0.0
    if part is None or seconds <= 0:
        return Row(name, seconds, share)
    return Row(name, seconds, share, part.calls, part.bytes / seconds, part.operations / seconds)


def _process(process: ProcessRecord) -> ProcessRow:
    busy: defaultdict[str, float] = defaultdict(float)
    for one in process.handled:
        busy[one.actor] += one.ended - one.began
    seconds = max(process.seconds, 1e-9)
    return ProcessRow(process.name, process.cpu / seconds, len(process.handled) + process.lost, dict(busy))


def trace(profile: NodeProfile) -> dict[str, Any]:
    """The profile in the Trace Event Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.

    A row ("thread") per actor under its process, with a slice per message, and one for the worker's compute thread, with a slice per step and within it
    one per operation. Times are microseconds of the machine's monotonic clock; slices of a row are in order and properly nested.
    """
    began, ended = profile.profiled.began, profile.profiled.ended
    events: list[dict[str, Any]] = [_name("process_name", 0, 0, WORKER), _name("thread_name", 0, 0, "steps")]
    for step in profile.profiled.steps:
        counts = {"number": step.number, "tokens": step.tokens, "sequences": step.sequences}
        more = {"sampled": step.sampled, "started": step.started, "first": step.first}
        events.append(_slice("step", "step", 0, 0, step.began, step.ended, counts | more))
    events += [
        _slice(one.part, "operation", 0, 0, one.began, one.began + one.seconds)
        for one in profile.profiled.slices
    ]
    for number, process in enumerate(profile.recorded.processes, 1):
        events.append(_name("process_name", number, 0, f"process {process.name}"))
        rows = {actor: row for row, actor in enumerate(sorted({one.actor for one in process.handled}))}
        events += [_name("thread_name", number, row, actor) for actor, row in rows.items()]
        for handled in process.handled:
            if handled.ended > began and handled.began < ended:
                place = (number, rows[handled.actor])
                events.append(_slice(handled.tag, "message", *place, handled.began, handled.ended))
    events.sort(key=lambda event: (event["ph"] != "M", event.get("ts", 0.0), -event.get("dur", 0.0)))
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"clock": "monotonic"}}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _slice(
    name: str, category: str, process: int, thread: int, began: float, ended: float, args: Any = None
) -> dict[str, Any]:
    event = {"ph": "X", "name": name, "cat": category, "pid": process, "tid": thread}
    event |= {"ts": round(began * MICRO, 3), "dur": round(max(0.0, ended - began) * MICRO, 3)}
    return event if args is None else event | {"args": args}
