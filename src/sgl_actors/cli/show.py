"""What the reading verbs print: tables for people, JSON for programs."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, TextIO

import msgspec

from sgl_actors.actors.microkernel.messages import ActorRow, Actors
from sgl_actors.actors.node.banner import format_size
from sgl_actors.actors.node.config import NodeConfig
from sgl_actors.actors.node.models import ModelRow
from sgl_actors.actors.node.timeline import Line, follow, merge

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


def time_line(folder: Path, *, actor: str | None, request: str | None, follow: bool) -> Iterator[Line]:
    """The wanted log lines, without end if they are followed."""
    if follow:
        return _follow(folder, actor, request)
    return merge(folder, actor=actor, request=request)


def _follow(folder: Path, actor: str | None, request: str | None) -> Iterator[Line]:
    def wait() -> None:
        sys.stdout.flush()
        time.sleep(LOOK_EVERY)

    return follow(folder, wait, actor=actor, request=request)


def show_lines(lines: Iterable[Line], *, as_json: bool, relative: bool, stream: TextIO) -> None:
    """Log lines as they are, or for people; `relative` adds the milliseconds since the first of them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, soft_wrap=True, highlight=False)
    first: datetime | None = None
    for line in lines:
        if as_json:
            stream.write(msgspec.json.encode(line).decode() + "\n")
            continue
        moment = _moment(line)
        first = first or moment
        since = (
            f"+{(moment - first).total_seconds() * 1000:9.1f} ms " if relative and moment and first else ""
        )
        console.print(Text(since + format_line(line), style=COLOURS.get(str(line.get("level")), "")))


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
