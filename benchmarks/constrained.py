"""Constrained decoding on the default model: what jump-forward brings, what constraints cost, and how fast the engines are by themselves.

    python -m benchmarks.constrained [--data DIR] [--only character,real] [--concurrency 1,16] [--rounds 3] [--check]
    python -m benchmarks.constrained --only engine,step

Tasks (`constraint/tasks.py`): the character sheet of the paper, sheets of cities, a list of objects, IPv4 addresses, real schemas as they are
and as strict function calling wants them (`strict`). One node serves them; in each
round every task runs with jumps and without, one after the other in changing order, on an empty cache. `tokens_per_s` counts output tokens over the wall
time of a run, prompts included. Both sides have to give the same texts. Real schemas that the node declines are left out.

`engine` (`constraint/engine.py`) needs no model, `step` (`constraint/step.py`) runs it in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.constraint.tasks import TASKS, Ask, Task
from benchmarks.harness import LiveNode, median, running, show, table, verdict
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions
from sgl_actors.errors import InvalidRequest

Targets = list[tuple[str, float, str, float]]

ALONE, TOGETHER = 6, 32
"""Requests of a run one after the other, and of one with several at once."""
TIMEOUT = 600.0
SPINS = "3000"
"""How long threads that wait for others spin, as in the node's worker."""
SAME = 0.99
"""Least share of equal texts: two tokens may be equally likely, and then sums in another order decide."""


@dataclass
class Run:
    """One task in one mode."""

    seconds: float
    chunks: list[Chunk]

    def measured(self) -> dict[str, Any]:
        """Counts and rates."""
        sums = {
            name: sum(getattr(chunk.decoding, name) for chunk in self.chunks)
            for name in ("steps", "sampled", "forced", "held_back")
        }
        tokens = sum(chunk.completion_tokens for chunk in self.chunks)
        ended = sum(chunk.finish is not None and chunk.finish.reason == "stop" for chunk in self.chunks)
        return {
            "requests": len(self.chunks),
            "ended": ended,
            "seconds": self.seconds,
            "output_tokens": tokens,
            "tokens_per_s": tokens / self.seconds,
            **sums,
        }


@dataclass
class Results:
    """All rounds of a task at one concurrency, jumps on and off."""

    runs: dict[bool, list[dict[str, Any]]] = field(default_factory=lambda: {True: [], False: []})
    same: list[float] = field(default_factory=list)

    def median(self, name: str, *, on: bool) -> float:
        """Over the rounds."""
        return median([run[name] for run in self.runs[on]])

    @property
    def ratio(self) -> float:
        """Output tokens per second, on over off."""
        return self.median("tokens_per_s", on=True) / self.median("tokens_per_s", on=False)

    @property
    def saved(self) -> float:
        """Share of steps that jumps save."""
        return 1 - self.median("steps", on=True) / self.median("steps", on=False)


class Asker:
    """Sends a task's requests to one node."""

    def __init__(self, client: NodeClient, node: LiveNode) -> None:
        self._client, self._node = client, node
        self._count = 0

    async def usable(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those that the node does not decline; all are compiled then."""

        async def takes(ask: Ask) -> bool:
            try:
                await self._ask(ask, 1, jump=True)
            except InvalidRequest:
                return False
            return True

        taken = await asyncio.gather(*map(takes, asks))
        return [ask for ask, one in zip(asks, taken, strict=True) if one]

    async def run(self, task: Task, asks: Sequence[Ask], concurrency: int, *, jump: bool) -> Run:
        """All of them on an empty cache, `concurrency` at once."""
        await asyncio.to_thread(self._node.flush)
        chunks: dict[int, Chunk] = {}
        waiting = list(enumerate(asks))[::-1]

        async def work() -> None:
            while waiting:
                place, ask = waiting.pop()
                chunks[place] = await self._ask(ask, task.tokens, jump=jump)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        return Run(time.perf_counter() - began, [chunks[place] for place in sorted(chunks)])

    async def _ask(self, ask: Ask, tokens: int, *, jump: bool) -> Chunk:
        self._count += 1
        sampling = SamplingOptions(
            max_tokens=tokens, temperature=0.0, seed=0, constraint=ask.constraint, jump_forward=jump
        )
        request = Generate(f"constrained-{self._count}", text=ask.prompt, sampling=sampling)
        return await self._client.complete(request, timeout=TIMEOUT)


async def compare(
    node: LiveNode, data: Path, names: Sequence[str], concurrencies: Sequence[int], rounds: int
) -> dict[tuple[str, int], Results]:
    """Every task at every concurrency, with jumps and without in turns."""
    handle = await join(node.record.endpoint)
    results: dict[tuple[str, int], Results] = {}
    try:
        asker = Asker(NodeClient(handle.context("benchmark")), node)
        for name in names:
            task = TASKS[name]
            every = task.asks(data)
            asks = await asker.usable(every)
            show(task=name, requests=len(every), declined=len(every) - len(asks))
            for concurrency in concurrencies:
                found = results[name, concurrency] = Results()
                for round_ in range(rounds):
                    await play(asker, task, asks, concurrency, round_, name, found)
    finally:
        await handle.close()
    return results


async def play(
    asker: Asker, task: Task, asks: Sequence[Ask], concurrency: int, round_: int, name: str, found: Results
) -> None:
    """One round; each has requests of its own as far as there are enough."""
    count = ALONE if concurrency == 1 else max(TOGETHER, concurrency)
    chosen = [asks[(round_ * count + n) % len(asks)] for n in range(min(count, len(asks)))]
    texts = {}
    for jump in (True, False) if round_ % 2 else (False, True):
        run = await asker.run(task, chosen, concurrency, jump=jump)
        texts[jump] = [chunk.text for chunk in run.chunks]
        found.runs[jump].append(run.measured())
        show(task=name, concurrency=concurrency, round=round_, jump_forward=jump, **found.runs[jump][-1])
    equal = [one == two for one, two in zip(texts[True], texts[False], strict=True)]
    found.same.append(sum(equal) / len(equal))
    for place in (place for place, one in enumerate(equal) if not one):
        show(
            task=name,
            concurrency=concurrency,
            round=round_,
            differs=place,
            on=texts[True][place],
            off=texts[False][place],
        )


def report(results: dict[tuple[str, int], Results]) -> list[list[str]]:
    """A table of medians."""
    head = ["task", "at once", "tok/s off", "tok/s on", "x", "steps off", "steps on", "saved %", "sampled", "forced", "held back", "same %"]  # fmt: skip
    rows = [head]
    for (name, concurrency), found in results.items():
        rates = [f"{found.median('tokens_per_s', on=on):.1f}" for on in (False, True)]
        steps = [f"{found.median('steps', on=on):.0f}" for on in (False, True)]
        counts = [f"{found.median(one, on=True):.0f}" for one in ("sampled", "forced", "held_back")]
        same = f"{median(found.same):.1%}"[:-1]
        rows.append(
            [
                name,
                str(concurrency),
                *rates,
                f"{found.ratio:.2f}",
                *steps,
                f"{found.saved:.1%}"[:-1],
                *counts,
                same,
            ]
        )
    return rows


def targets(results: dict[tuple[str, int], Results]) -> Targets:
    """What is to be reached, as far as it was measured."""
    aims: Targets = []
    for (name, concurrency), found in results.items():
        if (least := TASKS[name].targets.get(concurrency)) is not None:
            aims.append(
                (f"{name} at {concurrency}: output tokens/s, jumps on over off", found.ratio, ">=", least)
            )
        aims.append((f"{name} at {concurrency}: share of equal texts", min(found.same), ">=", SAME))
    return aims


def main() -> None:
    """Parse and measure."""
    parts = [*TASKS, "engine", "step"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--only", default=",".join(parts), help=f"of {', '.join(parts)}; default: all")
    parser.add_argument("--concurrency", default="1,16", help="requests at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in parts]:
        parser.error(f"unknown: {', '.join(unknown)}")
    if not arguments.data and names != ["engine"]:
        parser.error("the sample data: --data or $SGL_ACTORS_DATA (docs/data.md)")
    aims: Targets = []
    if "engine" in names:
        from benchmarks.constraint import engine

        aims += engine.measure()
    if "step" in names:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # before torch is loaded
        from benchmarks.constraint import step

        aims += step.measure(Path(arguments.data), arguments.rounds)
    if tasks := [name for name in names if name in TASKS]:
        concurrencies = [int(text) for text in arguments.concurrency.split(",")]
        with running() as node:
            results = asyncio.run(compare(node, Path(arguments.data), tasks, concurrencies, arguments.rounds))
        print(table(report(results)))
        aims += targets(results)
    verdict(aims, check=arguments.check)


if __name__ == "__main__":
    main()
