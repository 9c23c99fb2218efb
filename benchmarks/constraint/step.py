"""What constraints cost in a decode step of sixteen rows, in the worker's own runner: masks, and what is settled after a token was sampled.

Two batches of the same prompts take turns step by step in one runner: free rows, and rows under a constraint that leaves a choice everywhere. Masks are
filled by a thread while the forward pass runs. On the critical path is what the pass has to wait for (`waiting`), and settling; `hidden` is the thread's own time beside it. What counts is
the ratio of the two batches' steps: it holds everything, also that thread and pass share the cores. `steady` is text whose states come again, as strings are; in `fresh`
every token leads to a state that nobody has been in, so that each mask is made anew: the worst that can be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.constraint.tasks import Ask, characters
from benchmarks.harness import median, show
from sgl_actors.actors.node.models import resolve
from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.actors.worker.batch import HeldSequence
from sgl_actors.actors.worker.checkpoint import load_model
from sgl_actors.actors.worker.grammars import Grammars
from sgl_actors.actors.worker.messages import NewSequence, Sampling, Step, Work
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.runner import ModelRunner
from sgl_actors.lang.constraints.constraint import REGEX, Constraint
from sgl_actors.lang.constraints.engines import Engines

Targets = list[tuple[str, float, str, float]]

CONSTRAINTS = {
    "steady": Constraint(REGEX, r"[A-Z][A-Za-z0-9 ,;'-]*"),
    "fresh": Constraint(REGEX, r"[A-Z][A-Za-z0-9 ,;'-]{700,900}\."),
}
"""Nothing of them is forced, so every row has a mask in every step."""
ROWS = 16
STEPS = 64
"""Decode steps of a round; the text is longer, so no row ends in them."""
RATIOS = {"fsm": 1.03, "llguidance": 1.06}
"""Targets: a step of constrained rows over one of free rows, steady."""
POOL = 16_384


class Waited:
    """A future whose asker's waiting time is added up."""

    def __init__(self, future: Future[Any], times: Times) -> None:
        self._future, self._times = future, times

    def result(self) -> Any:
        """Wait."""
        began = time.perf_counter()
        try:
            return self._future.result()
        finally:
            self._times.waiting += time.perf_counter() - began


class Times:
    """Seconds of one step."""

    waiting = settling = hidden = 0.0


class TimedGrammars(Grammars):
    """Grammars that tell what they took since `times` was last replaced."""

    times = Times()

    def fill(self, sequences: Sequence[HeldSequence]) -> Any:
        """See `Grammars`."""
        return Waited(super().fill(sequences), self.times)

    def settle(self, *arguments: Any) -> Any:
        """See `Grammars`."""
        began = time.perf_counter()
        try:
            return super().settle(*arguments)
        finally:
            self.times.settling += time.perf_counter() - began

    def _fill(self, sequences: list[HeldSequence]) -> Any:
        began = time.perf_counter()
        try:
            return super()._fill(sequences)
        finally:
            self.times.hidden += time.perf_counter() - began


class Rows:
    """One batch in a runner: the same prompts, free or constrained."""

    def __init__(self, bench: Bench, first: int, sampling: Sampling) -> None:
        self._bench = bench
        each = POOL // (4 * ROWS)
        self._start = [
            NewSequence(first + n, prompt, len(prompt), 0, list(range((first + n) * each, (first + n + 1) * each)), sampling)
            for n, prompt in enumerate(bench.prompts)
        ]  # fmt: skip

    def prefill(self) -> None:
        """Run all prompts."""
        self._bench.step([Work(new.seq, len(new.token_ids)) for new in self._start], self._start)

    def decode(self) -> float:
        """One token of each; seconds."""
        return self._bench.step([Work(new.seq) for new in self._start])

    def end(self) -> None:
        """Forget them."""
        self._bench.step([], [], [new.seq for new in self._start])


class Bench:
    """A runner with the default model."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        path = resolve("smollm2").path
        self.model = load_model(
            path, dtype=torch.float32, device=torch.device("cpu"), threads=torch.get_num_threads()
        )
        self.vocabulary = vocabulary.load(path)
        self.prompts = [self.vocabulary.encode(ask.prompt) for ask in asks[:ROWS]]
        config = self.model.config
        pool = KvPool(
            layers=config.layers,
            pages=POOL,
            page_size=1,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.runner = ModelRunner(self.model, pool, context=config.context)
        self.runner.reset(1)

    def use(self, engine: str) -> None:
        """Have constraints read by `engine`."""
        config = self.model.config
        engines = Engines(
            self.vocabulary.tokenizer.to_str(), self.vocabulary.eos_ids, config.vocabulary, engine=engine
        )
        grammars = TimedGrammars(config.vocabulary)
        grammars.set_up(engines)
        for constraint in CONSTRAINTS.values():
            grammars.prepare(constraint, engines.compile(constraint).automaton)
        self.runner.grammars = grammars

    def step(self, work: Sequence[Work], start: Sequence[NewSequence] = (), end: Sequence[int] = ()) -> float:
        """Run one; seconds. Raises `SystemExit` if a row fails."""
        batch = self.runner.batch
        began = time.perf_counter()
        done = self.runner.execute(Step(batch.epoch, batch.next_number, list(end), list(start), list(work)))
        seconds = time.perf_counter() - began
        if failed := [result.error for result in done.results if result.error]:
            raise SystemExit(f"a row failed: {failed[0]}")
        return seconds


def measure(data: Path, rounds: int) -> Targets:
    """Print one line per engine, constraint and round; returns what is to be reached. The first round warms up and does not count."""
    bench = Bench(characters(data))
    free = Rows(bench, 0, Sampling(seed=0, temperature=0.0))
    plain = Sampling(seed=0, temperature=0.0, min_tokens=2 * STEPS, end_ids=tuple(bench.vocabulary.eos_ids))
    bound = {
        name: Rows(bench, ROWS, msgspec.structs.replace(plain, constraint=constraint, jump_forward=False))
        for name, constraint in CONSTRAINTS.items()
    }
    ratios: dict[str, list[float]] = {engine: [] for engine in RATIOS}
    for round_ in range(rounds + 1):
        for engine in RATIOS:
            bench.use(engine)
            for name, rows in bound.items():
                line = compare(bench, free, rows)
                if round_:
                    show(case="step", engine=engine, states=name, round=round_, **line)
                if round_ and name == "steady":
                    ratios[engine].append(line["bound_over_free"])
    return [
        (
            f"a step of {ROWS} constrained rows over one of free rows, {engine}",
            median(ratios[engine]),
            "<=",
            limit,
        )
        for engine, limit in RATIOS.items()
    ]


def compare(bench: Bench, free: Rows, bound: Rows) -> dict[str, float]:
    """`STEPS` steps of each batch, in turns; medians in milliseconds, and shares of the free step."""
    grammars = bench.runner.grammars
    assert isinstance(grammars, TimedGrammars)
    found: dict[str, list[float]] = {name: [] for name in ("free", "bound", "waiting", "settling", "hidden")}
    free.prefill()
    bound.prefill()
    for _ in range(STEPS):
        found["free"].append(free.decode())
        grammars.times = Times()
        found["bound"].append(bound.decode())
        for name in ("waiting", "settling", "hidden"):
            found[name].append(getattr(grammars.times, name))
    free.end()
    bound.end()
    ms = {f"{name}_ms": median(values) * 1e3 for name, values in found.items()}
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    return ms | {
        "critical_share": (mean["waiting"] + mean["settling"]) / mean["free"],
        "hidden_share": mean["hidden"] / mean["free"],
        "bound_over_free": ms["bound_ms"] / ms["free_ms"],
    }
