"""Paged attention of one layer: decodes by context, batches of decodes, prefill, and branches of a fork with and without cascade.

Keys and values lie in one pool larger than a last-level cache; each call takes the next part of it, so that they come from memory as in a model, where weights
and other layers come in between. Times are of one layer and hold the call from Python and the plan, which a model makes once for all its layers: the case
"call", one token over itself, is what that costs. Shape by default: a 135M Llama.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.kernel.limits import Call, Cases, Limits, medians
from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.cpu.native import Pool
from sgl_actors.kernels.cpu.paged import paged_attention

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 4
POOL_SLOTS = (128 << 20) // TOKEN_BYTES
CONTEXTS = (64, 256, 1024, 2048, 4096, 8192)
MIXED = tuple(range(160, 301, 9))
"""Contexts of sixteen decodes."""
CHUNKS = ((128, 0), (512, 0), (512, 2048))
"""Prefills: new tokens, tokens before."""
FORKS = ((8, 2000, 16), (8, 2000, 200), (16, 500, 50))
"""Branches, tokens that they share, tokens of their own."""
CALLS = 40
"""Most calls of a measurement."""

Sizes = list[tuple[int, int]]
"""Rows of a batch: tokens in all, new ones."""


def run(
    limits: Limits, *, threads: int, rounds: int, contexts: Sequence[int] = CONTEXTS, slots: int = POOL_SLOTS
) -> Cases:
    """One case per batch.

    Args:
        limits: of this machine.
        threads: of our pool.
        rounds: how often each case is measured, alternately.
        contexts: of the decodes alone.
        slots: of the pool of keys and values; cases that need more are left out.

    Yields:
        Microseconds per layer; for decodes GB/s of what the rows see (shared tokens as often as they are seen) and its share of the read bandwidth; for prefills
        GFLOP/s of visible pairs and their share of the fp32 matrix product; for forks the time's ratio to that without cascade. At last `slope`: nanoseconds that
        one more token of context costs a decode, and its ratio to reading that token once.
    """
    bench = _Bench(Pool(threads), torch.randn(slots, 2, KV_HEADS, HEAD_DIM))
    alone: dict[str, Sizes] = {"call": [(1, 1)]} | {f"decode {length}": [(length, 1)] for length in contexts}
    batches = alone | {"decode 16 rows": [(length, 1) for length in MIXED]}
    batches |= {f"prefill {new} after {before}": [(before + new, new)] for new, before in CHUNKS}
    batches = {name: sizes for name, sizes in batches.items() if sum(length for length, _ in sizes) <= slots}
    seconds = bench.measure({name: bench.batches(sizes) for name, sizes in batches.items()}, rounds)
    for name, sizes in batches.items():
        yield _case(name, sizes, seconds[name], limits)
    yield from _forks(bench, rounds)
    fitting = [length for length in contexts if length <= slots]
    if len(fitting) > 1:
        yield _slope(fitting, [seconds[f"decode {length}"] for length in fitting], limits)


class _Bench:
    def __init__(self, pool: Pool, kv: torch.Tensor) -> None:
        self.pool, self.kv = pool, kv

    def batches(self, sizes: Sizes) -> list[list[AttentionRow]]:
        """As many batches of these rows as fit into the pool beside one another."""
        total = sum(length for length, _ in sizes)
        found = []
        for first in range(0, len(self.kv) - total + 1, max(total, len(self.kv) // CALLS)):
            rows, at = [], first
            for length, new in sizes:
                rows.append(AttentionRow(torch.arange(at, at + length), new))
                at += length
            found.append(rows)
        return found

    def fork(self, branches: int, shared: int, own: int) -> list[list[AttentionRow]]:
        """Branches one token wide behind the same prefix."""
        total = shared + branches * own
        found = []
        for first in range(0, len(self.kv) - total + 1, total):
            prefix = torch.arange(first, first + shared)
            starts = range(first + shared, first + total, own)
            found.append([AttentionRow(torch.cat((prefix, torch.arange(at, at + own))), 1) for at in starts])
        return found[:CALLS]

    def measure(self, batches: dict[str, list[list[AttentionRow]]], rounds: int) -> dict[str, float]:
        """Seconds of one call."""
        calls: dict[str, Call] = {name: partial(self.through, several) for name, several in batches.items()}
        return {name: taken / len(batches[name]) for name, taken in medians(calls, rounds).items()}

    def through(self, several: list[list[AttentionRow]], *, cascade: bool = True) -> None:
        """Attend each batch once."""
        query = torch.ones(sum(row.new for row in several[0]), HEADS, HEAD_DIM)
        for rows in several:
            paged_attention(self.pool, query, self.kv, rows, scale=HEAD_DIM**-0.5, cascade=cascade)


def _case(name: str, sizes: Sizes, seconds: float, limits: Limits) -> dict[str, Any]:
    case: dict[str, Any] = {"kernel": "attention", "case": name, "us": round(seconds * 1e6, 1)}
    if all(new == 1 for _, new in sizes):
        rate = sum(length for length, _ in sizes) * TOKEN_BYTES / seconds
        return case | {"gb_s": round(rate / 1e9, 2), "share_read": round(rate / limits.read, 3)}
    pairs = sum(new * (length - new) + new * (new + 1) // 2 for length, new in sizes)
    rate = pairs * HEADS * HEAD_DIM * 4 / seconds
    return case | {"gflop_s": round(rate / 1e9, 1), "share_sgemm": round(rate / limits.sgemm, 3)}


def _forks(bench: _Bench, rounds: int) -> Cases:
    for branches, shared, own in FORKS:
        several = bench.fork(branches, shared, own)
        if not several:
            continue
        calls: dict[str, Call] = {
            "cascade": partial(bench.through, several, cascade=True),
            "plain": partial(bench.through, several, cascade=False),
        }
        seconds = medians(calls, rounds)
        yield {
            "kernel": "attention",
            "case": f"fork {branches} x {own} behind {shared}",
            "us": round(seconds["cascade"] / len(several) * 1e6, 1),
            "plain_us": round(seconds["plain"] / len(several) * 1e6, 1),
            "ratio": round(seconds["cascade"] / seconds["plain"], 3),
        }


def _slope(contexts: Sequence[int], seconds: Sequence[float], limits: Limits) -> dict[str, Any]:
    """Least squares."""
    x, y = torch.tensor(contexts, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    x_off, y_off = x - x.mean(), y - y.mean()
    slope = float((x_off * y_off).sum() / (x_off * x_off).sum())
    return {
        "kernel": "attention",
        "case": "slope",
        "ns_per_token": round(slope * 1e9, 2),
        "ratio_to_read": round(slope * limits.read / TOKEN_BYTES, 3),
    }
