"""The log of each actor: JSON lines, one file per actor in the node's log folder, bounded in size.

Every line has ``ts`` (UTC, microseconds), ``level``, ``event``, ``actor``, ``epoch``, and what the author bound (``trace``,
``request``, ``program``). Texts that belong to users (prompts, outputs, keys) are written as their length and hash. A log
that cannot be written (a full or read-only volume) is dropped and counted; it never ends an actor, and once there is room again one line
tells how many are missing. `node.timeline` reads the files.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

SUFFIX = ".jsonl"
OLD = ".1"
DEFAULT_SIZE = 16 << 20
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_SAME_LEVEL = {"warn": "warning", "exception": "error"}

PRIVATE = frozenset(
    {
        "prompt",
        "text",
        "messages",
        "content",
        "output",
        "body",
        "api_key",
        "authorization",
        "secret",
        "password",
    }
)
"""Keys whose values are never written as they are."""

LONG_QUOTE = re.compile(r"""(['"`])((?:(?!\1).){25,})\1""", re.DOTALL)
"""What an exception quotes at length is what it was given: a prompt, a pattern, a key."""

_encoder = msgspec.json.Encoder(enc_hook=str)


class LogFile:
    """One actor's file: appends whole lines, keeps one older file, survives a full disk.

    Several incarnations, also in different processes, may append to the same file: lines are single writes with O_APPEND.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = DEFAULT_SIZE,
        notice: Callable[[int, str], bytes] | None = None,
    ) -> None:
        """`notice` makes the line that says how many lines were lost, and why, before the next one that can be written."""
        self.path = path
        self.max_bytes = max_bytes
        self.lines = 0
        self.dropped = 0
        self._notice = notice
        self._missing, self._why = 0, ""
        self._fd = -1
        self._size = 0
        self._torn = False

    def __repr__(self) -> str:
        return f"LogFile({str(self.path)!r}, lines={self.lines}, dropped={self.dropped})"

    def write(self, line: bytes) -> None:
        """Append one line (without its newline), or count it as dropped."""
        try:
            if self._missing and self._notice is not None:
                told = self._notice(self._missing, self._why)
                if not self._append(told):
                    self._lose("cut off")
                    return
                self._missing = 0
            if not self._append(line):
                self._lose("cut off")
        except OSError as error:
            self._lose(error.strerror or type(error).__name__)

    def _append(self, line: bytes) -> bool:
        """Write a whole line; False if only a part of it found room. Raises `OSError` if nothing did."""
        data = b"\n" * self._torn + line + b"\n"
        if self._fd < 0 or self._size + len(data) > self.max_bytes:
            self._open_next(len(data))
        written = os.write(self._fd, data)
        self._size += written
        self._torn = written < len(data)
        self.lines += not self._torn
        return not self._torn

    def _lose(self, why: str) -> None:
        self.dropped += 1
        self._missing += 1
        self._why = why

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_next(self, needed: int) -> None:
        """Open the file; if it has no room for `needed` bytes, move it aside first."""
        self.close()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size + needed > self.max_bytes:
            self.path.replace(self.path.with_name(self.path.name + OLD))
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size


class _Sink:
    """What structlog calls with a rendered line; one method per level, as its bound logger expects."""

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def msg(self, line: bytes) -> None:
        self._file.write(line)

    debug = info = warning = warn = error = critical = exception = log = msg


_files: dict[Path, LogFile] = {}


def actor_logger(
    log_dir: str | Path,
    name: str,
    epoch: int,
    *,
    level: str = "info",
    max_bytes: int = DEFAULT_SIZE,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> structlog.stdlib.BoundLogger:
    """Return the logger of one incarnation; incarnations in one process share the file.

    Args:
        log_dir: the node's log folder, made when the first line is written.
        name: ``"worker/0"``; its file is ``worker.0.jsonl``.
        epoch: incarnation.
        level: least level that is written.
        max_bytes: size at which the file is moved to ``….jsonl.1`` and begun anew.
        clock: gives the time of a line, in UTC.
    """
    path = log_path(log_dir, name)
    file = _files.get(path)
    if file is None:
        file = _files[path] = LogFile(path, max_bytes, partial(_missing_lines, name, epoch, clock))
    least = LEVELS[level]

    def drop_below(_logger: Any, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if LEVELS.get(method, least) < least:
            raise structlog.DropEvent
        return line

    def stamp(_logger: Any, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        head = {
            "ts": timestamp(clock()),
            "level": _SAME_LEVEL.get(method, method),
            "event": line.pop("event", ""),
        }
        return head | dict(line)

    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        _Sink(file),
        processors=[drop_below, stamp, _traceback, hide_private, _render],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    ).bind(actor=name, epoch=epoch)
    return logger


def _missing_lines(name: str, epoch: int, clock: Callable[[], datetime], missing: int, why: str) -> bytes:
    """The line that stands where others are missing."""
    line = {
        "ts": timestamp(clock()),
        "level": "warning",
        "event": "log lines are missing",
        "missing": missing,
        "why": why,
    }
    return _encoder.encode({**line, "actor": name, "epoch": epoch})


def log_path(log_dir: str | Path, actor: str) -> Path:
    """The file of an actor: a slash in its name becomes a dot."""
    return Path(log_dir) / (actor.replace("/", ".") + SUFFIX)


def statistics() -> dict[str, float]:
    """Lines written and dropped by this process."""
    files = list(_files.values())
    return {
        "log_lines": float(sum(f.lines for f in files)),
        "log_dropped": float(sum(f.dropped for f in files)),
    }


def close_all() -> None:
    """Close this process's log files and forget them."""
    for file in _files.values():
        file.close()
    _files.clear()


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds always, so that times sort as text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def hide_private(_logger: Any, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write what belongs to users as {length, sha256}: enough to tell texts apart, nothing to read."""
    for key in PRIVATE & line.keys():
        value = line[key]
        if value is None or isinstance(value, bool | int | float):
            continue  # a count of tokens gives nothing away
        raw = value if isinstance(value, bytes) else str(value).encode()
        size = len(value) if isinstance(value, str | bytes | list | tuple) else len(raw)
        line[key] = {"length": size, "sha256": hashlib.sha256(raw).hexdigest()[:12]}
    return line


def _traceback(_logger: Any, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write an exception as its traceback; long quotes in its message, which may be a user's text, by their length only."""
    given = line.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else None
    if given is True:
        error = sys.exc_info()[1]
    if error is not None:
        parts = traceback.TracebackException.from_exception(error).format()
        line["exception"] = "".join(map(_without_quotes, parts)).rstrip()
    return line


def _without_quotes(part: str) -> str:
    """A part of a traceback: of a frame as it is, of a message without long quotes."""
    if part.lstrip(" |").startswith("File "):
        return part
    return LONG_QUOTE.sub(lambda found: f"{found[1]}… {len(found[2])} characters{found[1]}", part)


def _render(_logger: Any, _method: str, line: structlog.typing.EventDict) -> bytes:
    """One JSON line. Text that is no valid Unicode loses its surrogates rather than the line."""
    try:
        return _encoder.encode(line)
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError, RecursionError):
        return _encoder.encode({key: _plain(value) for key, value in line.items()})


def _plain(value: Any) -> Any:
    """The value itself if it is a number, else its text without what UTF-8 cannot hold."""
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 1 << 63 else str(value)
    return str(value).encode(errors="replace").decode()
