"""What the sampler has to know of a sequence, besides its logits. Plain data, so that the batch's core needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sgl_actors.actors.worker.messages import Sampling

Forbidden = np.ndarray[Any, np.dtype[np.bool_]]
"""For every token id whether it must not come next."""


@dataclass(frozen=True)
class SampleRow:
    """One row to sample.

    Attributes:
        position: index that the new token will have in its sequence.
        output_length: how many tokens of the sequence are output already.
        output_counts: occurrences of each token among the output; only read where a penalty asks for it.
        seen: distinct tokens of prompt and output; only read for the repetition penalty.
        forbidden: what a constraint leaves out, `min_tokens` being heeded as far as it can be; None without one.
    """

    sampling: Sampling
    position: int
    output_length: int = 0
    output_counts: Mapping[int, int] = field(default_factory=dict)
    seen: Sequence[int] = ()
    forbidden: Forbidden | None = None

    @property
    def is_plain(self) -> bool:
        """Whether logits are sampled as they are, without a penalty, bias or ban; what a constraint forbids apart."""
        wanted = self.sampling
        return not (
            wanted.repetition_penalty != 1.0
            or wanted.frequency_penalty
            or wanted.presence_penalty
            or wanted.logit_bias
            or self.bans_ends
        )

    @property
    def bans_ends(self) -> bool:
        """Whether it is too early for an end token; a constraint's row has that settled."""
        early = self.output_length < self.sampling.min_tokens
        return early and bool(self.sampling.end_ids) and self.forbidden is None
