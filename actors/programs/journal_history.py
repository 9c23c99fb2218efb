"""What a durable program was answered before, and in which order its answers came. No I/O.

A primitive is known by its stream, its place there, its kind and its part: never by an order over several streams, so that branches may be as fast
as they like. Only where several answers are there already, they are given out in the order in which they came: what a body made of that
order (a race, a vote) it makes of it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from sgl_actors.actors.programs.journal import Record
from sgl_actors.actors.tokenizer.messages import Chunk, Generate
from sgl_actors.errors import SglActorsError, error_class
from sgl_actors.lang.errors import ProgramChanged
from sgl_actors.lang.protocols import Call

ASKED, CHUNKS, FAILED, VALUE = range(4)
"""Kinds of records: a request was made, parts of its answer, the error in its place, a value from outside."""

PAUSE: Final = 48
"""Turns of the event loop between two answers that are given out again, in which the body hears of the first."""
STALL: Final = 0.05
"""Seconds after which an answer is not waited for any more that nobody asks for: its branch was cancelled."""
PREFIX: Final = "prefix"
CHANGED: Final = "the program has changed since it was recorded"


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A request that was made.

    Attributes:
        prompt, options: hashes of what it asked, and how it wanted it.
        max_tokens: what was left of a budget is another number each time; it goes on with this one.
        looked: see `Call.looked`.
    """

    prompt: bytes
    options: bytes
    max_tokens: int | None = None
    looked: int = -1


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An error. Of those that do not last, a program that failed may try again."""

    code: str
    message: str
    param: str | None = None
    lasting: bool = True

    def error(self) -> SglActorsError:
        """The exception to raise."""
        return error_class(self.code)(self.message, param=self.param)


class Place(NamedTuple):
    """Where a primitive stands: its stream, and its number there."""

    stream: str
    number: int


class Answer:
    """What one request, or one value from outside, has led to.

    Attributes:
        chunks: as they came.
        rank: number of the record that completed it; None if none did.
    """

    __slots__ = ("ask", "chunks", "fault", "place", "rank", "value")

    def __init__(self, ask: Ask | None = None, place: Place | None = None) -> None:
        self.ask, self.place = ask, place
        self.chunks: list[Chunk] = []
        self.fault: Fault | None = None
        self.value = b""
        self.rank: int | None = None

    def __repr__(self) -> str:
        return f"<Answer of {len(self.chunks)} chunks, rank {self.rank}>"

    @property
    def output(self) -> list[int]:
        """Tokens that are there."""
        return [token for chunk in self.chunks for token in chunk.token_ids]


def key_of(call: Call) -> str:
    """Name of a request in the journal."""
    return key_at(call.stream, call.position[-1], call.kind, call.part)


def key_at(stream: str, number: int, kind: str, part: int) -> str:
    """Name of a request for node `number` of a stream."""
    return f"{stream}/{number}/{kind}/{part}"


def asked(request: Generate, call: Call, *, limited: bool) -> Ask:
    """A request as it is recorded; `limited`: its `max_tokens` is what a budget has left, and no part of the program."""
    prompt = blake2b(digest_size=16)
    text: Any = request.text if request.text is not None else request.input_ids
    text, own = call.basis or (text, request.sampling)
    prompt.update(_encode(text))
    for media in call.media:
        prompt.update(media.data)
    sampling = msgspec.structs.replace(own, max_tokens=None) if limited else own
    how = (sampling, request.logprobs, request.top_logprobs, request.prompt_logprobs_start, request.salt)
    options = blake2b(_encode(how), digest_size=16).digest()
    return Ask(prompt.digest(), options, request.sampling.max_tokens, call.looked)


class History:
    """All that was recorded, until it is asked for.

    Attributes:
        damaged: number of the first record that could not be read; it and those after it are not there.
        passed: numbers of records of errors that are left out.
    """

    def __init__(self, records: Iterable[Record], *, failed: bool) -> None:
        """Read it; of a program that `failed`, errors that do not last are left out."""
        self.damaged: int | None = None
        self.passed: list[int] = []
        self._answers: dict[str, Answer] = {}
        for record in records:
            try:
                self._read(record)
            except (msgspec.MsgspecError, KeyError, IndexError, ValueError):
                self.damaged = record.number
                break
        if failed:
            self._forget_passing()
        self._left: dict[str, list[int]] = {}
        self._greatest: dict[str, int] = {}
        places = {answer.place for answer in self._answers.values() if answer.place is not None}
        for stream, number in sorted(places, reverse=True):
            self._left.setdefault(stream, []).append(number)
            self._greatest.setdefault(stream, number)

    def __repr__(self) -> str:
        return f"<History of {len(self._answers)} answers>"

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def ranks(self) -> list[int]:
        """Of all complete answers, in order."""
        return sorted(answer.rank for answer in self._answers.values() if answer.rank is not None)

    def take(self, key: str, place: Place | None, ask: Ask) -> Answer | None:
        """What was answered to a request; None for one that was never made. Without a `place` it may be left out, or be new.

        Raises:
            ProgramChanged: something else was asked there, or the stream has asked for something in another place.
        """
        answer = self._answers.get(key)
        if place is not None:
            left = self._left.get(place.stream, [])
            if left and left[-1] == place.number:
                left.pop()
            skipped = bool(left) and left[-1] < place.number
            if skipped or (answer is None and place.number < self._greatest.get(place.stream, -1)):
                raise ProgramChanged(f"{CHANGED}: its primitives were others here")
        if answer is not None and answer.ask is not None:
            if answer.ask.prompt != ask.prompt:
                raise ProgramChanged(f"{CHANGED}: this had another prompt")
            if answer.ask.options != ask.options:
                raise ProgramChanged(f"{CHANGED}: this had other sampling arguments")
        return answer

    def made(self, key: str) -> Ask | None:
        """A request that was made, answered or not; None if it was not."""
        answer = self._answers.get(key)
        return None if answer is None else answer.ask

    def value(self, key: str) -> Answer | None:
        """A value from outside; None if it was never recorded."""
        return self._answers.get(key)

    def _read(self, record: Record) -> None:
        if record.kind == ASKED:
            stream, number, kind, _part = record.key.split("/")
            place = None if kind == PREFIX else Place(stream, int(number))
            # a request that was made anew goes on with what is there
            self._answers.setdefault(record.key, Answer(_asks.decode(record.data), place))
        elif record.kind == VALUE:
            answer = self._answers[record.key] = Answer()
            answer.value, answer.rank = record.data, record.number
        elif record.kind == FAILED:
            answer = self._answers[record.key]
            answer.fault, answer.rank = _faults.decode(record.data), record.number
        else:
            answer = self._answers[record.key]
            answer.chunks += _chunks.decode(record.data)
            if answer.chunks[-1].finish is not None:
                answer.rank = record.number

    def _forget_passing(self) -> None:
        for answer in self._answers.values():
            if answer.fault is not None and answer.rank is not None and not answer.fault.lasting:
                self.passed.append(answer.rank)
                answer.fault = answer.rank = None


class Turns:
    """Gives answers out in the order of their ranks, each a moment after the one before it."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self._order = list(ranks)[::-1]
        self._left = set(self._order)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._pause = 0
        self._stream = ""
        self._ticking = False
        self._stall: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Turns: {len(self._left)} to come, {len(self._waiting)} wait>"

    async def wait(self, rank: int, stream: str = "") -> None:
        """Until it is its turn. Whoever is cancelled meanwhile has had it. What follows on the same `stream` needs no pause."""
        if rank not in self._left:  # given up as one that nobody asks for
            return
        turn = self._waiting[rank] = asyncio.get_running_loop().create_future()
        if stream and stream == self._stream and rank == self._next():
            self._pause = 0
        self._go_on()
        try:
            await turn
            self._stream = stream
        finally:
            self.give_up(rank)

    def give_up(self, rank: int) -> None:
        """Nobody asks for that answer any more."""
        self._waiting.pop(rank, None)
        if rank in self._left:
            self._left.remove(rank)
            self._go_on()

    def close(self) -> None:
        """Nobody waits any more."""
        self._left.clear()
        self._waiting.clear()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _next(self) -> int | None:
        """Whose turn it is."""
        while self._order and self._order[-1] not in self._left:
            self._order.pop()
        return self._order[-1] if self._order else None

    def _go_on(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not self._ticking and self._waiting:
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        if self._pause and self._waiting:
            self._pause -= 1
            asyncio.get_running_loop().call_soon(self._tick)
            return
        self._ticking = False
        rank = self._next()
        if rank in self._waiting:
            self._release(self._waiting.pop(rank))
        elif self._waiting:
            self._stall = asyncio.get_running_loop().call_later(STALL, self._skip)

    def _release(self, turn: asyncio.Future[None]) -> None:
        self._left.discard(self._order.pop())
        self._pause = PAUSE
        if not turn.done():
            turn.set_result(None)
        self._go_on()

    def _skip(self) -> None:
        """Nobody asks for the answer whose turn it is."""
        self._stall = None
        while (rank := self._next()) is not None and rank not in self._waiting:
            self._left.discard(rank)
        self._go_on()


_encoder = msgspec.msgpack.Encoder()
_encode = _encoder.encode
_asks = msgspec.msgpack.Decoder(Ask)
_faults = msgspec.msgpack.Decoder(Fault)
_chunks = msgspec.msgpack.Decoder(list[Chunk])
