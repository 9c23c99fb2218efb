"""How speed scales: with concurrency, with context, with branches of a fork; the worker's share of the machine's limits; memory and load time.

    python -m benchmarks.scaling [--only limits,context,fork,memory,concurrency] [--rounds 5] [--compute auto] [--check]

limits       inside the worker: decode at batch 1 as bytes of weights touched per second over the bandwidth of reading, prefill of 512 tokens and
             decode at batch 16 as operations per second over those of the best int8 matrix product (fp32: of sgemm), all measured in the same run.
context      the time of a decode step at 64 to 8,000 tokens of context: slope of the line through it over the time of reading a token's KV once.
fork         decode steps of 8 branches of a 2,000-token prefix: time in attention with shared pages read once, over that without.
memory       a fresh process: seconds to load a model whose file has just been read, and resident memory beside weights and used KV.
concurrency  a node: output tokens per second at 1, 2, 4 … 64 requests at once (128 random tokens in, 64 out), and the largest step back.

Candidates alternate within a round, in changing order; lines have medians. Take no number on a busy machine: each line has the load average.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection

import psutil
import torch

from benchmarks.harness import running, show, verdict
from benchmarks.kernel.limits import Limits, measure_limits
from benchmarks.serving.inside import Inside, load_inside
from benchmarks.serving.peers import rotated
from sgl_actors.bench.load import load, random_prompts
from sgl_actors.kernels.cpu import native

Targets = list[tuple[str, float, str, float]]

READ_SHARE, PREFILL_SHARE, BATCH_SHARE = 0.60, 0.65, 0.50
SLOPE, DIP, CASCADE = 1.3, 0.03, 0.5
MEMORY, LOAD = 350 << 20, 2.0
CONTEXTS = (64, 1_000, 2_000, 4_000, 6_000, 8_000)
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
BRANCHES, PREFIX, TAIL = 8, 2_000, 16
STEPS = 8
"""Decode steps of a measurement; their median counts."""


def decode_seconds(inside: Inside, lengths: Sequence[int], prefix: int = 0) -> float:
    """Median of some decode steps at these contexts."""
    inside.begin()
    inside.start(lengths, steps=STEPS, prefix=prefix)
    return statistics.median(inside.decode() for _ in range(STEPS))


def alternately(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Medians over rounds; one round before them does not count."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name in rotated(list(cases), number):
            found[name].append(cases[name]())
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def limits(inside: Inside, machine: Limits, best: float, rounds: int) -> Targets:
    """Shares of what the machine can do; `best` in operations per second."""
    size = inside.size()

    def prefill() -> float:
        inside.begin()
        return inside.prefill(512, inside.epoch)

    cases = {
        "decode 1": lambda: decode_seconds(inside, [64]),
        "decode 16": lambda: decode_seconds(inside, [64] * 16),
        "prefill 512": prefill,
    }
    taken = alternately(cases, rounds)
    read = size.touched / taken["decode 1"]
    batch = size.operations(16, 16) / taken["decode 16"]
    prompt = size.operations(512, 1) / taken["prefill 512"]
    show(
        case="limits", compute=inside.info.compute, read_gb_s=machine.read / 1e9, best_gop_s=best / 1e9,
        touched_mb=size.touched / 1e6, decode_1_ms=taken["decode 1"] * 1e3, decode_1_gb_s=read / 1e9,
        decode_16_ms=taken["decode 16"] * 1e3, decode_16_gop_s=batch / 1e9,
        prefill_512_ms=taken["prefill 512"] * 1e3, prefill_512_gop_s=prompt / 1e9,
    )  # fmt: skip
    return [
        ("decode at batch 1 over the read bandwidth", read / machine.read, ">=", READ_SHARE),
        ("prefill of 512 over the best rate", prompt / best, ">=", PREFILL_SHARE),
        ("decode at batch 16 over the best rate", batch / best, ">=", BATCH_SHARE),
    ]


def best_rate(machine: Limits, threads: int, compute: str) -> float:
    """Operations per second of the best matrix product of that kind: int8 or 4-bit, ours or fbgemm's, at 128 and 512 rows; in fp32, sgemm."""
    if compute in ("fp32", "float32"):
        return machine.sgemm
    from benchmarks.kernel.linear import run

    torch.set_num_threads(threads)
    shapes = ((3072, 576), (576, 1536), (2048, 2048))
    lines = run(machine, threads=threads, rounds=3, shapes=shapes, rows=(128, 512))
    rates = [float(line["gop_s"]) for line in lines if line["weight"] in ("q4", "q4w", "q8", "fbgemm")]
    return max(rates) * 1e9


def context(inside: Inside, machine: Limits, rounds: int) -> Targets:
    """A decode step against context length."""
    cases = {str(length): partial(decode_seconds, inside, [length]) for length in CONTEXTS}
    taken = alternately(cases, rounds)
    slope, base = statistics.linear_regression(CONTEXTS, [taken[str(length)] for length in CONTEXTS])
    off = max(abs(taken[str(length)] / (base + slope * length) - 1) for length in CONTEXTS)
    once = inside.info.bytes_per_token / machine.read
    shown = {f"ms_at_{length}": taken[str(length)] * 1e3 for length in CONTEXTS}
    show(case="context", slope_ns=slope * 1e9, read_once_ns=once * 1e9, off_the_line=off, **shown)
    return [("slope of a decode step over reading the KV once", slope / once, "<=", SLOPE)]


def fork(inside: Inside, rounds: int) -> Targets:
    """Attention of branches with and without reading the prefix once."""

    def attention(*, cascade: bool) -> float:
        with inside.cascade(cascade):
            inside.begin()
            inside.start([PREFIX + TAIL] * BRANCHES, steps=STEPS, prefix=PREFIX)
            before = inside.attention_seconds()
            for _ in range(STEPS):
                inside.decode()
            return (inside.attention_seconds() - before) / STEPS

    if not inside.native:
        show(case="fork", skipped="torch's kernels have no cascade")
        return []
    cases = {"on": lambda: attention(cascade=True), "off": lambda: attention(cascade=False)}
    taken = alternately(cases, rounds)
    ratio = taken["on"] / taken["off"]
    show(case="fork", with_ms=taken["on"] * 1e3, without_ms=taken["off"] * 1e3, ratio=ratio)
    return [(f"attention of {BRANCHES} branches, cascade over none", ratio, "<=", CASCADE)]


def memory(checkpoint: str, threads: int, compute: str, rounds: int) -> Targets:
    """Load in fresh processes."""
    found = [_in_child(checkpoint, threads, compute) for _ in range(rounds)]
    seconds, beside = (statistics.median(values) for values in zip(*found, strict=True))
    show(case="memory", load_seconds=seconds, beside_weights_and_kv_mb=beside / (1 << 20))
    return [
        ("seconds to load from the page cache", seconds, "<=", LOAD),
        ("resident bytes beside weights and KV", beside, "<=", float(MEMORY)),
    ]


def _in_child(checkpoint: str, threads: int, compute: str) -> tuple[float, float]:
    multiprocessing_context = multiprocessing.get_context("spawn")
    ours, theirs = multiprocessing_context.Pipe()
    child = multiprocessing_context.Process(target=_load, args=(theirs, checkpoint, threads, compute))
    child.start()
    theirs.close()
    seconds, beside = ours.recv()
    child.join()
    return seconds, beside


def _load(pipe: Connection, checkpoint: str, threads: int, compute: str) -> None:
    """The child: import all that a worker's process has, load, run a little, and tell."""
    import sgl_actors.actors.worker.actor  # noqa: F401 - counted as memory of a worker

    began = time.perf_counter()
    inside = load_inside(checkpoint, threads=threads, tokens=1_024, compute=compute)
    seconds = time.perf_counter() - began
    inside.prefill(512, 0)
    kept = inside.size().touched + inside.runner.pool.data.nbytes
    pipe.send((seconds, float(psutil.Process().memory_info().rss - kept)))


def concurrency(rounds: int, settings: Sequence[str]) -> Targets:
    """Output tokens per second of a node, against requests at once."""

    def rate(url: str, at_once: int, number: int) -> float:
        prompts = random_prompts(max(4, 2 * at_once), 10**6 + 100 * number + at_once)
        return asyncio.run(load(url, prompts, concurrency=at_once))["output_tok_per_s"]

    rates: dict[int, list[float]] = {at_once: [] for at_once in CONCURRENCIES}
    with running(f"scheduler.max_batch={max(CONCURRENCIES)}", *settings) as node:
        rate(node.url, 16, -1)  # warms up
        for number in range(rounds):
            for name in rotated([str(at_once) for at_once in CONCURRENCIES], number):
                rates[int(name)].append(rate(node.url, int(name), number))
                show(
                    case="concurrency", round=number, at_once=int(name), output_tok_per_s=rates[int(name)][-1]
                )
    medians = [statistics.median(rates[at_once]) for at_once in CONCURRENCIES]
    show(case="concurrency", medians=[round(value, 1) for value in medians], dip=largest_dip(medians))
    return [("largest dip of tokens per second against concurrency", largest_dip(medians), "<=", DIP)]


def largest_dip(rates: Sequence[float]) -> float:
    """By how much a value falls below the greatest before it, as a share of that."""
    return max((1 - rate / max(rates[: index + 1]) for index, rate in enumerate(rates)), default=0.0)


CASES = ("limits", "context", "fork", "memory", "concurrency")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES), help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compute", default="auto", help="see [model] compute in node.toml")
    parser.add_argument("--checkpoint", default="smollm2", help="name or path")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}")
    aims: Targets = []
    if {"limits", "context", "fork"} & set(names):
        aims += within(names, given)
    if "memory" in names:
        aims += memory(given.checkpoint, given.threads, given.compute, min(3, given.rounds))
    if "concurrency" in names:
        aims += concurrency(
            given.rounds, [f"model.threads={given.threads}", f"model.compute={given.compute}"]
        )
    verdict(aims, check=given.check)


def within(names: Sequence[str], given: argparse.Namespace) -> Targets:
    """The cases that need the runner alone."""
    torch.set_num_threads(given.threads)
    machine = measure_limits()
    inside = load_inside(
        given.checkpoint, threads=given.threads, tokens=max(CONTEXTS) + PREFIX, compute=given.compute
    )
    aims: Targets = []
    if "limits" in names:
        compute = inside.info.compute if native.library() is not None else "fp32"
        aims += limits(inside, machine, best_rate(machine, given.threads, compute), given.rounds)
    if "context" in names:
        aims += context(inside, machine, given.rounds)
    if "fork" in names:
        aims += fork(inside, given.rounds)
    return aims


if __name__ == "__main__":
    main()
