"""The sampler in torch, one row after the other, without bounds or shortcuts: what `sampler.sample` must give bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import uniform


def plain_sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """A token for every row, -1 without a distribution."""
    return [_token(one.clone(), row) for one, row in zip(logits, rows, strict=True)]


def plain_candidates(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, ascending, and weights that top_k, top_p and min_p leave of [vocabulary]."""
    weights = _weights(logits, sampling.temperature)
    kept = min(sampling.top_k, len(weights)) if sampling.top_k > 0 else len(weights)
    ids = weights.sort(descending=True, stable=True).indices[:kept]
    mass = weights[ids].cumsum(0)
    if sampling.top_p < 1:
        total = weights.cumsum(0)[-1] if kept == len(weights) else mass[-1]
        ids = ids[: int((mass < sampling.top_p * total).sum()) + 1]
    if sampling.min_p > 0:
        ids = ids[weights[ids] >= sampling.min_p]
    ids = ids.sort().values
    return ids, weights[ids]


def _token(logits: torch.Tensor, row: SampleRow) -> int:
    if row.forbidden is not None:
        logits[torch.from_numpy(row.forbidden)] = float("-inf")
    _adjust(logits, row)
    best, token = logits.max(dim=0)
    if not torch.isfinite(best):
        return -1
    if row.sampling.temperature <= 0:
        return int(token)
    ids, weights = torch.arange(len(logits)), _weights(logits, row.sampling.temperature)
    if row.sampling.top_k > 0 or row.sampling.top_p < 1 or row.sampling.min_p > 0:
        ids, weights = plain_candidates(logits, row.sampling)
    cumulative = weights.cumsum(0)
    total = cumulative[-1]
    draw = torch.tensor(uniform(row.sampling.seed, row.position), dtype=torch.float64)
    goal = torch.minimum(draw * total, torch.nextafter(total, torch.zeros_like(total)))
    return int(ids[torch.searchsorted(cumulative, goal, right=True)])


def _weights(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """exp((logit - greatest) / temperature), fp64."""
    wide = logits.double()
    return ((wide - wide.amax()) / temperature).exp()


def _adjust(logits: torch.Tensor, row: SampleRow) -> None:
    """Penalties, bias and the ban of end tokens, in place."""
    wanted = row.sampling
    if wanted.repetition_penalty != 1.0 and row.seen:
        ids = torch.tensor(row.seen)
        values = logits[ids]
        logits[ids] = torch.where(
            values > 0, values / wanted.repetition_penalty, values * wanted.repetition_penalty
        )
    if (wanted.frequency_penalty or wanted.presence_penalty) and row.output_counts:
        ids = torch.tensor(list(row.output_counts))
        counts = torch.tensor(list(row.output_counts.values()), dtype=torch.float32)
        logits[ids] -= wanted.frequency_penalty * counts + wanted.presence_penalty
    if wanted.logit_bias:
        ids = torch.tensor([token for token, _ in wanted.logit_bias])
        bias = torch.tensor([value for _, value in wanted.logit_bias], dtype=torch.float32)
        logits.index_add_(0, ids, bias)
    if row.bans_ends:
        logits[torch.tensor(wanted.end_ids)] = float("-inf")
