"""One live request: its tokens so far, and how far the worker has come with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from sgl_actors.actors.cache.messages import Entry, Lease, Want
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.messages import Finish, Sequence, Update
from sgl_actors.actors.worker.messages import NewSequence, SequenceResult, TokenLogprob, Work


@dataclass(slots=True, eq=False)
class Generation:
    """State of one request from its submission to its end, over any number of stays in the batch.

    A stay begins with `admit` and ends with `retract` (the KV is gone, the tokens are kept) or with the request.
    Within it ``computed <= planned``: tokens whose KV exists, and will exist once all steps sent have run.

    Attributes:
        spec: as submitted.
        owner: whom to tell; None while its submitter is gone.
        arrival: place in the order of arrival.
        tokens: prompt and output so far.
        logprobs: of the output from `known` on, if asked for.
        prompt_logprobs: of the prompt from `prompt_start` on, as far as computed.
        cached: cached prompt tokens at the first admission; -1 before. 0 for a re-submission with output: what it finds is its own.
        finish: why it ended; None while it lives.
        number: of its sequence and its lease, 0 when it waits for neither.
        busy: steps in flight that name it.
        pending: tokens that steps in flight will sample.
        target: tokens to compute before the first sample of this stay.
        entered: the worker knows the sequence.
        shared: the prompt was offered to others in this stay.
        spoilt: an error left doubt about its KV.
    """

    spec: Sequence
    owner: Address | None
    arrival: int
    tokens: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = -1
    finish: Finish | None = None
    number: int = 0
    pages: list[int] = field(default_factory=list)
    planned: int = 0
    computed: int = 0
    pending: int = 0
    target: int = 0
    busy: int = 0
    entered: bool = False
    shared: bool = False
    spoilt: bool = False

    def __repr__(self) -> str:
        return (
            f"<Generation {self.spec.id} tokens={len(self.tokens)} computed={self.computed} busy={self.busy}>"
        )

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.spec.prompt)

    @property
    def generated(self) -> int:
        """Output tokens so far, those of a re-submission included."""
        return len(self.tokens) - len(self.spec.prompt)

    @property
    def reserve(self) -> int:
        """Tokens it may come to hold."""
        return len(self.spec.prompt) + self.spec.max_tokens

    def goes_on(self, again: Sequence) -> bool:
        """Whether `again` is this request submitted anew, by an asker who has a beginning of its output.

        Seeds may differ: one that the asker did not choose is drawn anew by whoever submits.
        """
        spec = self.spec
        sampling = msgspec.structs.replace(again.sampling, seed=spec.sampling.seed)
        same = (spec.tenant, spec.max_tokens, spec.sampling, spec.logprobs, spec.prompt)
        if same != (again.tenant, again.max_tokens, sampling, again.logprobs, again.prompt):
            return False
        output = self.tokens[self.prompt_length :]
        return all(one == two for one, two in zip(output, again.output, strict=False))

    @property
    def prefilling(self) -> bool:
        """Known tokens are left for which no step has been sent."""
        return self.planned < self.target

    @property
    def usable(self) -> int:
        """Cached tokens that are of use: one token is always computed, and so is the one before the first logprob asked for."""
        limit = len(self.tokens) - 1
        start = self._prompt_start
        return limit if start < 0 else min(limit, max(0, start - 1))

    @property
    def _prompt_start(self) -> int:
        """First prompt token whose log probability is still to come; -1 if none is."""
        start = self.spec.logprobs.prompt_start
        if start < 0:
            return -1
        start += len(self.prompt_logprobs)
        return start if start < self.prompt_length else -1

    def want(self) -> Want:
        """The lease to ask for."""
        return Want(self.number, self.tokens[:], self.usable, self.reserve, self.spec.tenant)

    def admit(self, lease: Lease) -> None:
        """Begin a stay in the batch."""
        self.pages = lease.pages
        self.planned = self.computed = lease.cached
        self.target = len(self.tokens)
        if self.cached < 0:
            self.cached = 0 if self.spec.output else min(lease.cached, self.prompt_length)

    def retract(self) -> None:
        """End the stay: pages and KV are gone, tokens stay."""
        self.number = self.planned = self.computed = self.pending = self.target = self.busy = 0
        self.pages = []
        self.entered = self.shared = False

    def enter(self) -> NewSequence:
        """What the worker has to know about it."""
        self.entered = True
        logprobs = msgspec.structs.replace(self.spec.logprobs, prompt_start=self._prompt_start)
        return NewSequence(
            self.number,
            self.tokens[:],
            self.prompt_length,
            self.planned,
            self.pages,
            self.spec.sampling,
            logprobs,
        )

    def next_work(self, budget: int) -> Work | None:
        """Its share of the next step, given how many prompt tokens the step has room for."""
        left = self.spec.max_tokens - self.generated - self.pending
        if self.prefilling:
            known = self.target - self.planned
            count = min(known, budget)
            return Work(self.number, count, (), sample=count == known and left > 0) if count else None
        return Work(self.number) if left > 0 else None

    def sent(self, work: Work) -> None:
        """A step with that work is on its way."""
        self.planned += work.count
        self.pending += work.sample
        self.busy += 1

    def done(self, work: Work, result: SequenceResult) -> None:
        """That step has run. Results past the request's end count as computed only as far as `tokens` still reach."""
        self.busy -= 1
        if result.error:
            self.spoilt = True
            return
        self.computed += work.count
        if self.finish is not None:
            return
        self.prompt_logprobs += result.prompt_logprobs
        if work.sample:
            self.pending -= 1
            self.tokens.append(result.token_id)
            if self.spec.logprobs.output:
                self.logprobs.append(result.logprob or TokenLogprob(result.token_id, None))

    def conclusion(self) -> Finish | None:
        """Whether its tokens say that it has ended."""
        sampling = self.spec.sampling
        if self.generated and self.tokens[-1] in sampling.end_ids and self.generated > sampling.min_tokens:
            return Finish("stop", self.tokens[-1])
        if self.generated >= self.spec.max_tokens and (self.spec.max_tokens or self.prefilled):
            return Finish("length")
        return None

    @property
    def prefilled(self) -> bool:
        """The stay's known tokens are all computed."""
        return 0 < self.target <= self.computed

    def truncate(self, keep: int) -> None:
        """Drop output tokens past the first `keep`."""
        del self.tokens[self.prompt_length + max(0, keep) :]

    def entry(self, *, release: bool) -> Entry:
        """What to commit: the tokens that have KV and belong to the request; nothing if an error left doubt."""
        count = 0 if self.spoilt else min(self.computed, len(self.tokens))
        return Entry(self.number, self.tokens[:count], release)

    def update(self, since: int, prompt_since: int) -> Update:
        """News: output from index `since`, prompt log probabilities from the `prompt_since`-th."""
        known = len(self.spec.output)
        logprobs: list[TokenLogprob] = []
        if self.spec.logprobs.output:
            unknown = self.tokens[self.prompt_length + since : self.prompt_length + known]
            logprobs = [TokenLogprob(token, None) for token in unknown]
            logprobs += self.logprobs[max(0, since - known) : self.generated - known]
        return Update(
            self.spec.id,
            since,
            self.tokens[self.prompt_length + since :],
            logprobs,
            self.prompt_logprobs[prompt_since:],
            max(0, self.cached),
            self.finish,
        )
