"""Answers of /v1/chat/completions, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

from sgl_actors.actors.gateway.answer import Answer
from sgl_actors.actors.gateway.call_reader import Arguments, Call, CallReader, Event, Said
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.openai_types import (
    AssistantMessage,
    Called,
    CalledDelta,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    StreamOptions,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)
from sgl_actors.actors.gateway.pieces import Pieces, finite
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.sse import EventWriter
from sgl_actors.actors.gateway.version import FINGERPRINT
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.actors.worker.messages import TokenLogprob


class ChatWriter:
    """Writes the answer of one request.

    Args:
        service: for token texts.
        job: whose answers are written.
        logprobs: whether log probabilities are reported.
        options: what a stream tells of the usage.
        calls: whether tool calls are looked for in the text.
    """

    def __init__(
        self, service: Service, job: Job, *, logprobs: bool, options: StreamOptions, calls: bool = False
    ) -> None:
        self._service, self._job = service, job
        self._logprobs, self._options = logprobs, options
        self._told = [0] * len(job.answers)
        self._begun = [False] * len(job.answers)
        self._readers = [CallReader() if calls else None for _ in job.answers]

    async def whole(self) -> ChatCompletion:
        """The answer of a finished job."""
        job = self._job
        choices = [
            ChatChoice(
                answer.index,
                self._message(answer),
                await self._new_logprobs(answer),
                self._finish_reason(answer),
            )
            for answer in job.answers
        ]
        return ChatCompletion(
            id=job.id,
            created=job.created,
            model=job.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=job.usage(),
        )

    async def stream(self, events: EventWriter) -> None:
        """Run the job and write its pieces as they come."""
        trail = self._job.trail

        async def take(index: int, chunk: Chunk) -> None:
            made: list[ChunkChoice] = []
            if not self._begun[index]:
                self._begun[index] = True
                made.append(ChunkChoice(index, Delta(role="assistant", content="")))
            answer = self._job.answers[index]
            logprobs = await self._new_logprobs(answer)
            deltas = list(self._deltas(index, chunk))
            if not deltas and logprobs is not None and logprobs.content:
                deltas = [Delta(content="")]
            for delta in deltas:
                made.append(ChunkChoice(index, delta, logprobs))
                logprobs = None
            ended = chunk.finish is not None
            if ended:
                made.append(ChunkChoice(index, Delta(), finish_reason=self._finish_reason(answer)))
            chunks = [self._chunk(choice) for choice in made]
            await trail.tell(events, index, chunks, len(answer.token_ids), ended=ended)

        await self._job.run(take)
        if self._options.include_usage:
            await trail.usage(events, self._chunk(None))
        await trail.done(events)

    def _read(self, index: int, text: str, *, last: bool) -> list[Event]:
        reader = self._readers[index]
        if reader is None:
            return [Said(text)] if text else []
        return reader.feed(text, last=last)

    def _message(self, answer: Answer) -> AssistantMessage:
        text, calls = "", []
        for event in self._read(answer.index, answer.text, last=True):
            match event:
                case Said(piece):
                    text += piece
                case Call(number, name):
                    calls.append(ToolCall(self._call_id(answer.index, number), Called(name, "")))
                case Arguments(number, piece):
                    call = calls[number]
                    arguments = f"{call.function.arguments}{piece}"
                    calls[number] = ToolCall(call.id, Called(call.function.name, arguments))
        if not calls:
            return AssistantMessage(text)
        return AssistantMessage(text if text.strip() else None, tool_calls=calls)

    def _deltas(self, index: int, chunk: Chunk) -> Iterator[Delta]:
        for event in self._read(index, chunk.text, last=chunk.finish is not None):
            match event:
                case Said(piece):
                    yield Delta(content=piece)
                case Call(number, name):
                    call_id = self._call_id(index, number)
                    yield Delta(tool_calls=[ToolCallDelta(number, CalledDelta(name), call_id, "function")])
                case Arguments(number, piece):
                    yield Delta(tool_calls=[ToolCallDelta(number, CalledDelta(arguments=piece))])

    def _call_id(self, index: int, number: int) -> str:
        """Who asks again gets the same."""
        return self._job.retry.call_id(index, number)

    def _finish_reason(self, answer: Answer) -> str | None:
        """Why it ended; `tool_calls` after calls, unless the last was cut off."""
        reader = self._readers[answer.index]
        called = reader is not None and reader.calls > 0 and reader.is_complete
        return "tool_calls" if called and answer.finish_reason == "stop" else answer.finish_reason

    async def _new_logprobs(self, answer: Answer) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        entries = answer.logprobs[self._told[answer.index] :]
        self._told[answer.index] = len(answer.logprobs)
        await self._service.pieces.load(entries)
        return ChatLogprobs([chat_logprob(entry, self._service.pieces) for entry in entries])

    def _chunk(self, choice: ChunkChoice | None) -> ChatChunk:
        """A piece of one choice; without one, the last chunk, which has the usage."""
        job = self._job
        usage = job.usage() if choice is None else job.told_usage(self._options)
        return ChatChunk(
            id=job.id,
            created=job.created,
            model=job.model,
            system_fingerprint=FINGERPRINT,
            choices=[] if choice is None else [choice],
            usage=usage,
        )


def chat_logprob(entry: TokenLogprob, pieces: Pieces) -> ChatLogprob:
    """One token with its alternatives; its tokens must have been loaded into `pieces`."""
    top = [
        TopLogprob(pieces.label(token), finite(logprob), list(pieces.raw(token)))
        for token, logprob in entry.top
    ]
    return ChatLogprob(
        pieces.label(entry.token_id), finite(entry.logprob), list(pieces.raw(entry.token_id)), top
    )
