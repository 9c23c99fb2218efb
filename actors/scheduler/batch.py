"""The running batch: which sequences the worker holds, and the steps on their way to it and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.worker.messages import NewSequence, SequenceResult, Step, StepDone, Work


@dataclass(frozen=True, slots=True)
class SentStep:
    """A step in flight: what it runs, how many of its tokens are prompt or forced, how many sequences generate in it, and how many right drafts it had."""

    number: int
    work: list[tuple[Generation, Work]]
    prefill: int
    decoding: int
    accepted: int = 0


class Batch:
    """Assembles steps and settles their results, in order.

    Nothing here waits for a result before the next step can be assembled: a generation counts what is `planned` and
    `pending` apart from what is `computed`. How many steps may be in flight is the caller's choice; with one, this is
    the plain loop.
    """

    def __init__(self) -> None:
        self.running: list[Generation] = []
        self.in_flight: deque[SentStep] = deque()
        self._ends: list[int] = []
        self._number = 0

    def __repr__(self) -> str:
        return f"<Batch running={len(self.running)} in_flight={len(self.in_flight)} next={self._number}>"

    def admit(self, generation: Generation) -> None:
        """Let it take part from the next step on."""
        self.running.append(generation)

    def leave(self, generation: Generation) -> None:
        """Plan no more for it; the worker forgets it with the next step, if it has not done so by itself."""
        self.running.remove(generation)
        if generation.entered:
            self._ends.append(generation.number)

    @property
    def named(self) -> list[Generation]:
        """Those that steps in flight name, each once; some may have ended meanwhile."""
        return list(dict.fromkeys(generation for step in self.in_flight for generation, _ in step.work))

    def clear(self) -> list[Generation]:
        """Forget all that was sent and begin at step 0; those that were running, in order of admission."""
        running, self.running = self.running, []
        self.in_flight.clear()
        self._ends = []
        self._number = 0
        return running

    @property
    def number(self) -> int:
        """Of the next step."""
        return self._number

    @property
    def ends(self) -> list[int]:
        """Sequences that the worker is to forget with it."""
        return list(self._ends)

    def resume(self, number: int, ends: list[int]) -> None:
        """Go on where another batch was left, empty: with that step, and with what the worker has to forget then."""
        self._number, self._ends = number, list(ends)

    def probe(self, epoch: int) -> Step:
        """A step without work. Steps run in order: its answer comes behind those of all before it, or says which of them was lost."""
        step = Step(epoch, self._number, self._ends, [], [])
        self.in_flight.append(SentStep(self._number, [], 0, 0))
        self._ends = []
        self._number += 1
        return step

    def backlog(self) -> int:
        """Prompt tokens that have been admitted and are in no step yet, but for those of the prompt that was admitted first."""
        left = [one.target - one.planned for one in self.running if one.prefilling]
        return sum(left[1:])

    def decoding(self, *, free: bool = False) -> bool:
        """Whether somebody has its prompt behind it; with `free`, somebody without a constraint."""
        return any(
            not one.prefilling and not (free and one.spec.sampling.constraint is not None)
            for one in self.running
        )

    def assemble(
        self,
        epoch: int,
        chunk: int,
        may_run: Callable[[Generation], bool] | None = None,
        *,
        jump: int = 0,
        drafts: int = 0,
    ) -> Step | None:
        """The next step: every sequence that decodes, with up to `jump` forced tokens of all of them, and up to `chunk` prompt tokens (`divide`).

        Those that are new to the worker may have up to `drafts` tokens guessed at once, from now on. With `may_run` the others stay in the batch without work.
        """
        start: list[NewSequence] = []
        shares: list[tuple[Generation, Work]] = []
        running = [one for one in self.running if may_run is None or may_run(one)]
        budgets = divide([one for one in running if one.prefilling], chunk)
        for generation in running:
            work = generation.next_work(budgets.get(generation, 0), jump)
            if work is None:
                continue
            if generation not in budgets:
                jump -= work.count - 1
            if not generation.entered:
                start.append(generation.enter(drafts))
            generation.sent(work)
            shares.append((generation, work))
        if not shares:
            return None
        step = Step(epoch, self._number, self._ends, start, [work for _, work in shares])
        decoding = sum(generation not in budgets for generation, _ in shares)
        prefill = sum(work.count for _, work in shares) - decoding
        self.in_flight.append(SentStep(self._number, shares, prefill, decoding))
        self._ends = []
        self._number += 1
        return step

    def settle(
        self, message: StepDone, vocabulary: int
    ) -> tuple[SentStep, list[tuple[Generation, SequenceResult]]] | None:
        """Enter the results of the oldest step in flight; that step, with the forced tokens that it ran unasked, and them; None if the message is not about it.

        A result that cannot be is an error of its sequence.
        """
        if not self.in_flight or self.in_flight[0].number != message.number:
            return None
        step = self.in_flight.popleft()
        by_sequence = {result.seq: result for result in message.results}
        settled: list[tuple[Generation, SequenceResult]] = []
        unheard = accepted = 0
        for generation, work in step.work:
            result = by_sequence.get(work.seq) or SequenceResult(
                work.seq, error="the worker reported no result"
            )
            silent = work.sample and result.token_id < 0 and not result.error
            if silent and generation.spec.sampling.constraint is None:
                result = SequenceResult(work.seq, error="the worker sampled no token")
            elif not (result.error or generation.allows(work, result, vocabulary)):
                result = SequenceResult(work.seq, error="the worker's result makes no sense")
            generation.done(work, result)
            settled.append((generation, result))
            unheard += max(0, result.ran - work.count - len(result.accepted))
            accepted += len(result.accepted)
        return replace(step, prefill=step.prefill + unheard, accepted=accepted), settled


def divide(prefilling: list[Generation], budget: int) -> dict[Generation, int]:
    """Prompt tokens of the next step for each, first admitted first in `prefilling`.

    The first has half of the budget for itself, the shortest have the rest: a long prompt goes on at half its pace at
    least, and those with little to compute, for most of their prompt was cached, do not wait for it.
    """
    if not prefilling:
        return {}
    left = {generation: generation.target - generation.planned for generation in prefilling}
    first = prefilling[0]
    shares = dict.fromkeys(prefilling, 0)
    shares[first] = min(left[first], max(1, budget // 2))
    for generation in [*sorted(prefilling[1:], key=left.__getitem__), first]:
        shares[generation] += min(left[generation] - shares[generation], budget - sum(shares.values()))
    return shares
