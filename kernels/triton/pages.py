"""Copies of KV pages: within and between pools of a device, and to and from the dense blocks in which they travel to another tier.

A pool of all layers is [layers, slots, 2, kv_heads, head_dim]; what a slot holds in a layer is contiguous and is copied as plain words, whatever its type.
One launch serves all layers. To reach host memory or a disk: `gather_slots` on the device, one asynchronous copy of the dense block (to pinned memory), and
`scatter_slots` on the way back; single slots over the bus would be a transfer each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime

TILE = 2048
"""Words of a program at most, at once; short slots share one."""

WORDS = (torch.int64, torch.int32, torch.int16, torch.int8)
"""Types to copy as, the widest that divides a slot's bytes is taken."""


@triton.jit
def copy_rows(
    source: tl.tensor,
    target: tl.tensor,
    source_slots: tl.tensor,
    target_slots: tl.tensor,
    count: tl.tensor,
    source_stride: tl.tensor,
    target_stride: tl.tensor,
    LISTED_SOURCE: tl.constexpr,
    LISTED_TARGET: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """ROWS slots of one layer, WIDTH words each; the grid is (slots / ROWS, layers), strides are those of the layers.

    A side that is not LISTED is dense: its place i is slot i.
    """
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    layer = tl.program_id(1).to(tl.int64)
    there = place < count
    come = place.to(tl.int64)
    go = come
    if LISTED_SOURCE:
        come = tl.load(source_slots + place, mask=there, other=0)
    if LISTED_TARGET:
        go = tl.load(target_slots + place, mask=there, other=0)
    come = source + layer * source_stride + come[:, None] * WIDTH
    go = target + layer * target_stride + go[:, None] * WIDTH
    for start in tl.static_range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = there[:, None] & (column < WIDTH)
        tl.store(go + column, tl.load(come + column, mask=mask), mask=mask)


def gather_slots(pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """What `slots` [n] int64 hold in all layers of `pool` [layers, slots, ...]: a dense [layers, n, ...] on the same device.

    Raises:
        ValueError: a tensor of another layout, type or device.
    """
    out = torch.empty(pool.shape[0], len(slots), *pool.shape[2:], dtype=pool.dtype, device=pool.device)
    _copy(pool, slots, out, None)
    return out


def scatter_slots(data: torch.Tensor, pool: torch.Tensor, slots: torch.Tensor) -> None:
    """Write what `gather_slots` returned, `data` [layers, n, ...], into `slots` [n] int64 of `pool`; no slot may occur twice.

    Raises:
        ValueError: a tensor of another layout, type or device, or `data` is not of `n` slots.
    """
    if data.shape[1] != len(slots):
        raise ValueError(f"scatter_slots: data of {data.shape[1]} slots for {len(slots)} of the pool")
    _copy(data, None, pool, slots)


def copy_slots(
    source: torch.Tensor, source_slots: torch.Tensor, target: torch.Tensor, target_slots: torch.Tensor
) -> None:
    """Copy slot by slot between pools [layers, slots, ...] of one device, or within one where the slots written are not read and occur once.

    Raises:
        ValueError: a tensor of another layout, type or device, or lists of different lengths.
    """
    if len(source_slots) != len(target_slots):
        raise ValueError(f"copy_slots: {len(source_slots)} slots to read and {len(target_slots)} to write")
    _copy(source, source_slots, target, target_slots)


def page_slots(pages: torch.Tensor, page_size: int) -> torch.Tensor:
    """Slots of `pages` [n] int64, in order: [n * page_size]."""
    return (pages[:, None] * page_size + torch.arange(page_size, device=pages.device)).flatten()


def _copy(
    source: torch.Tensor,
    source_slots: torch.Tensor | None,
    target: torch.Tensor,
    target_slots: torch.Tensor | None,
) -> None:
    _check(source, target, [slots for slots in (source_slots, target_slots) if slots is not None])
    count = len(target_slots) if target_slots is not None else target.shape[1]
    layers = source.shape[0]
    if not count or not layers:
        return
    come, go = _as_words(source), _as_words(target)
    width = come.shape[2]
    block = min(TILE, triton.next_power_of_2(width))
    rows = max(1, min(TILE // block, triton.next_power_of_2(count)))
    copy_rows[(triton.cdiv(count, rows), layers)](
        come,
        go,
        source_slots,
        target_slots,
        count,
        come.stride(0),
        go.stride(0),
        LISTED_SOURCE=source_slots is not None,
        LISTED_TARGET=target_slots is not None,
        WIDTH=width,
        BLOCK=block,
        ROWS=rows,
        num_warps=4,
        enable_fp_fusion=True,
    )


def _as_words(pool: torch.Tensor) -> torch.Tensor:
    """The same memory as [layers, slots, words]."""
    size = pool[0, 0].numel() * pool.dtype.itemsize
    word = next(word for word in WORDS if size % word.itemsize == 0)
    return pool.flatten(2).view(word)


def _check(source: torch.Tensor, target: torch.Tensor, lists: list[torch.Tensor]) -> None:
    if source.dtype != target.dtype or source.shape[2:] != target.shape[2:] or len(source) != len(target):
        raise ValueError(
            f"pages: {source.dtype} {list(source.shape)} does not fit {target.dtype} {list(target.shape)}: "
            "number of layers, type and what a slot holds have to be the same"
        )
    if not (source.is_contiguous() and target.is_contiguous()):
        raise ValueError("pages: pools and dense blocks have to be contiguous")
    if len({tensor.device for tensor in (source, target, *lists)}) > 1:
        raise ValueError(
            "pages: source, target and lists of slots have to be on one device; gather, copy the dense block, and scatter there"
        )
    if any(slots.dtype != torch.int64 or slots.ndim != 1 or not slots.is_contiguous() for slots in lists):
        raise ValueError("pages: lists of slots have to be contiguous, int64 and of one dimension")


AHEAD_OF_TIME = [
    AheadOfTime(
        name=f"pages_{name}_{width * 8}_bytes",
        kernel=copy_rows,
        signature={
            "source": "*i64:16",
            "target": "*i64:16",
            "count": "i32",
            "source_stride": "i64:16",
            "target_stride": "i64:16",
            **({"source_slots": "*i64:16"} if listed[0] else {}),
            **({"target_slots": "*i64:16"} if listed[1] else {}),
        },
        constants={
            "LISTED_SOURCE": listed[0],
            "LISTED_TARGET": listed[1],
            "WIDTH": width,
            "BLOCK": min(TILE, triton.next_power_of_2(width)),
            "ROWS": TILE // min(TILE, triton.next_power_of_2(width)),
            **({} if listed[0] else {"source_slots": None}),
            **({} if listed[1] else {"target_slots": None}),
        },
        hot=True,
        options={"num_warps": 4},
    )
    for name, listed, width in (
        ("copy", (True, True), 512),
        ("gather", (True, False), 512),
        ("scatter", (False, True), 512),
        ("copy", (True, True), 240),
    )
]
