"""The journal of durable programs: an SQLite file (WAL) with a row per program and, in order, what its primitives were answered.

Plain calls on one connection, each inside a transaction of the caller's (`journal_writer`); no threads, no loop. Several processes may use one
file. Records are only ever appended; a program that has finished leaves its result in their place.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from sgl_actors.actors.programs.journal_owner import owner_lives, pid_of
from sgl_actors.errors import JournalUnavailable, ProgramRunning
from sgl_actors.lang.durable import Past
from sgl_actors.lang.errors import ProgramChanged

FILE_VARIABLE: Final = "SGL_ACTORS_JOURNAL"
LAYOUT: Final = 1
BUSY: Final = 10.0
"""Seconds to wait for another process that is writing."""
WAL_LIMIT: Final = 16 << 20
"""Bytes of log after which what it holds is written to the file itself."""

RUNNING, FAILED, FINISHED = "running", "failed", "finished"
INTERRUPTED: Final = "interrupted"
"""What a program is called that is `running` although its process has ended."""

TABLES: Final = """
CREATE TABLE IF NOT EXISTS programs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, function TEXT NOT NULL, arguments BLOB NOT NULL,
    options BLOB NOT NULL, identity BLOB NOT NULL, seed INTEGER NOT NULL, token TEXT NOT NULL, backend TEXT NOT NULL,
    state TEXT NOT NULL, error TEXT NOT NULL, owner TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL, result BLOB);
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY, program INTEGER NOT NULL, key TEXT NOT NULL, kind INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS records_of ON records (program, number);
"""


class Spec(msgspec.Struct, frozen=True):
    """A durable program as it is asked for.

    Attributes:
        id, name, function, arguments: see `lang.durable.Durable`.
        options: JSON of its `RunOptions`, for a resume.
        identity: of the options what decides what it generates: another one is another program.
        seed: None has one drawn.
        backend: address or configuration of its node, "" for none that could be opened again.
    """

    id: str
    name: str
    function: str
    arguments: bytes
    options: bytes
    identity: bytes
    seed: int | None = None
    backend: str = ""


class Record(NamedTuple):
    """One record; `number` grows over the whole journal."""

    number: int
    key: str
    kind: int
    data: bytes


class Begun(NamedTuple):
    """A program that this process runs now, and what it has recorded before.

    Attributes:
        number: of its row.
        token: in the ids of its requests, which so differ from those of any other program of that id.
        failed: it had ended with an error.
    """

    number: int
    token: str
    seed: int
    failed: bool
    records: list[Record]


class ProgramRow(msgspec.Struct, frozen=True):
    """One program of a journal, for people and for a resume.

    Attributes:
        state: "running", "interrupted" (its process has ended), "failed" or "finished".
        error: what it failed with.
        pid: of the process that runs it, 0 without one.
        created, changed: seconds since the epoch.
        records: how many there are.
    """

    id: str
    name: str
    state: str
    error: str
    pid: int
    created: float
    changed: float
    records: int
    seed: int
    function: str
    arguments: bytes
    options: bytes
    backend: str


def journal_file(given: str = "", environ: Mapping[str, str] = os.environ) -> Path:
    """The journal: as given, else $SGL_ACTORS_JOURNAL, else in the user's state folder (XDG Base Directory Specification)."""
    named = given or environ.get(FILE_VARIABLE, "")
    if named:
        return Path(named).absolute()
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "sgl-actors" / "journal.db"


@contextmanager
def available(file: Path) -> Iterator[None]:
    """Errors of the file and of SQLite as ours.

    Raises:
        JournalUnavailable: with what they say.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise JournalUnavailable(f"journal {file}: {error}") from error


class Journal:
    """One open journal file. Not to be shared between threads."""

    def __init__(self, file: Path) -> None:
        """Open it, or make it, readable by its owner alone.

        Raises:
            JournalUnavailable: there is no such place, no permission, no room, or the file is none of ours.
        """
        self.file = file
        self._syncs = False
        with available(file):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            self._connection = sqlite3.connect(
                file, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("PRAGMA wal_autocheckpoint = 0")
        (layout,) = run("PRAGMA user_version").fetchone()
        if layout not in (0, LAYOUT):
            raise JournalUnavailable(
                f"journal {self.file}: its layout is {layout}, this version knows {LAYOUT}"
            )
        if layout == 0:
            run("BEGIN IMMEDIATE")
            for statement in TABLES.split(";"):
                run(statement)
            run(f"PRAGMA user_version = {LAYOUT}")
            run("COMMIT")

    def __repr__(self) -> str:
        return f"<Journal {self.file}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. What its log holds is written to the file, if nobody else has it open."""
        self._connection.close()

    @contextmanager
    def transaction(self, *, sync: bool = False) -> Iterator[None]:
        """All that is done inside is done together, or not at all. It outlives this process, with `sync` also the machine, and all before it.

        Raises:
            JournalUnavailable: it could not be written.
        """
        with available(self.file):
            if sync != self._syncs:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
                self._syncs = sync
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def tidy(self) -> None:
        """Write a long log to the file. A log that is cut short then loses its end and nothing else: no part of it is in the file already."""
        with available(self.file):
            log = self.file.with_name(self.file.name + "-wal")
            if log.exists() and log.stat().st_size > WAL_LIMIT:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- one program ----------------------------------------------------------------------------------------

    def begin(self, spec: Spec, owner: str, now: float) -> Begun:
        """Take a program for this process: a new one, or one whose process has ended.

        Raises:
            ProgramRunning: its process is alive.
            ProgramChanged: it is another one than the one recorded.
        """
        row = self._row(spec.id)
        if row is None:
            seed = secrets.randbits(63) if spec.seed is None else spec.seed
            token = secrets.token_hex(4)
            cursor = self._connection.execute(
                "INSERT INTO programs (id, name, function, arguments, options, identity, seed, token, backend, state, error, owner, created, changed)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?)",
                (spec.id, spec.name, spec.function, spec.arguments, spec.options, spec.identity, seed, token, spec.backend,
                 RUNNING, owner, now, now),
            )  # fmt: skip
            assert cursor.lastrowid is not None
            return Begun(cursor.lastrowid, token, seed, failed=False, records=[])
        check_same(spec, row)
        if owner_lives(row["owner"]):
            raise ProgramRunning(
                f"program {spec.id!r} runs already, in process {pid_of(row['owner'])}; a durable program runs once at a time"
            )
        self._connection.execute(
            "UPDATE programs SET state = ?, error = '', owner = ?, changed = ?, options = ?, backend = ? WHERE number = ?",
            (RUNNING, owner, now, spec.options, spec.backend, row["number"]),
        )
        failed = row["state"] == FAILED
        return Begun(row["number"], row["token"], row["seed"], failed, self._records(row["number"]))

    def recall(self, spec: Spec) -> Past | None:
        """What a program has left, if it has finished and can be read here; `ProgramChanged` if it is another one than the one recorded."""
        row = self._row(spec.id)
        if row is None:
            return None
        check_same(spec, row)
        if row["state"] != FINISHED or row["result"] is None:
            return None
        try:
            past = msgspec.msgpack.decode(row["result"], type=Past)
        except msgspec.MsgspecError as error:
            raise JournalUnavailable(
                f"journal {self.file}: the result of {spec.id!r} is damaged: {error}"
            ) from None
        return past if past.known else None

    def append(self, program: int, rows: Iterable[tuple[str, int, bytes]]) -> None:
        """More records, by key, kind and data."""
        self._connection.executemany(
            "INSERT INTO records (program, key, kind, data) VALUES (?, ?, ?, ?)",
            [(program, *row) for row in rows],
        )

    def truncate(self, program: int, number: int) -> None:
        """Forget a program's records from that one on."""
        self._connection.execute("DELETE FROM records WHERE program = ? AND number >= ?", (program, number))

    def forget(self, numbers: Iterable[int]) -> None:
        """Forget some records."""
        self._connection.executemany(
            "DELETE FROM records WHERE number = ?", [(number,) for number in numbers]
        )

    def finish(self, program: int, result: bytes | None, now: float, *, keep: bool = False) -> None:
        """It has finished. Its records make way for the result, unless there is none or they are to be kept."""
        self._connection.execute(
            "UPDATE programs SET state = ?, owner = '', changed = ?, result = ? WHERE number = ?",
            (FINISHED, now, result, program),
        )
        if result is not None and not keep:
            self.truncate(program, 0)

    def release(self, program: int, state: str, error: str, now: float) -> None:
        """The process that runs it does so no more; of no effect on one that has finished."""
        self._connection.execute(
            "UPDATE programs SET state = ?, error = ?, owner = '', changed = ? WHERE number = ? AND owner <> ''",
            (state, error, now, program),
        )

    # -- all of them ----------------------------------------------------------------------------------------

    def rows(self, program_id: str | None = None) -> list[ProgramRow]:
        """Programs, the oldest first; only that one, if it is named."""
        cursor = self._connection.execute(
            "SELECT *, (SELECT count(*) FROM records WHERE program = programs.number) AS count FROM programs"
            " WHERE id = coalesce(?, id) ORDER BY number",
            (program_id,),
        )
        return [_shown(row) for row in _dicts(cursor)]

    def prune(self, before: float) -> int:
        """Forget programs that finished before that moment; how many."""
        old = (FINISHED, before)
        self._connection.execute(
            "DELETE FROM records WHERE program IN (SELECT number FROM programs WHERE state = ? AND changed < ?)",
            old,
        )
        return self._connection.execute("DELETE FROM programs WHERE state = ? AND changed < ?", old).rowcount

    def _row(self, program_id: str) -> dict[str, Any] | None:
        cursor = self._connection.execute("SELECT * FROM programs WHERE id = ?", (program_id,))
        return next(_dicts(cursor), None)

    def _records(self, program: int) -> list[Record]:
        cursor = self._connection.execute(
            "SELECT number, key, kind, data FROM records WHERE program = ? ORDER BY number", (program,)
        )
        return [Record(*row) for row in cursor]


def check_same(spec: Spec, row: Mapping[str, Any]) -> None:
    """`ProgramChanged` unless the program is the one of the row; where its file lies does not count."""
    where = f"program {spec.id!r} is recorded"
    name = row["function"].rpartition(":")[2]
    if name != spec.function.rpartition(":")[2]:
        raise ProgramChanged(f"{where} as a run of {name!r}, this is {spec.name!r}; take another id")
    if row["arguments"] != spec.arguments:
        raise ProgramChanged(f"{where} with other arguments; take another id")
    if row["identity"] != spec.identity or spec.seed not in (None, row["seed"]):
        raise ProgramChanged(f"{where} with another seed, salt or other sampling arguments; take another id")


def _dicts(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)


def _shown(row: Mapping[str, Any]) -> ProgramRow:
    lives = owner_lives(row["owner"])
    return ProgramRow(
        id=row["id"],
        name=row["name"],
        state=INTERRUPTED if row["state"] == RUNNING and not lives else row["state"],
        error=row["error"],
        pid=pid_of(row["owner"]) if lives else 0,
        created=row["created"],
        changed=row["changed"],
        records=row["count"],
        seed=row["seed"],
        function=row["function"],
        arguments=row["arguments"],
        options=row["options"],
        backend=row["backend"],
    )
