"""The log files of a node's actors as one time line: what `sgl-actors logs` shows."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sgl_actors.actors.microkernel.logs import OLD, SUFFIX

Line = dict[str, Any]


class Filter:
    """Which lines belong to a question.

    A request's time line has the lines that name the request (alone or in a list ``requests``) or whose trace is the id;
    once a line of it states its trace, also lines of that trace that name no request.
    """

    def __init__(self, *, request: str | None = None, actor: str | None = None) -> None:
        self.request = request
        self.actor = actor
        self._traces: set[str] = {request} if request else set()

    def learn(self, line: Mapping[str, Any]) -> None:
        """Take note of the traces of the request."""
        if self.request is not None and self._names(line) and (trace := line.get("trace")):
            self._traces.add(str(trace))

    def matches(self, line: Mapping[str, Any]) -> bool:
        """Whether the line is wanted."""
        if self.actor is not None and line.get("actor") != self.actor:
            return False
        if self.request is None or self._names(line) or line.get("trace") == self.request:
            return True
        return "request" not in line and "requests" not in line and line.get("trace") in self._traces

    def _names(self, line: Mapping[str, Any]) -> bool:
        many = line.get("requests")
        return line.get("request") == self.request or (isinstance(many, list) and self.request in many)


def merge(log_dir: str | Path, *, request: str | None = None, actor: str | None = None) -> Iterator[Line]:
    """Yield the wanted lines of all actors' files in the order of time. Damaged lines are left out."""
    wanted = Filter(request=request, actor=actor)
    files = _log_files(Path(log_dir))
    if request is not None:
        for path in files:
            for line in _lines(path):
                wanted.learn(line)
    time_line = heapq.merge(*(_lines(path) for path in files), key=_time)
    return (line for line in time_line if wanted.matches(line))


def follow(
    log_dir: str | Path,
    wait: Callable[[], object],
    *,
    request: str | None = None,
    actor: str | None = None,
) -> Generator[Line, None, None]:
    """Yield what `merge` does and then, for ever, what is added; `wait` is called before each look at the files.

    Lines added between two looks are sorted among themselves. A file that was moved aside is read to its end first; what was moved aside twice between two looks is not seen.
    """
    wanted = Filter(request=request, actor=actor)
    folder = _Folder(Path(log_dir))
    try:
        while True:
            fresh = folder.read()
            for line in fresh:
                wanted.learn(line)
            yield from (line for line in sorted(fresh, key=_time) if wanted.matches(line))
            wait()
    finally:
        folder.close()


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
