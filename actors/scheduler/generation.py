"""One live request: its tokens so far, and how far the worker has come with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from sgl_actors.actors.cache.messages import DEFAULT, Entry, Lease, More, Probe, Want, pack
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.handover import LiveRequest, Standing
from sgl_actors.actors.scheduler.messages import Decoding, Finish, Sequence, Update
from sgl_actors.actors.worker.messages import JUMP, NewSequence, SequenceResult, TokenLogprob, Work

TOKEN_BYTES = 8
"""Bytes of a token in a packed key."""
MARGIN = 4
"""Steps before its pages are used up at which a request asks for more: the answer is there before they are."""


@dataclass(slots=True, eq=False)
class Generation:
    """State of one request from its submission to its end, over any number of stays in the batch.

    A stay begins with `admit` and ends with `retract` (the pages are given back, the tokens are kept) or with the request.
    Within it ``computed <= planned <= capacity``: tokens whose KV exists, will exist once all steps sent have run, and has a place.

    Attributes:
        spec: as submitted.
        owner: whom to tell; None while its submitter is gone.
        arrival: place in the order of arrival.
        tokens: prompt and output so far.
        logprobs: of the output from `known` on, if asked for.
        prompt_logprobs: of the prompt from `prompt_start` on, as far as computed.
        cached: cached prompt tokens at the first admission; -1 before. 0 for a re-submission with output: what it finds is its own.
        finish: why it ended; None while it lives.
        hint: leading tokens that the cache was last seen to have, as far as they are of use.
        since: tokens that had been computed for anybody when it arrived; `place`: when its program began, if it has one.
        overtaken: uncached tokens of those that were admitted before it although they came later (`fairness`).
        modest: pages are reserved for the output expected of it, not for the longest possible; false once that went wrong.
        number: of its sequence and its lease, 0 when it waits for neither.
        lent: tokens of this stay that the cache had.
        pages: granted so far, in order; `fresh` are those that the worker has not been told of.
        capacity: tokens that they hold.
        busy: steps in flight that name it.
        pending: tokens that steps in flight will sample.
        target: tokens to compute before the first sample of this stay.
        entered: the worker knows the sequence.
        shared: the prompt was offered to others in this stay.
        spoilt: an error left doubt about its KV.
        continuation: what followed its tokens in the cache when the stay began.
        before: output tokens that could be reported before the last result.
        decoding: how its output was made.
    """

    spec: Sequence
    owner: Address | None
    arrival: int
    tokens: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = -1
    finish: Finish | None = None
    hint: int = 0
    since: int = 0
    place: int = 0
    overtaken: int = 0
    modest: bool = True
    number: int = 0
    lent: int = 0
    pages: list[int] = field(default_factory=list)
    fresh: tuple[int, ...] = ()
    capacity: int = 0
    planned: int = 0
    computed: int = 0
    pending: int = 0
    target: int = 0
    busy: int = 0
    entered: bool = False
    shared: bool = False
    spoilt: bool = False
    continuation: list[int] = field(default_factory=list)
    before: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    _key: bytes = b""

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
    def unscored(self) -> int:
        """Forced tokens at its end that wait for their log probability, which comes when they are run."""
        if not self.spec.logprobs.output:
            return 0
        return self.generated - len(self.spec.output) - len(self.logprobs)

    @property
    def reported(self) -> int:
        """Output tokens that may be told."""
        return self.generated - self.unscored

    @property
    def ended(self) -> bool:
        """Its last token ends it, or it may have no more."""
        generated = self.generated
        if generated and self.spec.sampling.ended_by(self.tokens[-1], generated):
            return True
        return generated >= self.spec.max_tokens

    @property
    def reserve(self) -> int:
        """Tokens it may come to hold."""
        return len(self.spec.prompt) + self.spec.max_tokens

    @property
    def priority(self) -> int:
        """Its class; higher ones go first."""
        return self.spec.priority

    @property
    def namespace(self) -> str:
        """Where in the cache its tokens are: nobody else's count."""
        tenant, salt = self.spec.tenant or DEFAULT, self.spec.salt
        return f"{tenant}\x1f{salt}" if salt else tenant

    @property
    def length(self) -> int:
        """Tokens it has to have KV of before its next sample."""
        return len(self.tokens)

    @property
    def uncached(self) -> int:
        """Those of them that are expected to need computing."""
        return len(self.tokens) - self.hint

    @property
    def key(self) -> bytes:
        """Its tokens, packed."""
        if len(self._key) != TOKEN_BYTES * len(self.tokens):
            self._key = pack(self.tokens)
        return self._key

    def goes_on(self, again: Sequence) -> bool:
        """Whether `again` is this request submitted anew, by an asker who has a beginning of its output.

        Seeds may differ: one that the asker did not choose is drawn anew by whoever submits.
        """
        spec = self.spec
        sampling = msgspec.structs.replace(again.sampling, seed=spec.sampling.seed)
        same = (spec.tenant, spec.salt, spec.max_tokens, spec.sampling, spec.logprobs, spec.prompt)
        if same != (again.tenant, again.salt, again.max_tokens, sampling, again.logprobs, again.prompt):
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

    def probe(self) -> Probe:
        """What to look for in the cache."""
        return Probe(self.key[: TOKEN_BYTES * self.usable], self.namespace)

    def want(self, expected: int, least: int, *, reuse: bool, follow: int = 0) -> Want:
        """The lease to ask for, with room for `expected` more output tokens; and at most `follow` tokens of what the cache has behind its own."""
        tokens = min(self.reserve, len(self.tokens) + expected) if self.modest else self.reserve
        limit = self.usable if reuse else 0
        follow = min(follow, self.reserve - len(self.tokens) - 1) if self.guessable else 0
        key = self.key if follow > 0 else self.key[: TOKEN_BYTES * limit]
        return Want(self.number, key, limit, tokens, self.namespace, least, self.priority, max(0, follow))

    @property
    def guessable(self) -> bool:
        """Whether tokens may be guessed: it has more than one to come, and no constraint, whose jumps serve it better."""
        return self.spec.sampling.constraint is None and self.reserve - len(self.tokens) > 1

    @property
    def short(self) -> bool:
        """Whether its pages will soon be used up."""
        known = max(self.planned, len(self.tokens))
        return self.finish is None and known + MARGIN > self.capacity < self.reserve

    @property
    def stalled(self) -> bool:
        """Whether they are, so that it cannot go on."""
        return self.short and self.planned >= self.capacity

    def more(self, tokens: int, page_size: int) -> More:
        """The pages to ask for so that it can go on for that many tokens."""
        tokens = max(tokens, len(self.tokens) + MARGIN - self.capacity)
        return More(self.number, -(-min(self.reserve - self.capacity, tokens) // page_size))

    def grow(self, pages: list[int], page_size: int) -> None:
        """Take up more pages."""
        self.pages = self.pages + pages
        self.capacity = len(self.pages) * page_size
        if self.entered:
            self.fresh += tuple(pages)

    def admit(self, lease: Lease, page_size: int) -> None:
        """Begin a stay in the batch."""
        self.pages = lease.pages
        self.capacity = len(lease.pages) * page_size
        self.planned = self.computed = self.lent = lease.cached
        self.continuation = lease.continuation
        self.target = len(self.tokens)
        if self.cached < 0:
            self.cached = 0 if self.spec.output else min(lease.cached, self.prompt_length)

    def retract(self) -> None:
        """End the stay: the pages are given back or gone; tokens stay, but for forced ones that nobody has been told of: they come again."""
        del self.tokens[len(self.tokens) - self.unscored :]
        self.number = self.planned = self.computed = self.pending = self.target = self.busy = 0
        self.capacity = self.hint = 0
        self.pages, self.fresh, self.continuation = [], (), []
        self.entered = self.shared = False

    def enter(self, drafts: int = 0) -> NewSequence:
        """What the worker has to know about it, which may draft that many tokens at once."""
        self.entered = True
        logprobs = msgspec.structs.replace(self.spec.logprobs, prompt_start=self._prompt_start)
        continuation, self.continuation = self.continuation, []
        return NewSequence(
            self.number,
            self.tokens[:],
            self.prompt_length,
            self.planned,
            self.pages,
            self.spec.sampling,
            logprobs,
            self.reserve,
            drafts if self.guessable else 0,
            continuation,
        )

    def next_work(self, budget: int, jump: int = 0) -> Work | None:
        """Its share of the next step, given how many prompt tokens the step has room for, and how many forced ones beside the one of each sequence."""
        left = 0 if self.ended else self.spec.max_tokens - self.generated - self.pending
        if self.prefilling:
            known = self.target - self.planned
            count = min(known, budget)
            return self._work(count, sample=count == known and left > 0) if count else None
        known, room = len(self.tokens) - self.planned, self.capacity - self.planned
        if self.pending:
            known, room = 1, room - self._unheard
        count = min(known, 1 + jump, room)
        if count < 1 or (left <= 0 and not self.unscored):
            return None
        return self._work(count, sample=count == known and left > 0)

    @property
    def _unheard(self) -> int:
        """Most tokens that steps in flight may append beyond one each: the worker runs them with the next."""
        sampling = self.spec.sampling
        return self.pending * JUMP if sampling.constraint is not None and sampling.jump_forward else 0

    def _work(self, count: int, *, sample: bool = True) -> Work:
        fresh, self.fresh = self.fresh, ()
        return Work(self.number, count, fresh, sample)

    def sent(self, work: Work) -> None:
        """A step with that work is on its way."""
        self.planned += work.count
        self.pending += work.sample
        self.busy += 1

    def allows(self, work: Work, result: SequenceResult, vocabulary: int) -> bool:
        """Whether that work can have had such a result: tokens of the vocabulary, as many as there is room for, and their log probabilities."""
        ran, accepted = result.ran or work.count, len(result.accepted)
        tokens = (result.token_id, *result.accepted, *result.forced)
        known = tokens == (-1,) or (work.sample and min(tokens) >= 0 and max(tokens) < vocabulary)
        scored = not self.spec.logprobs.output or len(result.accepted_logprobs) == accepted
        counted = accepted < ran and min(result.ran, result.drafted, result.held_back) >= 0
        return known and scored and counted and self.computed + ran <= self.capacity

    def done(self, work: Work, result: SequenceResult) -> None:
        """That step has run. Results past the request's end count as computed only as far as `tokens` still reach."""
        self.busy -= 1
        if result.error:
            self.spoilt = True
            return
        ran = result.ran or work.count
        self.computed += ran
        self.planned += ran - work.count
        if self.finish is not None:
            return
        self.before = self.reported
        self.prompt_logprobs += result.prompt_logprobs
        if self.spec.logprobs.output:
            self.logprobs += result.forced_logprobs[: self.unscored]
        self.pending -= work.sample
        if result.token_id >= 0 and not self.ended:
            self._take(result)

    def _take(self, result: SequenceResult) -> None:
        """Append what was sampled, and what was forced by it, as far as the output may go on."""
        first = len(self.tokens)
        for token in (result.token_id, *result.accepted, *result.forced):
            self.tokens.append(token)
            if self.ended:
                break
        count, known = len(self.tokens) - first, self.decoding
        if self.spec.logprobs.output:
            self.logprobs.append(result.logprob or TokenLogprob(result.token_id, None))
            self.logprobs += result.accepted_logprobs[: count - 1]
        accepted = min(count - 1, len(result.accepted))
        sampled = accepted + result.chosen
        self.decoding = Decoding(
            known.steps + 1,
            known.sampled + sampled,
            known.forced + count - sampled,
            known.held_back + result.held_back,
            known.drafted + result.drafted,
            known.accepted + accepted,
        )

    def handed(self, left: float | None, kept: float | None, record: tuple[int, int]) -> LiveRequest:
        """What a successor has to know of it, outside of a stay; of its times, in seconds from now, and of its `Quarantine.record`."""
        goal, strikes = record
        return LiveRequest(
            self.spec,
            self.arrival,
            self.owner,
            self.tokens[self.prompt_length :],
            self.logprobs,
            self.prompt_logprobs,
            left,
            kept,
            self.cached,
            self.decoding,
            self.finish,
            Standing(self.since, self.place, self.overtaken, self.modest, goal, strikes),
        )

    @classmethod
    def taken(cls, one: LiveRequest) -> Generation:
        """The request that was `handed`, before a new stay."""
        return cls(
            one.sequence,
            one.owner,
            one.arrival,
            one.sequence.prompt + one.output,
            one.logprobs,
            one.prompt_logprobs,
            one.cached,
            one.finish,
            since=one.standing.since,
            place=one.standing.place,
            overtaken=one.standing.overtaken,
            modest=one.standing.modest,
            decoding=one.decoding,
        )

    def conclusion(self) -> Finish | None:
        """Whether its tokens say that it has ended, and all of them have been scored."""
        if self.unscored:
            return None
        if self.generated and self.spec.sampling.ended_by(self.tokens[-1], self.generated):
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
        del self.logprobs[max(0, self.generated - len(self.spec.output)) :]

    def entry(self, *, release: bool, reuse: bool = True) -> Entry:
        """What to commit: the tokens that have KV and belong to the request; nothing if an error left doubt."""
        count = 0 if self.spoilt else min(self.computed, len(self.tokens))
        return Entry(self.number, pack(self.tokens[:count]) if reuse else b"", release)

    def update(self, since: int, prompt_since: int) -> Update:
        """News: output from index `since`, prompt log probabilities from the `prompt_since`-th."""
        known, reported = len(self.spec.output), self.reported
        logprobs: list[TokenLogprob] = []
        if self.spec.logprobs.output:
            unknown = self.tokens[self.prompt_length + since : self.prompt_length + known]
            logprobs = [TokenLogprob(token, None) for token in unknown]
            logprobs += self.logprobs[max(0, since - known) : reported - known]
        return Update(
            self.spec.id,
            since,
            self.tokens[self.prompt_length + since : self.prompt_length + reported],
            logprobs,
            self.prompt_logprobs[prompt_since:],
            max(0, self.cached),
            self.finish,
            self.decoding,
        )
