"""Logits to tokens on a GPU, without the host: a pure function of (logits, mask, settings, seed, position) of each row.

The semantics are those of the worker's sampler (docs/design/0004), to the token: weights exp((logit - greatest) / temperature) in
fp64; top_k, then top_p over what it left, then min_p; ties settled for lower ids; one uniform number, splitmix64 over seed and
position, looked up in the cumulative weights in the order of ids.

One program has one row, whose logits stay in the L2 cache. Nothing is sorted: the logit that top_k and top_p cut at is found by bisection
over an integer that is ordered as the logits are, a pass over the row per bit (a radix select with digits of one bit). Greedy and
unfiltered rows skip that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime

BLOCK = 2048
NO_TOKEN = tl.constexpr(-1)


@dataclass(frozen=True)
class Settings:
    """How each row is sampled; one-dimensional tensors on the logits' device, [rows] each.

    Attributes:
        temperature: fp64; 0 is greedy.
        top_k: int32; 0 or less for all.
        top_p: fp64 in [0, 1].
        min_p: fp64 in [0, 1].
        seed: int64, the bits of an unsigned number.
        position: int64, index that the new token will have.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor


def sample(
    logits: torch.Tensor,
    settings: Settings,
    *,
    forbidden: torch.Tensor | None = None,
    allowed_bits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose a token for every row.

    Args:
        logits: [rows, vocabulary] fp32, rows contiguous; not changed.
        settings: one entry per row.
        forbidden: [rows, vocabulary] bool, what a grammar leaves out.
        allowed_bits: the same as bits, [rows, ceil(vocabulary / 32)] int32: bit i % 32 of word i // 32 says that token i may come.

    Returns:
        [rows] int64; -1 for a row without a distribution (NaN or +inf among what is allowed, or nothing but -inf).

    Raises:
        ValueError: shapes or dtypes that do not fit, or both kinds of mask.
    """
    rows, vocabulary = logits.shape
    mask, kind = _check_mask(logits, forbidden, allowed_bits)
    if logits.dtype != torch.float32 or logits.stride(1) != 1:
        raise ValueError(
            f"sample: logits are {logits.dtype} with strides {logits.stride()}, expected fp32 rows, contiguous"
        )
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if not rows:
        return out
    weights = torch.empty((rows, vocabulary), dtype=torch.float64, device=logits.device)
    _sample_kernel[(rows,)](
        logits,
        mask,
        weights,
        settings.temperature,
        settings.top_k,
        settings.top_p,
        settings.min_p,
        settings.seed,
        settings.position,
        out,
        vocabulary,
        logits.stride(0),
        mask.stride(0),
        MASK=kind,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return out


def _check_mask(
    logits: torch.Tensor, forbidden: torch.Tensor | None, allowed_bits: torch.Tensor | None
) -> tuple[torch.Tensor, int]:
    """The mask and its kind: 0 none, 1 bools, 2 bits."""
    rows, vocabulary = logits.shape
    if forbidden is not None and allowed_bits is not None:
        raise ValueError("sample: both forbidden and allowed_bits are given, expected one of them")
    if forbidden is not None:
        if forbidden.shape != logits.shape or forbidden.dtype != torch.bool or forbidden.stride(1) != 1:
            raise ValueError(
                f"sample: forbidden is {list(forbidden.shape)} {forbidden.dtype}, expected bools like the logits"
            )
        return forbidden.view(torch.uint8), 1
    if allowed_bits is not None:
        if allowed_bits.shape != (rows, -(-vocabulary // 32)) or allowed_bits.dtype != torch.int32:
            raise ValueError(
                f"sample: allowed_bits is {list(allowed_bits.shape)} {allowed_bits.dtype}, "
                f"expected {[rows, -(-vocabulary // 32)]} int32"
            )
        return allowed_bits.contiguous(), 2
    return logits, 0


@triton.jit
def _splitmix(state: tl.tensor) -> tl.tensor:
    """One round of splitmix64 (Steele et al., OOPSLA 2014) on uint64."""
    state = state + 0x9E3779B97F4A7C15
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit
def _read_logits(
    logits_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    column: tl.tensor,
    vocabulary: int,
    MASK: tl.constexpr,
) -> tl.tensor:
    """Logits of those columns, -inf where a grammar forbids one or there is none."""
    here = column < vocabulary
    logit = tl.load(logits_ptr + column, mask=here, other=float("-inf"))
    if MASK == 1:
        logit = tl.where(tl.load(mask_ptr + column, mask=here, other=1) != 0, float("-inf"), logit)
    elif MASK == 2:
        word = tl.load(mask_ptr + column // 32, mask=here, other=0)
        logit = tl.where(((word >> (column % 32)) & 1) == 0, float("-inf"), logit)
    return logit


@triton.jit
def _order(logit: tl.tensor) -> tl.tensor:
    """int64 in the range of an int32 that is ordered as the logits are; both zeros are one."""
    bits = tl.where(logit == 0.0, 0, logit.to(tl.int32, bitcast=True))
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _sum_from(
    logits_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    least: tl.tensor,
    vocabulary: int,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many columns have an order of at least `least`, and the sum of their weights."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = column < vocabulary
        order = _order(_read_logits(logits_ptr, mask_ptr, column, vocabulary, MASK))
        is_in = here & (order >= least)
        count += is_in.to(tl.int32)
        mass += tl.load(weights_ptr + column, mask=is_in, other=0.0)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def _sample_kernel(
    logits_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    position_ptr: tl.tensor,
    out_ptr: tl.tensor,
    vocabulary: int,
    logits_stride: int,
    mask_stride: int,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program chooses one row's token; `weights` is scratch memory, [rows, vocabulary] fp64."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    mask_ptr += row * mask_stride
    weights_ptr += row * vocabulary
    temperature = tl.load(temperature_ptr + row)

    # The greatest logit, its lowest id, the least one that is not -inf, and whether anything is NaN.
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_at = tl.zeros([BLOCK], tl.int32)
    bad = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logit = _read_logits(logits_ptr, mask_ptr, column, vocabulary, MASK)
        bad |= (logit != logit).to(tl.int32)  # noqa: PLR0124 - NaN alone is unlike itself
        best_at = tl.where(logit > best, column, best_at)
        best = tl.where(logit > best, logit, best)
    greatest = tl.max(best)
    token = tl.min(tl.where(best == greatest, best_at, vocabulary))
    usable = (tl.sum(bad) == 0) & (greatest > float("-inf")) & (greatest < float("inf"))

    if usable & (temperature > 0):
        sharpness = 1.0 / temperature
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        min_p = tl.load(min_p_ptr + row)
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, vocabulary, BLOCK):
            column = start + tl.arange(0, BLOCK)
            here = column < vocabulary
            logit = _read_logits(logits_ptr, mask_ptr, column, vocabulary, MASK)
            weight = tl.exp((logit.to(tl.float64) - greatest.to(tl.float64)) * sharpness)
            tl.store(weights_ptr + column, weight, mask=here)
            total += tl.where(here, weight, 0.0)
        mass = tl.sum(total)
        tl.debug_barrier()

        # Kept: all with an order above `cut`, and the first `ties` of those at it. So far that is everything.
        highest = _order(greatest)
        lowest = tl.full([], -(2**31), tl.int64)
        cut = lowest
        ties = vocabulary
        if (top_k > 0) & (top_k < vocabulary):
            low = lowest
            high = highest
            while low < high:  # the greatest order that at least top_k columns have
                middle = low + (high - low + 1) // 2
                count, _ = _sum_from(logits_ptr, mask_ptr, weights_ptr, middle, vocabulary, MASK, BLOCK)
                if count >= top_k:
                    low = middle
                else:
                    high = middle - 1
            cut = low
            count, mass = _sum_from(logits_ptr, mask_ptr, weights_ptr, cut + 1, vocabulary, MASK, BLOCK)
            ties = top_k - count
            mass += ties * _weight_at(cut, greatest, sharpness)
        if top_p < 1:
            goal = top_p * mass
            low = cut
            high = highest
            while low < high:  # the greatest order from which on the mass reaches the goal
                middle = low + (high - low + 1) // 2
                _, above = _sum_from(logits_ptr, mask_ptr, weights_ptr, middle, vocabulary, MASK, BLOCK)
                if above >= goal:
                    low = middle
                else:
                    high = middle - 1
            _, above = _sum_from(logits_ptr, mask_ptr, weights_ptr, low + 1, vocabulary, MASK, BLOCK)
            each = _weight_at(low, greatest, sharpness)
            needed = tl.where(each > 0, tl.ceil((goal - above) / tl.where(each > 0, each, 1.0)), 1.0)
            needed = tl.minimum(tl.maximum(needed, 1.0), vocabulary * 1.0).to(tl.int32)
            ties = tl.where(low == cut, tl.minimum(ties, needed), needed)
            cut = low

        # The mass of what is kept, then the first id where the cumulative one exceeds the draw. A weight below min_p counts as none.
        seed = tl.load(seed_ptr + row).to(tl.uint64, bitcast=True)
        position = tl.load(position_ptr + row).to(tl.uint64, bitcast=True)
        draw = (_splitmix(_splitmix(seed) ^ position) >> 11).to(tl.float64) * (2.0**-53)
        goal = tl.full([], -1.0, tl.float64)
        for last in range(2):
            before = tl.full([], 0.0, tl.float64)
            seen = 0
            found = vocabulary
            final = 0
            for start in range(0, vocabulary, BLOCK):
                if found == vocabulary:
                    column = start + tl.arange(0, BLOCK)
                    here = column < vocabulary
                    order = _order(_read_logits(logits_ptr, mask_ptr, column, vocabulary, MASK))
                    weight = tl.load(weights_ptr + column, mask=here, other=0.0)
                    tied = (here & (order == cut)).to(tl.int32)
                    place = seen + tl.cumsum(tied, 0)
                    seen += tl.sum(tied)
                    kept = (order > cut) | ((order == cut) & (place <= ties))
                    weight = tl.where(here & kept & (weight >= min_p), weight, 0.0)
                    reached = before + tl.cumsum(weight, 0)
                    before += tl.sum(weight)
                    if last == 1:
                        found = tl.min(tl.where((weight > 0) & (reached > goal), column, vocabulary))
                        final = tl.maximum(final, tl.max(tl.where(weight > 0, column, 0)))
            goal = draw * before if last == 0 else goal
            if last == 1:
                token = tl.where(
                    found < vocabulary, found, final
                )  # rounding may leave the draw at the very end
    tl.store(out_ptr + row, tl.where(usable, token, NO_TOKEN).to(tl.int64))


@triton.jit
def _weight_at(order: tl.tensor, greatest: tl.tensor, sharpness: tl.tensor) -> tl.tensor:
    """Weight of the logit that has this order."""
    bits = order.to(tl.int32)
    logit = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
    return tl.exp((logit.to(tl.float64) - greatest.to(tl.float64)) * sharpness)


AHEAD_OF_TIME = [
    AheadOfTime(
        f"sample_{name}",
        _sample_kernel,
        {
            "logits_ptr": "*fp32:16",
            "mask_ptr": mask,
            "weights_ptr": "*fp64:16",
            "temperature_ptr": "*fp64:16",
            "top_k_ptr": "*i32:16",
            "top_p_ptr": "*fp64:16",
            "min_p_ptr": "*fp64:16",
            "seed_ptr": "*i64:16",
            "position_ptr": "*i64:16",
            "out_ptr": "*i64:16",
            "vocabulary": "i32:16",
            "logits_stride": "i32:16",
            "mask_stride": "i32",
        },
        {"MASK": kind, "BLOCK": BLOCK},
        hot=True,
        options={"num_warps": 8},
    )
    for name, kind, mask in (("unmasked", 0, "*fp32:16"), ("bools", 1, "*u8:16"), ("bits", 2, "*i32:16"))
]
