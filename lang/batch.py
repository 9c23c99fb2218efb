"""Many runs at once: bounded, in order, with a bar while somebody watches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.finished import FinishedState

if TYPE_CHECKING:
    from rich.progress import Progress

AHEAD: Final = 4
"""Runs that may be begun, or done and not taken yet, per run at a time: a slow one holds up no more than those."""


async def run_in_order(
    one: Callable[[int], Awaitable[FinishedState]],
    count: int,
    *,
    limit: int,
    keep_errors: bool = False,
    title: str | None = None,
    ahead: int | None = None,
) -> AsyncGenerator[Any, None]:
    """Await `one(0)` … `one(count - 1)`, at most `limit` at a time; results by index, each as soon as those before it are there.

    The first error cancels the others and is raised, unless `keep_errors` puts errors of our family in their places. Closing the
    generator cancels what still runs. `ahead`: at most that many are begun before the first of them is taken (None: all).
    """
    loop = asyncio.get_running_loop()
    gate, failed = asyncio.Semaphore(limit), loop.create_future()
    bar, step = progress(title, count)

    async def work(index: int) -> Any:
        async with gate:
            try:
                return await one(index)
            except SglActorsError as error:
                if not keep_errors:
                    raise
                return error
            finally:
                step()

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None and not failed.done():
            failed.set_result(task)

    running: deque[asyncio.Task[Any]] = deque()
    begun = 0
    with bar or nullcontext():
        try:
            for _ in range(count):
                while begun < count and (ahead is None or len(running) < ahead):
                    running.append(loop.create_task(work(begun)))
                    running[-1].add_done_callback(ended)
                    begun += 1
                await asyncio.wait({running[0], failed}, return_when=asyncio.FIRST_COMPLETED)
                if failed.done():
                    failed.result().result()
                yield running.popleft().result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def check_limit(limit: int) -> None:
    """`InvalidPrimitive` for no room at all."""
    if limit < 1:
        raise InvalidPrimitive(
            f"run_batch: max_concurrency is 1 or more, not {limit}", param="max_concurrency"
        )


def progress(title: str | None, count: int) -> tuple[Progress | None, Callable[[], None]]:
    """A progress bar and the function that moves it on; nothing without a title or a terminal."""
    if title is None:
        return None, lambda: None
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        return None, lambda: None
    bar = Progress(console=console)
    task = bar.add_task(title, total=count)
    return bar, lambda: bar.advance(task)
