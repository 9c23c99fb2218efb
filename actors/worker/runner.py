"""A model, its KV pool and its batch in one process: `Step` in, `StepDone` out. Synchronous; knows of no actor.

One bad sequence never fails the others: what a step asks of it is checked before anything runs, a row of logits without a
distribution (NaN) ends that row alone, and so do a grammar that cannot go on and KV that is not finite: it would spoil whoever finds it in the cache. If the
forward pass itself raises, it is run again in halves until the culprit is alone. Running again is safe, as a pass writes the same keys and values to the same slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sgl_actors.actors.worker.batch import Batch, HeldSequence, Limits, Run, Written
from sgl_actors.actors.worker.grammars import Grammars, Next
from sgl_actors.actors.worker.log_probabilities import log_probabilities
from sgl_actors.actors.worker.messages import SequenceResult, Step, StepDone, TokenLogprob
from sgl_actors.actors.worker.model.causal_lm import HEAD_ROWS, CausalLM, ForwardBatch
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import sample
from sgl_actors.errors import SglActorsError
from sgl_actors.kernels.attention import AttentionRow

NOT_FINITE = "the model's hidden state is not finite: the KV of these tokens is of no use"
NO_DISTRIBUTION = "the model's logits are not finite: no token can be sampled"


@dataclass
class Counters:
    """What a runner did since it was made; `tokens` were run through the model, `prefill_tokens` of them were prompt."""

    steps: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    sampled: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass
class _Outcome:
    """What came of one run."""

    written: Written | None = None
    logprob: TokenLogprob | None = None
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
        self, model: CausalLM, pool: KvPool, *, context: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.model = model
        self.pool = pool
        self.batch = Batch(Limits(model.config.vocabulary, context, pool.pages, pool.page_size))
        self.grammars = Grammars(model.config.vocabulary)
        self.counters = Counters()
        self._clock = clock
        self._device = model.weights.embedding.device

    def reset(self, epoch: int) -> None:
        """Forget all sequences and begin `epoch`."""
        self.batch.reset(epoch)

    def execute(self, step: Step) -> StepDone:
        """Run one step.

        Raises:
            StaleBatchError: the step is not the next one of this batch's epoch; nothing was done.
        """
        plan = self.batch.apply(step)
        for new in step.start:
            if (held := self.batch.sequences.get(new.seq)) is not None:
                self.grammars.hold(held)
        started = self._clock()
        with torch.inference_mode():
            outcomes = self._run_all(plan.runs)
        seconds = self._clock() - started
        results = {seq: SequenceResult(seq, error=error) for seq, error in plan.errors.items()}
        for run, outcome in zip(plan.runs, outcomes, strict=True):
            results[run.sequence.seq] = self._record(run, outcome)
        self._count(plan.runs, seconds)
        self.counters.failed += sum(bool(result.error) for result in results.values())
        order = dict.fromkeys([work.seq for work in step.work] + list(plan.errors))
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
        filling = self.grammars.fill([run.sequence for run in runs if run.sample])
        hidden = self.model.forward(self._assemble(runs), self.pool)
        ends = np.cumsum([run.stop - run.start for run in runs])
        outcomes = [_Outcome() for _ in runs]
        for run, outcome, end in zip(runs, outcomes, ends.tolist(), strict=True):
            own = hidden[end - (run.stop - run.start) : end]
            outcome.prompt = self._score_known(run, run.prompt_targets(), own)
            outcome.forced = self._score_known(run, run.forced_targets(), own)
        self._check_finite(hidden[torch.from_numpy(ends - 1).to(self._device)], outcomes)
        allowed = self._check_grammars(runs, outcomes, filling.result())
        sampled = [index for index in range(len(runs)) if self._needs_logits(runs[index], outcomes[index])]
        for begin in range(0, len(sampled), HEAD_ROWS):
            part = sampled[begin : begin + HEAD_ROWS]
            rows = torch.from_numpy(ends[part] - 1).to(self._device)
            of_part = [runs[index] for index in part], [outcomes[index] for index in part]
            self._sample(*of_part, hidden[rows], allowed)
        return outcomes

    @staticmethod
    def _needs_logits(run: Run, outcome: _Outcome) -> bool:
        """Whether there is a token to choose, or one to score."""
        wanted = outcome.written is None or run.sequence.logprobs.output
        return run.sample and not outcome.error and wanted

    @staticmethod
    def _check_finite(last: torch.Tensor, outcomes: list[_Outcome]) -> None:
        """Fail runs whose last row (`last`: [runs, hidden]) is not finite. It attends to all tokens before, so it shows theirs."""
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
        logits = self.model.logits(hidden)
        left = [index for index, outcome in enumerate(outcomes) if outcome.written is None]
        tries = 0
        while left:
            rows = [self._row(runs[index].sequence, allowed) for index in left]
            tokens = sample(logits if len(left) == len(logits) else logits[left], rows)
            left = [
                index
                for index, token in zip(left, tokens, strict=True)
                if not self._settle(runs[index].sequence, outcomes[index], token, allowed, tries)
            ]
            tries += 1
        self._score_output(runs, outcomes, logits)

    @staticmethod
    def _row(sequence: HeldSequence, allowed: dict[int, Next]) -> SampleRow:
        found = allowed.get(sequence.seq)
        return sequence.sample_row(None if found is None else found.forbidden)

    def _settle(
        self,
        sequence: HeldSequence,
        outcome: _Outcome,
        token: int,
        allowed: dict[int, Next],
        tries: int,
    ) -> bool:
        """Take up a sampled token; False if another has to be chosen, of what is `allowed` now."""
        if token < 0:
            outcome.error = NO_DISTRIBUTION
        elif sequence.seq not in allowed:
            outcome.written = Written((token,))
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
    def _score_output(runs: list[Run], outcomes: list[_Outcome], logits: torch.Tensor) -> None:
        """Log probabilities of the first token that is written in each, where they are asked for."""
        wanted: list[int] = []
        tokens: list[int] = []
        for index, (run, outcome) in enumerate(zip(runs, outcomes, strict=True)):
            if run.sequence.logprobs.output and outcome.written is not None:
                wanted.append(index)
                tokens.append(outcome.written.tokens[0])
        if wanted:
            tops = [runs[index].sequence.logprobs.top for index in wanted]
            entries = log_probabilities(logits[wanted], tokens, tops)
            for index, entry in zip(wanted, entries, strict=True):
                outcomes[index].logprob = entry

    def _score_known(self, run: Run, targets: range, hidden: torch.Tensor) -> list[TokenLogprob]:
        """Log probabilities of tokens that are known, of the prompt or forced; `hidden` are the rows of this run alone."""
        tokens, entries = run.sequence.token_ids, []
        if targets and targets[0] == 0:
            entries.append(TokenLogprob(tokens[0], None))
            targets = targets[1:]
        if not targets:
            return entries
        first = targets[0] - 1 - run.start
        at = targets[0]
        for logits in self.model.logits_in_parts(hidden[first : first + len(targets)]):
            chosen = tokens[at : at + len(logits)]
            entries += log_probabilities(logits, chosen, [run.sequence.logprobs.top] * len(chosen))
            at += len(logits)
        return entries

    def _assemble(self, runs: list[Run]) -> ForwardBatch:
        tokens: list[int] = []
        for run in runs:
            tokens += run.sequence.token_ids[run.start : run.stop]
        positions = np.concatenate([np.arange(run.start, run.stop, dtype=np.int64) for run in runs])
        slots = np.concatenate([run.sequence.slots[run.start : run.stop] for run in runs])
        rows = [
            AttentionRow(
                self._tensor(run.sequence.slots[: run.stop]), run.stop - run.start, run.sequence.contiguous
            )
            for run in runs
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
        return SequenceResult(
            seq,
            written.tokens[0] if written.tokens else -1,
            written.tokens[1:],
            written.held_back,
            written.chosen,
            run.stop - run.start,
            logprob=outcome.logprob,
            forced_logprobs=tuple(outcome.forced),
            prompt_logprobs=tuple(outcome.prompt),
        )

    def _count(self, runs: list[Run], seconds: float) -> None:
        counters = self.counters
        counters.steps += 1
        counters.seconds += seconds
        counters.tokens += sum(run.stop - run.start for run in runs)
        counters.prefill_tokens += sum(
            max(0, min(run.stop, run.sequence.prompt_length) - run.start) for run in runs
        )
        counters.sampled += sum(run.sample for run in runs)

    def _tensor(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)
