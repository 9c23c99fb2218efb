"""How far a model's distributions are from another's, position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.accuracy.passes import Subject

DECIDED = 0.1
"""Nats between the two most likely tokens, from which on a position counts as decided."""


@dataclass
class Agreement:
    """Sums over positions.

    Attributes:
        same: both have the same most likely token.
        decided, decided_same: positions where the reference's two most likely tokens are more than `DECIDED` apart.
        divergence: KL(reference || candidate), nats.
        known: positions whose next token is known; `reference_loss`, `candidate_loss`: its negative log probability, nats.
    """

    positions: int = 0
    same: int = 0
    decided: int = 0
    decided_same: int = 0
    divergence: float = 0.0
    known: int = 0
    reference_loss: float = 0.0
    candidate_loss: float = 0.0

    def add(self, reference: torch.Tensor, candidate: torch.Tensor, following: torch.Tensor) -> None:
        """Take in rows of logits [rows, vocabulary]; `following` are the tokens after the first of them."""
        reference, candidate = reference.log_softmax(dim=-1), candidate.log_softmax(dim=-1)
        top = reference.topk(2, dim=-1)
        decided = top.values[:, 0] - top.values[:, 1] > DECIDED
        same = candidate.argmax(dim=-1) == top.indices[:, 0]
        self.positions += len(same)
        self.same += int(same.sum())
        self.decided += int(decided.sum())
        self.decided_same += int((decided & same).sum())
        self.divergence += float((reference.exp() * (reference - candidate)).sum(dim=-1).double().sum())
        self.known += len(following)
        self.reference_loss -= _total(reference, following)
        self.candidate_loss -= _total(candidate, following)

    @property
    def top_1(self) -> float:
        """Share of positions with the same most likely token."""
        return self.same / max(1, self.positions)

    @property
    def top_1_decided(self) -> float:
        """The same where the reference is decided."""
        return self.decided_same / max(1, self.decided)

    @property
    def mean_divergence(self) -> float:
        """Nats per position."""
        return self.divergence / max(1, self.positions)

    @property
    def perplexity(self) -> float:
        """The reference's."""
        return math.exp(self.reference_loss / max(1, self.known))

    @property
    def perplexity_ratio(self) -> float:
        """The candidate's over the reference's."""
        return math.exp((self.candidate_loss - self.reference_loss) / max(1, self.known))


def compare(reference: Subject, candidate: Subject, texts: Sequence[Sequence[int]]) -> Agreement:
    """Run token sequences through both, as many in a pass as their pools hold, and compare the logits of every position."""
    found = Agreement()
    for batch in _batches(texts, min(reference.room, candidate.room)):
        hidden = []
        for subject in (reference, candidate):
            subject.forget()
            hidden.append(subject.run([subject.piece(text) for text in batch]))
        for text, theirs, ours in zip(batch, *hidden, strict=True):
            at = 1
            for one, other in zip(reference.logits(theirs), candidate.logits(ours), strict=True):
                found.add(one, other, torch.tensor(text[at : at + len(one)], dtype=torch.int64))
                at += len(one)
    return found


def _batches(texts: Sequence[Sequence[int]], room: int) -> list[list[Sequence[int]]]:
    """In order, each within `room` tokens."""
    batches: list[list[Sequence[int]]] = []
    left = 0
    for text in texts:
        if not batches or len(text) > left:
            batches.append([])
            left = room
        batches[-1].append(text)
        left -= len(text)
    return batches


def _total(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> float:
    rows = log_probabilities[: len(tokens)]
    return float(rows.gather(1, tokens[:, None]).double().sum())


__all__ = ["DECIDED", "Agreement", "compare"]
