"""Answers of /v1/chat/completions, whole or piece by piece."""

from __future__ import annotations

from msgspec import UNSET

from sgl_actors.actors.gateway.answer import Answer
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.openai_types import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    Delta,
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
        include_usage: a stream ends with the usage.
    """

    def __init__(self, service: Service, job: Job, *, logprobs: bool, include_usage: bool) -> None:
        self._service, self._job = service, job
        self._logprobs, self._include_usage = logprobs, include_usage
        self._told = [0] * len(job.answers)
        self._begun = [False] * len(job.answers)

    async def whole(self) -> ChatCompletion:
        """The answer of a finished job."""
        job = self._job
        choices = [
            ChatChoice(
                answer.index,
                AssistantMessage(answer.text),
                await self._new_logprobs(answer),
                answer.finish_reason,
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

        async def take(index: int, chunk: Chunk) -> None:
            if not self._begun[index]:
                self._begun[index] = True
                await events.data(self._chunk(ChunkChoice(index, Delta(role="assistant", content=""))))
            logprobs = await self._new_logprobs(self._job.answers[index])
            if chunk.text or (logprobs is not None and logprobs.content):
                await events.data(self._chunk(ChunkChoice(index, Delta(content=chunk.text), logprobs)))
            if chunk.finish is not None:
                reason = self._job.answers[index].finish_reason
                await events.data(self._chunk(ChunkChoice(index, Delta(), finish_reason=reason)))

        await self._job.run(take)
        if self._include_usage:
            await events.data(self._chunk(None))
        await events.done()

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
        usage = (None if choice is not None else job.usage()) if self._include_usage else UNSET
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
