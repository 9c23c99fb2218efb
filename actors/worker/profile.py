"""Where the time of steps goes: a stopwatch for the thread that runs them, and what it finds in a model.

The native engine adds up its operations' times by itself, always; from it only differences are taken. The torch model is run, while a profile
is taken, with stopwatches around its linear layers: what lies between two of them is known by its neighbours (attention between
`qkv` and `output`). When no profile is taken a step costs a few looks at a flag.
"""

from __future__ import annotations

import copy
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec
import torch

from sgl_actors.actors.worker.batch import Run
from sgl_actors.actors.worker.messages import PartTime, Profiled, Slice, Step, StepTime
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.cuda_graphs import GraphedLM
from sgl_actors.actors.worker.model.language_model import LanguageModel
from sgl_actors.actors.worker.model.native_lm import NativeLM
from sgl_actors.errors import Overloaded
from sgl_actors.kernels.linear import Linear

MOST_SLICES = 200_000
"""Operations kept of one profile; at 280 a step those of the first 700 steps."""
REST = "forward"
"""The stopwatch's name for a pass whose parts are known from elsewhere: what of it is in no part is no part's."""
LAYER_PARTS = ("qkv", "attention", "output", "gate_up", "down")
FULL = "a profile is being taken already; ask again when it is over"


class Stopwatch:
    """Adds up the time between one `lap` and the next. Off until `start`; one thread uses it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on = False
        self.clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.slices: list[Slice] | None = None
        self._last = 0.0

    def start(self, *, slices: bool) -> None:
        """Begin anew."""
        self.on = True
        self.seconds, self.calls = defaultdict(float), Counter()
        self.slices = [] if slices else None

    def mark(self) -> float:
        """The next lap begins here; tells the time, while it is on."""
        if self.on:
            self._last = self.clock()
        return self._last

    def lap(self, part: str) -> None:
        """What was done since the last one is `part`."""
        if not self.on:
            return
        now = self.clock()
        self.seconds[part] += now - self._last
        self.calls[part] += 1
        if self.slices is not None and len(self.slices) < MOST_SLICES:
            self.slices.append(Slice(part, self._last, now - self._last))
        self._last = now


class Source(Protocol):
    """How the operations of a model are timed while a profile is taken."""

    model: LanguageModel
    """To be run meanwhile."""

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of weights that one pass reads, by part."""

    def finish(self) -> tuple[dict[str, float], list[Slice]]:
        """Seconds by part since its making, and single operations, beside what the stopwatch has."""


class TorchSource:
    """The torch model with laps around its linear layers. On a GPU each lap waits for the device, which is slower than a run without."""

    def __init__(self, model: CausalLM, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._weights = weights = model.weights
        self._device = weights.embedding.device
        layers = tuple(
            replace(
                layer,
                qkv=self._timed(layer.qkv, "norm" if index else "embed", "qkv"),
                output=self._timed(layer.output, "attention", "output"),
                gate_up=self._timed(layer.gate_up, "norm", "gate_up"),
                down=self._timed(layer.down, "activation", "down"),
            )
            for index, layer in enumerate(weights.layers)
        )
        timed = copy.copy(model)
        timed.weights = replace(weights, layers=layers, head=self._timed(weights.head, "norm", "head"))
        self.model: LanguageModel = timed

    def _timed(self, linear: Linear, before: str, part: str) -> Linear:
        def timed(x: torch.Tensor) -> torch.Tensor:
            self._lap(before)
            y = linear(x)
            self._lap(part)
            return y

        return timed

    def _lap(self, part: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._stopwatch.lap(part)

    def weight_bytes(self) -> dict[str, int]:
        """See `Source`; by the shapes and the dtype, as a packed weight does not tell."""
        config, size = self.model.config, self._weights.embedding.element_size()
        return {part: count * size for part, count in weights_of(config).items()}

    def finish(self) -> tuple[dict[str, float], list[Slice]]:
        """See `Source`: the stopwatch has it all."""
        return {}, []


class NativeSource:
    """The native engine's own sums and events."""

    def __init__(self, model: NativeLM, *, slices: bool) -> None:
        self.model: LanguageModel = model
        self._engine = model.engine
        self._before = self._engine.timings()
        self._slices = slices
        self._engine.events(slices)

    def weight_bytes(self) -> dict[str, int]:
        """See `Source`."""
        model = self._engine.model
        parts = {
            part: sum(getattr(layer, part).data.nbytes for layer in model.layers)
            for part in ("qkv", "output", "gate_up", "down")
        }
        return parts | {"head": model.head.data.nbytes}

    def finish(self) -> tuple[dict[str, float], list[Slice]]:
        """See `Source`."""
        seconds = {
            part: after - self._before.get(part, 0.0) for part, after in self._engine.timings().items()
        }
        events = self._engine.events(False) if self._slices else []
        return seconds, [Slice(part, start / 1e9, length / 1e9) for part, start, length in events]


class UntimedSource:
    """A model that tells nothing: a pass is one piece."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def weight_bytes(self) -> dict[str, int]:
        """See `Source`."""
        return {}

    def finish(self) -> tuple[dict[str, float], list[Slice]]:
        """See `Source`."""
        return {}, []


class Profiler:
    """Takes profiles of one runner, one at a time. `start`, `step` and `finish` belong to the thread that runs the steps."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self._steps: list[StepTime] = []
        self._delivered: dict[int, tuple[float, float]] = {}
        self._source: Source | None = None
        self._plain: LanguageModel | None = None
        self._work: Counter[str] = Counter()
        self._began = 0.0

    @property
    def on(self) -> bool:
        """Whether one is being taken."""
        return self.stopwatch.on

    def start(self, model: LanguageModel, *, slices: bool) -> LanguageModel:
        """Begin; returns the model to run meanwhile.

        Raises:
            Overloaded: one is being taken.
        """
        if self.on:
            raise Overloaded(FULL)
        self._plain = model
        self._source = source_of(model, self.stopwatch, slices=slices)
        self._steps, self._delivered, self._work = [], {}, Counter()
        self.stopwatch.start(slices=slices)
        self._began = self.stopwatch.clock()
        return self._source.model

    def step(self, step: Step, runs: Sequence[Run], began: float) -> None:
        """A step that began then has ended; `runs` are what was run, drafts included."""
        if not self.on:
            return
        ended = self.stopwatch.clock()
        fresh = {new.seq for new in step.start}
        self._steps.append(
            StepTime(
                step.number,
                began,
                began,
                ended,
                ended,
                sum(run.count for run in runs),
                len(runs),
                sum(run.sample for run in runs),
                tuple(len(new.token_ids) for new in step.start),
                tuple(
                    run.sequence.prompt_length
                    for run in runs
                    if run.sample and run.stop == run.sequence.prompt_length
                ),
                any(run.sequence.seq not in fresh for run in runs),
            )
        )
        for run in runs:
            count = run.count
            self._work["tokens"] += count
            self._work["keys"] += run.start + count
            self._work["pairs"] += count * run.start + count * (count + 1) // 2
        self._work["passes"] += bool(runs)

    def head(self, rows: int) -> None:
        """Logits of that many rows were made."""
        if self.on:
            self._work["heads"] += 1
            self._work["rows"] += rows

    def delivered(self, number: int, received: float, sent: float) -> None:
        """When a step came and when its answer went; from the actor's loop."""
        if self.on:
            self._delivered[number] = (received, sent)

    def finish(self, threads: int, token_bytes: int) -> tuple[Profiled, LanguageModel]:
        """End; what was found, and the model as it was before. `token_bytes` is what keys and values of one token take."""
        source, model = self._source, self._plain
        assert source is not None
        assert model is not None
        watch = self.stopwatch
        watch.on = False
        native, slices = source.finish()
        slices = sorted([*(watch.slices or ()), *slices[:MOST_SLICES]], key=lambda one: one.began)
        profiled = Profiled(
            self._began,
            watch.clock(),
            threads,
            [self._with_delivery(step) for step in self._steps],
            list(self._parts(model.config, native, source.weight_bytes(), token_bytes)),
            slices,
        )
        self._source = self._plain = watch.slices = None
        self._steps, self._delivered = [], {}
        return profiled, model

    def _with_delivery(self, step: StepTime) -> StepTime:
        received, sent = self._delivered.get(step.number, (step.began, step.ended))
        return msgspec.structs.replace(step, received=received, sent=max(sent, step.ended))

    def _parts(
        self, config: ModelConfig, native: dict[str, float], weights: dict[str, int], token_bytes: int
    ) -> Iterable[PartTime]:
        """A part is timed by the source or by the stopwatch. Operations on weights read them once per pass; attention reads keys and values once per row."""
        work, watch = self._work, self.stopwatch
        layers, passes = config.layers, work["passes"]
        calls = dict.fromkeys(LAYER_PARTS, layers * passes)
        calls |= {"embed": passes, "norm": 2 * layers * passes + work["heads"], "head": work["heads"]}
        operations = {part: 2.0 * count * work["tokens"] for part, count in weights_of(config).items()}
        operations["head"] = 2.0 * config.vocabulary * config.hidden * work["rows"]
        operations["attention"] = 4.0 * layers * config.heads * config.head_dim * work["pairs"]
        read = {part: float(size * passes) for part, size in weights.items()}
        read["head"] = float(weights.get("head", 0) * work["heads"])
        read["attention"] = float(work["keys"] * token_bytes)
        seconds: dict[str, float] = {part: own for part, own in watch.seconds.items() if part != REST}
        for part, own in native.items():
            seconds[part] = seconds.get(part, 0.0) + own
        for part, own in seconds.items():
            if own > 0:
                count = calls.get(part, watch.calls[part])
                yield PartTime(part, own, count, read.get(part, 0.0), operations.get(part, 0.0))


def source_of(model: LanguageModel, stopwatch: Stopwatch, *, slices: bool) -> Source:
    """The way to time this kind of model."""
    if isinstance(model, NativeLM):
        return NativeSource(model, slices=slices)
    if isinstance(model, GraphedLM):
        model = model.model
    if isinstance(model, CausalLM):
        return TorchSource(model, stopwatch)
    return UntimedSource(model)


def weights_of(config: ModelConfig) -> dict[str, int]:
    """Number of weights of each linear part, all layers together."""
    width = config.heads * config.head_dim
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    return {
        "qkv": config.layers * config.hidden * heads,
        "output": config.layers * config.hidden * width,
        "gate_up": config.layers * config.hidden * 2 * config.intermediate,
        "down": config.layers * config.hidden * config.intermediate,
        "head": config.vocabulary * config.hidden,
    }
