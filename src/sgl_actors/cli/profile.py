"""What `sgl-actors profile` does: it asks the running node over its local socket, and prints where the time goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from sgl_actors.actors.microkernel.control import KERNEL
from sgl_actors.actors.node.client import NodeClient, NodeProfile, ProcessRow, Row, trace
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.cli.node import client
from sgl_actors.cli.show import table, write_json
from sgl_actors.errors import ConfigError

GIGA = 1e9


async def take(record: NodeRecord, seconds: float, *, slices: bool) -> NodeProfile:
    """A profile of that node."""
    async with client(record) as context:
        return await NodeClient(context).profile(seconds, slices=slices)


def write_trace(profile: NodeProfile, file: Path) -> None:
    """For chrome://tracing or https://ui.perfetto.dev; `ConfigError` where it cannot be written."""
    try:
        file.write_bytes(msgspec.json.encode(trace(profile)))
    except OSError as error:
        raise ConfigError(f"--trace {file}: {error.strerror}") from None


def show_profile(profile: NodeProfile, *, as_json: bool, stream: TextIO) -> None:
    """What was done, where the worker's time went, and what the processes took beside it."""
    if as_json:
        names = ("seconds", "steps", "tokens", "sampled", "threads", "rows", "processes")
        write_json({name: getattr(profile, name) for name in names}, stream)
        return
    rate = f"{profile.tokens / profile.seconds:,.0f} tokens/s through the model"
    print(
        f"{profile.seconds:.2f} s: {profile.steps:,} steps, {profile.tokens:,} tokens ({rate}), {profile.sampled:,} sampled\n",
        file=stream,
    )
    if not profile.steps:
        print("nothing was computed meanwhile: send the node requests while it is watched\n", file=stream)
    header = ("PART", "MS/STEP", "SHARE", "CALLS", "GB/S", "GOP/S")
    table(header, _cells(profile), stream, right=1)
    print(file=stream)
    table(("PROCESS", "CORES", "MESSAGES", "BUSY"), map(_process_cells, profile.processes), stream, right=1)


def _cells(profile: NodeProfile) -> Iterator[tuple[str, ...]]:
    steps = max(1, profile.steps)
    for row in profile.rows:
        yield row.part, f"{1000 * row.seconds / steps:.3f}", f"{row.share:.1%}", *_rates(row)
    yield "all", f"{1000 * sum(row.seconds for row in profile.rows) / steps:.3f}", "100.0%", "", "", ""


def _rates(row: Row) -> tuple[str, str, str]:
    return (
        f"{row.calls:,}" if row.calls else "",
        f"{row.bytes_per_second / GIGA:.1f}" if row.bytes_per_second else "",
        f"{row.operations_per_second / GIGA:.1f}" if row.operations_per_second else "",
    )


def _process_cells(row: ProcessRow) -> tuple[str, ...]:
    busy = ", ".join(
        f"{actor} {1000 * seconds:.0f} ms" for actor, seconds in sorted(row.busy.items()) if actor != KERNEL
    )
    return row.process, f"{row.load:.2f}", f"{row.handled:,}", busy
