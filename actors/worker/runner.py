"""A model, its KV pool and its batch in one process: `Step` in, `StepDone` out. Synchronous; knows of no actor.

One bad sequence never fails the others: what a step asks of it is checked before anything runs, a row of logits without a
distribution (NaN) ends that row alone, and so do a grammar that cannot go on and KV that is not finite: it would spoil whoever finds it in the cache. If the
forward pass itself raises, it is run again in halves until the culprit is alone. Running again is safe, as a pass writes the same keys and values to the same slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch

from sgl_actors.actors.worker.batch import Batch, Limits, Run, Written
from sgl_actors.actors.worker.grammars import Grammars, Next
from sgl_actors.actors.worker.log_probabilities import log_probabilities
from sgl_actors.actors.worker.messages import Profiled, SequenceResult, Step, StepDone, TokenLogprob
from sgl_actors.actors.worker.model.causal_lm import HEAD_ROWS, ForwardBatch
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.model.language_model import LanguageModel
from sgl_actors.actors.worker.profile import REST, Profiler
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import sampler_for
from sgl_actors.actors.worker.speculation import Speculation
from sgl_actors.errors import SglActorsError
from sgl_actors.kernels.attention import AttentionRow

NOT_FINITE = "the model's hidden state is not finite: the KV of these tokens is of no use"
NO_DISTRIBUTION = "the model's logits are not finite: no token can be sampled"


@dataclass
class Counters:
    """What a runner did since it was made; `tokens` were run through the model, `prefill_tokens` of them were prompt and `drafted` drafts, `accepted` of these right."""

    steps: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    sampled: int = 0
    drafted: int = 0
    accepted: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass
class _Outcome:
    """What came of one run."""

    written: Written | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    forced: list[TokenLogprob] = field(default_factory=list)
    prompt: list[TokenLogprob] = field(default_factory=list)
    error: str = ""
    code: str = ""

    def fail(self, error: SglActorsError) -> None:
        """End the run with `error`."""
        self.error, self.code = error.message, error.code


class ModelRunner:
    """Executes steps in order on one device; one thread at a time may use it.

    Attributes:
        grammars: has to be given a compiler before a step with a constrained sequence.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: KvPool,
        *,
        context: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.pool = pool
        self.batch = Batch(Limits(model.config.vocabulary, context, pool.pages, pool.page_size))
        self.grammars = Grammars(model.config.vocabulary)
        self.speculation = Speculation(self.batch)
        self.counters = Counters()
        self.profiler = Profiler()
        self._clock = clock
        self._ended = 0.0
        self._device = model.device
        self._choose = sampler_for(model.device)

    def begin_profile(self, *, slices: bool) -> None:
        """Note from here on where time goes; `Overloaded` if that is being done already. In the thread of the steps."""
        self.model = self.profiler.start(self.model, slices=slices)

    def end_profile(self, threads: int) -> Profiled:
        """What was noted since `begin_profile`."""
        token_bytes = self.model.config.kv_bytes(self.pool.data.itemsize)
        profiled, self.model = self.profiler.finish(threads, token_bytes)
        return profiled

    def reset(self, epoch: int) -> None:
        """Forget all sequences and begin `epoch`."""
        self.batch.reset(epoch)

    def execute(self, step: Step) -> StepDone:
        """Run one step.

        Raises:
            StaleBatchError: the step is not the next one of this batch's epoch; nothing was done.
        """
        watch = self.profiler.stopwatch
        taken = watch.mark()
        plan = self.batch.apply(step)
        for new in step.start:
            if (held := self.batch.sequences.get(new.seq)) is not None:
                self.grammars.hold(held)
        started = self._clock()
        watch.lap("batch")
        runs = self.speculation.draft(plan.runs)
        watch.lap("draft")
        with torch.inference_mode():
            outcomes = self._run_all(runs)
        ended = self._clock()
        seconds = ended - started
        self.speculation.passed(seconds, started - self._ended)
        self._ended = ended
        results = {seq: SequenceResult(seq, error=error) for seq, error in plan.errors.items()}
        for run, outcome in zip(runs, outcomes, strict=True):
            results[run.sequence.seq] = self._record(run, outcome)
        self._count(runs, seconds)
        self.counters.failed += sum(bool(result.error) for result in results.values())
        order = dict.fromkeys([work.seq for work in step.work] + list(plan.errors))
        watch.lap("batch")
        self.profiler.step(step, runs, taken)
        return StepDone(step.epoch, step.number, [results[seq] for seq in order], seconds)

    def _run_all(self, runs: list[Run]) -> list[_Outcome]:
        """Outcomes in order; falls back to halves if a pass raises."""
        if not runs:
            return []
        try:
            return self._run_pass(runs)
        except Exception as error:  # noqa: BLE001 - whatever one sequence does to the pass, the others are to run
            if len(runs) == 1:
                return [_Outcome(error=f"{type(error).__name__}: {error}")]
        middle = len(runs) // 2
        return self._run_all(runs[:middle]) + self._run_all(runs[middle:])

    def _run_pass(self, runs: list[Run]) -> list[_Outcome]:
        watch = self.profiler.stopwatch
        filling = self.grammars.fill([run.sequence for run in runs if run.sample])
        batch = self._assemble(runs)
        watch.lap("batch")
        hidden = self.model.forward(batch, self.pool)
        watch.lap(REST)
        starts = np.cumsum([0] + [run.count for run in runs])
        outcomes = [_Outcome() for _ in runs]
        for run, outcome, start in zip(runs, outcomes, starts.tolist(), strict=False):
            outcome.prompt = self._score_known(run, run.prompt_targets(), hidden, start)
            outcome.forced = self._score_known(run, run.forced_targets(), hidden, start)
        lasts = starts[:-1] + [run.stop - run.start - 1 for run in runs]
        self._check_finite(self._rows_of(hidden, lasts), outcomes)
        watch.lap("scoring")
        allowed = self._check_grammars(runs, outcomes, filling.result())
        watch.lap("grammar")
        sampled = [index for index in range(len(runs)) if self._needs_logits(runs[index], outcomes[index])]
        for part in _in_parts(sampled, runs):
            rows = np.concatenate([np.arange(lasts[index], starts[index + 1]) for index in part])
            of_part = [runs[index] for index in part], [outcomes[index] for index in part]
            self._sample(*of_part, self._rows_of(hidden, rows), allowed)
        return outcomes

    def _rows_of(self, hidden: torch.Tensor, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        """Those rows, ascending: all of them as they are, where every sequence decodes."""
        return hidden if len(rows) == len(hidden) else hidden[self._tensor(rows)]

    @staticmethod
    def _needs_logits(run: Run, outcome: _Outcome) -> bool:
        """Whether there is a token to choose, or one to score."""
        wanted = outcome.written is None or run.sequence.logprobs.output
        return run.sample and not outcome.error and wanted

    @staticmethod
    def _check_finite(last: torch.Tensor, outcomes: list[_Outcome]) -> None:
        """Fail runs whose last row before drafts (`last`: [runs, hidden]) is not finite, which its sum shows. It attends to all tokens before, so it shows theirs.

        A draft's row that is not finite has no distribution, so that the draft is not accepted.
        """
        if bool(torch.isfinite(last.sum())):
            return
        for outcome, finite in zip(outcomes, torch.isfinite(last).all(dim=1).tolist(), strict=True):
            if not finite:
                outcome.error = NOT_FINITE

    @staticmethod
    def _check_grammars(
        runs: list[Run], outcomes: list[_Outcome], filled: dict[int, Next | SglActorsError]
    ) -> dict[int, Next]:
        """Fail runs whose grammar cannot go on, and enter what is written without a choice; what may come in the others, by sequence number."""
        allowed: dict[int, Next] = {}
        for run, outcome in zip(runs, outcomes, strict=True):
            found = filled.get(run.sequence.seq)
            if isinstance(found, SglActorsError):
                if not outcome.error:
                    outcome.fail(found)
            elif found is not None and found.forbidden is not None:
                allowed[run.sequence.seq] = found
            elif found is not None:
                outcome.written = found.written
        return allowed

    def _sample(
        self,
        runs: list[Run],
        outcomes: list[_Outcome],
        hidden: torch.Tensor,
        allowed: dict[int, Next],
    ) -> None:
        watch = self.profiler.stopwatch
        logits = self.model.logits(hidden)
        self.profiler.head(len(hidden))
        watch.lap(REST)
        firsts = [0, *accumulate(1 + len(run.drafts) for run in runs)]
        left = [index for index, outcome in enumerate(outcomes) if outcome.written is None]
        tries = 0
        while left:
            places = [place for index in left for place in range(firsts[index], firsts[index + 1])]
            rows = [row for index in left for row in self._rows(runs[index], allowed)]
            tokens = iter(self._choose(logits if len(places) == len(logits) else logits[places], rows))
            watch.lap("sampling")
            left = [
                index
                for index in left
                if not self._settle(
                    runs[index],
                    outcomes[index],
                    list(islice(tokens, 1 + len(runs[index].drafts))),
                    allowed,
                    tries,
                )
            ]
            tries += 1
            watch.lap("grammar")
        self._score_output(runs, outcomes, logits, firsts)
        watch.lap("scoring")

    @staticmethod
    def _rows(run: Run, allowed: dict[int, Next]) -> list[SampleRow]:
        """One after what is known, and one after each draft."""
        found = allowed.get(run.sequence.seq)
        first = run.sequence.sample_row(None if found is None else found.forbidden)
        drafts = run.drafts
        return [first, *(run.sequence.sample_row(drafts=drafts[:end]) for end in range(1, len(drafts) + 1))]

    def _settle(
        self, run: Run, outcome: _Outcome, tokens: list[int], allowed: dict[int, Next], tries: int
    ) -> bool:
        """Take up sampled tokens, one for each row; False if another has to be chosen, of what is `allowed` now."""
        sequence, token = run.sequence, tokens[0]
        if token < 0:
            outcome.error = NO_DISTRIBUTION
        elif sequence.seq not in allowed:
            outcome.written = run.right(tokens)
        else:
            try:
                settled = self.grammars.settle(sequence, token, allowed[sequence.seq], tries)
            except SglActorsError as error:
                outcome.fail(error)
                return True
            if not isinstance(settled, Written):
                allowed[sequence.seq] = settled
                return False
            outcome.written = settled
        return True

    @staticmethod
    def _score_output(
        runs: list[Run], outcomes: list[_Outcome], logits: torch.Tensor, firsts: list[int]
    ) -> None:
        """Log probabilities of the first token that is written in each, and of the others that were sampled, where they are asked for; ``firsts[i]`` is the first row of run i."""
        rows: list[int] = []
        tokens: list[int] = []
        wanted: list[tuple[_Outcome, int]] = []
        for run, outcome, first in zip(runs, outcomes, firsts, strict=False):
            if run.sequence.logprobs.output and outcome.written is not None:
                sampled = outcome.written.tokens[: 1 + outcome.written.accepted]
                tokens += sampled
                rows += range(first, first + len(sampled))
                wanted += [(outcome, run.sequence.logprobs.top)] * len(sampled)
        if wanted:
            entries = log_probabilities(logits[rows], tokens, [top for _, top in wanted])
            for (outcome, _), entry in zip(wanted, entries, strict=True):
                outcome.logprobs.append(entry)

    def _score_known(self, run: Run, targets: range, hidden: torch.Tensor, start: int) -> list[TokenLogprob]:
        """Log probabilities of tokens that are known, of the prompt or forced; the rows of this run begin at `start`."""
        tokens, entries = run.sequence.token_ids, []
        if targets and targets[0] == 0:
            entries.append(TokenLogprob(tokens[0], None))
            targets = targets[1:]
        if not targets:
            return entries
        first = start + targets[0] - 1 - run.start
        at = targets[0]
        for logits in self.model.logits_in_parts(hidden[first : first + len(targets)]):
            self.profiler.head(len(logits))
            chosen = tokens[at : at + len(logits)]
            entries += log_probabilities(logits, chosen, [run.sequence.logprobs.top] * len(chosen))
            at += len(logits)
        return entries

    def _assemble(self, runs: list[Run]) -> ForwardBatch:
        tokens: list[int] = []
        for run in runs:
            tokens += run.token_ids
        ends = [run.start + run.count for run in runs]
        positions = np.concatenate(
            [np.arange(run.start, end, dtype=np.int64) for run, end in zip(runs, ends, strict=True)]
        )
        slots = np.concatenate(
            [run.sequence.slots[run.start : end] for run, end in zip(runs, ends, strict=True)]
        )
        rows = [
            AttentionRow(torch.from_numpy(run.sequence.slots[:end]), run.count, run.sequence.contiguous)
            for run, end in zip(runs, ends, strict=True)
        ]
        token_ids = np.asarray(tokens, dtype=np.int64)
        return ForwardBatch(self._tensor(token_ids), self._tensor(positions), self._tensor(slots), rows)

    def _record(self, run: Run, outcome: _Outcome) -> SequenceResult:
        """Take an outcome into the batch and word it."""
        seq = run.sequence.seq
        if outcome.error:
            self.batch.drop(seq)
            return SequenceResult(seq, error=outcome.error, code=outcome.code)
        written = self.batch.finish(run, outcome.written if run.sample else None) or Written(())
        self.speculation.sampled(run, written.tokens)
        self.counters.drafted += len(run.drafts)
        self.counters.accepted += written.accepted
        constrained = run.sequence.sampling.constraint is not None
        return SequenceResult(
            seq,
            written.tokens[0] if written.tokens else -1,
            written.tokens[1:] if constrained else (),
            written.held_back,
            written.chosen,
            () if constrained else written.tokens[1:],
            len(run.drafts),
            run.stop - run.start + written.accepted,
            logprob=outcome.logprobs[0] if outcome.logprobs else None,
            accepted_logprobs=tuple(outcome.logprobs[1:]),
            forced_logprobs=tuple(outcome.forced),
            prompt_logprobs=tuple(outcome.prompt),
        )

    def _count(self, runs: list[Run], seconds: float) -> None:
        counters = self.counters
        counters.steps += 1
        counters.seconds += seconds
        counters.tokens += sum(run.count for run in runs)
        counters.prefill_tokens += sum(
            max(0, min(run.stop, run.sequence.prompt_length) - run.start) for run in runs
        )
        counters.sampled += sum(run.sample for run in runs)

    def _tensor(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def _in_parts(indices: list[int], runs: list[Run]) -> list[list[int]]:
    """Those runs one part after the other, each with at most `HEAD_ROWS` rows to sample; a run has at most `JUMP` drafts, so it fits."""
    parts: list[list[int]] = []
    rows = HEAD_ROWS
    for index in indices:
        own = 1 + len(runs[index].drafts)
        if rows + own > HEAD_ROWS:
            parts.append([])
            rows = 0
        parts[-1].append(index)
        rows += own
    return parts
