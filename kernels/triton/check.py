"""Every kernel on the GPU that is here, against torch on the CPU: for whoever has one.

    python -m sgl_actors.kernels.triton.check

prints one line per case and exits with 1 if any is wrong. It has not been run on hardware by the authors: they had none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from sgl_actors.kernels import activation, norm, quantized, reference, rotary
from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.triton.attention import TritonPlan
from sgl_actors.kernels.triton.pages import copy_slots, gather_slots, page_slots, scatter_slots
from sgl_actors.kernels.triton.sampling import Settings, sample

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Largest error that is right, over 1 plus the size of the result."""

BATCHES = {
    "decodes": ([(0, 1), (20, 1), (255, 1), (1000, 1), (3000, 1)], 0),
    "drafts": ([(20, 3), (300, 8), (700, 1)], 0),
    "prefills": ([(0, 70), (300, 33), (4200, 20)], 0),
    "mixed": ([(30, 1), (0, 19), (9, 4), (261, 12), (800, 1)], 0),
    "fork": ([(1100, 1), (1050, 3), (1030, 1), (1060, 12)], 1024),
}
"""By name: (tokens before, new tokens) of each row, and how many tokens the rows share."""

SLOTS = 16384


@dataclass(frozen=True)
class Case:
    """One line of the table; `run` returns the error, over 1 plus the size of the result."""

    name: str
    dtype: torch.dtype
    run: Callable[[], float]


def cases(device: torch.device) -> Iterator[Case]:
    """All that is checked, on `device`."""
    for dtype in TOLERANCE:
        for name in BATCHES:
            for head_dim in (64, 80, 128):
                for window in (None, 300):
                    for heads, kv_heads in ((4, 4), (8, 2)):
                        label = f"attention {name}, {heads}/{kv_heads} heads of {head_dim}, window {window}"
                        shape = (heads, kv_heads, head_dim)
                        yield Case(label, dtype, partial(attention_error, name, dtype, shape, window, device))
        for page_size in (1, 16):
            yield Case(f"pages of {page_size}", dtype, partial(pages_error, dtype, page_size, device))
        for name, error in SMALL.items():
            yield Case(name, dtype, partial(error, dtype, device))
    yield Case("sampling, greedy and of the best one, masked", torch.float32, partial(sampling_error, device))


def attention_error(
    batch: str, dtype: torch.dtype, shape: tuple[int, int, int], window: int | None, device: torch.device
) -> float:
    """Largest error of one batch of random contents; `shape` is (heads, kv_heads, head_dim)."""
    heads, kv_heads, head_dim = shape
    lengths, shared = BATCHES[batch]
    generator = torch.Generator().manual_seed(head_dim)
    places = torch.randperm(SLOTS, generator=generator)
    prefix, used, rows = places[:shared], shared, []
    for before, new in lengths:
        own = before + new - shared
        rows.append(AttentionRow(torch.cat((prefix, places[used : used + own])), new))
        used += own
    pool = torch.randn(SLOTS, 2, kv_heads, head_dim, generator=generator).to(dtype)
    query = torch.randn(sum(new for _, new in lengths), heads, head_dim, generator=generator).to(dtype)
    scale = head_dim**-0.5
    plan = TritonPlan(rows, scale=scale, window=window)
    ours = plan.attend(query.to(device), pool.to(device)).cpu().double()
    expected = reference.attention(query, pool, rows, scale=scale, window=window)
    return _error(ours, expected)


def pages_error(dtype: torch.dtype, page_size: int, device: torch.device) -> float:
    """Pages gathered, scattered and copied: 0 if every word is right."""
    pool = torch.randn(3, 64 * page_size, 2, 2, 80, generator=torch.Generator().manual_seed(1)).to(dtype)
    come = page_slots(torch.tensor([7, 0, 63]), page_size)
    go = page_slots(torch.tensor([1, 2, 5]), page_size)
    expected = pool.clone()
    expected[:, go] = pool[:, come]
    by_block, by_slot = pool.to(device), pool.to(device)
    scatter_slots(gather_slots(by_block, come.to(device)), by_block, go.to(device))
    copy_slots(by_slot, come.to(device), by_slot, go.to(device))
    return max(float((copied.cpu() != expected).any()) for copied in (by_block, by_slot))


def norm_error(dtype: torch.dtype, device: torch.device) -> float:
    """Root mean square normalisation with the residual sum before it, 300 rows of 576."""
    x, delta = _random(dtype, 300, 576), _random(dtype, 300, 576)
    weight = _random(dtype, 576)
    ours = norm.add_rms_norm(x.to(device), delta.to(device), weight.to(device), 1e-5)
    return _error(ours, norm.add_rms_norm(x.clone(), delta, weight, 1e-5))


def activation_error(dtype: torch.dtype, device: torch.device) -> float:
    """The gate, 300 rows of 1,536."""
    gate_up = _random(dtype, 300, 2 * 1536)
    return _error(activation.silu_mul(gate_up.to(device)), activation.silu_mul(gate_up))


def rotary_error(dtype: torch.dtype, device: torch.device) -> float:
    """9 query heads and 3 key heads of 64 turned, keys and values written."""
    qkv, pool = _random(dtype, 40, 15, 64), torch.zeros(64, 2, 3, 64, dtype=dtype)
    tables = rotary.rotary_tables(torch.arange(40) * 50, 10000.0 ** -(torch.arange(32) / 32), dtype)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(2))[:40]
    there, there_pool = qkv.to(device), pool.to(device)
    rotary.rotate_and_store(there, (tables[0].to(device), tables[1].to(device)), there_pool, slots.to(device))
    rotary.rotate_and_store(qkv, tables, pool, slots)
    return max(_error(there[:, :9], qkv[:, :9]), _error(there_pool, pool))


def product_error(
    wanted: quantized.Format, group: int | None, dtype: torch.dtype, device: torch.device
) -> float:
    """A product of 1, 16 and 200 rows with a quantised weight [384, 1024]."""
    weight = quantized.quantize_weight(_random(torch.float32, 384, 1024) / 32, wanted, group)
    errors = []
    for rows in (1, 16, 200):
        x = _random(dtype, rows, 1024)
        errors.append(
            _error(quantized.multiply(x.to(device), weight.to(device)), quantized.multiply(x, weight))
        )
    return max(errors)


def sampling_error(device: torch.device) -> float:
    """Greedy rows and rows with top_k 1: 0 if each gives the greatest logit that is allowed."""
    rows, vocabulary = 16, 49152
    logits = _random(torch.float32, rows, vocabulary)
    forbidden = torch.rand(rows, vocabulary, generator=torch.Generator().manual_seed(3)) < 0.5
    greedy = torch.arange(rows) % 2 == 0
    ones = torch.ones(rows)
    settings = Settings(
        temperature=torch.where(greedy, 0.0, ones.double()).to(device),
        top_k=torch.where(greedy, 0, 1).int().to(device),
        top_p=ones.double().to(device),
        min_p=torch.zeros(rows).double().to(device),
        seed=torch.arange(rows).to(device),
        position=torch.arange(rows).to(device),
    )
    chosen = sample(logits.to(device), settings, forbidden=forbidden.to(device)).cpu()
    expected = logits.masked_fill(forbidden, -torch.inf).argmax(1)
    return float((chosen != expected).any())


SMALL: dict[str, Callable[[torch.dtype, torch.device], float]] = {
    "residual sum and norm": norm_error,
    "gate": activation_error,
    "rotary and KV write": rotary_error,
    "int8 product, scales per channel": partial(product_error, quantized.Format.INT8, None),
    "int8 product, scales per 128": partial(product_error, quantized.Format.INT8, 128),
    "fp8 product, scales per channel": partial(product_error, quantized.Format.FP8, None),
    "4-bit product": partial(product_error, quantized.Format.INT4, None),
}
"""Checks of one kernel in one type."""


def _random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])).to(dtype)


def _error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double()
    return float(((ours.cpu().double() - expected).abs() / (1 + expected.abs())).max())


def main() -> int:
    """Run all cases; returns the process's exit code: 0 if all are right, 1 if one is wrong, 2 without a GPU."""
    if not torch.cuda.is_available():
        print("no GPU: torch sees none, so there is nothing to check here", file=sys.stderr)  # noqa: T201
        return 2
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name(device)}\n| case | type | error | |\n|---|---|---:|---|")  # noqa: T201
    wrong = 0
    for case in cases(device):
        error = case.run()
        right = error <= TOLERANCE[case.dtype]
        wrong += not right
        kind = str(case.dtype).removeprefix("torch.")
        print(f"| {case.name} | {kind} | {error:.1e} | {'ok' if right else 'WRONG'} |", flush=True)  # noqa: T201
    print(f"{wrong} wrong" if wrong else "all right")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
