"""Batches through a model that a worker would run: pieces of text behind prefixes that they share in the KV pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sgl_actors.actors.worker.model.causal_lm import ForwardBatch
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.model.language_model import LanguageModel
from sgl_actors.kernels.attention import AttentionRow


@dataclass(frozen=True)
class Piece:
    """Tokens and where a sequence's keys and values go.

    Attributes:
        tokens: the new ones.
        slots: of the whole sequence, the new tokens' the last; those before have been run, or stand earlier in the same pass.
    """

    tokens: list[int]
    slots: torch.Tensor


class Subject:
    """A model that is measured, and its pool.

    Attributes:
        room: slots of the pool.
    """

    def __init__(self, name: str, model: LanguageModel, pool: KvPool) -> None:
        self.name = name
        self.model = model
        self.room = pool.pages * pool.page_size
        self._pool = pool
        self._used = 0

    def forget(self) -> None:
        """Begin anew at the pool's first slot."""
        self._used = 0

    def piece(self, tokens: Sequence[int], behind: Piece | None = None) -> Piece:
        """New tokens after those of `behind`.

        Raises:
            ValueError: the pool is full.
        """
        start, self._used = self._used, self._used + len(tokens)
        if self._used > self.room:
            raise ValueError(f"{self._used} tokens, but the pool holds {self.room}")
        slots = torch.arange(start, self._used)
        return Piece(list(tokens), slots if behind is None else torch.cat([behind.slots, slots]))

    def run(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """One pass over pieces that have tokens; [tokens, hidden] of each, before the final norm."""
        counts = [len(piece.tokens) for piece in pieces]
        batch = ForwardBatch(
            torch.tensor([token for piece in pieces for token in piece.tokens]),
            torch.cat(
                [
                    torch.arange(len(piece.slots) - count, len(piece.slots))
                    for piece, count in zip(pieces, counts, strict=True)
                ]
            ),
            torch.cat([piece.slots[-count:] for piece, count in zip(pieces, counts, strict=True)]),
            [AttentionRow(piece.slots, count) for piece, count in zip(pieces, counts, strict=True)],
        )
        return list(self.model.forward(batch, self._pool).split(counts))

    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Of rows of `run`, a bounded number at a time."""
        return self.model.logits_in_parts(hidden)


__all__ = ["Piece", "Subject"]
