"""The batch that a worker holds: sequences, their tokens and pages, and how a `Step` changes them. No tensors, no I/O.

Every check of a step's contents is made here, before anything is computed; what is wrong with one sequence ends that sequence
with an error and leaves the others alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sgl_actors.actors.worker.drafts import Acceptance, Drafter
from sgl_actors.actors.worker.messages import JUMP, Logprobs, NewSequence, Sampling, Step, Work
from sgl_actors.actors.worker.sample_row import Forbidden, SampleRow
from sgl_actors.lang.constraints.forced import CONTEXT
from sgl_actors.lang.constraints.grammar import Grammar

Slots = np.ndarray[Any, np.dtype[np.int64]]


class StaleBatchError(Exception):
    """The step belongs to another epoch, or one before it is missing: the worker answers `NeedFull`."""


class BadSequenceError(Exception):
    """One sequence's part of a step is not valid; the text becomes its `SequenceResult.error`."""


@dataclass(frozen=True)
class Limits:
    """What a valid step stays within."""

    vocabulary: int
    context: int
    pages: int
    page_size: int


@dataclass(frozen=True)
class Written:
    """Output tokens that are known.

    Attributes:
        tokens: at least one, but for a result without any.
        held_back: tokens of forced text behind them that may still change.
        chosen: the first is the model's choice; the others, and otherwise all, leave it none.
        accepted: how many of them were right drafts: these have KV already, and all tokens are the model's choice.
    """

    tokens: tuple[int, ...]
    held_back: int = 0
    chosen: bool = True
    accepted: int = 0


@dataclass
class HeldSequence:
    """One sequence of the batch.

    Attributes:
        token_ids: all tokens known, the ones sampled here included.
        computed: how many leading tokens have their KV in the pool.
        slots: pool slot of every token its pages can hold.
        contiguous: those slots are consecutive numbers.
        output_counts, seen: token statistics for the penalties; kept only if its sampling has any.
        compiled: the grammar at its beginning, until the first sample.
        grammar: where the output stands under its constraint, `written` included, from the first sample on.
        written: output that is known and has not been appended yet.
        scored: how many leading tokens have had their log probability reported, or will not have it.
        most: tokens it may come to hold.
        drafts: most drafts of one pass.
        continuation: what followed its tokens another time.
        drafter: guesses what comes next, from the first sample on.
        acceptance: how often that was right.
    """

    seq: int
    token_ids: list[int]
    prompt_length: int
    computed: int
    sampling: Sampling
    logprobs: Logprobs
    slots: Slots = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    contiguous: bool = True
    output_counts: Counter[int] = field(default_factory=Counter)
    seen: dict[int, None] = field(default_factory=dict)
    compiled: Grammar | None = None
    grammar: Grammar | None = None
    written: Written | None = None
    scored: int = 0
    most: int = 0
    drafts: int = 0
    continuation: Sequence[int] = ()
    drafter: Drafter | None = None
    acceptance: Acceptance | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty looks at its tokens."""
        sampling = self.sampling
        return bool(
            sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
        )

    def extend(self, pages: Sequence[int], page_size: int) -> None:
        """Append pages."""
        if not pages:
            return
        first = np.asarray(pages, dtype=np.int64)[:, None] * page_size
        more = (first + np.arange(page_size, dtype=np.int64)).reshape(-1)
        joint = np.concatenate((self.slots[-1:], more))
        self.contiguous = self.contiguous and bool((np.diff(joint) == 1).all())
        self.slots = np.concatenate((self.slots, more))

    def write(self, written: Written, jump: int) -> Written:
        """Append what is written now, at most `jump` tokens behind the first and nothing behind an end token, and return it; the rest stays for later."""
        tokens = written.tokens[: 1 + jump]
        for place, token in enumerate(tokens):
            if token in self.sampling.end_ids:
                tokens = tokens[: place + 1]
                break
        rest = written.tokens[len(tokens) :]
        self.written = Written(rest, chosen=False) if rest else None
        self.token_ids += tokens
        self.note(tokens, output=True)
        if self.drafter is not None:
            self.drafter.append(tokens)
        return Written(tokens, written.held_back, written.chosen, written.accepted)

    def output_tail(self) -> list[int]:
        """The last output tokens, enough to encode what follows."""
        return self.token_ids[max(self.prompt_length, len(self.token_ids) - CONTEXT) :]

    def note(self, tokens: Sequence[int], *, output: bool) -> None:
        """Update the token statistics."""
        if self.counts_tokens:
            self.seen.update(dict.fromkeys(tokens))
            if output:
                self.output_counts.update(tokens)

    def sample_row(self, forbidden: Forbidden | None = None, drafts: Sequence[int] = ()) -> SampleRow:
        """What the sampler needs to choose the next token, `forbidden` being what the constraint leaves out; or the one after `drafts`, if these come next."""
        position = len(self.token_ids) + len(drafts)
        counts, seen = self.output_counts, self.seen
        if drafts and self.counts_tokens:
            counts, seen = counts + Counter(drafts), seen | dict.fromkeys(drafts)
        return SampleRow(
            sampling=self.sampling,
            position=position,
            output_length=position - self.prompt_length,
            output_counts=counts,
            seen=tuple(seen),
            forbidden=forbidden,
        )


@dataclass(frozen=True)
class Run:
    """One sequence's share of a forward pass: tokens `start` to `stop`, and whether to sample after the last one; with `drafts` behind them, after each of these too."""

    sequence: HeldSequence
    start: int
    stop: int
    sample: bool
    drafts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Tokens that are run."""
        return self.stop - self.start + len(self.drafts)

    @property
    def token_ids(self) -> list[int]:
        """Which they are."""
        return [*self.sequence.token_ids[self.start : self.stop], *self.drafts]

    def right(self, tokens: Sequence[int]) -> Written:
        """What is written when `tokens` were sampled after `stop` and after each draft, -1 where that was not possible: up to the first that differs from its draft, or an end token."""
        count, ends = 0, self.sequence.sampling.end_ids
        for token, draft, after in zip(tokens, self.drafts, tokens[1:], strict=False):
            if token != draft or token in ends or after < 0:
                break
            count += 1
        return Written(tuple(tokens[: count + 1]), accepted=count)

    def prompt_targets(self) -> range:
        """Positions of the prompt tokens whose log probability this run reports.

        Logits at position p are about token p + 1, so a run reports tokens `start + 1` to `stop`; the very first one
        also reports token 0, which has no value. The runs of a prompt put together report each token once.
        """
        first = self.sequence.logprobs.prompt_start
        if first < 0:
            return range(0)
        begin = max(first, self.start + 1) if self.start else max(first, 0)
        return range(begin, min(self.stop + 1, self.sequence.prompt_length))

    def forced_targets(self) -> range:
        """Positions of the forced tokens whose log probability this run reports."""
        sequence = self.sequence
        if not sequence.logprobs.output:
            return range(0)
        return range(sequence.scored, min(self.stop + 1, len(sequence.token_ids)))


@dataclass(frozen=True)
class Plan:
    """A step, checked: what to run, and the sequences that failed the checks, each with why."""

    runs: list[Run]
    errors: dict[int, str]


class Batch:
    """All sequences of one scheduler epoch. `apply` takes steps in order; `finish` and `drop` record what came of them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.epoch = 0
        self.next_number = 0
        self.sequences: dict[int, HeldSequence] = {}

    def __repr__(self) -> str:
        return f"<Batch epoch={self.epoch} next={self.next_number} sequences={len(self.sequences)}>"

    def reset(self, epoch: int) -> None:
        """Forget everything and begin `epoch` at step 0."""
        self.epoch = epoch
        self.next_number = 0
        self.sequences.clear()

    def apply(self, step: Step) -> Plan:
        """End and start sequences, and check the work.

        Raises:
            StaleBatchError: nothing was changed.
        """
        if step.epoch != self.epoch or step.number != self.next_number:
            raise StaleBatchError(
                f"step {step.epoch}/{step.number}, expected {self.epoch}/{self.next_number}"
            )
        self.next_number += 1
        for seq in step.end:
            self.sequences.pop(seq, None)
        errors: dict[int, str] = {}
        for new in step.start:
            try:
                self._start(new)
            except BadSequenceError as error:
                self.sequences.pop(new.seq, None)
                errors[new.seq] = str(error)
        runs: list[Run] = []
        planned: set[int] = set()
        for work in step.work:
            if work.seq in errors:
                continue
            try:
                runs.append(self._check_work(work, planned))
                planned.add(work.seq)
            except BadSequenceError as error:
                self.drop(work.seq)
                errors[work.seq] = str(error)
        return Plan([run for run in runs if run.sequence.seq not in errors], errors)

    def finish(self, run: Run, written: Written | None) -> Written | None:
        """Record that `run` was computed and what is written after it; returns how much of it now, at most `JUMP` tokens behind the first."""
        sequence = run.sequence
        sequence.computed = run.stop + (0 if written is None else written.accepted)
        targets = run.forced_targets()
        if targets:
            sequence.scored = targets.stop
        if written is None:
            return None
        sequence.scored = len(sequence.token_ids) + 1 + written.accepted
        return sequence.write(written, JUMP if sequence.sampling.jump_forward else written.accepted)

    def room_for_drafts(self, run: Run) -> int:
        """How many drafts may be run behind it: the sequence may hold them and a token more, and its pages have a place for one more token.

        The sender of steps may be one step ahead, with one token in it and not knowing of drafts. Under a constraint there are none.
        """
        held = run.sequence
        if held.sampling.constraint is not None:
            return 0
        room = min(held.most, len(held.slots)) - run.stop - 1
        return max(0, min(held.drafts, room, self.limits.context - run.stop))

    def drop(self, seq: int) -> None:
        """Forget a sequence that failed."""
        self.sequences.pop(seq, None)

    def _start(self, new: NewSequence) -> None:
        length = len(new.token_ids)
        if new.seq in self.sequences:
            raise BadSequenceError(f"sequence {new.seq} is in the batch already")
        if not 1 <= new.prompt_length <= length:
            raise BadSequenceError(f"prompt length {new.prompt_length} of {length} tokens")
        if not 0 <= new.cached < length:
            raise BadSequenceError(
                f"{new.cached} of {length} tokens are cached: at least one has to be computed"
            )
        if new.cached and 0 <= new.logprobs.prompt_start <= new.cached:
            raise BadSequenceError(
                f"prompt log probabilities from token {new.logprobs.prompt_start} on need the logits before it, "
                f"but {new.cached} tokens are cached"
            )
        self._check_tokens("token", new.token_ids)
        self._check_tokens("token of the continuation", new.continuation)
        self._check_tokens("end token", new.sampling.end_ids)
        self._check_tokens("biased token", [token for token, _ in new.sampling.logit_bias])
        held = HeldSequence(
            new.seq, list(new.token_ids), new.prompt_length, new.cached, new.sampling, new.logprobs
        )
        held.most, held.drafts, held.continuation = new.most, min(new.drafts, JUMP), new.continuation
        held.scored = len(new.token_ids)
        self._extend(held, new.pages)
        if len(held.slots) < new.cached:
            raise BadSequenceError(f"{new.cached} cached tokens do not fit into {len(new.pages)} pages")
        held.note(new.token_ids, output=False)
        held.note(new.token_ids[new.prompt_length :], output=True)
        self.sequences[new.seq] = held

    def _check_work(self, work: Work, planned: set[int]) -> Run:
        held = self.sequences.get(work.seq)
        if held is None:
            raise BadSequenceError(f"sequence {work.seq} is not in the batch")
        if work.seq in planned:
            raise BadSequenceError(f"sequence {work.seq} has work twice in one step")
        self._extend(held, work.pages)
        stop = held.computed + work.count
        if work.count < 1 or stop > len(held.token_ids):
            raise BadSequenceError(
                f"{work.count} tokens to run, {len(held.token_ids) - held.computed} have no KV yet"
            )
        if stop > len(held.slots):
            raise BadSequenceError(f"{stop} tokens do not fit into pages for {len(held.slots)}")
        if stop > self.limits.context:
            raise BadSequenceError(f"{stop} tokens are over the context of {self.limits.context}")
        if work.sample and held.sampling.constraint is not None:
            stop = min(len(held.token_ids), len(held.slots))
            return Run(held, held.computed, stop, stop == len(held.token_ids))
        if work.sample and stop < len(held.token_ids):
            raise BadSequenceError(f"cannot sample: {len(held.token_ids) - stop} known tokens have no KV yet")
        return Run(held, held.computed, stop, work.sample)

    def _extend(self, held: HeldSequence, pages: Sequence[int]) -> None:
        if pages and not 0 <= min(pages) <= max(pages) < self.limits.pages:
            raise BadSequenceError(
                f"pages {min(pages)} to {max(pages)}, the pool has 0 to {self.limits.pages - 1}"
            )
        held.extend(pages, self.limits.page_size)

    def _check_tokens(self, what: str, tokens: Sequence[int]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.limits.vocabulary:
            wrong = min(tokens) if min(tokens) < 0 else max(tokens)
            raise BadSequenceError(f"{what} {wrong} is not in the vocabulary of {self.limits.vocabulary}")
