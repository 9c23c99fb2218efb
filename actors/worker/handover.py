"""What a worker hands to the class that takes its place in a running node: layout ``worker/1``.

Plain: `WorkerState`. Handles, one of them: ``engine`` (an `Engine`) of the real worker, ``model`` (a `fake.FakeModel`) of the fake one. Weights and KV lie in the
handle, so the pages that the cache has given out stay good; a class that does not know the handle has to refuse, as it would hold an empty pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.worker.messages import ModelInfo, Options, Reset, Step
from sgl_actors.errors import SwapFailed

if TYPE_CHECKING:
    from sgl_actors.actors.worker.runner import ModelRunner

LAYOUT = "worker/1"
POOL = ("memory", "pages", "page_size")
"""Of `[cache]`, what the worker's pool was made by."""


class Waiting(msgspec.Struct, frozen=True):
    """A step or a reset that has not been begun.

    Attributes:
        sender: who is to hear of it.
        step, reset: one of them.
        received: when it came, on the kernel's clock.
    """

    sender: Address
    step: Step | None = None
    reset: Reset | None = None
    received: float = 0.0


class WorkerState(msgspec.Struct, frozen=True):
    """A worker between two steps.

    Attributes:
        info: what it serves.
        epoch: of the batch.
        number: of the step that comes next.
        counters: those of its statistics that only grow, by name.
        waiting: in the order in which they came.
    """

    info: ModelInfo
    epoch: int
    number: int
    counters: dict[str, float] = {}
    waiting: list[Waiting] = []


class Claim:
    """Takes the memory of the KV pool ahead of its use, in a thread of its own, until it is told to end."""

    def __init__(self, work: Callable[[Callable[[], bool]], None]) -> None:
        """`work` is given a function that says whether to go on."""
        self._ended = False
        self._thread = threading.Thread(
            target=work, args=(lambda: not self._ended,), name="claim", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Return when the thread has ended."""
        self._ended = True
        self._thread.join()


@dataclass
class Engine:
    """What a real worker holds of its process.

    Attributes:
        runner: weights, KV pool, batch, grammars, counters; used in `thread` alone, but for `grammars.prepare`.
        thread: has one thread.
        info: of the model.
        model, cache: the options it was loaded with.
        claim: that is under way or done, if the pool is to be claimed.
        learning: held by who asks for the vocabulary.
    """

    runner: ModelRunner
    thread: ThreadPoolExecutor
    info: ModelInfo
    model: Options
    cache: CacheOptions
    claim: Claim | None = None
    learning: asyncio.Lock = field(default_factory=asyncio.Lock)

    def check(self, model: Options, cache: CacheOptions) -> None:
        """`SwapFailed` if these options need another runner."""
        changed = [f"model.{name}" for name in _different(self.model, model)]
        changed += [f"cache.{name}" for name in _different(self.cache, cache) if name in POOL]
        if changed:
            raise SwapFailed(
                f"{', '.join(changed)}: cannot change while the model is loaded; restart the worker"
            )


def _different(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    return [name for name in new.__struct_fields__ if getattr(old, name) != getattr(new, name)]
