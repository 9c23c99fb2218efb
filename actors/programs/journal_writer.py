"""The thread that writes a journal: what comes within a moment is committed together.

One per file and process, begun by the first program that needs it and ended with the last. Nobody waits for the disk but those who ask to.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from sgl_actors.actors.programs.journal import Journal
from sgl_actors.errors import JournalUnavailable, SglActorsError

DELAY: Final = 0.01
"""Most seconds that a record which nobody waits for is kept in memory."""
LINGER: Final = 1.0
"""Seconds that the file stays open after the last program."""

T = TypeVar("T")


class Job(NamedTuple):
    """Something to be done in a transaction. `lost` hears why it was not; without a `done`, nobody waits for it.

    `sync`: it has to outlive the machine.
    """

    work: Callable[[Journal], Any]
    done: Future[Any] | None
    lost: Callable[[JournalUnavailable], None] | None
    sync: bool = False


class Writer:
    """Does jobs in the order of their coming, in as few transactions as that takes.

    Attributes:
        commits, jobs: made and done so far.
        owed: by program, what says that this process runs it no more, and could not be written. Used in the writer's thread alone.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.commits = self.jobs = 0
        self.owed: dict[int, Callable[[Journal], None]] = {}
        self._wake = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._urgent = self._closing = False
        self._users = 0
        self._thread: threading.Thread | None = None
        self._journal: Journal | None = None

    def __repr__(self) -> str:
        return f"<Writer {self.file}: {len(self._jobs)} jobs, {self.commits} commits>"

    def use(self) -> None:
        """A program runs; the file stays open for it."""
        with self._wake:
            self._users += 1

    def leave(self) -> None:
        """It runs no more."""
        with self._wake:
            self._users -= 1

    def ask(
        self,
        work: Callable[[Journal], T],
        lost: Callable[[JournalUnavailable], None] | None = None,
        *,
        sync: bool = False,
    ) -> Future[T]:
        """Do something; the future has its result once it is committed, or why that could not be."""
        done: Future[T] = Future()
        self._put(Job(work, done, lost, sync))
        return done

    def post(self, work: Callable[[Journal], object], lost: Callable[[JournalUnavailable], None]) -> None:
        """Do something within `DELAY`, for which nobody waits."""
        self._put(Job(work, None, lost))

    def close(self) -> None:
        """Do what is left, and close the file."""
        with self._wake:
            self._closing = True
            thread = self._thread
            self._wake.notify()
        if thread is not None:
            thread.join()

    def _put(self, job: Job) -> None:
        with self._wake:
            first = not self._jobs
            self._jobs.append(job)
            if job.done is not None and not self._urgent:
                self._urgent = first = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"journal {self.file}", daemon=True)
                self._thread.start()
            elif first:
                self._wake.notify()

    def _run(self) -> None:
        while jobs := self._next():
            self._do(jobs)

    def _next(self) -> list[Job]:
        """What is to be committed together; nothing when the thread is to end."""
        with self._wake:
            while not (self._jobs or self._closing):
                if not self._wake.wait(LINGER) and not self._users:
                    break
            if self._jobs:
                self._wake.wait_for(lambda: self._urgent or self._closing, DELAY)
            jobs = list(self._jobs)
            self._jobs.clear()
            self._urgent = False
            if not jobs:
                self._thread = None
                if self._journal is not None:
                    self._journal.close()
                    self._journal = None
            return jobs

    def _do(self, jobs: list[Job]) -> None:
        results: list[tuple[Job, Any]] = []
        try:
            if self._journal is None:
                self._journal = Journal(self.file)
            with self._journal.transaction(sync=any(job.sync for job in jobs)):
                results = [(job, _outcome(job, self._journal)) for job in jobs]
        except JournalUnavailable as error:
            results = [(job, error) for job in jobs]
        except Exception as error:  # noqa: BLE001 - a job's fault; whoever waits must hear of it
            failed = JournalUnavailable(f"journal {self.file}: {type(error).__name__}: {error}")
            results = [(job, failed) for job in jobs]
        self.commits += 1
        self.jobs += len(jobs)
        for job, result in results:
            _tell(job, result)
        if self._journal is not None:
            try:
                self._journal.tidy()
            except JournalUnavailable:
                self._journal.close()
                self._journal = (
                    None  # what was committed is safe; the next job opens it again, or hears why not
                )


def _outcome(job: Job, journal: Journal) -> Any:
    """Result of a job, or the error with which it refused before it wrote anything."""
    try:
        return job.work(journal)
    except SglActorsError as error:
        return error


def _tell(job: Job, result: Any) -> None:
    if isinstance(result, JournalUnavailable) and job.lost is not None:
        job.lost(result)
    if job.done is None or not job.done.set_running_or_notify_cancel():
        return
    if isinstance(result, SglActorsError):
        job.done.set_exception(result)
    else:
        job.done.set_result(result)


_writers: dict[tuple[int, Path], Writer] = {}
_lock = threading.Lock()


def writer_of(file: Path) -> Writer:
    """The writer of that file in this process."""
    with _lock:
        return _writers.setdefault((os.getpid(), file), Writer(file))


@atexit.register
def close_all() -> None:
    """Have all that was posted written; the interpreter does so at its end."""
    for (pid, _), writer in list(_writers.items()):
        if pid == os.getpid():
            writer.close()
