"""Many requests at once: programs, each a client that asks and may go on with the answers, under a bound on requests at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sgl_actors.bench.client import Request, Server, connect
from sgl_actors.bench.samples import Sample, summary

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
PREFIX_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 512, 64, 16
FIRST_ID, LAST_ID = 1_000, 32_000
"""Ids that are ordinary tokens in every vocabulary in question."""

Prompts = list[list[int]]
Ask = Callable[[Request], Awaitable[Sample]]
Program = Callable[[Ask], Awaitable[None]]
"""Asks as often as it likes; what it asks is measured."""


def random_prompts(count: int, seed: int, *, tokens: int = PROMPT_TOKENS) -> Prompts:
    """`count` prompts of `tokens` random ids."""
    rng = random.Random(seed)
    return [[rng.randrange(FIRST_ID, LAST_ID) for _ in range(tokens)] for _ in range(count)]


def shared_prompts(
    count: int, seed: int, *, prefix: int = PREFIX_TOKENS, tokens: int = QUESTION_TOKENS
) -> Prompts:
    """`count` prompts of `tokens` random ids behind the same `prefix` random ids."""
    shared, *own = random_prompts(1, ~seed, tokens=prefix) + random_prompts(count, seed, tokens=tokens)
    return [shared + each for each in own]


def once(request: Request) -> Program:
    """The program that asks one thing."""

    async def program(ask: Ask) -> None:
        await ask(request)

    return program


def each_once(prompts: Prompts, tokens: int) -> list[Program]:
    """One program per prompt."""
    return [once(Request(prompt, tokens=tokens)) for prompt in prompts]


async def run_programs(
    server: Server, programs: Sequence[Program], *, concurrency: int
) -> tuple[list[Sample], float]:
    """Start all programs; at most `concurrency` requests are under way at a time, in the order in which they are asked.

    Returns:
        A sample per request, and the seconds that all took.
    """
    gate = asyncio.Semaphore(concurrency)
    samples: list[Sample] = []

    async def ask(request: Request) -> Sample:
        async with gate:
            sample = await server.ask(request)
        samples.append(sample)
        return sample

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for program in programs:
            group.create_task(_run(program, ask))
    return samples, time.perf_counter() - began


async def _run(program: Program, ask: Ask) -> None:
    await program(ask)


async def measure(
    url: str, programs: Sequence[Program], *, concurrency: int, headers: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Connect, run all programs, and return the `summary`.

    Raises:
        ExceptionGroup: of `LoadError` or `httpx2.HTTPError`, if a request fails.
    """
    async with connect(url, connections=concurrency, headers=headers) as server:
        return summary(*await run_programs(server, programs, concurrency=concurrency))


async def load(
    url: str, prompts: Prompts, *, concurrency: int, tokens: int = OUTPUT_TOKENS
) -> dict[str, float]:
    """`measure` of prompts that are asked once each."""
    return await measure(url, each_once(prompts, tokens), concurrency=concurrency)
