"""How many drafts a pass runs: as many as bring the most tokens per second, none where they do not pay.

Two things are measured and nothing is presumed. *Acceptance*: every sampled token is compared with what had been guessed, whether the guess was run or not,
so the chance of a draft is known without a trial; it depends on how many tokens before it are as they were (`drafts`), and on the sequence.
*Cost*: seconds of a pass by its tokens. A number of tokens that was never run counts as it lies between others, so the
first passes with drafts are tries; one that turned out dear is believed for a long time and then slowly forgotten, so that it is tried again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sgl_actors.actors.worker.batch import Batch, HeldSequence, Run
from sgl_actors.actors.worker.drafts import Acceptance, Drafter

GAIN = 1.1
"""Expected tokens per second over those without drafts, from which on drafts are run: less may be noise."""
FAINT = 0.1
"""A draft with less chance is not considered."""
MIXED = 32
"""Tokens that are run without sampling behind them (of prompts), above which a pass has no drafts and teaches nothing."""
MOST_TOKENS = 512
"""Tokens of a pass up to which its cost is learnt."""
LATELY, EVER = 32.0, 256.0
"""Guesses after which half of them are forgotten: in one sequence, in all."""
NEWEST, SHIFT = 0.2, 0.2
"""Weight of the newest measurement for its own number of tokens, and for all of them: contexts grow, machines get busy."""
OUTLIER = 0.5
"""A measurement counts as at most that share off what was expected."""
DOUBT = 0.5
"""Share off what a pass cost more than smaller ones when it was measured once; a quarter of that if twice, a ninth, and so on: it may have been a bad moment."""
FORGET = 1 / 1024
"""Share of what more tokens cost that is forgotten with each pass that ran less."""


GRID = sorted({*range(1, 11), *(round(10 * 1.15**n) for n in range(1, 29))})
"""Numbers of tokens whose cost is kept apart; the last is about `MOST_TOKENS`."""


class PassCost:
    """Seconds of a pass by its number of tokens, at the numbers of `GRID`; between them as on a line."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._times: dict[int, int] = {}
        self._table = np.zeros(0)

    def __repr__(self) -> str:
        known = ", ".join(f"{GRID[at]}: {self._seconds[at] * 1e3:.1f} ms" for at in sorted(self._seconds))
        return f"<PassCost {known}>"

    def expect(self, tokens: int, more: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of `tokens` tokens, one more, and so on, to `more` more or what may be tried: twice as many as were ever run. Empty if nothing is known.

        Above what was measured it is as on a line through the least and the most; it is never less for more tokens.
        """
        return self._table[tokens : tokens + more + 1]

    def learn(self, tokens: int, seconds: float) -> None:
        """A pass of that many tokens, at most `MOST_TOKENS`, took that long."""
        at = min(bisect_left(GRID, tokens), len(GRID) - 1)
        if tokens < len(self._table):
            seconds *= self._table[GRID[at]] / self._table[tokens] if GRID[at] < len(self._table) else 1.0
        if at in self._seconds:
            self._adjust(at, seconds)
        else:
            self._seconds[at] = seconds
        self._times[at] = self._times.get(at, 0) + 1
        least = self._seconds[at]
        for other, known in self._seconds.items():
            if other > at and known > least:
                self._seconds[other] -= FORGET * (known - least)
        self._tabulate()

    def _adjust(self, at: int, seconds: float) -> None:
        """Another measurement of what is known: all is taken to have changed with it a little."""
        known = self._seconds[at]
        off = max(-OUTLIER, min(OUTLIER, seconds / known - 1))
        for other in self._seconds:
            self._seconds[other] *= 1 + SHIFT * off
        self._seconds[at] += NEWEST * off * known

    def _tabulate(self) -> None:
        known = sorted(self._seconds)
        tokens = [GRID[at] for at in known]
        seconds = np.minimum.accumulate([self._seconds[at] for at in known][::-1])[::-1]
        for place in range(1, len(known)):
            doubt = DOUBT / self._times[known[place]] ** 2
            seconds[place] -= doubt * (seconds[place] - seconds[place - 1])
        most = min(MOST_TOKENS, 2 * tokens[-1] + 2)
        self._table = np.interp(np.arange(most + 1), tokens, seconds)
        rise = (seconds[-1] - seconds[0]) / max(1, tokens[-1] - tokens[0])
        self._table[tokens[-1] :] += rise * np.arange(most + 1 - tokens[-1])


@dataclass(frozen=True)
class Guess:
    """What may come next in one sequence, and how many tokens before that are as they were."""

    tokens: list[int]
    matched: int


class Speculation:
    """Chooses the drafts of each pass and learns from it: `draft`, the pass, then `sampled` for each run and `passed`."""

    def __init__(self, batch: Batch) -> None:
        self.acceptance = Acceptance(EVER)
        self.cost = PassCost()
        self.gap = 0.0
        self._batch = batch
        self._guesses: dict[int, Guess] = {}
        self._rows = self._tokens = self._prompt = 0

    def __repr__(self) -> str:
        return f"<Speculation {self.acceptance!r} {self.cost!r} gap={self.gap * 1e3:.1f} ms>"

    def draft(self, runs: list[Run]) -> list[Run]:
        """The runs, some of them with drafts."""
        self._rows = sum(run.sample for run in runs)
        self._tokens = sum(run.stop - run.start for run in runs)
        self._prompt = self._tokens - self._rows
        self._guesses = {}
        for run in runs:
            if run.sample and (guess := self._guess(run)) is not None:
                self._guesses[run.sequence.seq] = guess
        counts = self._choose(runs) if self._guesses and self._teaches else Counter[int]()
        self._tokens += counts.total()
        return [self._with_drafts(run, counts[run.sequence.seq]) for run in runs] if counts else runs

    def sampled(self, run: Run, tokens: Sequence[int]) -> None:
        """These tokens came of that run."""
        guess, acceptance = self._guesses.get(run.sequence.seq), run.sequence.acceptance
        if guess is None or acceptance is None:
            return
        for place, (guessed, token) in enumerate(zip(guess.tokens, tokens, strict=False)):
            acceptance.note(guess.matched + place, right=guessed == token)
            if guessed != token:
                break

    def passed(self, seconds: float, gap: float) -> None:
        """The pass took that long; so much time had gone by since the one before."""
        if not self._teaches:
            return
        if 0 <= gap < seconds:  # else there was nothing to do
            self.gap += NEWEST * (gap - self.gap)
        self.cost.learn(self._tokens, seconds)

    @property
    def _teaches(self) -> bool:
        """Whether the pass is one of those that generate, with few tokens of prompts beside."""
        return self._rows > 0 and self._prompt <= MIXED and self._tokens <= MOST_TOKENS

    def _guess(self, run: Run) -> Guess | None:
        """What may come after it, as far as there is room and up to an end token; None without an idea."""
        held, room = run.sequence, self._batch.room_for_drafts(run)
        if room < 1:
            return None
        if held.drafter is None:
            held.drafter = Drafter(held.token_ids, held.continuation)
            held.acceptance = Acceptance(LATELY, self.acceptance)
        tokens, matched = held.drafter.propose(room)
        end = next((place for place, token in enumerate(tokens) if token in held.sampling.end_ids), room)
        return Guess(tokens[:end], matched) if tokens[:end] else None

    def _with_drafts(self, run: Run, count: int) -> Run:
        return replace(run, drafts=tuple(self._guesses[run.sequence.seq].tokens[:count])) if count else run

    def _choose(self, runs: list[Run]) -> Counter[int]:
        """How many drafts to run of each sequence: the likeliest of all, as many as make the most tokens per second."""
        drafts = sorted((-chance, run.sequence.seq) for run in runs for chance in self._chances(run.sequence))
        seconds = self.cost.expect(self._tokens, len(drafts)) + self.gap
        if len(seconds) < 2:
            return Counter()
        tokens = self._rows - np.cumsum([0.0, *(chance for chance, _ in drafts)])[: len(seconds)]
        rates = tokens / seconds
        best = int(rates.argmax())
        return Counter(seq for _, seq in drafts[:best]) if rates[best] >= GAIN * rates[0] else Counter()

    def _chances(self, held: HeldSequence) -> list[float]:
        """Of each draft, that it and those before it are right."""
        guess, chances, chance = self._guesses.get(held.seq), list[float](), 1.0
        if guess is None or held.acceptance is None:
            return chances
        for matched in range(guess.matched, guess.matched + len(guess.tokens)):
            chance *= held.acceptance.chance(matched)
            if chance < FAINT:
                break
            chances.append(chance)
        return chances
