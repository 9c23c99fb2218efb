"""Guesses at what comes next in a sequence, without a model: what came the last time that its latest tokens stood like that.

Prompt lookup (Saxena 2023; in vLLM `ngram`), with an index: for each pair of neighbouring tokens, the place after its latest occurrence, and for each place
the one before with the same pair. A search looks at a few of these places and takes the one with the most equal tokens before it, so it costs
microseconds however long the sequence is; an appended token costs one entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST, LONGEST = 2, 8
"""Equal tokens that a guess needs, and more than which make it no better."""
PLACES = 8
"""Places that a search looks at, the latest first."""
TRUST = 4.0
"""Guesses in a sequence that weigh as much as what is known of the others."""


class Drafter:
    """The tokens of one sequence, and before them what followed its beginning another time.

    Nothing else is kept, so memory is bounded by the context and the continuation: some 200 bytes per token.
    """

    def __init__(self, tokens: Sequence[int], continuation: Sequence[int] = ()) -> None:
        """`continuation` followed `tokens` another time; it is found like any text that stands before."""
        before = [*tokens[-LONGEST:], *continuation] if continuation else []
        self._tokens = [*before, *tokens]
        pairs = _pairs(self._tokens)
        self._latest = dict(zip(pairs.tolist(), range(2, len(self._tokens)), strict=True))
        self._earlier = _earlier(pairs, len(self._tokens))
        self._place = self._matched = 0

    def __repr__(self) -> str:
        return f"<Drafter tokens={len(self._tokens)} pairs={len(self._latest)} matched={self._matched}>"

    def append(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these."""
        known = self._tokens
        for token in tokens:
            place = len(known)
            if place >= LEAST:
                pair = known[-2] << 32 | known[-1]
                self._earlier.append(self._latest.get(pair, 0))
                self._latest[pair] = place
            else:
                self._earlier.append(0)
            if self._matched and known[self._place] == token:
                self._place += 1
                self._matched += 1
            else:
                self._matched = 0
            known.append(token)

    def propose(self, count: int) -> tuple[list[int], int]:
        """`count` tokens that may come next, or none; and how many tokens (`LEAST` to `LONGEST`) before them are as they were."""
        if self._matched < LONGEST:
            self._search()
        if not self._matched or count < 1:
            return [], 0
        guess = self._tokens[self._place : self._place + count]
        guess *= -(-count // len(guess))  # what repeats itself goes on doing so
        return guess[:count], min(self._matched, LONGEST)

    def _search(self) -> None:
        """Find the place where most of the latest tokens stood before it."""
        tokens = self._tokens
        end = len(tokens)
        self._matched = 0
        place = self._latest.get(tokens[-2] << 32 | tokens[-1], 0) if end > LEAST else 0
        for _ in range(PLACES):
            if not place:
                return
            equal = LEAST
            while equal < min(place, LONGEST) and tokens[place - 1 - equal] == tokens[end - 1 - equal]:
                equal += 1
            if equal > self._matched:
                self._place, self._matched = place, equal
            if equal == LONGEST:
                return
            place = self._earlier[place]


class Acceptance:
    """How often guesses were right, by how many tokens before them were as they had been.

    Of all sequences, or of one: then what has not been seen in it is taken to be as in the others.
    """

    def __init__(self, memory: float, others: Acceptance | None = None) -> None:
        """Of `memory` guesses half are forgotten. With no `others`, a guess of which nothing is known is as likely right as not."""
        self._memory = memory
        self._others = others
        self._right = [0.0] * (LONGEST + 1)
        self._tried = [0.0] * (LONGEST + 1)

    def __repr__(self) -> str:
        return f"<Acceptance {[round(self.chance(matched), 2) for matched in range(LEAST, LONGEST + 1)]}>"

    def chance(self, matched: int) -> float:
        """That the next token is as guessed, when `matched` tokens before it are."""
        matched = min(matched, LONGEST)
        known = 0.5 if self._others is None else self._others.chance(matched)
        return (self._right[matched] + TRUST * known) / (self._tried[matched] + TRUST)

    def note(self, matched: int, *, right: bool) -> None:
        """A guess was right or not."""
        if self._others is not None:
            self._others.note(matched, right=right)
        matched = min(matched, LONGEST)
        self._right[matched] += right
        self._tried[matched] += 1
        if self._tried[matched] >= self._memory:
            self._right[matched] /= 2
            self._tried[matched] /= 2


def _pairs(tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each place that holds a token, from the third on: the two tokens before it, as one number."""
    ids = np.asarray(tokens, dtype=np.int64)
    return ids[:-2] << 32 | ids[1:-1]


def _earlier(pairs: np.ndarray[tuple[int], np.dtype[np.int64]], places: int) -> list[int]:
    """For each place the latest one before it with the same pair; 0 for none."""
    earlier = np.zeros(places, dtype=np.int64)
    order = np.argsort(pairs, kind="stable")
    same = np.flatnonzero(pairs[order[1:]] == pairs[order[:-1]])
    earlier[order[same + 1] + LEAST] = order[same] + LEAST
    return earlier.tolist()
