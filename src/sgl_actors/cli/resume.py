"""`sgl-actors resume`: durable programs from their journal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from sgl_actors.actors.programs.journal import FINISHED, RUNNING, ProgramRow
from sgl_actors.errors import ConfigError, SglActorsError

AT_ONCE: Final = 16
"""Programs that are run at the same time."""
DAY: Final = 86_400.0
SHOWN: Final = 200
"""Characters of a value or an error in a line for people."""


def forget(file: Path, days: float) -> int:
    """Forget programs that finished that many days ago; how many."""
    from sgl_actors.actors.programs.resumption import prune

    return prune(file, time.time() - days * DAY)


def show_programs(file: Path, program: str | None, *, as_json: bool, stream: TextIO) -> None:
    """List the programs of a journal."""
    from sgl_actors.actors.programs.resumption import listed

    rows, now = listed(file, program), time.time()
    if as_json:
        stream.write(msgspec.json.encode([described(row, now) for row in rows]).decode() + "\n")
        return
    cells = [("ID", "PROGRAM", "STATE", "AGE", "RECORDS", "")] + [
        (row.id, row.name, row.state, age(now - row.changed), str(row.records), row.error[:SHOWN] or at(row))
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    for line in cells:
        shown = "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False))
        stream.write(f"{shown}  {line[5]}".rstrip() + "\n")


def resume_programs(
    file: Path, program: str | None, *, url: str | None, node: str | None, as_json: bool, stream: TextIO
) -> int:
    """Run programs on to their ends, and print one line for each; how many failed.

    Raises:
        ConfigError: both `url` and `node` are given.
        NotReady: no node of that name runs.
        InvalidRequest: there is no program of that id.
    """
    from sgl_actors.actors.programs.resumption import listed

    if url is not None and node is not None:
        raise ConfigError("--url and --node: one of them says where to run")
    rows = listed(file, program)
    if program is None:
        rows = [row for row in rows if row.state not in (RUNNING, FINISHED)]
    if not rows and not as_json:
        print("nothing to resume: all programs have finished, or run", file=stream)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it: modules that lay beside the caller
    return asyncio.run(_resume_all(file, rows, _backend(url, node), as_json=as_json, stream=stream))


def described(row: ProgramRow, now: float) -> dict[str, Any]:
    """A row for programs that read it."""
    fields = ("id", "name", "state", "error", "pid", "records", "seed", "function", "backend")
    return {name: getattr(row, name) for name in fields} | {
        "arguments": msgspec.json.decode(row.arguments),
        "age": now - row.changed,
    }


def at(row: ProgramRow) -> str:
    """Where it runs."""
    return f"process {row.pid}" if row.pid else ""


def age(seconds: float) -> str:
    """A time span for people.

    Example:
        >>> age(7300)
        '2.0 h'
    """
    for size, unit in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _backend(url: str | None, node: str | None) -> Any:
    """The node that was named, if one was."""
    import sgl_actors
    from sgl_actors.cli.node import find

    if url is None and node is None:
        return None
    return sgl_actors.connect(find(node, None).endpoint if url is None else url)


async def _resume_all(
    file: Path, rows: Sequence[ProgramRow], backend: Any, *, as_json: bool, stream: TextIO
) -> int:
    from sgl_actors.actors.programs.resumption import backend_of, resume

    gate, backends = asyncio.Semaphore(AT_ONCE), dict[str, Any]()

    async def one(row: ProgramRow) -> bool:
        async with gate:
            try:
                if backend is None and row.backend not in backends:
                    backends[row.backend] = backend_of(row)
                state = await resume(file, row, backends[row.backend] if backend is None else backend)
            except SglActorsError as error:
                _tell(
                    row.id,
                    "failed",
                    f"{type(error).__name__}: {error.message}",
                    as_json=as_json,
                    stream=stream,
                )
                return False
            for warning in state.warnings:
                print(f"sgl-actors: {row.id}: {warning}", file=sys.stderr)
            shown = state.variables if state.value is None else state.value
            _tell(row.id, FINISHED, shown, as_json=as_json, stream=stream)
            return True

    return (await asyncio.gather(*map(one, rows))).count(False)


def _tell(program: str, state: str, what: Any, *, as_json: bool, stream: TextIO) -> None:
    if as_json:
        line = {"id": program, "state": state, ("error" if state == "failed" else "value"): what}
        text = msgspec.json.encode(line, enc_hook=repr).decode()
    else:
        shown = what if isinstance(what, str) else repr(what)
        text = f"{program}  {state}  {shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + '…'}"
    stream.write(text + "\n")
    stream.flush()
