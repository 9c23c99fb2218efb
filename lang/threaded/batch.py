"""Many runs at once, each in a thread of a pool; results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Final, TypeVar

from sgl_actors.lang.arguments import MAX_COUNT, whole
from sgl_actors.lang.batch import progress
from sgl_actors.lang.threaded.running import Running

LEAST_THREADS: Final = 96
PER_CORE: Final = 16
"""Threads per core that "auto" means; they mostly wait."""
CHUNK: Final = 200
"""Runs that are begun before the first of them is taken, if results are taken one by one."""

T = TypeVar("T")


class Runs:
    """Those of a batch that run now, so that they can be ended together."""

    def __init__(self) -> None:
        self._running: set[Running] = set()
        self._stopped = False

    def __repr__(self) -> str:
        return f"<Runs {len(self._running)}{' stopped' if self._stopped else ''}>"

    def begin(self, running: Running) -> None:
        """One more; ended at once if the batch is."""
        self._running.add(running)
        if self._stopped:
            running.abort()

    def end(self, running: Running) -> None:
        """It is over."""
        self._running.discard(running)

    def stop(self) -> None:
        """Cancel what they have asked for, and those that begin later."""
        self._stopped = True
        for running in list(self._running):
            running.abort()


def thread_count(num_threads: int | str, count: int) -> int:
    """Threads for a batch of `count`; `InvalidPrimitive` for what is neither a number nor "auto"."""
    if num_threads == "auto":
        num_threads = max(LEAST_THREADS, (os.cpu_count() or 1) * PER_CORE)
    return max(1, min(whole("run_batch", "num_threads", num_threads, 1, MAX_COUNT), count))


def run_in_threads(
    one: Callable[[int], T], count: int, runs: Runs, *, threads: int, chunk: int, title: str | None
) -> Generator[T, None, None]:
    """`one(0)` … `one(count - 1)`, by index; `chunk` of them are begun before the first is taken.

    The first error is raised, and it, an interrupt or leaving the iterator ends those that still run.
    """
    bar, step = progress(title, count)

    def work(index: int) -> T:
        try:
            return one(index)
        finally:
            step()

    with bar or nullcontext():
        if threads == 1:
            yield from map(work, range(count))
            return
        pool = ThreadPoolExecutor(threads, thread_name_prefix="sgl-actors program")
        try:
            for begin in range(0, count, chunk):
                futures = [pool.submit(work, index) for index in range(begin, min(begin + chunk, count))]
                for future in futures:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            runs.stop()
