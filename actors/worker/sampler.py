"""Logits -> tokens. A token is a pure function of its row of logits, the sequence's `Sampling`, its history, and (seed, position).

Order of what is applied: repetition penalty, frequency and presence penalty, logit bias, what a constraint forbids or else the ban of end tokens before
`min_tokens`; then temperature, top_k, top_p (over what top_k left), min_p. The draw is one uniform number, a hash of (seed, position), looked up in
the cumulative distribution in the order of token ids, in fp64 (docs/design/0004). Rows never influence each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow

_MASK = (1 << 64) - 1
_FIRST_CANDIDATES = 256
"""Most likely tokens looked at first for top_p alone; sixteen times as many until they hold the mass."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), by two rounds of splitmix64 (Steele et al., OOPSLA 2014) over seed and position."""
    return (_splitmix(_splitmix(seed & _MASK) ^ (position & _MASK)) >> 11) * 2.0**-53


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """Choose a token for every row.

    Args:
        logits: [rows, vocabulary] fp32; not changed.
        rows: one per row of logits.

    Returns:
        Token ids; -1 for a row that has no distribution (it holds NaN or +inf, or nothing but -inf).
    """
    changed = [index for index, row in enumerate(rows) if not row.is_plain]
    if any(row.forbidden is not None for row in rows):
        logits = _without_forbidden(logits, rows)
    elif changed:
        logits = logits.clone()
    for index in changed:
        _adjust(logits[index], rows[index])
    best, tokens_of_best = logits.max(dim=-1)
    usable = torch.isfinite(best).tolist()
    tokens: list[int] = tokens_of_best.tolist()
    drawn = [index for index, row in enumerate(rows) if usable[index] and row.sampling.temperature > 0]
    whole = [index for index in drawn if not _is_filtered(rows[index].sampling)]
    if whole:
        for index, token in zip(
            whole, _draw_whole(logits[whole], [rows[index] for index in whole]), strict=True
        ):
            tokens[index] = token
    for index in drawn:
        if _is_filtered(rows[index].sampling):
            tokens[index] = _draw_filtered(logits[index], rows[index])
    return [token if good else -1 for token, good in zip(tokens, usable, strict=True)]


def candidates(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """What top_k, top_p and min_p leave of one row, after temperature.

    Ties are settled in favour of lower ids: candidates are taken in the order (logit descending, id ascending). top_p keeps the
    shortest run of them whose mass reaches top_p; the token that crosses it is kept, so one always is.

    Args:
        logits: [vocabulary], its greatest finite.
        sampling: its temperature is over 0.

    Returns:
        Token ids, ascending, int64; and their weights, fp64, 1 for the most likely, not normalised.
    """
    weights = _weights(logits[None], [sampling.temperature])[0]
    vocabulary = len(weights)
    kept = min(sampling.top_k, vocabulary) if sampling.top_k > 0 else vocabulary
    wanted = kept if kept < vocabulary else min(_FIRST_CANDIDATES, vocabulary)
    total = weights.cumsum(0)[-1] if kept == vocabulary else None
    while True:
        ids = _largest(weights, wanted)
        mass = weights[ids].cumsum(0)
        goal = sampling.top_p * (mass[-1] if total is None else total)
        if sampling.top_p >= 1 and wanted < kept:
            wanted = kept
        elif wanted < kept and mass[-1] < goal:
            wanted = min(wanted * 16, kept)
        else:
            break
    if sampling.top_p < 1:
        ids = ids[: int((mass < goal).sum()) + 1]
    if sampling.min_p > 0:
        ids = ids[weights[ids] >= sampling.min_p]
    ids = ids.sort().values
    return ids, weights[ids]


def _largest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of the `count` largest, in the order (weight descending, id ascending)."""
    if count >= len(weights):
        return weights.sort(descending=True, stable=True).indices
    least = weights.topk(count).values[-1]
    ids = (weights >= least).nonzero()[:, 0]
    order = weights[ids].sort(descending=True, stable=True).indices
    return ids[order[:count]]


def _is_filtered(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _weights(logits: torch.Tensor, temperatures: list[float]) -> torch.Tensor:
    """exp((logit - greatest) / temperature), fp64."""
    wide = logits.double()
    scale = torch.tensor(temperatures, dtype=torch.float64, device=logits.device)[:, None]
    return (wide - wide.amax(dim=-1, keepdim=True)).div_(scale).exp_()


def _draw_whole(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    """Draw from the whole vocabulary, all rows at once."""
    cumulative = _weights(logits, [row.sampling.temperature for row in rows]).cumsum(dim=-1)
    return _look_up(cumulative, rows)


def _draw_filtered(logits: torch.Tensor, row: SampleRow) -> int:
    ids, weights = candidates(logits, row.sampling)
    return int(ids[_look_up(weights.cumsum(0)[None], [row])[0]])


def _look_up(cumulative: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    """Invert unnormalised cumulative sums [rows, candidates] at each row's uniform number.

    A candidate of no weight is never chosen: it adds nothing to the sum, and the search is for the first sum above the goal.
    """
    draws = torch.tensor(
        [uniform(row.sampling.seed, row.position) for row in rows],
        dtype=torch.float64,
        device=cumulative.device,
    )
    total = cumulative[:, -1]
    goals = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    found: list[int] = torch.searchsorted(cumulative, goals[:, None], right=True)[:, 0].tolist()
    return found


def _without_forbidden(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """A copy of the logits, -inf for what each row's constraint forbids: no penalty or bias changes that any more."""
    forbidden = np.zeros(logits.shape, np.bool_)
    for index, row in enumerate(rows):
        if row.forbidden is not None:
            forbidden[index] = row.forbidden
    return logits.masked_fill(torch.from_numpy(forbidden).to(logits.device), float("-inf"))


def _adjust(logits: torch.Tensor, row: SampleRow) -> None:
    """Apply penalties, bias and the ban of end tokens to one row [vocabulary], in place."""
    wanted, device = row.sampling, logits.device
    if wanted.repetition_penalty != 1.0 and row.seen:
        ids = torch.tensor(row.seen, device=device)
        values = logits[ids]
        logits[ids] = torch.where(
            values > 0, values / wanted.repetition_penalty, values * wanted.repetition_penalty
        )
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
