"""`AttentionPlan` for GPUs: a flat batch of decodes, prefill chunks and forks becomes tables of work items, then at most four launches a layer.

A row of few new tokens is split over its keys (`attention_decode`), a longer one runs in blocks of tokens (`attention_prefill`). Where short rows
have the same slots in a whole split, it is run once for all of them (`attention_cascade`). Results of more than one part are merged.

Tables are built on the host with numpy at the first `attend`, when the number of heads is known, and reach the device in one copy: a pass costs no
synchronisation if the rows' slots are on the CPU. `refill` puts another batch into the same tables, for a captured graph.
"""

from __future__ import annotations

import numpy as np
import torch
import triton

from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.triton import attention_cascade, attention_decode, attention_prefill
from sgl_actors.kernels.triton.attention_tables import Tables, make_tables, read_batch
from sgl_actors.kernels.triton.attention_tile import LOG2_E


class TritonPlan:
    """See `sgl_actors.kernels.attention.AttentionPlan`.

    Attributes:
        spare: more than 1 for a plan that is to be refilled: room for that many times the keys of the first batch, shared in whatever way.
    """

    def __init__(
        self, rows: list[AttentionRow], *, scale: float, window: int | None, spare: float = 1.0
    ) -> None:
        if not rows or any(not 1 <= row.new <= len(row.slots) for row in rows):
            raise ValueError(
                "a pass has at least one row, and a row as many new tokens as it has slots or fewer, 1 at least"
            )
        self.scale = scale
        self.window = window
        self.spare = spare
        self._rows = rows
        self._group = 0
        self._loaded: _Loaded | None = None

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """See the protocol; `query` may be a slice of heads of a wider tensor.

        Raises:
            ValueError: shapes, strides or types that do not fit together.
        """
        tokens, heads, head_dim = query.shape
        kv_heads = pool.shape[2]
        _check(query, pool)
        if self._loaded is None:
            self._group = heads // kv_heads
            tables = self._make_tables(self._rows)
            self._loaded = _Loaded(tables, query.device, self.spare)
        elif heads != self._group * kv_heads:
            raise ValueError(
                f"the plan was made for {self._group} query heads per key head, not {heads} / {kv_heads}"
            )
        out = torch.empty(tokens, heads * head_dim, dtype=query.dtype, device=query.device)
        self._loaded.launch(out, query, pool, self.scale * LOG2_E, self.window)
        return out

    def refill(self, rows: list[AttentionRow]) -> None:
        """Put `rows` in place of the batch that this plan holds: same device memory, same launches, for a graph captured with it.

        Raises:
            RuntimeError: nothing has been attended with this plan yet.
            ValueError: the batch needs more room than the tables have, or another kind of tile; make a new plan.
        """
        if self._loaded is None:
            raise RuntimeError("refill: the plan has no tables before its first attend")
        self._loaded.fill(self._make_tables(rows))
        self._rows = rows

    def _make_tables(self, rows: list[AttentionRow]) -> Tables:
        return make_tables(read_batch(rows), self._group, self.window, steady=self.spare > 1)


class _Loaded:
    """Tables on a device, the partial results' memory, and the launches."""

    def __init__(self, tables: Tables, device: torch.device, spare: float) -> None:
        self.shape = (tables.rows, tables.several)
        self.room = _count_room(tables, spare)
        self.most_partials = max(self.room[_PARTS.index("numbers")], tables.partials)
        widths = [part.shape[1] if part.ndim == 2 else 1 for part in tables.parts]
        sizes = [-(-room * width // 4) * 4 for room, width in zip(self.room, widths, strict=True)]
        self.bounds = np.cumsum([0, *sizes]).tolist()
        self._memory = torch.zeros(self.bounds[-1], dtype=torch.int32, device=device)
        self._partials: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        self.fill(tables)

    def fill(self, tables: Tables) -> None:
        """Copy `tables` to the device; what they leave of the room does nothing.

        Raises:
            ValueError: they do not fit.
        """
        if (tables.rows, tables.several) != self.shape:
            raise ValueError("this batch needs other tiles than those the plan was made for; make a new plan")
        needed = [*map(len, tables.parts), tables.partials]
        for name, needs, has in zip(_PARTS, needed, [*self.room, self.most_partials], strict=True):
            if needs > has:
                raise ValueError(
                    f"this batch needs {needs} {name}, the plan has room for {has}; make a new plan"
                )
        used = self.bounds[-2] + tables.slots.size
        memory = torch.zeros(used, dtype=torch.int32, pin_memory=self._memory.is_cuda)
        host = memory.numpy()
        for start, part in zip(self.bounds[:-1], tables.parts, strict=True):
            host[start : start + part.size] = part.reshape(-1)
        self._memory[:used].copy_(memory, non_blocking=True)

    def launch(
        self, out: torch.Tensor, query: torch.Tensor, pool: torch.Tensor, factor: float, window: int | None
    ) -> None:
        heads, head_dim = query.shape[1:]
        kv_heads = pool.shape[2]
        decodes, shared, prefills, members, merges, numbers, slots = (
            self._memory[start:stop] for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True)
        )
        if self._partials is None or self._weights is None:
            lines = max(1, self.most_partials) * heads
            self._partials = torch.empty(lines * head_dim, dtype=torch.float32, device=query.device)
            self._weights = torch.empty(lines, dtype=torch.float32, device=query.device)
        results = (out, self._partials, self._weights)
        strides = (query.stride(0), query.stride(1), pool.stride(0), kv_heads, factor)
        shape = {
            "SHARED": heads // kv_heads,
            "GROUP": triton.next_power_of_2(heads // kv_heads),
            "HEAD_DIM": head_dim,
            "BLOCK_D": triton.next_power_of_2(head_dim),
        }
        (decode_rows, shared_rows, prefill_rows), several = self.shape
        seen = window or 0
        if self.room[0]:
            attention_decode.attend_decodes[(self.room[0], kv_heads)](
                *results, query, pool, slots, decodes, *strides, seen,
                CAUSAL=several, WINDOW=several and window is not None, BLOCK_M=decode_rows, **shape,
                **attention_decode.choose_launch(query.dtype),
            )  # fmt: skip
        if self.room[1]:
            attention_cascade.attend_shared[(self.room[1], kv_heads)](
                *results[1:], query, pool, slots, shared, members, *strides,
                BLOCK_M=shared_rows, **shape, **attention_cascade.choose_launch(query.dtype),
            )  # fmt: skip
        if self.room[2]:
            attention_prefill.attend_prefills[(self.room[2], kv_heads)](
                *results, query, pool, slots, prefills, *strides, seen,
                WINDOW=window is not None, BLOCK_M=prefill_rows, **shape,
                **attention_prefill.choose_launch(query.dtype),
            )  # fmt: skip
        if self.room[4]:
            attention_decode.merge_partials[(self.room[4], heads)](
                *results, merges, numbers, heads, HEAD_DIM=head_dim, BLOCK_D=shape["BLOCK_D"],
                BLOCK_P=attention_decode.MERGED, num_warps=1, enable_fp_fusion=True,
            )  # fmt: skip


_PARTS = (
    "decodes",
    "shared items",
    "prefill items",
    "members",
    "merges",
    "numbers",
    "slots",
    "partial results",
)


def _count_room(tables: Tables, spare: float) -> list[int]:
    """Lengths of the tables' parts; with `spare` room for that many times the keys, in as many rows and tokens."""
    lengths = [len(part) for part in tables.parts]
    if spare <= 1:
        return lengths
    items, parts, tokens = tables.unshared
    items, parts = int(items * spare), int(parts * spare)
    prefills, slots = len(tables.prefills), int(len(tables.slots) * spare)
    return [
        items,
        items // 2,
        prefills,
        parts,
        max(tokens, len(tables.merges)),
        max(parts, len(tables.numbers)),
        slots,
    ]


def _check(query: torch.Tensor, pool: torch.Tensor) -> None:
    heads, kv_heads, head_dim = query.shape[1], pool.shape[2], query.shape[2]
    if heads % kv_heads or pool.shape[1] != 2 or pool.shape[3] != head_dim:
        raise ValueError(
            f"attention: query {list(query.shape)} does not fit the pool {list(pool.shape)}, expected [slots, 2, kv_heads, head_dim]"
        )
    if query.dtype != pool.dtype:
        raise ValueError(f"attention: the query is {query.dtype}, the pool {pool.dtype}, expected the same")
    if not pool.is_contiguous() or query.stride(2) != 1:
        raise ValueError("attention: the pool has to be contiguous, and the query's last dimension")
