"""`sampler.sample` for logits on a GPU: the same tokens, chosen there. Only they come back, in one transfer; a row of logits is half a megabyte.

Penalties, bias and bans are applied with torch, a few entries per row; the rest is one Triton kernel. Not run on hardware.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.kernels.triton.sampling import Settings
from sgl_actors.kernels.triton.sampling import sample as choose


def sample_on_gpu(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """See `sgl_actors.actors.worker.sampler.sample`.

    Args:
        logits: [rows, vocabulary] fp32 on a GPU; not changed.
        rows: one per row of logits.
    """
    if not rows:
        return []
    changed = [index for index, row in enumerate(rows) if not row.is_plain]
    if changed:
        logits = logits.clone()
    for index in changed:
        _adjust(logits[index], rows[index])
    tokens: list[int] = choose(
        logits, _settings(rows, logits.device), forbidden=_forbidden(logits, rows)
    ).tolist()
    return tokens


def _settings(rows: Sequence[SampleRow], device: torch.device) -> Settings:
    wanted = [row.sampling for row in rows]

    def column(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    seeds = torch.tensor([one.seed & (1 << 64) - 1 for one in wanted], dtype=torch.uint64)
    return Settings(
        column([one.temperature for one in wanted], torch.float64),
        column([one.top_k for one in wanted], torch.int32),
        column([one.top_p for one in wanted], torch.float64),
        column([one.min_p for one in wanted], torch.float64),
        seeds.view(torch.int64).to(device, non_blocking=True),
        column([row.position for row in rows], torch.int64),
    )


def _forbidden(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor | None:
    """[rows, vocabulary] of what constraints leave out; None if there are none."""
    if all(row.forbidden is None for row in rows):
        return None
    forbidden = np.zeros(logits.shape, np.bool_)
    for index, row in enumerate(rows):
        if row.forbidden is not None:
            forbidden[index] = row.forbidden
    return torch.from_numpy(forbidden).to(logits.device, non_blocking=True)


def _adjust(logits: torch.Tensor, row: SampleRow) -> None:
    """Apply penalties, bias and the ban of end tokens to one row [vocabulary], in place."""
    wanted, device = row.sampling, logits.device
    if wanted.repetition_penalty != 1.0 and row.seen:
        ids = torch.tensor(row.seen, device=device)
        values, penalty = logits[ids], wanted.repetition_penalty
        logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
    if (wanted.frequency_penalty or wanted.presence_penalty) and row.output_counts:
        ids = torch.tensor(list(row.output_counts), device=device)
        counts = torch.tensor(list(row.output_counts.values()), dtype=torch.float32, device=device)
        logits[ids] -= wanted.frequency_penalty * counts + wanted.presence_penalty
    if wanted.logit_bias:
        ids = torch.tensor([token for token, _ in wanted.logit_bias], device=device)
        bias = torch.tensor([value for _, value in wanted.logit_bias], dtype=torch.float32, device=device)
        logits.index_add_(0, ids, bias)
    if row.bans_ends:
        logits[torch.tensor(wanted.end_ids, device=device)] = float("-inf")
