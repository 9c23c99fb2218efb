"""Parallel branches against the same calls one after the other, on a prefix that is cached for both.

    python -m benchmarks.branches [--rounds 5] [--branches 8] [--check]

A program forks 8 branches of 32 tokens from a prefix of about 600 tokens; the other makes the same calls sequentially, each from that prefix.
Both run alternately, against one node; the prefix is computed before either is timed. One JSON line per run; the ratio of medians at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

import sgl_actors as sgl
from benchmarks.harness import median, running, show, verdict

WORDS = ("river", "stone", "winter", "letter", "garden", "engine", "harbour", "silver", "window", "orchard")
PREFIX_WORDS = 520
TOKENS = 32
LIMIT = 0.35
"""Of the sequential time, in fp32."""


@sgl.function
async def parallel(s: sgl.ProgramState, prefix: str, branches: int) -> None:
    """All branches at once."""
    s += prefix
    group = s.fork(branches)
    group += lambda index: f"\nVoice {index}:" + sgl.gen("voice", max_tokens=TOKENS, ignore_eos=True)
    await group.join("voice")


@sgl.function
async def sequential(s: sgl.ProgramState, prefix: str, branches: int) -> None:
    """The same calls, each after the one before has ended."""
    s += prefix
    for index in range(branches):
        branch = s.fork(1)
        branch += f"\nVoice {index}:" + sgl.gen("voice", max_tokens=TOKENS, ignore_eos=True)
        await branch.join("voice")


async def measure(url: str, rounds: int, branches: int) -> dict[str, list[float]]:
    """Seconds of each run, by program."""
    prefix = " ".join(random.Random(1).choices(WORDS, k=PREFIX_WORDS))
    seconds: dict[str, list[float]] = {parallel.name: [], sequential.name: []}
    async with sgl.connect(url) as backend:
        await parallel.run(prefix, branches, backend=backend, temperature=0)
        for number in range(rounds):
            order = (parallel, sequential) if number % 2 else (sequential, parallel)
            for program in order:
                began = time.perf_counter()
                state = await program.run(prefix, branches, backend=backend, temperature=0)
                took = time.perf_counter() - began
                seconds[program.name].append(took)
                usage = state.usage
                show(
                    program=program.name,
                    round=number,
                    seconds=round(took, 3),
                    cached=usage.cached_tokens,
                    prompt=usage.prompt_tokens,
                )
    return seconds


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--check", action="store_true", help="exit 1 if the target is missed")
    options = parser.parse_args()
    with running() as node:
        seconds = asyncio.run(measure(node.record.endpoint, options.rounds, options.branches))
    ratio = median(seconds[parallel.name]) / median(seconds[sequential.name])
    targets = [("parallel / sequential", ratio, "<=", LIMIT)]
    verdict(targets, check=options.check)


if __name__ == "__main__":
    main()
