"""Running a program's body so that its end, its deadline or its caller's cancellation ends what it has begun.

A body is code of its own: it may catch its cancellation, or wait for something that never comes. So it runs in a task of
its own, and the run is closed before the body is asked to end: no request outlives the program, whatever the body does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from sgl_actors.lang.protocols import Run

PATIENCE = 1.0
"""Seconds in which a cancelled body may clean up; after that it is left to itself."""

_left: set[asyncio.Task[Any]] = set()


class BodyOverdue(Exception):
    """The body has not ended in its time; `tail` is the end of the prompt then."""

    def __init__(self, tail: str) -> None:
        super().__init__(tail)
        self.tail = tail


async def run_body(body: Coroutine[Any, Any, Any], run: Run, timeout: float, name: str) -> Any:
    """Await `body`, for `timeout` seconds at most.

    When the caller is cancelled or the time is over, `run` is closed, the body cancelled, and given a moment.

    Raises:
        BodyOverdue: it did not end in time.
        Exception: what the body raised.
    """
    task = asyncio.get_running_loop().create_task(body, name=name)
    try:
        done, _ = await asyncio.wait([task], timeout=timeout)
        tail = "" if done else await run.root.tail()
    except BaseException:
        await _abandon(task, run)
        raise
    if not done:
        await _abandon(task, run)
        raise BodyOverdue(tail)
    return task.result()


async def _abandon(task: asyncio.Task[Any], run: Run) -> None:
    await run.close()
    task.cancel()
    _left.add(task)
    task.add_done_callback(_forget)
    await asyncio.wait([task], timeout=PATIENCE)


def _forget(task: asyncio.Task[Any]) -> None:
    """What a body raises after its program has ended is nobody's business any more."""
    _left.discard(task)
    if not task.cancelled():
        task.exception()
