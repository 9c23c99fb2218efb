"""An event loop on which a whole node runs in one thread, under a seed, on a virtual clock: the same seed repeats the same history.

After FoundationDB's deterministic simulation (Zhou et al., SIGMOD 2021). Nothing waits for real: when no callback is ready, the clock jumps to the next timer.
Which of the simulated processes goes on is drawn from the seed; within one, callbacks run in the order in which they were scheduled, as `asyncio`
promises. Threads (`asyncio.to_thread`) are calls that return after a
seeded time. There are no sockets, no files to wait for, no signals.

A callback belongs to the `Host` (a simulated process) that its context names. A host can be held, as by a blocked loop or SIGSTOP, and
killed: nothing of it runs any more, no `finally` either.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import os
import random
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, cast

from sgl_actors.errors import SglActorsError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

if (
    TYPE_CHECKING
):  # whose methods are all there; those that are not overridden below raise NotImplementedError
    _Loop = asyncio.SelectorEventLoop
else:
    _Loop = asyncio.AbstractEventLoop

BEGIN = 1000.0
"""What the clock shows at the beginning."""
THREAD = 0.002
"""Mean seconds that a call in a thread takes."""
MOST_AT_ONCE = 200_000
"""Callbacks without any passing of time after which the simulation counts as a busy loop."""


class SimulationError(SglActorsError):
    """The simulated system cannot go on: it waits for nothing that could happen, or never stops running. The text says what."""

    code = "simulation"


class Host:
    """A simulated process: what of the loop belongs to it.

    Attributes:
        name: for people.
        held: none of its callbacks runs; they wait.
        dead: none will ever run.
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.held = self.dead = False
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_host.set, self)
        self._loop = loop

    def __repr__(self) -> str:
        state = "dead" if self.dead else "held" if self.held else "running"
        return f"<Host {self.name} {state}>"

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Have `callback` run in this process."""
        self._loop.call_soon(callback, *args, context=self.context)

    def task(self, coroutine: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
        """Have a coroutine run in this process."""
        return self._loop.create_task(coroutine, name=name or self.name, context=self.context.copy())

    def hold(self) -> None:
        """Stop here, between two callbacks; what becomes ready waits."""
        self.held = True
        self._loop.rests(self)

    def wake(self) -> None:
        """Go on with all that has become ready meanwhile."""
        self.held = False
        self._loop.runs(self)

    def kill(self) -> None:
        """End in the middle of whatever it is doing."""
        self.dead = True
        self.ready.clear()
        self._loop.rests(self)

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Its tasks that have not ended."""
        self.tasks = [task for task in self.tasks if not task.done()]
        return self.tasks


_host: contextvars.ContextVar[Host] = contextvars.ContextVar("host")


class _Task(asyncio.Task[Any]):
    """Hashed by number, so that sets of tasks (those of a `TaskGroup`) are in the same order in each run."""

    numbers = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        _Task.numbers += 1
        self._number = _Task.numbers
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Timer(asyncio.TimerHandle):
    """A timer and whose it is."""

    __slots__ = ("host",)
    host: Host


class SimulatedLoop(_Loop):
    """See the module. `run` it once; not for several threads.

    Attributes:
        random: decides all that is left open; anybody in the simulation may draw from it.
        world: host of all that belongs to no simulated process.
        complaints: what `call_exception_handler` was told: exceptions of callbacks, and of tasks that nobody awaited.
        turns: callbacks run so far.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.complaints: list[dict[str, Any]] = []
        self.turns = 0
        self._now = BEGIN
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = 0
        self._runnable: list[Host] = []
        self._hosts: list[Host] = []
        self._stopping = self._closed = self._running = False
        self.world = self.host("world")

    def __repr__(self) -> str:
        return f"<SimulatedLoop at {self._now - BEGIN:.3f} s, {self.turns} turns, {len(self._timers)} timers>"

    # -- simulated processes ------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """A new simulated process; what it does is up to `Host.task`."""
        host = Host(self, name)
        self._hosts.append(host)
        return host

    def current(self) -> Host:
        """Whose callback is running."""
        return _host.get(self.world)

    def runs(self, host: Host) -> None:
        """Consider a host that may have become able to go on."""
        if host.ready and not host.held and not host.dead and host not in self._runnable:
            self._runnable.append(host)

    def rests(self, host: Host) -> None:
        """Pass over a host that must not go on."""
        if host in self._runnable:
            self._runnable.remove(host)

    # -- scheduling ---------------------------------------------------------------------------------------

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`."""
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle, context.get(_host, self.world))
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """There is only one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_later`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`."""
        context = contextvars.copy_context() if context is None else context
        timer = _Timer(when, callback, args, self, context)
        timer.host = context.get(_host, self.world)
        if not self._closed:
            self._numbers += 1
            heapq.heappush(self._timers, (when, self._numbers, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when it comes up."""

    def _put(self, handle: asyncio.Handle, host: Host) -> None:
        if host.dead or self._closed:
            return
        host.ready.append(handle)
        if len(host.ready) == 1:
            self.runs(host)

    def _take(self) -> asyncio.Handle:
        """The callback that runs next."""
        index = int(self.random.random() * len(self._runnable))
        host = self._runnable[index]
        handle = host.ready.popleft()
        if not host.ready:
            self._runnable[index] = self._runnable[-1]
            self._runnable.pop()
        return handle

    def _advance(self) -> None:
        """Let the clock jump to the next timer that counts."""
        while self._timers:
            when, _, timer = heapq.heappop(self._timers)
            if timer.cancelled() or timer.host.dead:
                continue
            self._now = max(self._now, when)
            self._put(timer, timer.host)
            while self._timers and self._timers[0][0] <= self._now:
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled():
                    self._put(timer, timer.host)
            return
        raise SimulationError("nothing is ready and nothing is due: what runs waits for ever")

    # -- running ------------------------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Run until `stop`."""
        before = sys.get_asyncgen_hooks()
        asyncio.events._set_running_loop(self)  # noqa: SLF001 - meant for implementers of loops
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        self._running, self._stopping = True, False
        try:
            at_once, now = 0, self._now
            while not self._stopping:
                if not self._runnable:
                    self._advance()
                    continue
                at_once = at_once + 1 if now == self._now else 0
                now = self._now
                if at_once > MOST_AT_ONCE:
                    raise SimulationError(f"{at_once} callbacks without any passing of time")
                self.turns += 1
                handle = self._take()
                if not handle.cancelled():
                    handle._run()  # noqa: SLF001
        finally:
            self._running = False
            sys.set_asyncgen_hooks(*before)
            asyncio.events._set_running_loop(None)  # noqa: SLF001

    def run_until_complete(self, future: Any) -> Any:
        """See `asyncio.loop.run_until_complete`."""
        if asyncio.iscoroutine(future):
            future = self.create_task(future)
        future.add_done_callback(lambda _: self.stop())
        self.run_forever()
        return future.result()

    def stop(self) -> None:
        """End `run_forever` after this callback."""
        self._stopping = True

    def is_running(self) -> bool:
        """See `asyncio.loop.is_running`."""
        return self._running

    def is_closed(self) -> bool:
        """Whether nothing will run any more."""
        return self._closed

    def close(self) -> None:
        """Drop all that is left; nothing of it runs, but the `finally` of coroutines, to no effect."""
        self._closed = True
        self._timers.clear()
        for host in self._hosts:
            host.ready.clear()
            for task in host.unfinished():
                _forget(task)
        self._hosts.clear()

    def get_debug(self) -> bool:
        """Never."""
        return False

    def create_future(self) -> asyncio.Future[Any]:
        """See `asyncio.loop.create_future`."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """See `asyncio.loop.create_task`."""
        context = options.get("context")
        host = self.current() if context is None else context.get(_host, self.world)
        task = _Task(coro, loop=self, **options)
        if self._closed:
            _forget(task)
            return task
        host.tasks.append(task)
        if len(host.tasks) % 256 == 0:
            host.unfinished()
        return task

    def run_in_executor(
        self,
        executor: Any,  # noqa: ARG002
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Run `func` in one go, after a time drawn from the seed."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - it is the awaiter's
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self.random.expovariate(1 / THREAD), run)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep it in `complaints`."""
        if not self._closed:
            self.complaints.append(context)

    async def shutdown_asyncgens(self) -> None:
        """They are dropped with the loop."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There are no threads."""

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        """A generator was dropped half-way: close it, as `asyncio` does."""
        if not self._closed and not self.current().dead:
            self.create_task(cast("Coroutine[Any, Any, Any]", generator.aclose()))


def _forget(task: asyncio.Task[Any]) -> None:
    """Close its coroutine, however often that awaits meanwhile; what it raises concerns nobody."""
    cast("Any", task)._log_destroy_pending = False  # noqa: SLF001 - as asyncio.gather does
    coroutine = cast("Coroutine[Any, Any, Any]", task.get_coro())
    for _ in range(100):
        try:
            coroutine.close()
        except RuntimeError:  # it has awaited again
            continue
        except BaseException:  # noqa: BLE001, S110
            pass
        return


def run(main: Callable[[], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run a simulation from its coroutine to its result, as `asyncio.run` does.

    While it runs, `time`, `random`, `secrets` and `os.urandom` follow the loop, and no cyclic garbage is collected. Sets of strings are in
    another order in each process: set PYTHONHASHSEED=0 for histories that repeat in another one.

    Example:
        >>> async def main():
        ...     await asyncio.sleep(3600)
        ...     return asyncio.get_running_loop().time()
        >>> run(main, seed=1)
        4600.0
    """
    loop = SimulatedLoop(seed)
    with seeded(loop):
        try:
            return cast("T", loop.run_until_complete(loop.world.task(main())))
        finally:
            loop.close()


@contextmanager
def seeded(loop: SimulatedLoop) -> Iterator[None]:
    """Have clocks and sources of randomness follow `loop`."""
    draw = loop.random
    replaced: list[tuple[Any, str, Any]] = [
        (time, "time", lambda: 1.7e9 + loop.time()),
        (time, "monotonic", loop.time),
        (time, "perf_counter", loop.time),
        (os, "urandom", draw.randbytes),
        (secrets, "randbits", draw.getrandbits),
        (secrets, "token_bytes", lambda count=32: draw.randbytes(count)),
        (secrets, "token_hex", lambda count=32: draw.randbytes(count).hex()),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    state, collecting = random.getstate(), gc.isenabled()
    gc.disable()
    for module, name, value in replaced:
        setattr(module, name, value)
    random.seed(draw.getrandbits(64))
    _Task.numbers = 0
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        random.setstate(state)
        if collecting:
            gc.enable()
