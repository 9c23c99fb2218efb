"""The body's side of a running program: streams that take nodes at once and send them on in the background.

All appends of a program go through one outbox, in program order: what a stream refers to has reached its stream before the
reference does, and a child's first nodes follow the answer that names the child.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

import msgspec

from sgl_actors.actors.cache.messages import DEFAULT, Pinned
from sgl_actors.actors.microkernel import Address, Context
from sgl_actors.actors.programs.messages import (
    Append,
    Appended,
    Begin,
    Branch,
    Drop,
    Finish,
    Listen,
    Peek,
    Piece,
    Read,
    Report,
    Result,
    Snapshot,
    Tail,
    Value,
)
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream_actor import StreamActor
from sgl_actors.actors.tokenizer.messages import Tokenize
from sgl_actors.errors import ActorDown, DeadlineExceeded, RemoteError, SglActorsError
from sgl_actors.lang.caller import caller
from sgl_actors.lang.durable import Past
from sgl_actors.lang.errors import BudgetExceeded, ProgramChanged, StreamEnded
from sgl_actors.lang.ir import AnyNode, Fork, Join
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.results import Failure, Outcome, Usage, describe, restore, shorten, unknown

BATCH = 512
"""Most nodes in one message."""
MOST_POSTED = 1 << 15
"""Most nodes that wait to reach their streams: a body that adds for ever without waiting ends there."""
PEEK_TIMEOUT = 2.0
GRACE = 2.0
"""Seconds after the deadline: the stream itself says first what it was waiting for."""


class LiveStream:
    """One stream as the body sees it; see `lang.protocols.Stream`."""

    __slots__ = (
        "_born", "_run", "address", "cancelled", "failure", "forks", "joined", "length", "lines", "outcome", "parent", "path",
        "place", "seen",
    )  # fmt: skip

    def __init__(
        self, run: LiveRun, path: str, parent: LiveStream | None = None, place: tuple[int, int] = (0, 0)
    ) -> None:
        self.path = path
        self.length = 0
        self.address: Address | None = None
        self.failure: Failure | None = None
        self.outcome: Outcome | None = None
        self.joined: int | None = None
        self.cancelled = self.seen = False
        self.lines: list[tuple[int, str]] = []
        self.forks: list[list[LiveStream]] = []
        self.parent, self.place = parent, place
        self._run = run
        self._born = 0

    def __repr__(self) -> str:
        return f"<LiveStream {self.path}: {self.length} nodes>"

    def append(self, nodes: Sequence[AnyNode], line: str = "") -> int:
        """See `Stream.append`."""
        if self.joined is not None or self.cancelled:
            ended = "cancelled" if self.cancelled else "joined"
            message = f"branch {self.path} has been {ended} and takes nothing more"
            raise StreamEnded(describe(message, self._run.setup.name, "", "", "", line))
        number = self.length
        self._run.post(self, nodes)
        if line:
            self.lines.append((number, line))
        self.length += len(nodes)
        return number

    def cancel(self, reason: str) -> None:
        """See `Stream.cancel`."""
        if not self.cancelled:
            self.cancelled = True
            self._run.drop(self, reason)

    def line(self, number: int) -> str:
        """Where the program says what became node `number`; "" if that is not known."""
        index = bisect_right(self.lines, number, key=lambda entry: entry[0])
        return self.lines[index - 1][1] if index else ""

    def fork(self, count: int, line: str = "") -> tuple[int, Sequence[LiveStream]]:
        """See `Stream.fork`."""
        number = self.length
        paths = [f"{self.path}.{self._born + index}" for index in range(count)]
        children = [LiveStream(self._run, path, self, (number, index)) for index, path in enumerate(paths)]
        self.append((Fork(count),), line)
        self.forks.append(children)
        self._run.streams.update((child.path, child) for child in children)
        self._born += count
        return number, children

    def join(self, node: Join, children: Sequence[Any], line: str = "") -> int:
        """See `Stream.join`."""
        number = self.append((node,), line)
        for child in children:
            child.joined = number
        return number

    async def read(self, name: str, position: int) -> Any:
        """See `Stream.read`."""
        return self._open(await self._look_up(Read(name, position)))

    async def meta(self, name: str, position: int) -> dict[str, Any]:
        """See `Stream.meta`."""
        return cast("dict[str, Any]", self._open(await self._look_up(Read(name, position, meta=True))))

    async def result(self, number: int) -> Any:
        """See `Stream.result`."""
        return self._open(await self._ask(Result(number), Value))

    async def snapshot(self) -> Outcome:
        """See `Stream.snapshot`."""
        outcome = await self._settled() or (await self._ask(Snapshot(), Report)).outcome
        self._open(Value(failure=outcome.failure))
        return outcome

    async def pin(self, text: str, ttl: float, name: str) -> Pinned:
        """See `Stream.pin`."""
        client, salt, timeout = self._run.setup.client, self._run.setup.cache_salt, self._run.left()
        ids = (await client.tokenize(Tokenize(text, tenant=DEFAULT, salt=salt))).token_ids
        trace = self._run.setup.program
        return await client.pin(ids, ttl=ttl, name=name, salt=salt, timeout=timeout, trace=trace)

    async def once(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """See `Stream.once`."""
        entry = self._run.setup.entry
        return await (make() if entry is None else entry.once(self.path, name, make))

    async def usage(self) -> Usage:
        """See `Stream.usage`."""
        if await self._settled() is None:
            await self._ask(Snapshot(), Report)
        return self._run.usage_below(self.path)

    async def failed(self) -> Failure | None:
        """See `Stream.failed`."""
        failure = (await self._settled() or (await self._ask(Snapshot(), Report)).outcome).failure
        self.seen = self.seen or failure is not None
        return None if failure is None else self._run.located(failure)

    async def tail(self) -> str:
        """See `Stream.tail`."""
        try:
            await self._run.sent(PEEK_TIMEOUT)
            if self.address is not None:
                return (
                    await self._run.ctx.call(self.address, Peek(), Tail, timeout=PEEK_TIMEOUT, control=True)
                ).text
        except SglActorsError as error:
            return shorten(f"(not known: {error})")
        return ""

    async def listen(self, name: str) -> AsyncIterator[str]:
        """See `Stream.listen`."""
        await self._run.sent()
        if self.failure is not None:
            self._open(Value(failure=self.failure))
        assert self.address is not None
        stream = self._run.ctx.stream(
            self.address, Listen(name), timeout=self._run.left(), trace=self._run.setup.program
        )
        shown = 0
        try:
            async with aclosing(cast("Any", stream)) as pieces:
                async for piece in pieces:
                    shown += len(cast("Piece", piece).text)
                    yield cast("Piece", piece).text
        except ActorDown:
            outcome = await self._settled()  # it has been collected: what is left is known
            if outcome is None:
                raise
            if name:
                found = await self._look_up(Read(name, self.length))
                self._open(msgspec.structs.replace(found, adapters={}))
                whole = str(found.value)
            else:
                self._open(Value(failure=outcome.failure))
                whole = outcome.text
            if whole[shown:]:
                yield whole[shown:]

    async def _look_up(self, ask: Read) -> Value:
        outcome = await self._settled()
        if outcome is None:
            return cast("Value", await self._ask(ask, Value))
        held = outcome.meta if ask.meta else outcome.variables
        if ask.name in held:
            adapter = "" if ask.meta else outcome.adapters.get(ask.name, "")
            return Value(held[ask.name], adapters={"": adapter})
        return Value(failure=outcome.failure or unknown(ask.name, self._run.setup.name, self.path, held))

    async def _settled(self) -> Outcome | None:
        """What it left behind, if it has been collected or the program is over; else None."""
        if self.outcome is None and self.joined is not None:
            assert self.parent is not None
            fork, index = self.place
            above = await self.parent._settled()  # noqa: SLF001 - the same class
            if above is None:
                await self.parent._ask(Result(self.joined), Value)  # noqa: SLF001
                self.outcome = (await self.parent._ask(Branch(fork, index), Report)).outcome  # noqa: SLF001
            elif fork in above.branches:
                self.outcome = above.branches[fork][index]
        return self.outcome

    async def _ask(self, message: Any, expect: type[Any]) -> Any:
        await self._run.sent()
        if self.failure is not None:
            return (
                Value(failure=self.failure)
                if expect is Value
                else Report(Outcome(self.path, failure=self.failure))
            )
        assert self.address is not None
        return await self._run.ctx.call(
            self.address, message, expect, timeout=self._run.left(), trace=self._run.setup.program
        )

    def _open(self, value: Value) -> Any:
        """A value, or the failure in its place: from here on the body knows of it."""
        if value.failure is not None:
            self.seen = True
            raise self._run.located(value.failure, caller()).error()
        found = value.value
        if isinstance(found, dict) and "" not in value.adapters:
            found = {name: restore(item, value.adapters.get(name, "")) for name, item in found.items()}
        elif value.adapters:
            found = restore(found, value.adapters[""])
        for index, failure in value.failures.items():
            found[index] = self._run.located(failure).error()
        return found


class LiveRun:
    """One run of a program; see `lang.protocols.Run`. `on_end` is told the error code, "" for none."""

    __slots__ = (
        "__weakref__", "_broken", "_closed", "_end", "_on_end", "_outbox", "_sending", "_waiters", "ctx", "root", "setup", "streams",
    )  # fmt: skip

    def __init__(
        self, context: Context, setup: Setup, on_end: Callable[[str], None] = lambda _code: None
    ) -> None:
        self.ctx, self.setup = context, setup
        self.root = LiveStream(self, "0")
        self.streams = {"0": self.root}
        self._outbox: list[tuple[LiveStream, AnyNode | Drop]] = []
        self._sending = False
        self._broken: SglActorsError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._end, self._on_end = "cancelled", on_end
        config = {"stream": {"setup": setup, "path": "0"}}
        self.root.address = context.spawn(StreamActor, setup.actor("0"), config)
        context.cast(self.root.address, Begin(Prompt()))

    @property
    def seed(self) -> int:
        """See `Run.seed`."""
        return self.setup.seed

    @property
    def usage(self) -> Usage:
        """See `Run.usage`."""
        return sum(self.setup.usage.values(), Usage())

    def usage_below(self, path: str) -> Usage:
        """Of a stream and those below it."""
        below = f"{path}."
        found = (used for one, used in self.setup.usage.items() if one == path or one.startswith(below))
        return sum(found, Usage())

    def left(self) -> float:
        """Seconds until the program's deadline; `DeadlineExceeded` when it has passed."""
        left = self.setup.deadline + GRACE - self.ctx.now()
        if left <= 0:
            error = self.setup.late()
            raise type(error)(f"program {self.setup.name!r}: {error.message}")
        return left

    def post(self, stream: LiveStream, nodes: Sequence[AnyNode]) -> None:
        """Take nodes for a stream; returns at once."""
        if self._closed:
            raise StreamEnded(f"program {self.setup.name!r} is over and takes nothing more")
        self.left()  # a body that adds for ever and heeds no error ends here
        if len(self._outbox) + len(nodes) > MOST_POSTED:
            raise BudgetExceeded(
                f"more than {MOST_POSTED:,} primitives were added without waiting for anything; `await s.sync()` now and then"
            )
        self._outbox.extend((stream, node) for node in nodes)
        self._flush()

    def drop(self, stream: LiveStream, reason: str) -> None:
        """End a stream and those below it; its failure, and theirs, is no news to the program."""
        below = f"{stream.path}."
        for one in [one for path, one in self.streams.items() if path.startswith(below)]:
            one.cancelled = one.seen = True
        stream.seen = True
        if not self._closed:
            self._outbox.append((stream, Drop(reason)))
            self._flush()

    def located(self, failure: Failure, asked: str = "") -> Failure:
        """With the line of the program that it is about: of the primitive that failed, else where it was `asked` for."""
        stream = self.streams.get(failure.origin)
        line = asked if stream is None or failure.number < 0 else stream.line(failure.number)
        return msgspec.structs.replace(failure, line=line) if line else failure

    def _flush(self) -> None:
        if self._outbox and not self._sending and self._broken is None:
            self._sending = True
            self.ctx.task(self._send(), name=f"program {self.setup.program} outbox")

    async def sent(self, timeout: float | None = None) -> None:
        """Wait until all that was posted has reached its streams."""
        if self._sending:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout(self.left() if timeout is None else timeout):
                    await waiter
            except TimeoutError:
                raise DeadlineExceeded(f"program {self.setup.name!r}: its streams do not answer") from None
        if self._broken is not None:
            raise self._broken

    async def finish(self) -> Outcome:
        """See `Run.finish`."""
        await self.sent()
        assert self.root.address is not None
        timeout = self.left()
        report = await self.ctx.call(
            self.root.address, Finish(), Report, timeout=timeout, trace=self.setup.program
        )
        self._settle(report.outcome)
        changed = self._changed()
        if changed is not None:
            raise changed
        for stream in self.streams.values():
            failure = stream.failure or (stream.outcome.failure if stream.outcome else None)
            heard = stream.seen or stream.joined is not None
            if failure is not None and (stream is self.root or not heard):
                self._end = failure.code
                raise self.located(failure).error()
        self._end = ""
        return report.outcome

    async def keep(self, outcome: Outcome, value: bytes | None) -> list[str]:
        """See `Run.keep`."""
        entry = self.setup.entry
        if entry is None:
            return []
        await entry.finish(Past(outcome, value or b"", self.seed, self.usage), whole=value is not None)
        return [] if entry.lost is None else [f"not all of it is recorded: {entry.lost.message}"]

    def failed(self, error: SglActorsError) -> SglActorsError:
        """See `Run.failed`."""
        error = error if isinstance(error, ProgramChanged) else self._changed() or error
        if self.setup.entry is not None:
            self.setup.entry.failed(error)
        return error

    def _changed(self) -> SglActorsError | None:
        """That it is not the program that was recorded, whatever its body made of that."""
        entry = self.setup.entry
        if entry is None or entry.changed is None:
            return None
        return self.located(msgspec.structs.replace(entry.changed, program=self.setup.name)).error()

    async def close(self) -> None:
        """See `Run.close`."""
        if not self._closed:
            self._closed = True
            assert self.root.address is not None
            self.ctx.stop(self.root.address, "program over")
            self._on_end(self._end)
            if self.setup.entry is not None:
                await self.setup.entry.close()

    async def _send(self) -> None:
        try:
            while self._outbox:
                stream, first = self._outbox[0]
                if isinstance(first, Drop):
                    del self._outbox[0]
                    if stream.address is not None:
                        self.ctx.cast(stream.address, first, trace=self.setup.program)
                else:
                    await self._deliver(*self._batch())
        except Exception as error:  # noqa: BLE001 - it surfaces at the next wait; this task must not end the client
            self._broken = (
                error
                if isinstance(error, SglActorsError)
                else RemoteError(f"{type(error).__name__}: {error}")
            )
            self._outbox.clear()
        finally:
            self._sending = False
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    def _batch(self) -> tuple[LiveStream, list[AnyNode]]:
        """The next nodes that go to the same stream."""
        stream = self._outbox[0][0]
        first = itertools.islice(self._outbox, BATCH)
        run = itertools.takewhile(lambda item: item[0] is stream and not isinstance(item[1], Drop), first)
        batch = [cast("AnyNode", node) for _, node in run]
        del self._outbox[: len(batch)]
        return stream, batch

    async def _deliver(self, stream: LiveStream, batch: list[AnyNode]) -> None:
        forks = [stream.forks.pop(0) for node in batch if isinstance(node, Fork)]
        failure = stream.failure
        addresses: list[list[Address]] = []
        if failure is None:
            assert stream.address is not None
            answer = await self.ctx.call(
                stream.address, Append(batch), Appended, timeout=self.left(), trace=self.setup.program
            )
            failure, addresses = answer.failure, answer.children
        for index, children in enumerate(forks):
            for place, child in enumerate(children):
                if failure is None:
                    child.address = addresses[index][place]
                else:
                    child.failure = failure

    def _settle(self, outcome: Outcome) -> None:
        """Every stream learns what it has left behind, so that it can be read when its actor is gone."""
        found = {one.stream: one for one in outcome.walk()}
        for stream in self.streams.values():
            stream.outcome = found.get(stream.path, stream.outcome)
