"""Decode steps replayed as CUDA graphs: one launch in place of some ten per layer, which the host cannot issue as fast as a small model runs.

A graph has fixed shapes and addresses, so batches are padded to a few sizes (`BUCKETS`), and each graph owns the buffers that it reads. A padded
row has slot -1, where nothing is written, and attends to slot 0 alone; rows never mix, so what it computes reaches nobody.

When a graph is captured: the first batch of a bucket; one whose attention tables do not fit into what the bucket's graphs have room for
(contexts have doubled, or another kind of tile is needed); and any, once the pool is another one. A bucket keeps its last `KEPT` graphs.
Batches with a prefill, or larger than the largest bucket, run as they would without; so does everything once a capture has failed.

Not run on hardware: capture and replay need a GPU. Tested without one are the padding, the choice of a graph, and that a padded batch gives the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from sgl_actors.actors.worker.model.causal_lm import CausalLM, ForwardBatch, Plans
from sgl_actors.actors.worker.model.config import ModelConfig
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.kernels.attention import AttentionPlan, AttentionRow

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows that graphs are captured for."""
KEPT = 3
"""Graphs of a bucket at most; they differ in the room and the tiles of their attention tables."""
SPARE = 2.0
"""Room of a graph's attention tables, relative to the batch that it was captured with."""
NOWHERE = -1
"""A slot that `rotate_and_store` does not write."""
WARM_UPS = 2
"""Runs before a capture, which compile kernels and allocate: neither may happen within."""

Replay = Callable[[], torch.Tensor]
Capture = Callable[[Callable[[], torch.Tensor]], Replay]
"""Turns a computation on static buffers into one that can be repeated."""


class RefillablePlan(AttentionPlan, Protocol):
    """An attention plan whose tables can take another batch, at the same addresses."""

    def refill(self, rows: list[AttentionRow]) -> None:
        """Put `rows` in place; `ValueError` if they do not fit."""


MakePlan = Callable[[list[AttentionRow], int | None], RefillablePlan]
"""A plan of rows and a window, with room to spare."""


@dataclass
class _Graph:
    """A captured pass: the buffers it reads, its plans by window, and the repetition."""

    inputs: ForwardBatch
    plans: dict[int | None, RefillablePlan]
    replay: Replay

    def fill(self, batch: ForwardBatch) -> bool:
        """Take a padded batch; False if its attention does not fit."""
        try:
            for plan in self.plans.values():
                plan.refill(batch.rows)
        except ValueError:
            return False
        _copy(self.inputs, batch)
        return True


class GraphedLM:
    """A `LanguageModel` whose decode steps are graphs of `model`'s.

    Attributes:
        captured: graphs made so far.
        replayed: passes that were replays.
        failure: why nothing is captured any more; empty while all is well.
    """

    def __init__(
        self, model: CausalLM, *, capture: Capture | None = None, make_plan: MakePlan | None = None
    ) -> None:
        self.model = model
        self.captured = 0
        self.replayed = 0
        self.failure = ""
        self._capture = capture or CudaCapture(model.device)
        self._make_plan = make_plan or self._make_triton_plan
        self._graphs: dict[int, list[_Graph]] = {}
        self._pool: KvPool | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config

    @property
    def compute(self) -> str:
        """The model's."""
        return self.model.compute

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def forward(self, batch: ForwardBatch, pool: KvPool) -> torch.Tensor:
        """See `CausalLM.forward`; the result is the caller's."""
        size = None if self.failure else choose_bucket(batch.rows)
        if size is None:
            return self.model.forward(batch, pool)
        if pool is not self._pool:
            self._graphs.clear()
            self._pool = pool
        padded = pad(batch, size)
        graphs = self._graphs.setdefault(size, [])
        graph = next((graph for graph in graphs if graph.fill(padded)), None)
        if graph is None:
            try:
                graph = self._new_graph(padded, pool)
            except RuntimeError as error:
                self.failure = f"no CUDA graph of {size} rows: {error}"
                self._graphs.clear()
                return self.model.forward(batch, pool)
        else:
            graphs.remove(graph)
        graphs.insert(0, graph)
        del graphs[KEPT:]
        self.replayed += 1
        return graph.replay()[: len(batch.rows)].clone()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `CausalLM.logits`."""
        return self.model.logits(hidden)

    def logits_in_parts(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """See `CausalLM.logits_in_parts`."""
        return self.model.logits_in_parts(hidden)

    def _new_graph(self, padded: ForwardBatch, pool: KvPool) -> _Graph:
        inputs = ForwardBatch(padded.token_ids.clone(), padded.positions.clone(), padded.slots.clone(), [])
        plans = {window: self._make_plan(padded.rows, window) for window in set(self.config.windows)}
        seen: Plans = plans
        replay = self._capture(lambda: self.model.run_layers(inputs, seen, pool))
        self.captured += 1
        return _Graph(inputs, plans, replay)

    def _make_triton_plan(self, rows: list[AttentionRow], window: int | None) -> RefillablePlan:
        from sgl_actors.kernels.triton.attention import TritonPlan

        return TritonPlan(rows, scale=self.config.scale, window=window, spare=SPARE)


class CudaCapture:
    """`Capture` by CUDA graphs that share their memory, as one runs at a time; a result is valid until the next replay of any."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory: tuple[int, int] | None = None

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Replay:
        """Warm `compute` up, capture it, and return its repetition."""
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            out = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


def choose_bucket(rows: list[AttentionRow]) -> int | None:
    """The smallest bucket that holds `rows`; None if they are too many or one of them is no decode."""
    if any(row.new != 1 for row in rows):
        return None
    return next((size for size in BUCKETS if size >= len(rows)), None)


def pad(batch: ForwardBatch, size: int) -> ForwardBatch:
    """`batch`, all decodes, with rows up to `size` that write nothing and see slot 0 alone."""
    missing = size - len(batch.rows)
    if not missing:
        return batch
    lone = AttentionRow(batch.rows[0].slots.new_zeros(1), 1)
    return ForwardBatch(
        _extend(batch.token_ids, missing, 0),
        _extend(batch.positions, missing, 0),
        _extend(batch.slots, missing, NOWHERE),
        batch.rows + [lone] * missing,
    )


def _extend(values: torch.Tensor, count: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, count), value=value)


def _copy(to: ForwardBatch, source: ForwardBatch) -> None:
    to.token_ids.copy_(source.token_ids)
    to.positions.copy_(source.positions)
    to.slots.copy_(source.slots)
