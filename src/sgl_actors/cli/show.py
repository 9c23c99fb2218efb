"""What the reading verbs print: tables for people, JSON for programs."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import msgspec

from sgl_actors.actors.microkernel.messages import ActorRow, Actors
from sgl_actors.actors.node.banner import format_size
from sgl_actors.actors.node.config import NodeConfig
from sgl_actors.actors.node.models import ModelRow
from sgl_actors.actors.node.timeline import Entry, actors_of, follow, merge
from sgl_actors.errors import InvalidRequest

LOOK_EVERY = 0.2
"""Seconds between two looks at the log files with --follow."""
OFF_TERMINAL_WIDTH = 240
COLOURS = {"warning": "yellow", "error": "red", "critical": "red"}
OWN_COLUMNS = ("ts", "level", "event", "actor", "epoch")
PACKAGES = ("sgl-actors", "torch", "transformers", "tokenizers", "pyzmq", "msgspec")


def show_actors(actors: Actors, *, as_json: bool, stream: TextIO) -> None:
    """The actors of a node in the order in which they started."""
    if as_json:
        keys = ("address", "state", "epoch", "restarts", "mailbox", "pid", "rss")
        write_json([{key: getattr(row, key) for key in keys} for row in actors.rows], stream)
        return
    table(
        ("ACTOR", "STATE", "EPOCH", "RESTARTS", "MAILBOX", "PID", "RSS"),
        map(_actor_cells, actors.rows),
        stream,
        right=2,
    )


def _actor_cells(row: ActorRow) -> tuple[str, ...]:
    numbers = (row.epoch, row.restarts, row.mailbox, row.pid)
    return (row.address, row.state, *(str(number) for number in numbers), format_size(row.rss))


def show_models(rows: Sequence[ModelRow], *, as_json: bool, stream: TextIO) -> None:
    """Models that can be named; one that is not here shows how to get it."""
    if as_json:
        write_json([msgspec.to_builtins(row) for row in rows], stream)
        return
    cells = (
        (
            row.name,
            row.served_name,
            format_size(row.bytes) if row.path else "-",
            row.path or f"not here: {row.get}",
        )
        for row in rows
    )
    table(("NAME", "SERVED AS", "SIZE", "WHERE"), cells, stream)


def show_config(config: NodeConfig, *, show_origin: bool, as_json: bool, stream: TextIO) -> None:
    """Every value in force, and on request where it comes from."""
    rows = list(config.rows())
    if as_json:
        write_json(
            {
                key: {"value": value, "origin": origin} if show_origin else value
                for key, value, origin in rows
            },
            stream,
        )
        return
    cells = ((key, _literal(value), *((origin,) if show_origin else ())) for key, value, origin in rows)
    table(("KEY", "VALUE", *(("ORIGIN",) if show_origin else ())), cells, stream)


def show_versions(*, as_json: bool, stream: TextIO) -> None:
    """Versions from the packages' metadata; none of them is imported."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    if as_json:
        write_json(versions, stream)
        return
    for name, number in versions.items():
        print(f"{name} {number}", file=stream)


def _version(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return "not installed"


def time_line(
    folder: Path, *, actor: str | None, request: str | None, follow: bool, last: bool
) -> Iterator[Entry]:
    """The wanted log lines, without end if they are followed; `last` leaves out earlier runs of the node.

    Raises:
        InvalidRequest: there is no such actor, or nothing names the request (which may still come if lines are followed).
    """
    known = actors_of(folder) if actor is not None else []
    if actor is not None and known and actor not in known:
        raise InvalidRequest(f"no actor {actor!r}; there are {', '.join(known)}")
    if follow:
        return _follow(folder, actor, request, last=last)
    entries = merge(folder, actor=actor, request=request, last=last)
    first = next(entries, None)
    if first is None and request is not None:
        of_actor = "" if actor is None else f" of {actor}"
        raise InvalidRequest(f"no line{of_actor} names request {request!r}")
    return iter(()) if first is None else chain([first], entries)


def _follow(folder: Path, actor: str | None, request: str | None, *, last: bool) -> Iterator[Entry]:
    def wait() -> None:
        sys.stdout.flush()
        time.sleep(LOOK_EVERY)

    return follow(folder, wait, actor=actor, request=request, last=last)


def show_lines(entries: Iterable[Entry], *, as_json: bool, relative: bool, stream: TextIO) -> int:
    """Log lines as they are, or for people, with a line where a day or a run begins. Returns how many there were.

    `relative` adds the milliseconds since the first of them.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, soft_wrap=True, highlight=False)
    first: datetime | None = None
    shown: tuple[int, str] | None = None
    count = 0
    for count, (run, line) in enumerate(entries, start=1):  # noqa: B007 - the last count is the answer
        if as_json:
            stream.write(msgspec.json.encode(line).decode() + "\n")
            continue
        moment = _moment(line)
        first = first or moment
        day = moment.strftime("%Y-%m-%d UTC") if moment else ""
        if shown is None or (run, day) != shown:
            again = ", the node was started again" if shown is not None and run != shown[0] else ""
            console.print(Text(f"-- {day}{again}", "bold"))
            shown = (run, day)
        since = (
            f"+{(moment - first).total_seconds() * 1000:9.1f} ms " if relative and moment and first else ""
        )
        console.print(Text(since + format_line(line), style=COLOURS.get(str(line.get("level")), "")))
    return count


def format_line(line: Mapping[str, Any]) -> str:
    """``22:53:01.123456 scheduler#3 info  admitted request=r1``; a traceback follows on lines of its own."""
    moment = _moment(line)
    clock = moment.strftime("%H:%M:%S.%f") if moment else str(line.get("ts"))
    rest = {key: value for key, value in line.items() if key not in OWN_COLUMNS}
    traceback = rest.pop("exception", None)
    pairs = " ".join(f"{key}={_short(value)}" for key, value in rest.items())
    who = f"{line.get('actor')}#{line.get('epoch')}"
    text = f"{clock} {who:<14} {line.get('level', ''):<7} {line.get('event', '')} {pairs}".rstrip()
    return text if traceback is None else f"{text}\n{traceback}"


def _moment(line: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(line.get("ts")))
    except ValueError:
        return None


def _short(value: Any) -> str:
    return (
        value
        if isinstance(value, str) and value and " " not in value
        else msgspec.json.encode(value).decode()
    )


def _literal(value: Any) -> str:
    """A value as node.toml would have it."""
    return msgspec.json.encode(value).decode()


def write_json(value: Any, stream: TextIO) -> None:
    """Indented JSON and a newline."""
    stream.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], stream: TextIO, *, right: int | None = None
) -> None:
    """Columns for people; those from `right` on are numbers. Off a terminal nothing is folded or coloured."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, highlight=False, width=None if stream.isatty() else OFF_TERMINAL_WIDTH)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, title in enumerate(header):
        is_number = right is not None and number >= right
        grid.add_column(title, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
