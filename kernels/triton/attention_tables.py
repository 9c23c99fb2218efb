"""A flat batch cut into work items, on the host: what `attention.TritonPlan` sends to the device.

Decodes are cut at fixed positions of their keys. Of those pieces, the ones that several rows have with the same slots become one shared
item per group. A prefill is cut into blocks of tokens, and over long prefixes at fixed positions too. Vectorised with numpy, as it is done in every pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.triton import attention_decode, attention_prefill
from sgl_actors.kernels.triton import attention_tile as tile

ITEM: int = tile.ITEM.value
TOKEN: int = tile.TOKEN.value
TOKENS: int = tile.TOKENS.value
SLOTS: int = tile.SLOTS.value
FIRST: int = tile.FIRST.value
LAST: int = tile.LAST.value
POSITION: int = tile.POSITION.value
PARTIAL: int = tile.PARTIAL.value

Table = np.ndarray[Any, np.dtype[Any]]
"""int32, or bools."""

SHORT = 8
"""New tokens at most of a row that is run as a decode, and"""
DECODE_ROWS = 32
"""heads times tokens at most, but for a single token."""
PREFILL_ROWS = 128
"""Rows of a prefill's tile, heads times tokens, where a chunk has that many; half of it otherwise."""
CASCADE_ROWS = 64
"""Most rows of a cascade's tile."""


@dataclass(frozen=True)
class Batch:
    """A flat batch on the host: for each row its number of keys and new tokens, where its tokens and slots begin; and all slots."""

    length: Table
    new: Table
    token: Table
    slots_at: Table
    slots: Table


@dataclass(frozen=True)
class Tables:
    """What the kernels read, int32.

    Attributes:
        decodes, shared, prefills: work items, see `attention_tile`.
        members: tokens of the items in `shared`.
        merges: token, begin and end in `numbers`, one unused.
        numbers: of partial results, in the order of their keys.
        slots: of all rows, one after the other.
        partials: how many partial results there are.
        unshared: bounds for any sharing: items that decodes would be without, the partial results of those, and their tokens.
        rows: of the tiles of decodes, cascades and prefills: BLOCK_M.
        several: some decode has more than one token.
    """

    decodes: Table
    shared: Table
    prefills: Table
    members: Table
    merges: Table
    numbers: Table
    slots: Table
    partials: int
    unshared: tuple[int, int, int]
    rows: tuple[int, int, int]
    several: bool

    @property
    def parts(self) -> tuple[Table, ...]:
        """The arrays, in the order in which they lie in memory."""
        return (
            self.decodes,
            self.shared,
            self.prefills,
            self.members,
            self.merges,
            self.numbers,
            self.slots,
        )


def read_batch(rows: list[AttentionRow]) -> Batch:
    """Bring `rows` to the host; one transfer for all that are on a device."""
    length = np.array([len(row.slots) for row in rows], dtype=np.int32)
    new = np.array([row.new for row in rows], dtype=np.int32)
    slots = torch.cat([row.slots for row in rows]).to("cpu", torch.int32).numpy()
    return Batch(length, new, _begins(new), _begins(length), slots)


def make_tables(batch: Batch, group: int, window: int | None, *, steady: bool = False) -> Tables:
    """Cut `batch` into work items for `group` query heads per key head; `steady` cascades have the same tile whatever is shared."""
    padded = triton.next_power_of_2(group)
    short = batch.new <= max(1, min(SHORT, DECODE_ROWS // padded))
    most_new = int(batch.new[short].max(initial=1))
    decode_rows = max(16, triton.next_power_of_2(most_new) * padded)
    longest = int(batch.new[~short].max(initial=1)) * padded
    prefill_rows = max(PREFILL_ROWS if longest > PREFILL_ROWS // 2 else PREFILL_ROWS // 2, padded)
    decodes = _split_decodes(batch, short, window)
    unshared = len(decodes), int(decodes[:, TOKENS].sum()), int(batch.new[short].sum())
    least = CASCADE_ROWS if steady else 16
    decodes, shared, members, shared_rows = _take_shared(
        decodes, *_find_shared(batch, decodes, window), padded, least
    )
    prefills = _split_prefills(batch, ~short, prefill_rows // padded, window)
    merges, numbers, partials = _number(decodes, shared, prefills, members)
    return Tables(
        decodes,
        shared,
        prefills,
        members,
        merges,
        numbers,
        batch.slots,
        partials,
        unshared,
        (decode_rows, shared_rows, prefill_rows),
        most_new > 1,
    )


def _split_decodes(batch: Batch, short: Table, window: int | None) -> Table:
    """Items of all `short` rows, row by row and by their keys."""
    length, new = batch.length[short], batch.new[short]
    first = np.zeros_like(length) if window is None else np.maximum(0, length - new - window + 1)
    row, begin, end = _cut(first, length, attention_decode.SPLIT)
    return _items(
        batch.token[short][row], new[row], batch.slots_at[short][row], begin, end, (length - new)[row]
    )


def _split_prefills(batch: Batch, long: Table, block: int, window: int | None) -> Table:
    """Items of all `long` rows, in blocks of that many tokens."""
    row, begin, end = _cut(np.zeros_like(batch.new[long]), batch.new[long], block)
    position = (batch.length - batch.new)[long][row] + begin
    tokens = end - begin
    first = np.zeros_like(position) if window is None else np.maximum(0, position - window + 1)
    piece, key, last = _cut(first, position + tokens, attention_prefill.SPLIT)
    token, slots_at = batch.token[long][row] + begin, batch.slots_at[long][row]
    return _items(token[piece], tokens[piece], slots_at[piece], key, last, position[piece])


def _find_shared(batch: Batch, items: Table, window: int | None) -> tuple[Table, Table]:
    """Which of the decodes' items have the same slots: their indices, group by group, and the number of the group of each.

    Only whole splits that all the item's tokens see are looked at. Ends that are equal make candidates; all slots are compared then.
    """
    first, last, position = items[:, FIRST], items[:, LAST], items[:, POSITION]
    whole = (last - first == attention_decode.SPLIT) & (last <= position)
    if window is not None:
        whole &= first > position + items[:, TOKENS] - 1 - window
    index = np.flatnonzero(whole).astype(np.int32)
    at = (items[:, SLOTS] + first)[index]
    ends = np.stack((first[index], batch.slots[at], batch.slots[at + attention_decode.SPLIT - 1]), axis=1)
    _, leader, group, count = np.unique(
        ends, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    group = group.reshape(-1)
    several = count[group] > 1
    index, at, led_by, group = index[several], at[several], at[leader[group]][several], group[several]
    steps = np.arange(attention_decode.SPLIT, dtype=np.int32)
    same = (batch.slots[at[:, None] + steps] == batch.slots[led_by[:, None] + steps]).all(axis=1)
    index, group = index[same], group[same]
    several = np.bincount(group, minlength=1)[group] > 1
    index, group = index[several], group[several]
    order = np.argsort(group, kind="stable")
    return index[order], group[order].astype(np.int32)


def _take_shared(
    items: Table, index: Table, group: Table, padded: int, least: int
) -> tuple[Table, Table, Table, int]:
    """Turn the items at `index` into shared ones: what is left of `items`, the shared items, their members, and their tiles' rows, `least` or more."""
    left = np.delete(items, index, axis=0)
    source, step = _steps(items[index, TOKENS])
    members = items[index, TOKEN][source] + step
    _, begin, tokens = np.unique(group[source], return_index=True, return_counts=True)
    most = int(tokens.max(initial=1)) * padded
    rows = max(min(CASCADE_ROWS, triton.next_power_of_2(most)), least, padded)
    part, start, stop = _cut(np.zeros_like(tokens), tokens, rows // padded)
    of = items[index[source[begin]]][part]
    token = begin[part] + start
    shared = _items(token, stop - start, of[:, SLOTS], of[:, FIRST], of[:, LAST], of[:, POSITION])
    return left, shared, members.astype(np.int32), rows


def _number(decodes: Table, shared: Table, prefills: Table, members: Table) -> tuple[Table, Table, int]:
    """Give the items their `PARTIAL` in place, -1 where a token has one part only; returns merges, numbers and how many partial results there are."""
    items = np.concatenate((decodes, shared, prefills))
    item, step = _steps(items[:, TOKENS])
    token = items[item, TOKEN] + step
    gathered = (item >= len(decodes)) & (item < len(decodes) + len(shared))
    token[gathered] = members[token[gathered]]
    several = np.bincount(token)[token] > 1
    number = np.where(several, np.cumsum(several) - 1, -1).astype(np.int32)
    items[:, PARTIAL] = number[step == 0]
    start = 0
    for table in (decodes, shared, prefills):
        table[:] = items[start : start + len(table)]
        start += len(table)
    order = np.lexsort((items[item, FIRST], token))
    order = order[several[order]]
    merged, begin, count = np.unique(token[order], return_index=True, return_counts=True)
    merges = np.stack((merged, begin, begin + count, np.zeros_like(merged)), axis=1).astype(np.int32)
    return merges, number[order], len(order)


def _items(token: Table, tokens: Table, slots: Table, first: Table, last: Table, position: Table) -> Table:
    out = np.full((len(token), ITEM), -1, dtype=np.int32)
    columns = {TOKEN: token, TOKENS: tokens, SLOTS: slots, FIRST: first, LAST: last, POSITION: position}
    for column, values in columns.items():
        out[:, column] = values
    return out


def _cut(first: Table, last: Table, width: int) -> tuple[Table, Table, Table]:
    """Cut the ranges at multiples of `width`: for each piece the range it is of, its begin and its end."""
    begin = first // width
    source, step = _steps(-(-last // width) - begin)
    piece = begin[source] + step
    return source, np.maximum(piece * width, first[source]), np.minimum((piece + 1) * width, last[source])


def _steps(counts: Table) -> tuple[Table, Table]:
    """0 … count - 1 for every count, one after the other: whose it is, and the number."""
    source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    begin = np.cumsum(counts) - counts
    return source, (np.arange(len(source)) - begin[source]).astype(np.int32)


def _begins(counts: Table) -> Table:
    return (np.cumsum(counts) - counts).astype(np.int32)
