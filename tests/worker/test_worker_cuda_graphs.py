"""Buckets, padding and choice of graphs, on a CPU: a capture that runs the computation anew stands for CUDA's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sgl_actors.actors.worker.model import cuda_graphs
from sgl_actors.actors.worker.model.causal_lm import CausalLM, ForwardBatch
from sgl_actors.actors.worker.model.cuda_graphs import BUCKETS, KEPT, GraphedLM, choose_bucket, pad
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.kernels import rotary
from sgl_actors.kernels.attention import AttentionRow, plan_attention
from tests.worker.harness import CPU, tiny_config, tiny_model

SLOTS = 64


class Plan:
    """Attention by torch, with room for `most` slots of all rows together."""

    def __init__(self, rows: list[AttentionRow], window: int | None, scale: float) -> None:
        self.window, self.scale = window, scale
        self.most = 2 * sum(len(row.slots) for row in rows)
        self.rows = rows

    def refill(self, rows: list[AttentionRow]) -> None:
        if sum(len(row.slots) for row in rows) > self.most:
            raise ValueError("this batch needs more room")
        self.rows = rows

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        return plan_attention(self.rows, scale=self.scale, window=self.window).attend(query, pool)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """A tiny model whose CPU form of `rotate_and_store` leaves slot -1 alone, as the GPU's does."""

    def rotate_and_store(qkv: torch.Tensor, tables: Any, pool: torch.Tensor, slots: torch.Tensor) -> None:
        kv_heads = pool.shape[2]
        rotary.apply_rotary(qkv[:, :-kv_heads], *tables)
        real = slots >= 0
        pool[slots[real]] = qkv[real, -2 * kv_heads :].unflatten(1, (2, kv_heads))

    monkeypatch.setattr("sgl_actors.actors.worker.model.causal_lm.rotate_and_store", rotate_and_store)
    return tiny_model()


def graphed(model: CausalLM) -> GraphedLM:
    def capture(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        compute()
        return compute

    def make_plan(rows: list[AttentionRow], window: int | None) -> Plan:
        return Plan(rows, window, model.config.scale)

    return GraphedLM(model, capture=capture, make_plan=make_plan)


def make_pool() -> KvPool:
    config = tiny_config()
    pool = KvPool(
        layers=config.layers,
        pages=SLOTS,
        page_size=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    pool.data.copy_(torch.randn(pool.data.shape, generator=torch.Generator().manual_seed(0)))
    return pool


def decodes(*lengths: int, new: int = 1) -> ForwardBatch:
    """One row of each length, at slots of its own; the last `new` tokens of each are the batch's."""
    rows, place = [], 0
    for length in lengths:
        rows.append(AttentionRow(torch.arange(place, place + length), new))
        place += length
    positions = torch.cat([torch.arange(len(row.slots) - new, len(row.slots)) for row in rows])
    slots = torch.cat([row.slots[-new:] for row in rows])
    return ForwardBatch(torch.arange(len(slots)) + 5, positions, slots, rows)


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (3, 4), (9, 16), (17, 24), (256, 256), (257, None)])
def test_a_batch_takes_the_smallest_bucket_that_holds_it(rows: int, bucket: int | None) -> None:
    """Sizes between buckets are rounded up; beyond the last there is none."""
    assert choose_bucket([AttentionRow(torch.zeros(1, dtype=torch.int64), 1)] * rows) == bucket


def test_a_batch_with_a_prefill_has_no_bucket() -> None:
    """One row of two new tokens is enough."""
    assert choose_bucket(decodes(3).rows + decodes(4, new=2).rows) is None


def test_buckets_rise_from_one() -> None:
    """So that the first that is large enough is the smallest."""
    assert BUCKETS[0] == 1
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_padding_writes_nowhere_and_sees_one_slot() -> None:
    """The batch's own rows stay as they are; those behind them have slot -1 and attend to slot 0."""
    batch = decodes(3, 5, 2)
    padded = pad(batch, 4)
    assert torch.equal(padded.token_ids[:3], batch.token_ids)
    assert torch.equal(padded.slots, torch.cat((batch.slots, torch.tensor([-1]))))
    assert padded.positions.tolist() == [2, 4, 1, 0]
    assert padded.rows[:3] == batch.rows
    assert padded.rows[3].slots.tolist() == [0]
    assert padded.rows[3].new == 1


def test_a_full_bucket_is_not_padded() -> None:
    """A batch as large as its bucket is passed on as it is."""
    batch = decodes(3, 5)
    assert pad(batch, 2) is batch


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_padded_pass_gives_the_same_rows_and_the_same_pool(model: CausalLM, rows: int) -> None:
    """Hidden states and keys and values agree with the plain model's; the padding leaves no trace."""
    batch = decodes(*range(2, 2 + rows))
    plain, padded = make_pool(), make_pool()
    expected = model.forward(batch, plain)
    lm = graphed(model)
    assert torch.allclose(lm.forward(batch, padded), expected, atol=1e-5)
    assert torch.allclose(padded.data, plain.data, atol=1e-5)
    assert (lm.captured, lm.replayed) == (1, 1)


def test_a_graph_is_replayed_with_the_next_batch(model: CausalLM) -> None:
    """A second batch of the bucket needs no capture, and its result is its own."""
    pool, other, lm = make_pool(), make_pool(), graphed(model)
    first = lm.forward(decodes(6, 7, 5), pool)
    model.forward(decodes(6, 7, 5), other)
    kept = first.clone()
    batch = decodes(4, 3, 8)
    assert torch.allclose(lm.forward(batch, pool), model.forward(batch, other), atol=1e-5)
    assert torch.equal(first, kept)
    assert (lm.captured, lm.replayed) == (1, 2)


def test_a_batch_that_does_not_fit_is_captured_anew(model: CausalLM) -> None:
    """Contexts beyond a graph's room make another graph, and both stay in use."""
    pool, lm = make_pool(), graphed(model)
    lm.forward(decodes(2, 2), pool)
    lm.forward(decodes(20, 20), pool)
    assert lm.captured == 2
    lm.forward(decodes(2, 3), pool)
    lm.forward(decodes(21, 21), pool)
    assert lm.captured == 2


def test_a_bucket_keeps_a_bounded_number_of_graphs(model: CausalLM) -> None:
    """Ever longer contexts push the graphs with the least room out."""
    pool, lm = make_pool(), graphed(model)
    for length in (1, 3, 7, 15, 31):
        lm.forward(decodes(length, length), pool)
    assert lm.captured == 5
    assert [len(graphs) for graphs in lm._graphs.values()] == [KEPT]


def test_another_pool_drops_all_graphs(model: CausalLM) -> None:
    """A graph has the addresses of the pool that it was captured with."""
    lm = graphed(model)
    lm.forward(decodes(4, 4), make_pool())
    batch, pool = decodes(4, 4), make_pool()
    assert torch.allclose(lm.forward(batch, pool), model.forward(batch, make_pool()), atol=1e-5)
    assert lm.captured == 2


def test_a_failed_capture_leaves_the_plain_model(model: CausalLM) -> None:
    """The batch is run all the same, the reason is kept, and nothing is captured again."""
    tries = []

    def capture(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        tries.append(compute)
        raise RuntimeError("out of memory")

    lm = GraphedLM(model, capture=capture, make_plan=graphed(model)._make_plan)
    batch = decodes(5, 4)
    for _ in range(2):
        assert torch.equal(lm.forward(batch, make_pool()), model.forward(batch, make_pool()))
    assert lm.failure == "no CUDA graph of 2 rows: out of memory"
    assert len(tries) == 1


def test_prefills_run_without_a_graph(model: CausalLM) -> None:
    """What has no bucket is the plain model's."""
    batch = decodes(5, 4, new=2)
    lm = graphed(model)
    assert torch.equal(lm.forward(batch, make_pool()), model.forward(batch, make_pool()))
    assert (lm.captured, lm.replayed) == (0, 0)


def test_the_runner_may_use_it_as_a_model(model: CausalLM) -> None:
    """Logits, config and device are the plain model's."""
    lm = graphed(model)
    hidden = torch.randn(3, model.config.hidden, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lm.logits(hidden), model.logits(hidden))
    assert torch.equal(torch.cat(list(lm.logits_in_parts(hidden))), model.logits(hidden))
    assert lm.config is model.config
    assert lm.device == CPU
    assert cuda_graphs.NOWHERE == -1
