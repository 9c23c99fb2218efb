"""The log files of a node's actors as one time line: what `sgl-actors logs` shows."""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sgl_actors.actors.microkernel.logs import OLD, SUFFIX

Line = dict[str, Any]
ROOT = "root"
_CHOICE = re.compile(r"^(.+)-\d+\Z")


class Entry(NamedTuple):
    """A line and the run of the node it belongs to, counted from 0 over what the files still hold."""

    run: int
    line: Line


class Filter:
    """Which lines belong to a question.

    A request's time line has the lines that name the request (alone or in a list ``requests``) or whose trace is the id;
    an id stands for its choices (``<id>-0``, ``<id>-1``, …) too, and a choice for the request it is of. Once a line of it
    states its trace, lines of that trace that name no request belong to it; asked for a trace, so do all lines of its requests.
    """

    def __init__(self, *, request: str | None = None, actor: str | None = None) -> None:
        self.request = request
        self.actor = actor
        self._ids: set[str] = {request} if request else set()
        self._traces: set[str] = {request} if request else set()

    def learn(self, line: Mapping[str, Any]) -> None:
        """Take note of the traces of the request, and of the requests of the trace."""
        if self.request is None or not (trace := line.get("trace")):
            return
        if trace == self.request:
            self._ids.update(_requests(line))
        elif self._names(line):
            self._traces.add(str(trace))

    def matches(self, line: Mapping[str, Any]) -> bool:
        """Whether the line is wanted."""
        if self.actor is not None and line.get("actor") != self.actor:
            return False
        if self.request is None or self._names(line) or line.get("trace") == self.request:
            return True
        return "request" not in line and "requests" not in line and line.get("trace") in self._traces

    def _names(self, line: Mapping[str, Any]) -> bool:
        whole = _CHOICE.match(self.request or "")
        return any(
            name in self._ids
            or (whole is not None and name == whole[1])
            or ((choice := _CHOICE.match(name)) is not None and choice[1] in self._ids)
            for name in _requests(line)
        )


class Runs:
    """Counts the runs of a node along its time line.

    No epoch is given out twice in a run: a run begins where the root says that an epoch is up which it had said before, or
    that any is up after it was stopping.
    """

    def __init__(self) -> None:
        self.run = 0
        self._up: set[str] = set()
        self._stopping = False

    def add(self, line: Mapping[str, Any]) -> int:
        """The run that the next line belongs to."""
        if line.get("actor") != ROOT:
            return self.run
        if line.get("event") == "stopping":
            self._stopping = True
        elif line.get("event") == "up":
            epoch = str(line.get("name")).rpartition("#")[2]
            if self._stopping or epoch in self._up:
                self.run += 1
                self._up.clear()
                self._stopping = False
            self._up.add(epoch)
        return self.run


def merge(
    log_dir: str | Path, *, request: str | None = None, actor: str | None = None, last: bool = False
) -> Iterator[Entry]:
    """Yield the wanted lines of all actors' files in the order of time, of all runs or of the last one.

    Damaged lines are left out.
    """
    wanted = Filter(request=request, actor=actor)
    files = _log_files(Path(log_dir))
    first = 0
    if request is not None or last:
        before = Runs()
        for line in heapq.merge(*(_lines(path) for path in files), key=_time):
            wanted.learn(line)
            first = before.add(line) if last else 0
    runs = Runs()
    for line in heapq.merge(*(_lines(path) for path in files), key=_time):
        run = runs.add(line)
        if run >= first and wanted.matches(line):
            yield Entry(run, line)


def follow(
    log_dir: str | Path,
    wait: Callable[[], object],
    *,
    request: str | None = None,
    actor: str | None = None,
    last: bool = False,
) -> Generator[Entry, None, None]:
    """Yield what `merge` does and then, for ever, what is added; `wait` is called before each look at the files.

    Lines added between two looks are sorted among themselves. A file that was moved aside is read to its end first; what was moved aside twice between two looks is not seen.
    """
    wanted = Filter(request=request, actor=actor)
    folder = _Folder(Path(log_dir))
    runs = Runs()
    first: int | None = None if last else 0
    try:
        while True:
            fresh = sorted(folder.read(), key=_time)
            for line in fresh:
                wanted.learn(line)
            entries = [Entry(runs.add(line), line) for line in fresh]
            first = runs.run if first is None else first
            yield from (entry for entry in entries if entry.run >= first and wanted.matches(entry.line))
            wait()
    finally:
        folder.close()


def actors_of(log_dir: str | Path) -> list[str]:
    """Names of all actors that have written a line or that the root has said to be up."""
    names = set()
    for path in _log_files(Path(log_dir)):
        for line in _lines(path):
            names.add(str(line.get("actor")))
            if line.get("actor") == ROOT and line.get("event") == "up":
                names.add(str(line.get("name")).rpartition("#")[0])
    return sorted(names)


def _requests(line: Mapping[str, Any]) -> list[str]:
    """The requests that a line names."""
    many = line.get("requests")
    named = [line.get("request"), *(many if isinstance(many, list) else ())]
    return [name for name in named if isinstance(name, str)]


class _Folder:
    """The log files of a node while they grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tails: dict[Path, _Tail] = {}
        self._begun = False

    def read(self) -> list[Line]:
        """Whole lines added to any file since the last call; the first time, all of them."""
        fresh = [line for tail in self._tails.values() for line in tail.read()]
        if not self._begun:
            self._begun = True
            fresh += [line for path in _log_files(self._path) if path.suffix == OLD for line in _lines(path)]
        for path in _current_files(self._path):
            tail = self._tails.get(path)
            if tail is None or tail.moved_aside():
                if tail is not None:
                    fresh += tail.read()
                    tail.close()
                self._tails[path] = _Tail(path)
                fresh += self._tails[path].read()
        return fresh

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()


class _Tail:
    """One file that is being read while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._inode = os.fstat(self._file.fileno()).st_ino
        self._rest = b""

    def read(self) -> list[Line]:
        """Whole lines added since the last call."""
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line for raw in whole if (line := _parse(raw)) is not None]

    def moved_aside(self) -> bool:
        """Whether the path now is another file."""
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()


def _log_files(folder: Path) -> list[Path]:
    """All files, older ones first."""
    return sorted(folder.glob(f"*{SUFFIX}{OLD}")) + _current_files(folder)


def _current_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _lines(path: Path) -> Iterator[Line]:
    try:
        with path.open("rb") as file:
            yield from (line for raw in file if (line := _parse(raw)) is not None)
    except FileNotFoundError:
        return


def _parse(raw: bytes) -> Line | None:
    try:
        line = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("ts"), str) else None


def _time(line: Line) -> str:
    return str(line["ts"])
