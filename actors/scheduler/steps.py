"""Steps of the worker: what goes into the next one, and what the last one took."""

from __future__ import annotations

import math

from sgl_actors.actors.scheduler.batch import Batch, SentStep
from sgl_actors.actors.scheduler.budget import ChunkBudget
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.news import News
from sgl_actors.actors.scheduler.overdue import Overdue
from sgl_actors.actors.scheduler.quarantine import Quarantine
from sgl_actors.actors.scheduler.settings import Settings
from sgl_actors.actors.worker.messages import SequenceResult, Step, StepDone


class Steps:
    """Sizes steps by how long they take.

    Attributes:
        budget: prompt tokens of a step.
        overdue: whether the answer to one is.
        seconds: that all steps took.
    """

    def __init__(self, settings: Settings, batch: Batch, quarantine: Quarantine, news: News) -> None:
        self.budget = ChunkBudget(settings.options.chunk, settings.options.stall)
        self.overdue = Overdue()
        self.seconds = 0.0
        self._settings = settings
        self._batch = batch
        self._quarantine = quarantine
        self._news = news

    def assemble(self, epoch: int) -> Step | None:
        """The next one, of all in the batch, or while some of them are on trial, of those alone."""
        on_trial = self._quarantine.on_trial
        alone = any(on_trial(generation) for generation in self._batch.running)
        chunk = self.budget.tokens(decoding=self._batch.decoding())
        jump = self.budget.tokens(decoding=self._batch.decoding(free=True))
        options = self._settings.options
        drafts = options.speculation_tokens if options.speculation else 0
        return self._batch.assemble(epoch, chunk, on_trial if alone else None, jump=jump, drafts=drafts)

    def settle(
        self, message: StepDone, vocabulary: int
    ) -> tuple[SentStep, list[tuple[Generation, SequenceResult]]] | None:
        """Enter the results of the oldest step in flight, see `Batch.settle`, and learn from the time it took."""
        settled = self._batch.settle(message, vocabulary)
        if settled is None:
            return None
        step, results = settled
        counters = self._news.counters
        counters["steps"] += 1
        counters["computed_tokens"] += step.prefill + step.decoding + step.accepted
        if results and 0 <= message.seconds < math.inf:
            self.seconds += message.seconds
            self.overdue.ran(message.seconds)
            self.budget.learn(message.seconds, decoding=step.decoding, prefill=step.prefill)
        return settled
