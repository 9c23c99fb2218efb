"""The worker without its actor: steps made up, run by the same `ModelRunner`, and timed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.node.models import resolve
from sgl_actors.actors.worker.device import load_runner
from sgl_actors.actors.worker.messages import ModelInfo, NewSequence, Options, Sampling, Step, Work
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.actors.worker.model.native_lm import NativeLM
from sgl_actors.actors.worker.runner import ModelRunner

GREEDY = Sampling(seed=0, temperature=0.0)
FIRST_ID, LAST_ID = 1_000, 32_000


@dataclass(frozen=True)
class Size:
    """Of a model's linear layers.

    Attributes:
        layers: values of all decoder layers' weights.
        head: values of the vocabulary head's.
        touched: bytes that one token reads of both.
    """

    layers: int
    head: int
    touched: int

    def operations(self, tokens: int, sampled: int) -> int:
        """Multiplications and additions of a pass, without attention."""
        return 2 * (self.layers * tokens + self.head * sampled)


@dataclass
class Inside:
    """A loaded runner to which steps are given; sequences' earlier tokens are taken as cached, their keys and values being what the pool holds."""

    runner: ModelRunner
    info: ModelInfo
    epoch: int = 0
    number: int = 0
    free: int = 0
    decoding: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """Forget all sequences and give all pages back."""
        self.epoch, self.number, self.free, self.decoding = self.epoch + 1, 0, 0, []
        self.runner.reset(self.epoch)

    def start(self, lengths: Sequence[int], *, steps: int, prefix: int = 0) -> None:
        """Sequences of `lengths` tokens, all but the last cached, that share the pages of their first `prefix` tokens; room for `steps` tokens."""
        shared = self._take(prefix)
        sequences = [
            NewSequence(
                seq=len(self.decoding) + index,
                token_ids=random_ids(length, index),
                prompt_length=length,
                cached=length - 1,
                pages=shared + self._take(length - prefix + steps + 1),
                sampling=GREEDY,
            )
            for index, length in enumerate(lengths)
        ]
        self.decoding += [one.seq for one in sequences]
        self.step(sequences, [Work(seq) for seq in self.decoding])

    def decode(self) -> float:
        """One more token of every sequence; seconds."""
        return self.step([], [Work(seq) for seq in self.decoding])

    def prefill(self, tokens: int, seed: int) -> float:
        """The seconds of a prompt that is run and sampled from in one step."""
        ids = random_ids(tokens, seed)
        return self.step(
            [NewSequence(10**6, ids, tokens, 0, self._take(tokens + 1), GREEDY)], [Work(10**6, tokens)]
        )

    def step(self, start: list[NewSequence], work: list[Work]) -> float:
        """Run one; seconds of all that the runner does in it.

        Raises:
            RuntimeError: a sequence failed.
        """
        began = time.perf_counter()
        done = self.runner.execute(Step(self.epoch, self.number, [], start, work))
        seconds = time.perf_counter() - began
        self.number += 1
        if errors := [result.error for result in done.results if result.error]:
            raise RuntimeError(f"a made-up step failed: {errors[0]}")
        return seconds

    def attention_seconds(self) -> float:
        """Spent in attention so far; only the native engine counts it."""
        model = self.runner.model
        return model.engine.timings()["attention"] if isinstance(model, NativeLM) else 0.0

    @property
    def native(self) -> bool:
        """Whether the native engine computes."""
        return isinstance(self.runner.model, NativeLM)

    @contextmanager
    def cascade(self, on: bool) -> Iterator[None]:
        """With shared prefixes read once per group, or once per sequence."""
        model = self.runner.model
        assert isinstance(model, NativeLM)
        before, model.engine.cascade = model.engine.cascade, on
        try:
            yield
        finally:
            model.engine.cascade = before

    def size(self) -> Size:
        """Of its linear layers."""
        model = self.runner.model
        if isinstance(model, NativeLM):
            engine = model.engine.model
            packed = [
                w for layer in engine.layers for w in (layer.qkv, layer.output, layer.gate_up, layer.down)
            ]
            touched = sum(weight.data.nbytes for weight in (*packed, engine.head))
            return Size(
                sum(w.out * w.columns for w in packed), engine.head.out * engine.head.columns, touched
            )
        assert isinstance(model, CausalLM)
        config = model.config
        head = config.vocabulary * config.hidden
        qkv = (config.heads + 2 * config.kv_heads) * config.head_dim
        each = config.hidden * (qkv + config.heads * config.head_dim + 3 * config.intermediate)
        return Size(
            config.layers * each, head, (config.layers * each + head) * model.weights.embedding.itemsize
        )

    def _take(self, tokens: int) -> list[int]:
        first, self.free = self.free, self.free + tokens
        return list(range(first, self.free))


def random_ids(count: int, seed: int) -> list[int]:
    """Ordinary tokens."""
    rng = random.Random(seed)
    return [rng.randrange(FIRST_ID, LAST_ID) for _ in range(count)]


def load_inside(checkpoint: str, *, threads: int, tokens: int, compute: str = "auto") -> Inside:
    """Load a runner with a zeroed pool of `tokens` pages of one token."""
    model = Options(path=str(resolve(checkpoint).path), threads=threads, compute=compute)
    runner, info = load_runner(model, CacheOptions(page_size=1, pages=tokens))
    runner.pool.data.zero_()
    if not isinstance(runner.model, NativeLM):
        torch.set_num_threads(threads)
    inside = Inside(runner, info)
    inside.begin()
    return inside
