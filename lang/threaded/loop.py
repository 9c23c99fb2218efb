"""One event loop in a thread of its own, which programs that are not asynchronous hand their work to.

All that waits lives there: nodes, connections, the streams of programs. What one thread hands over is begun in the order it was handed over.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any, TypeVar

from sgl_actors.lang.errors import StreamEnded
from sgl_actors.lang.graph import NotRecordable

CLOSE_TIMEOUT = 30.0
"""Seconds that closing what is open may take when the interpreter exits; after that it exits without."""

T = TypeVar("T")


class LoopThread:
    """See the module. The loop starts on first use and is closed when the interpreter exits; nothing keeps that from happening.

    After a `fork` of the process the child starts a loop of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._exiting = False
        self._open: dict[int, Callable[[], Awaitable[object]]] = {}
        self._beside: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<LoopThread {'running' if self._loop is not None else 'not running'}>"

    def closes(self, thing: Any) -> None:
        """Have `thing`, if it can be closed, closed before the loop ends."""
        if hasattr(thing, "close"):
            self._open.setdefault(id(thing), thing.close)

    def beside(self, run: Callable[[], object], name: str) -> None:
        """Call `run` in a thread. The interpreter exits only when it has ended, except after an interrupt."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._beside.add(thread)
        thread.start()

    def post(self, call: Callable[..., object], *args: object) -> None:
        """Have `call(*args)` called on the loop; returns at once."""
        self._running().call_soon_threadsafe(call, *args)

    def submit(self, ask: Callable[[], Awaitable[T]]) -> Future[T]:
        """Have `ask()` called on the loop, and awaited; cancelling the future cancels it."""
        loop = self._running()
        future: Future[T] = Future()
        loop.call_soon_threadsafe(_begin, loop, ask, future)
        return future

    def wait(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Block until `ask()`, called on the loop, is answered; its value, or what it raises. An interrupt (Ctrl-C) cancels it.

        Raises:
            NotRecordable: on the loop itself, where bodies are recorded.
        """
        if threading.current_thread() is self._thread:
            raise NotRecordable("the body reads, or runs another program, while it is recorded")
        future = self.submit(ask)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items, one after the other, as they come. Leaving the iterator closes `items`."""
        queue: SimpleQueue[tuple[T] | None] = SimpleQueue()
        pump = self.submit(lambda: _pump(items, lambda item: queue.put((item,))))
        pump.add_done_callback(lambda _: queue.put(None))
        try:
            while (item := queue.get()) is not None:
                yield item[0]
            pump.result()
        finally:
            pump.cancel()

    async def follow(self, items: AsyncGenerator[T, None]) -> AsyncIterator[T]:
        """The same for a caller that has an event loop of its own."""
        here, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[T] | None]()

        def put(item: tuple[T] | None) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody listens
                here.call_soon_threadsafe(queue.put_nowait, item)

        pump = self.submit(lambda: _pump(items, lambda item: put((item,))))
        pump.add_done_callback(lambda _: put(None))
        try:
            while (item := await queue.get()) is not None:
                yield item[0]
            pump.result()
        finally:
            pump.cancel()

    def close(self) -> None:
        """Close what is open, cancel what runs, end the thread. The next use starts it anew."""
        with self._lock:
            loop, thread, things = self._loop, self._thread, list(self._open.values())
            self._loop = self._thread = None
            self._open.clear()
        if loop is not None and thread is not None and self._pid == os.getpid():
            closed = asyncio.run_coroutine_threadsafe(_close(things), loop)
            closed.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
            thread.join(CLOSE_TIMEOUT)

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is not None and self._pid == os.getpid():
            return loop
        with self._lock:
            if self._exiting:
                raise StreamEnded("the interpreter is exiting: programs have ended")
            if self._loop is None or self._pid != os.getpid():
                self._start()
            assert self._loop is not None
            return self._loop

    def _start(self) -> None:
        if self._pid != os.getpid():
            atexit.unregister(self._exit)
            weakref.finalize(self, _nothing)  # so that finalizers, which remove nodes' folders, come after us
            atexit.register(self._exit)
        loop, ready = _new_loop(), threading.Event()
        thread = threading.Thread(target=_serve, args=(loop, ready), name="sgl-actors loop", daemon=True)
        thread.start()
        ready.wait()
        self._loop, self._thread, self._pid = loop, thread, os.getpid()

    @property
    def exiting(self) -> bool:
        """The interpreter is exiting: programs end with it."""
        return self._exiting

    def _exit(self) -> None:
        if self._pid != os.getpid():
            return
        for thread in () if getattr(sys, "last_type", None) is KeyboardInterrupt else list(self._beside):
            thread.join()
        self._exiting = True
        self.close()


class Threads(ThreadPoolExecutor):
    """What the loop does in threads. While the interpreter exits no thread can be begun; then the loop does it itself."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See `ThreadPoolExecutor.submit`."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            future: Future[T] = Future()
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - it is handed on
                future.set_exception(error)
            return future


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _serve(loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
    """The thread: run, then end as `asyncio.run` does."""
    asyncio.set_event_loop(loop)
    loop.set_default_executor(Threads(thread_name_prefix="sgl-actors"))
    loop.call_soon(ready.set)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_cancel_others())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _close(things: list[Callable[[], Awaitable[object]]]) -> None:
    """In order, while all that they need still runs. What cannot be closed is not what the interpreter's exit should fail with."""
    for close in reversed(things):
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT / 2):
                await close()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _nothing() -> None: ...


def _begin(loop: asyncio.AbstractEventLoop, ask: Callable[[], Awaitable[T]], future: Future[T]) -> None:
    """`asyncio.run_coroutine_threadsafe` without a coroutine that is never awaited if the loop ends, or an interrupt comes, before."""
    task = loop.create_task(_answer(ask))

    def ended(_: object) -> None:
        with contextlib.suppress(InvalidStateError):
            if task.cancelled():
                future.cancel()
            elif (error := task.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())

    def cancelled(_: object) -> None:
        if future.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(task.cancel)

    task.add_done_callback(ended)
    future.add_done_callback(cancelled)


async def _answer(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()


async def _pump(items: AsyncGenerator[T, None], put: Callable[[T], object]) -> None:
    async with aclosing(items):
        async for item in items:
            put(item)


background = LoopThread()
"""The one that programs use."""
