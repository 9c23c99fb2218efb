"""Attention over a paged KV pool: the interface, and the choice of an implementation.

The pool of one layer is [slots, 2, kv_heads, head_dim]: keys at index 0 and values at index 1 of the second dimension, so that
one gather fetches both. A sequence's token i lives in slot `slots[i]`; slots of a sequence may lie anywhere.

One forward pass runs a flat batch: the new tokens of all rows one after the other. A row with one new token is a decode, a row
with more is a chunk of a prefill; both mix freely. Keys and values of the new tokens are in the pool before `attend` is called.
A plan is made once per pass (and per window size) and used by every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class AttentionRow:
    """One sequence of a pass.

    Attributes:
        slots: [kv_length] int64 on the CPU, also beside a GPU; slots of all tokens from position 0 up to the last new one.
        new: how many of them, the last ones, are this pass's queries; at least 1.
        contiguous: slots are consecutive numbers, so that a slice of the pool can stand for a gather.
    """

    slots: torch.Tensor
    new: int
    contiguous: bool = False


class AttentionPlan(Protocol):
    """What is the same for all layers of one pass."""

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """Causal attention of every new token over its own sequence.

        Args:
            query: [tokens, heads, head_dim], rows in the plan's order.
            pool: [slots, 2, kv_heads, head_dim] of this layer; heads is a multiple of kv_heads.

        Returns:
            [tokens, heads * head_dim].
        """


def plan_attention(
    rows: list[AttentionRow],
    *,
    scale: float,
    window: int | None = None,
    device: torch.device | None = None,
) -> AttentionPlan:
    """Plan one pass over `rows`.

    Args:
        rows: in the order of their tokens in the flat batch.
        scale: factor on the products of queries and keys.
        window: a token sees itself and the `window - 1` tokens before it; None for all before it.
        device: of the queries and the pool; None for that of the rows' slots. A GPU takes Triton's kernels, and reads slots that are on the CPU without a wait.
    """
    device = device or (rows[0].slots.device if rows else torch.device("cpu"))
    if device.type == "cuda":
        from sgl_actors.kernels.triton.attention import TritonPlan

        return TritonPlan(rows, scale=scale, window=window)
    from sgl_actors.kernels.cpu.attention import TorchPlan

    return TorchPlan(rows, scale=scale, window=window)
