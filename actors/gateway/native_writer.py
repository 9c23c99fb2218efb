"""Answers of /generate, whole or as a stream in which every event repeats all that came before."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from sgl_actors.actors.gateway.answer import Answer
from sgl_actors.actors.gateway.job import Job
from sgl_actors.actors.gateway.native_types import FinishReason, Generated, MetaInfo, NativeLogprob
from sgl_actors.actors.gateway.pieces import Pieces, finite
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.sse import EventWriter
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import InvalidRequest, error_class


@dataclass(frozen=True, slots=True)
class NativeItem:
    """What to report of one prompt's answers.

    Attributes:
        wanted: log probabilities at all.
        start: the prompt's from that index on, -1 for none.
        top: number of alternatives.
        texts: token texts with them.
    """

    wanted: bool
    start: int
    top: int
    texts: bool


class NativeWriter:
    """Writes the answer of one request.

    Args:
        service: for token texts and the clock.
        job: whose answers are written.
        items: one per prompt.
        rids: one per prompt.
        many: the answer is a list, and a stream's events carry their index.
    """

    def __init__(
        self, service: Service, job: Job, items: list[NativeItem], rids: list[str], *, many: bool
    ) -> None:
        self._service, self._job, self._many = service, job, many
        self._items = [
            item for item, ask in zip(items, job.generation.asks, strict=True) for _ in range(ask.n)
        ]
        self._rids = [
            rid if ask.n == 1 else f"{rid}_{choice}"
            for rid, ask in zip(rids, job.generation.asks, strict=True)
            for choice in range(ask.n)
        ]

    async def whole(self) -> list[Generated]:
        """The answers of a finished job."""
        return [await self._generated(answer) for answer in self._job.answers]

    async def stream(self, events: EventWriter) -> None:
        """Run the job and write everything so far whenever more came."""
        trail = self._job.trail

        async def take(index: int, chunk: Chunk) -> None:
            if chunk.text or chunk.finish is not None or (chunk.logprobs and self._items[index].wanted):
                answer = self._job.answers[index]
                made = [await self._generated(answer)]
                await trail.tell(events, index, made, len(answer.token_ids), ended=chunk.finish is not None)

        await self._job.run(take, raise_abort=False)
        await trail.done(events)

    async def _generated(self, answer: Answer) -> Generated:
        index: int | UnsetType = answer.index if self._many else UNSET
        return Generated(answer.text, answer.token_ids, await self._meta(answer), index)

    async def _meta(self, answer: Answer) -> MetaInfo:
        item = self._items[answer.index]
        inputs: list[NativeLogprob] | UnsetType = UNSET
        outputs: list[NativeLogprob] | UnsetType = UNSET
        input_tops: list[list[NativeLogprob] | None] | UnsetType = UNSET
        output_tops: list[list[NativeLogprob] | None] | UnsetType = UNSET
        if item.wanted:
            if item.start >= 0 and answer.prompt_tokens and item.start >= answer.prompt_tokens:
                raise InvalidRequest(
                    f"logprob_start_len: {item.start} is not before the prompt's end ({answer.prompt_tokens} tokens)",
                    param="logprob_start_len",
                )
            pieces = self._service.pieces
            if item.texts:
                await pieces.load(answer.prompt_logprobs)
                await pieces.load(answer.logprobs)
            inputs = [_entry(entry.token_id, entry.logprob, pieces, item) for entry in answer.prompt_logprobs]
            outputs = [_entry(entry.token_id, entry.logprob, pieces, item) for entry in answer.logprobs]
            if item.top:
                input_tops = [_tops(entry, pieces, item) for entry in answer.prompt_logprobs]
                output_tops = [_tops(entry, pieces, item) for entry in answer.logprobs]
        return MetaInfo(
            id=self._rids[answer.index],
            finish_reason=finish_reason(answer),
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.cached_tokens,
            e2e_latency=round(self._service.now() - self._job.began, 6),
            decode_steps=answer.decoding.steps,
            sampled_tokens=answer.decoding.sampled,
            forced_tokens=answer.decoding.forced,
            held_back_tokens=answer.decoding.held_back,
            drafted_tokens=answer.decoding.drafted,
            accepted_tokens=answer.decoding.accepted,
            input_token_logprobs=inputs,
            output_token_logprobs=outputs,
            input_top_logprobs=input_tops,
            output_top_logprobs=output_tops,
        )


def finish_reason(answer: Answer) -> FinishReason | None:
    """Why an answer ended, None while it runs."""
    finish = answer.finish
    if finish is None:
        return None
    if finish.reason == "stop":
        return FinishReason("stop", matched=finish.matched)
    if finish.reason == "length":
        return FinishReason("length", length=answer.completion_tokens)
    code = finish.code or "cancelled"
    message = finish.message or "the request was aborted"
    return FinishReason(finish.reason, message=message, status_code=error_class(code).status, err_type=code)


def _entry(token: int, logprob: float | None, pieces: Pieces, item: NativeItem) -> NativeLogprob:
    return finite(logprob), token, pieces.text(token) if item.texts else None


def _tops(entry: TokenLogprob, pieces: Pieces, item: NativeItem) -> list[NativeLogprob] | None:
    if entry.logprob is None:
        return None
    return [_entry(token, logprob, pieces, item) for token, logprob in entry.top]
