"""Answers of /v1/completions, whole or piece by piece."""

from __future__ import annotations

from msgspec import UnsetType

from sgl_actors.actors.gateway.answer import Answer
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.openai_types import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    StreamOptions,
    Usage,
)
from sgl_actors.actors.gateway.pieces import Offsets, Pieces, finite
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.sse import EventWriter
from sgl_actors.actors.gateway.version import FINGERPRINT
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.actors.worker.messages import TokenLogprob


class CompletionWriter:
    """Writes the answer of one request.

    Args:
        service: for token texts.
        job: whose answers are written.
        echo: texts and log probabilities begin with the prompt's.
        logprobs: whether log probabilities are reported.
        options: what a stream tells of the usage.
    """

    def __init__(
        self, service: Service, job: Job, *, echo: bool, logprobs: bool, options: StreamOptions
    ) -> None:
        self._service, self._job = service, job
        self._echo, self._logprobs, self._options = echo, logprobs, options
        self._offsets = [Offsets() for _ in job.answers]
        self._told = [0] * len(job.answers)
        self._begun = [False] * len(job.answers)

    async def whole(self) -> Completion:
        """The answer of a finished job."""
        choices = [await self._piece(answer, answer.text) for answer in self._job.answers]
        return self._body(choices, self._job.usage())

    async def stream(self, events: EventWriter) -> None:
        """Run the job and write its pieces as they come."""
        trail = self._job.trail

        async def take(index: int, chunk: Chunk) -> None:
            answer = self._job.answers[index]
            first = not self._begun[index]
            told = self._logprobs and len(answer.logprobs) > self._told[index]
            if chunk.text or told or chunk.finish is not None or (first and self._echo):
                piece = await self._piece(answer, chunk.text)
                made = [self._body([piece], self._job.told_usage(self._options))]
                await trail.tell(events, index, made, len(answer.token_ids), ended=chunk.finish is not None)

        await self._job.run(take)
        if self._options.include_usage:
            await trail.usage(events, self._body([], self._job.usage()))
        await trail.done(events)

    async def _piece(self, answer: Answer, text: str) -> CompletionChoice:
        index = answer.index
        entries = answer.logprobs[self._told[index] :]
        self._told[index] = len(answer.logprobs)
        prompt, asked = "", list[TokenLogprob]()
        if self._echo and not self._begun[index]:
            prompt, asked = await self._prompt_text(answer), answer.prompt_logprobs
        self._begun[index] = True
        logprobs = None
        if self._logprobs:
            pieces, offsets = self._service.pieces, self._offsets[index]
            await pieces.load(asked + entries)
            starts = offsets.prompt(prompt, [pieces.raw(entry.token_id) for entry in asked])
            starts += [offsets.next(pieces.raw(entry.token_id)) for entry in entries]
            logprobs = completion_logprobs(asked + entries, starts, pieces)
        return CompletionChoice(index, prompt + text, logprobs, answer.finish_reason)

    async def _prompt_text(self, answer: Answer) -> str:
        index = answer.index
        for ask in self._job.generation.asks:
            if index < ask.n:
                if ask.prompt.text is not None:
                    return ask.prompt.text
                return await self._service.node.detokenize(ask.prompt.input_ids or answer.prompt_ids)
            index -= ask.n
        raise AssertionError(f"no ask has choice {answer.index}")

    def _body(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        job = self._job
        return Completion(
            id=job.id,
            created=job.created,
            model=job.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=usage,
        )


def completion_logprobs(
    entries: list[TokenLogprob], offsets: list[int], pieces: Pieces
) -> CompletionLogprobs:
    """The four parallel lists; the alternatives hold the token itself, too, with the very same number.

    `entries` must have been loaded into `pieces`. Tokens with the same label keep the larger probability.
    """
    tops: list[dict[str, float | None] | None] = []
    for entry in entries:
        if entry.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float | None] = {}
        for token, logprob in (*entry.top, *(((entry.token_id, entry.logprob),) if entry.top else ())):
            label = pieces.label(token)
            known = top.get(label)
            top[label] = finite(logprob) if known is None else max(known, logprob)
        tops.append(top)
    return CompletionLogprobs(
        [pieces.label(entry.token_id) for entry in entries],
        [finite(entry.logprob) for entry in entries],
        tops,
        offsets,
    )
