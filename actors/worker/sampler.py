"""Logits -> tokens. A token is a pure function of its row of logits, the sequence's `Sampling`, its history, and (seed, position).

Order of what is applied: repetition penalty, frequency and presence penalty, logit bias, what a constraint forbids or else the ban of end tokens before
`min_tokens`; then temperature, top_k, top_p (over what top_k left), min_p. The draw is one uniform number, a hash of (seed, position), looked up in
the cumulative distribution in the order of token ids, in fp64 (docs/design/0004). Rows never influence each other.

Rows are gone through one by one, as a row in fp64 just fits into a core's cache; and with numpy, whose operations start ten times as fast as torch's. Filters
look at the few tokens that can pass, found by a bound on their logits, wherever the others' weights are not needed. torch's `exp` and `cumsum` alone
make weights and sums: their last bits are part of what a seed gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

_MASK = (1 << 64) - 1
_CHUNK = 256
"""Logits that share a maximum where a bound on the greatest is looked for."""
_SHARES = 256
"""top_p first looks at tokens of more than this part of the mass it leaves out."""
_SLACK = 1e-6
"""Relative: how much lower than exact a bound on logits is set."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), by two rounds of splitmix64 (Steele et al., OOPSLA 2014) over seed and position."""
    return (_splitmix(_splitmix(seed & _MASK) ^ (position & _MASK)) >> 11) * 2.0**-53


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


Sampler = Callable[[torch.Tensor, Sequence[SampleRow]], list[int]]
"""`sample`, or what does the same on another device."""


def sampler_for(device: torch.device) -> Sampler:
    """What samples where the logits are: on a GPU one kernel, so that they need not come to the host."""
    if device.type != "cuda":
        return sample
    from sgl_actors.actors.worker.gpu_sampler import sample_on_gpu

    return sample_on_gpu


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """Choose a token for every row.

    Args:
        logits: [rows, vocabulary] fp32; not changed. From another device they are fetched.
        rows: one per row of logits.

    Returns:
        Token ids; -1 for a row that has no distribution (it holds NaN or +inf, or nothing but -inf).
    """
    values: Floats = logits.cpu().numpy()
    scratch = _Scratch(values.shape[-1])
    return [_choose(values[index], row, scratch) for index, row in enumerate(rows)]


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
    values: Floats = logits.cpu().numpy()
    ids, weights = _filter(values, float(values.max()), sampling, _Scratch(len(values)))
    return torch.from_numpy(ids), torch.from_numpy(weights)


class _Scratch:
    """Two rows of fp64, used for one row of logits after another."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._rows: torch.Tensor | None = None

    def weigh(self, values: Floats, best: float, temperature: float) -> torch.Tensor:
        """exp((logit - best) / temperature) of a whole row; valid until the next call."""
        weights = self._row(0)
        weights.copy_(torch.from_numpy(values)).sub_(best).div_(temperature)
        return weights.exp_()

    def accumulate(self, weights: torch.Tensor) -> torch.Tensor:
        """Running sums of what `weigh` gave; valid until the next call."""
        return torch.cumsum(weights, 0, out=self._row(1))

    def _row(self, index: int) -> torch.Tensor:
        if self._rows is None:
            self._rows = torch.empty(2, self._vocabulary, dtype=torch.float64)
        return self._rows[index]


def _choose(values: Floats, row: SampleRow, scratch: _Scratch) -> int:
    values = _adjusted(values, row)
    token = int(values.argmax())
    best, wanted = float(values[token]), row.sampling
    if not math.isfinite(best):
        return -1
    if wanted.temperature <= 0:
        return token
    if wanted.top_k > 0 or wanted.top_p < 1 or wanted.min_p > 0:
        ids, weights = _filter(values, best, wanted, scratch)
        return int(ids[_look_up(_running(weights), row)])
    weights_of_all = scratch.weigh(values, best, wanted.temperature)
    return _look_up(scratch.accumulate(weights_of_all).numpy(), row)


def _look_up(cumulative: Doubles, row: SampleRow) -> int:
    """Invert unnormalised cumulative sums at the row's uniform number.

    A candidate of no weight is never chosen: it adds nothing to the sum, and the search is for the first sum above the goal.
    """
    total = float(cumulative[-1])
    goal = min(uniform(row.sampling.seed, row.position) * total, math.nextafter(total, 0.0))
    return int(cumulative.searchsorted(goal, side="right"))


def _filter(values: Floats, best: float, sampling: Sampling, scratch: _Scratch) -> tuple[Ids, Doubles]:
    """`candidates`; `best` is the greatest logit."""
    if 0 < sampling.top_k < len(values):
        ids, weights = _largest(values, best, sampling, scratch)
        if sampling.top_p < 1:
            falling, mass = _fall(weights)
            ids, weights = _heaviest(ids, weights, _count(mass, sampling.top_p * float(mass[-1])), falling)
    elif sampling.top_p < 1:
        ids, weights = _nucleus(values, best, sampling, scratch)
    else:
        ids = _from(values, _least(best, sampling))
        weights = _weigh(values[ids], best, sampling.temperature)
    if sampling.min_p > 0:
        likely = weights >= sampling.min_p
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _largest(values: Floats, best: float, sampling: Sampling, scratch: _Scratch) -> tuple[Ids, Doubles]:
    """The `top_k` heaviest, fewer than all."""
    bound = _bound(values, sampling.top_k)
    ids = _from(values, bound)
    weights = _weigh(values[ids], best, sampling.temperature)
    falling = -np.sort(-weights)
    below = np.nextafter(values.dtype.type(bound), np.float32(-np.inf))[None]
    if not _weigh(below, best, sampling.temperature)[0] < falling[sampling.top_k - 1]:
        ids = np.arange(len(values))  # of equal weight, though not of equal logit
        weights = scratch.weigh(values, best, sampling.temperature).numpy()
        falling = -np.sort(-weights)
    return _heaviest(ids, weights, sampling.top_k, falling)


def _nucleus(values: Floats, best: float, sampling: Sampling, scratch: _Scratch) -> tuple[Ids, Doubles]:
    """The heaviest that have `top_p` of all mass."""
    whole = scratch.weigh(values, best, sampling.temperature)
    total = float(scratch.accumulate(whole)[-1])
    every, goal = whole.numpy(), sampling.top_p * total
    left_out = (1 - sampling.top_p) * total
    for least in (
        left_out / _SHARES,
        left_out / len(values),
        0.0,
    ):  # the second holds enough, but for rounding
        ids = np.flatnonzero(every >= least)
        weights = every[ids]
        falling, mass = _fall(weights)
        if len(mass) and mass[-1] >= goal:
            break
    return _heaviest(ids, weights, _count(mass, goal), falling)


def _fall(weights: Doubles) -> tuple[Doubles, Doubles]:
    """Weights from the heaviest down, and their running sums."""
    falling = -np.sort(-weights)
    return falling, _running(falling)


def _count(mass: Doubles, goal: float) -> int:
    """How many it takes until the running sum reaches the goal; all, if it never does."""
    return min(int(mass.searchsorted(goal)) + 1, len(mass))


def _heaviest(ids: Ids, weights: Doubles, count: int, falling: Doubles) -> tuple[Ids, Doubles]:
    """The `count` heaviest, in the order of ids, which ascend; of equal ones the first. `falling`: the weights sorted."""
    least = falling[count - 1]
    kept = weights > least
    ties = np.flatnonzero(weights == least)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return ids[kept], weights[kept]


def _least(best: float, sampling: Sampling) -> float:
    """A logit that all whose weight reaches min_p reach."""
    if sampling.min_p <= 0:
        return -math.inf
    bound = best + sampling.temperature * (math.log(sampling.min_p) - _SLACK)
    return bound - _SLACK * abs(bound)


def _bound(values: Floats, count: int) -> float:
    """A logit that at least `count` of a row reach, and few more: the least of as many maxima of chunks, or the `count`-th itself."""
    whole = len(values) // _CHUNK
    if count > whole:
        return float(np.partition(values, -count)[-count])
    maxima = torch.from_numpy(values[: whole * _CHUNK].reshape(whole, _CHUNK)).amax(1).numpy()
    return float(np.partition(maxima, -count)[-count])


def _from(values: Floats, bound: float) -> Ids:
    """Ids of the logits that are `bound` or more."""
    return np.flatnonzero(values >= np.float32(bound))


def _weigh(values: Floats, best: float, temperature: float) -> Doubles:
    """exp((logit - best) / temperature), fp64."""
    wide = values.astype(np.float64)
    wide -= best
    wide /= temperature
    weights: Doubles = torch.from_numpy(wide).exp_().numpy()
    return weights


def _running(weights: Doubles) -> Doubles:
    sums: Doubles = torch.from_numpy(weights).cumsum(0).numpy()
    return sums


def _adjusted(values: Floats, row: SampleRow) -> Floats:
    """A row with penalties, bias, and -inf for what a constraint or the ban of end tokens excludes: a copy, unless there is nothing to do."""
    if row.is_plain and row.forbidden is None:
        return values
    values, wanted = values.copy(), row.sampling
    if wanted.repetition_penalty != 1.0 and row.seen:
        ids = np.fromiter(row.seen, np.int64, len(row.seen))
        old, penalty = values[ids], np.float32(wanted.repetition_penalty)
        values[ids] = np.where(old > 0, old / penalty, old * penalty)
    if (wanted.frequency_penalty or wanted.presence_penalty) and row.output_counts:
        size = len(row.output_counts)
        ids = np.fromiter(row.output_counts.keys(), np.int64, size)
        counts = np.fromiter(row.output_counts.values(), np.float32, size)
        values[ids] -= np.float32(wanted.frequency_penalty) * counts + np.float32(wanted.presence_penalty)
    if wanted.logit_bias:
        tokens, bias = zip(*wanted.logit_bias, strict=True)
        np.add.at(values, np.array(tokens), np.array(bias, np.float32))
    if row.bans_ends:
        values[np.array(wanted.end_ids)] = -np.inf
    if row.forbidden is not None:
        np.copyto(values, np.float32(-np.inf), where=row.forbidden)
    return values
