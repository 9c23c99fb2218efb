"""One request in flight: the scheduler's updates go in, chunks of whole text come out. No I/O, no clock."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.scheduler.messages import Decoding, Finish, Sequence, Stop, Update
from sgl_actors.actors.tokenizer.detokeniser import Detokeniser
from sgl_actors.actors.tokenizer.handover import LiveStream
from sgl_actors.actors.tokenizer.messages import Chunk, SamplingOptions
from sgl_actors.actors.tokenizer.stops import Stops
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.actors.worker.messages import TokenLogprob


class OutOfStep(Exception):
    """An update begins after the next token: one before it was lost. Submit the request again."""


class Generation:
    """A request's tokens so far, the text made of them, and what of it has been given out.

    The text given out after k tokens depends on those k ids alone; so one that was rebuilt from `known` ids goes on exactly where the
    asker, who holds those k tokens, stands.

    Attributes:
        sequence: as submitted, with the output the asker began with.
        options: as asked.
        known: no chunk goes beyond that many output tokens without ending there (see `Generate`).
        ids: all output tokens, known ones included.
        finish: set when the output has ended, by the scheduler or by a stop string or pattern.
    """

    def __init__(
        self, vocabulary: Vocabulary, sequence: Sequence, options: SamplingOptions, known: int = -1
    ) -> None:
        """Start from `sequence.output`, the tokens that the asker has. Raises `InvalidRequest` as `update` does."""
        self.sequence = sequence
        self.options = options
        self.known = known
        self.finish: Finish | None = None
        self._vocabulary = vocabulary
        self._logprobs: list[TokenLogprob] = []  # of ids[len(sequence.output):]
        self._prompt_logprobs: list[TokenLogprob] = []
        self._cached = 0
        self._decoding = Decoding()
        self._text: list[str] = []  # not given out yet
        self._to_border = 0  # pieces of it that belong to the first `known` tokens
        self._sent = 0  # tokens given out
        self._told = False  # whether the asker has the prompt's data
        self._ends = frozenset(sequence.sampling.end_ids)
        self._begin(sequence.output)
        self._finish_known()

    def __repr__(self) -> str:
        return f"<Generation {self.sequence.id}: {len(self.ids)} tokens, {self._sent} sent, finish={self.finish}>"

    @property
    def has_news(self) -> bool:
        """Whether a chunk could be sent."""
        return len(self.ids) > self._sent or self.finish is not None

    @property
    def pauses(self) -> bool:
        """Whether the next chunk ends after `known` tokens, and another follows at once."""
        border = self._sent < self.known <= len(self.ids)
        return border and (self.known < len(self.ids) or self.finish is not None)

    @property
    def is_complete(self) -> bool:
        """Whether it has ended as it should: asked again, it would end so again."""
        return self.finish is not None and self.finish.reason in {"stop", "length"}

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        tokens = len(self.sequence.prompt) + len(self.ids)
        scores = sum(200 + 100 * len(one.top) for one in (*self._logprobs, *self._prompt_logprobs))
        return 2000 + 40 * tokens + scores

    def resubmission(self) -> Sequence:
        """What to send to a scheduler that does not know the request; without output yet, the prompt's scores will come again."""
        if not self.ids:
            self._prompt_logprobs.clear()
        return msgspec.structs.replace(self.sequence, output=list(self.ids))

    def asks_for(self, sequence: Sequence, options: SamplingOptions) -> bool:
        """Whether a request asks for the same, whatever seed was drawn for it."""
        known = self.sequence
        return (known.prompt, known.tenant, known.salt, known.logprobs, self.options) == (
            sequence.prompt,
            sequence.tenant,
            sequence.salt,
            sequence.logprobs,
            options,
        )

    def begins_with(self, output: list[int]) -> bool:
        """Whether an asker who has `output` may have it from here."""
        return self.ids[: len(output)] == output

    def can_tell(self, output: list[int]) -> bool:
        """Whether all is known that an asker with `output` lacks: the scores of what this one began with, and of the prompt, are not."""
        wanted, began = self.sequence.logprobs, len(self.sequence.output)
        prompt = len(self.sequence.prompt) - wanted.prompt_start if wanted.prompt_start >= 0 else 0
        if began and not output and len(self._prompt_logprobs) < prompt:
            return False
        return not wanted.output or len(output) >= began

    def rejoin(self, output: list[int], known: int = -1) -> None:
        """Go on, or end, for a new asker who has `output` (see `begins_with`, `can_tell`)."""
        self._replay(output, self.ids, self.finish, known)

    def state(self) -> LiveStream:
        """All there is, for whoever takes over (see `restored`)."""
        return LiveStream(
            self.sequence,
            self.options,
            self.ids,
            self._sent,
            self._told,
            self._logprobs,
            self._prompt_logprobs,
            self._cached,
            self._decoding,
            self.finish,
            self.known,
        )

    @classmethod
    def restored(cls, vocabulary: Vocabulary, state: LiveStream) -> Generation:
        """One that goes on where `state` was taken."""
        made = cls(vocabulary, state.sequence, state.options, state.known)
        made._replay(state.ids[: state.sent], state.ids, state.finish, state.known)
        made._told = state.told
        made._logprobs, made._prompt_logprobs = state.logprobs, state.prompt_logprobs
        made._cached, made._decoding = state.cached, state.decoding
        return made

    def _replay(self, output: list[int], ids: list[int], finish: Finish | None, known: int) -> None:
        """Set all that is made of the ids to what it is for an asker who has `output` of them."""
        self.finish, self.known = None, known
        self._begin(output)
        for token_id in ids[len(output) :]:
            self._take(token_id)
        if finish is not None:
            self._end(finish)

    def update(self, update: Update) -> Stop | None:
        """Take the scheduler's update; tokens known already are dropped by their index.

        Returns:
            The order to the scheduler, if a stop string or pattern is now complete; `finish` is set then.

        Raises:
            OutOfStep: tokens are missing before this update.
            InvalidRequest: a stop pattern takes too long.
        """
        if self.finish is not None:
            return None
        known = len(self.ids) - update.first_index
        if known < 0:
            raise OutOfStep
        self._cached = max(self._cached, update.cached)
        self._decoding = update.decoding
        self._take_prompt_logprobs(update.prompt_logprobs)
        fresh = update.token_ids[known:]
        logprobs = update.logprobs[known:] if update.logprobs else []
        for position, token_id in enumerate(fresh):
            self._logprobs += logprobs[position : position + 1]
            self._take(token_id)
            if self._stops.matched is not None:
                self._leave_out(len(fresh) - position - 1)
                return self._stop()
        if update.finish is not None:
            self._end(update.finish)
        return None

    def chunk(self) -> Chunk:
        """What there is since the last chunk, up to the `known` tokens if it `pauses` there; marks it as given out."""
        first, pauses = not self._told, self.pauses
        end, pieces = (self.known, self._to_border) if pauses else (len(self.ids), len(self._text))
        base = len(self.sequence.output)
        chunk = Chunk(
            first_index=self._sent,
            token_ids=self.ids[self._sent : end],
            text="".join(self._text[:pieces]),
            logprobs=self._logprobs[max(0, self._sent - base) : max(0, end - base)],
            prompt_tokens=len(self.sequence.prompt),
            cached_tokens=self._cached,
            prompt_logprobs=self._prompt_logprobs if first else [],
            finish=None if pauses else self.finish,
            completion_tokens=end,
            prompt_ids=self.sequence.prompt if first else [],
            decoding=self._decoding,
        )
        self._told = True
        self._sent = end
        del self._text[:pieces]
        return chunk

    def _begin(self, known: list[int]) -> None:
        """Set the text's state to that of an asker who has the tokens `known`."""
        self._detokeniser = Detokeniser(
            self._vocabulary, skip_special_tokens=self.options.skip_special_tokens
        )
        options = self.options
        self._stops = Stops(options.stop, options.stop_regex, keep=options.no_stop_trim)
        self._told = False
        self.ids: list[int] = []
        for token_id in known:
            self._take(token_id)
            if self._stops.matched is not None:
                break
        self._text.clear()
        self._sent = len(known)

    def _finish_known(self) -> None:
        """End at once if the asker's tokens are the whole output already."""
        if self._stops.matched is not None:
            self.finish = Finish("stop", self._stops.matched)
        elif self.ids and self.sequence.sampling.ended_by(self.ids[-1], len(self.ids)):
            self._end(Finish("stop", self.ids[-1]))
        elif self.ids and len(self.ids) >= self.sequence.max_tokens:
            self._end(Finish("length"))

    def _take(self, token_id: int) -> None:
        self.ids.append(token_id)
        if token_id not in self._ends:
            text = self._stops.feed(self._detokeniser.feed(token_id), armed=self._armed)
            if text:
                self._text.append(text)
        if len(self.ids) == self.known:
            self._to_border = len(self._text)

    def _leave_out(self, count: int) -> None:
        """That many tokens behind the stop are no part of the output: a jump's, accepted drafts, and others of the model only where updates came together."""
        known = self._decoding
        forced = min(count, known.forced)
        self._decoding = msgspec.structs.replace(
            known,
            forced=known.forced - forced,
            sampled=known.sampled - (count - forced),
            accepted=max(0, known.accepted - (count - forced)),
        )

    @property
    def _armed(self) -> bool:
        """Whether a stop string or pattern that is complete now ends the output: min_tokens come before it, as before an end token."""
        return len(self.ids) > self.sequence.sampling.min_tokens

    def _take_prompt_logprobs(self, logprobs: list[TokenLogprob]) -> None:
        """Collect them once, also where a second submission computes them again."""
        wanted = len(self.sequence.prompt) - self.sequence.logprobs.prompt_start
        if logprobs and not self._told:
            self._prompt_logprobs = (self._prompt_logprobs + logprobs)[:wanted]

    def _stop(self) -> Stop:
        assert self._stops.matched is not None
        self.finish = Finish("stop", self._stops.matched)
        return Stop(self.sequence.id, len(self.ids), self._stops.matched)

    def _end(self, finish: Finish) -> None:
        """The output has ended: give out what was held back."""
        self._text.append(self._stops.feed(self._detokeniser.finish(), armed=self._armed))
        if self._stops.matched is not None and finish.reason in {"stop", "length"}:
            finish = Finish("stop", self._stops.matched)
        self._text.append(self._stops.finish())
        self.finish = finish
