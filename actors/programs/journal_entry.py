"""One durable program while it runs: its part of the journal, and what became of it before."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import msgspec

from sgl_actors.actors.programs.journal import FAILED as ENDED_BADLY
from sgl_actors.actors.programs.journal import RUNNING, Begun, Journal, Spec, journal_file
from sgl_actors.actors.programs.journal_history import (
    ASKED,
    CHUNKS,
    FAILED,
    PREFIX,
    VALUE,
    Answer,
    Ask,
    Fault,
    History,
    Place,
    Turns,
    key_at,
    key_of,
)
from sgl_actors.actors.programs.journal_owner import this_process
from sgl_actors.actors.programs.journal_writer import Writer, writer_of
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.errors import JournalUnavailable, SglActorsError
from sgl_actors.lang.durable import Durable, Past, plain
from sgl_actors.lang.errors import ProgramChanged
from sgl_actors.lang.protocols import Call, RunOptions
from sgl_actors.lang.results import Failure

Row = tuple[str, int, bytes]
"""Key, kind and data of a record."""
MOST_ERROR: Final = 500
"""Characters of an error that a listing shows."""
_log = logging.getLogger("sgl_actors")
_encode = msgspec.msgpack.Encoder().encode
wall_clock = time.time
"""The wall clock: a journal tells people when something was; nothing waits by it."""


def spec_of(name: str, options: RunOptions, backend: str) -> Spec:
    """A durable program as the journal knows it."""
    durable = options.durable
    assert durable is not None
    how = msgspec.structs.replace(options, durable=None)
    return Spec(
        durable.id,
        name,
        durable.function,
        durable.arguments,
        msgspec.json.encode(how),
        msgspec.json.encode((options.sampling, options.cache_salt)),
        options.seed,
        backend,
    )


async def recall(name: str, options: RunOptions) -> Past | None:
    """What a program has left that has finished; None if it has not."""
    assert options.durable is not None
    spec = spec_of(name, options, "")
    return await asyncio.wrap_future(_writer(options.durable).ask(lambda journal: journal.recall(spec)))


async def begin(name: str, options: RunOptions, backend: str) -> Entry:
    """Take a program for this process.

    Raises:
        JournalUnavailable: the journal takes nothing; the program has not begun.
        ProgramRunning: it runs.
        ProgramChanged: it is another one than the one recorded.
    """
    assert options.durable is not None
    writer, spec, owner = _writer(options.durable), spec_of(name, options, backend), this_process()
    writer.use()
    owed: dict[int, Callable[[Journal], None]] = {}

    def take(journal: Journal) -> Begun:
        owed.update(writer.owed)
        writer.owed.clear()
        for release in owed.values():
            release(journal)
        return journal.begin(spec, owner, wall_clock())

    asked = writer.ask(take, lambda _error: writer.owed.update(owed))
    try:
        return Entry(spec.id, writer, await asyncio.shield(asyncio.wrap_future(asked)))
    except BaseException:
        asked.add_done_callback(partial(_give_back, writer))
        writer.leave()
        raise


def _give_back(writer: Writer, asked: Future[Begun]) -> None:
    """Whoever asked for the program was cancelled meanwhile."""
    if not asked.cancelled() and asked.exception() is None:
        number = asked.result().number
        writer.post(lambda journal: journal.release(number, RUNNING, "", wall_clock()), lambda _error: None)


def _writer(durable: Durable) -> Writer:
    return writer_of(journal_file(durable.journal))


class Entry:
    """See the module.

    Attributes:
        id, seed: of the program.
        changed: where it is not what was recorded; whoever catches that, the program fails with it.
        lost: why the journal takes no more of it; what it has is a beginning, from which a resume goes on.
    """

    def __init__(self, program_id: str, writer: Writer, begun: Begun) -> None:
        self.id, self.seed = program_id, begun.seed
        self.changed: Failure | None = None
        self.lost: JournalUnavailable | None = None
        self._writer, self._number, self._token = writer, begun.number, begun.token
        self._history = History(begun.records, failed=begun.failed)
        self._turns = Turns(self._history.ranks)
        self._values: Counter[str] = Counter()
        self._state, self._error = RUNNING, ""
        self._open = True
        self._rows: deque[Row] = deque()
        self._posted = False
        damaged, passed = self._history.damaged, self._history.passed
        if damaged is not None:
            writer.post(lambda journal: journal.truncate(begun.number, damaged), self._lose)
        if passed:
            writer.post(lambda journal: journal.forget(passed), self._lose)

    def __repr__(self) -> str:
        return f"<Entry {self.id}: {self._history}>"

    @property
    def program(self) -> str:
        """Id of the program at the node: the same for every try, and no other program's."""
        return f"{self.id}-{self._token}"

    def request_id(self, key: str) -> str:
        """Id of a request, which a later try asks with again."""
        return f"{self.program}-{blake2b(key.encode(), digest_size=12).hexdigest()}"

    # -- what was recorded ----------------------------------------------------------------------------------

    def take(self, call: Call, ask: Ask) -> Answer | None:
        """What a request was answered before. One that was never made is recorded as made.

        Raises:
            ProgramChanged: something else was recorded.
        """
        key, number = key_of(call), call.position[-1]
        place = None if call.kind == PREFIX else Place(call.stream, number)
        try:
            answer = self._history.take(key, place, ask)
        except ProgramChanged as error:
            here = Failure(
                error.code,
                error.message,
                stream=call.stream,
                variable=call.name,
                origin=call.stream,
                number=number,
            )
            self.changed = self.changed or here
            raise
        if answer is None:
            self._record(key, ASKED, _encode(ask))
        return answer

    def made(self, stream: str, number: int, part: int) -> Ask | None:
        """Request `part` for the gen at a place, if a run before this one has made it."""
        return self._history.made(key_at(stream, number, "gen", part))

    async def turn(self, answer: Answer, stream: str) -> None:
        """Until all answers that came before this one, which a stream asks for, have been given out, or nobody asks for them."""
        assert answer.rank is not None
        await self._turns.wait(answer.rank, stream)

    def give_up(self, answer: Answer) -> None:
        """Nobody waits for its turn."""
        if answer.rank is not None:
            self._turns.give_up(answer.rank)

    # -- what is new ----------------------------------------------------------------------------------------

    def part(self, key: str, chunk: Chunk) -> None:
        """Part of an answer has come; it is written within some milliseconds."""
        self._record(key, CHUNKS, _encode(chunk))

    async def complete(self, key: str, chunk: Chunk) -> None:
        """The last part has come. When this returns it outlives this process, or the journal is `lost`."""
        self._record(key, CHUNKS, _encode(chunk))
        await self._committed()

    async def fail(self, key: str, error: SglActorsError, *, lasting: bool) -> None:
        """An error has come in an answer's place."""
        self._record(key, FAILED, _encode(Fault(error.code, error.message, error.param, lasting)))
        await self._committed()

    async def once(self, stream: str, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """A value from outside: made once, or again if the program ended before it was on the disk."""
        self._values[f"{stream}/{name}"] += 1
        key = f"{stream}/once/{name}/{self._values[f'{stream}/{name}']}"
        answer = self._history.value(key)
        if answer is not None:
            await self.turn(answer, stream)
            return msgspec.msgpack.decode(answer.value)
        data = plain(f"once({name!r})", await make())
        self._record(key, VALUE, data)
        await self._committed(sync=True)
        return msgspec.msgpack.decode(data)

    # -- its end --------------------------------------------------------------------------------------------

    async def finish(self, past: Past, *, whole: bool) -> None:
        """It has finished. Unless the result is the `whole` of what it left, its records stay, and the same call runs it on them."""
        if self.lost is None:
            result = _encode(past) if whole else None
            keep = bool(past.adapters)  # another process may not know them before it has run the body
            await self._done(
                lambda journal: journal.finish(self._number, result, wall_clock(), keep=keep), sync=True
            )
            self._open = self.lost is not None

    def failed(self, error: SglActorsError) -> None:
        """It failed; a resume tries again from there."""
        self._state, self._error = ENDED_BADLY, shown(error)

    async def close(self) -> None:
        """This process runs it no more."""
        self._turns.close()
        if self._open:
            self._open = False
            state, error = self._state, self._error
            # also of a lost one: there may be room again

            def release(journal: Journal) -> None:
                journal.release(self._number, state, error, wall_clock())

            released = self._writer.ask(
                release, lambda _error: self._writer.owed.update({self._number: release})
            )
            self._writer.leave()
            try:
                await asyncio.shield(asyncio.wrap_future(released))
            except JournalUnavailable as unavailable:
                self._lose(unavailable)
        else:
            self._writer.leave()

    # -- the journal ----------------------------------------------------------------------------------------

    def _record(self, key: str, kind: int, data: bytes) -> None:
        self._rows.append((key, kind, data))
        if not self._posted:
            self._posted = True
            self._writer.post(self._write, self._lose)

    async def _committed(self, *, sync: bool = False) -> None:
        """Until all that was recorded is committed."""
        if self.lost is None:
            await self._done(self._write, sync=sync)

    async def _done(self, work: Callable[[Journal], object], *, sync: bool) -> None:
        try:
            await asyncio.wrap_future(self._writer.ask(work, self._lose, sync=sync))
        except JournalUnavailable as error:
            self._lose(error)

    def _write(self, journal: Journal) -> None:
        """What has been recorded since the last time; in the writer's thread."""
        self._posted = False
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        if self.lost is None:  # what follows on something that was not written would leave a gap
            journal.append(self._number, joined(rows))

    def _lose(self, error: JournalUnavailable) -> None:
        """The journal takes no more of it. Called from the writer's thread, too."""
        if self.lost is None:
            self.lost = error
            _log.warning("program %s is not recorded any more: %s", self.id, error.message)


def joined(rows: list[Row]) -> list[Row]:
    """Parts of one answer together, in the place of the last: so each answer still has the rank of its end."""
    parts: dict[str, list[msgspec.Raw]] = {}
    last: dict[str, int] = {}
    for index, (key, kind, data) in enumerate(rows):
        if kind == CHUNKS:
            parts.setdefault(key, []).append(msgspec.Raw(data))
            last[key] = index
    return [
        (key, kind, _encode(parts[key]) if kind == CHUNKS else data)
        for index, (key, kind, data) in enumerate(rows)
        if kind != CHUNKS or last[key] == index
    ]


def shown(error: SglActorsError) -> str:
    """An error for a listing."""
    text = f"{type(error).__name__}: {error.message}"[:MOST_ERROR]
    return text.encode("utf-8", "replace").decode()
