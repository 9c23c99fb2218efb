"""Many runs at once: bounded, in order, with a bar while somebody watches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.state import FinishedState

if TYPE_CHECKING:
    from rich.progress import Progress


async def run_all(
    one: Callable[[int], Awaitable[FinishedState]],
    count: int,
    *,
    limit: int,
    keep_errors: bool = False,
    title: str | None = None,
) -> list[FinishedState]:
    """Await `one(0)` … `one(count - 1)`, at most `limit` at a time; results by index.

    The first error cancels the others and is raised, unless `keep_errors` puts errors of our family in their places.
    """
    if limit < 1:
        raise InvalidPrimitive(
            f"run_batch: max_concurrency is 1 or more, not {limit}", param="max_concurrency"
        )
    results: dict[int, Any] = {}
    waiting = iter(range(count))
    bar, step = _bar(title, count)

    async def work() -> None:
        for index in waiting:
            try:
                results[index] = await one(index)
            except SglActorsError as error:
                if not keep_errors:
                    raise
                results[index] = error
            step()

    with bar or nullcontext():
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(limit, count)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [results[index] for index in range(count)]


def _bar(title: str | None, count: int) -> tuple[Progress | None, Callable[[], None]]:
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
