"""Paged attention out of torch's own pieces: gathers and `scaled_dot_product_attention`.

How rows are run (measured on two cores, docs/design/0003):
- rows of few new tokens (decodes, and what was forced behind them) are sorted by their number and length and run in groups of similar ones, each one padded
  gather and one attention call;
- a long one, or one alone, runs by itself: over a slice of the pool without any copy if its slots are consecutive;
- a prefill chunk runs by itself, in blocks of queries, each over the tokens it can see.

Gathers of one pass go through one scratch buffer, as fresh large buffers cost more in page faults than the copy itself.
Padding repeats a slot of the row's own, never another sequence's: a bad value in one sequence cannot reach the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgl_actors.kernels.attention import AttentionRow

ALONE = 768
"""Rows over at least that many tokens run by themselves."""
SHORT = (1, 4)
"""New tokens at most of a group's rows; each group's are padded to its longest. Rows of more run by themselves."""
GROUP_TOKENS = 8192
"""Most tokens of one group's gather, padding included."""
PADDING = 1.25
"""A group's longest row is at most that many times its shortest (and 32 tokens longer in any case)."""
QUERY_BLOCK = 256
"""Queries of a prefill that are run at once."""


_Short = tuple[int, int, torch.Tensor]
"""A row of few new tokens: its place in the flat batch, how many they are, and its slots."""


@dataclass(frozen=True)
class _Group:
    """Rows run together: `tokens` [rows * new] places in the flat batch, `slots` [rows * length], `mask` [rows, 1, new, length] or None.

    A row of fewer new tokens repeats its last one.
    """

    tokens: torch.Tensor
    new: int
    slots: torch.Tensor
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class _Block:
    """Queries `start:stop` of the flat batch over one row's slots; `mask` [queries, kv] or None."""

    start: int
    stop: int
    slots: torch.Tensor
    first_slot: int
    mask: torch.Tensor | None


class TorchPlan:
    """See `sgl_actors.kernels.attention.AttentionPlan`."""

    def __init__(self, rows: list[AttentionRow], *, scale: float, window: int | None) -> None:
        self.scale = scale
        self.groups: list[_Group] = []
        self.blocks: list[_Block] = []
        short: dict[int, list[_Short]] = {most: [] for most in SHORT}
        place = 0
        for row in rows:
            slots = row.slots if window is None or row.new > 1 else row.slots[-window:]
            groupable = len(slots) < ALONE and len(rows) > 1 and (window is None or row.new == 1)
            if groupable and row.new <= SHORT[-1]:
                short[next(most for most in SHORT if row.new <= most)].append((place, row.new, slots))
            elif row.new == 1:
                self.blocks.append(_block(place, place + 1, slots, None, contiguous=row.contiguous))
            else:
                self._plan_prefill(place, row, window)
            place += row.new
        for alike in short.values():
            self._group(alike)
        self._scratch: torch.Tensor | None = None

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        heads, kv_heads, head_dim = query.shape[1], pool.shape[2], query.shape[2]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in self.groups:
            rows = len(group.tokens) // group.new
            gathered = self._gather(pool, group.slots).view(rows, group.length, 2, kv_heads, head_dim)
            wanted = query[group.tokens].view(rows, group.new, heads, head_dim)
            attend = self._attend_one if group.new == 1 else self._attend_few
            out[group.tokens] = attend(wanted, gathered, group.mask).view(-1, heads, head_dim)
        for block in self.blocks:
            if block.first_slot >= 0:
                seen = pool[block.first_slot : block.first_slot + len(block.slots)]
            else:
                seen = self._gather(pool, block.slots)
            out[block.start : block.stop] = self._attention(
                query[block.start : block.stop].transpose(0, 1).unsqueeze(0),
                seen[:, 0].transpose(0, 1).unsqueeze(0),
                seen[:, 1].transpose(0, 1).unsqueeze(0),
                block.mask,
            )[0].transpose(0, 1)
        return out.view(len(query), heads * head_dim)

    def _attend_one(self, query: torch.Tensor, kv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """One query of each row, `query` [rows, 1, heads, head_dim] over `kv` [rows, length, 2, kv_heads, head_dim]."""
        key, value = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        return self._attention(query.transpose(1, 2), key, value, mask)

    def _attend_few(self, query: torch.Tensor, kv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """A few queries of each row, [rows, new, heads, head_dim]: head by head of the keys, as the query heads of one are more rows of one product."""
        rows, new, heads, head_dim = query.shape
        kv_heads = kv.shape[3]
        shared = heads // kv_heads
        query = (query * self.scale).view(rows, new, kv_heads, shared, head_dim)
        hidden = None if mask is None else mask[:, 0].repeat_interleave(shared, dim=1)
        out = torch.empty_like(query)
        for head in range(kv_heads):
            scores = torch.bmm(
                query[:, :, head].reshape(rows, new * shared, head_dim), kv[:, :, 0, head].transpose(1, 2)
            )
            if hidden is not None:
                scores += hidden
            seen = torch.bmm(torch.softmax(scores, dim=-1), kv[:, :, 1, head])
            out[:, :, head] = seen.view(rows, new, shared, head_dim)
        return out

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask.to(query.dtype),
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _gather(self, pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """`pool[slots]` in the scratch buffer; valid until the next gather."""
        wanted = len(slots) * pool[0].numel()
        if self._scratch is None:
            most = max(
                [len(group.slots) for group in self.groups] + [len(block.slots) for block in self.blocks]
            )
            self._scratch = torch.empty(most * pool[0].numel(), dtype=pool.dtype, device=pool.device)
        out = self._scratch[:wanted].view(len(slots), *pool.shape[1:])
        return torch.index_select(pool, 0, slots, out=out)

    def _plan_prefill(self, place: int, row: AttentionRow, window: int | None) -> None:
        before = len(row.slots) - row.new
        for start in range(0, row.new, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, row.new)
            first = 0 if window is None else max(0, before + start - window + 1)
            mask = _causal_mask(before + start - first, stop - start, window, row.slots.device)
            slots = row.slots[first : before + stop]
            self.blocks.append(_block(place + start, place + stop, slots, mask, contiguous=row.contiguous))

    def _group(self, short: list[_Short]) -> None:
        short.sort(key=lambda one: len(one[2]))
        begin = 0
        for end in range(1, len(short) + 1):
            if end < len(short):
                longest, shortest = len(short[end][2]), len(short[begin][2])
                alike = longest <= max(shortest * PADDING, shortest + 32)
                if alike and longest * (end + 1 - begin) <= GROUP_TOKENS:
                    continue
            self.groups.append(_pad(short[begin:end]))
            begin = end


def _block(
    start: int, stop: int, slots: torch.Tensor, mask: torch.Tensor | None, *, contiguous: bool
) -> _Block:
    return _Block(start, stop, slots, int(slots[0]) if contiguous else -1, mask)


def _causal_mask(before: int, new: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[new, before + new] additive: 0 where a query sees a key, else -inf."""
    length = before + new
    ones = torch.ones(new, length, dtype=torch.bool, device=device)
    seen = ones.tril(before)
    if window is not None:
        seen &= ones.triu(before - window + 1)
    return torch.zeros(new, length, device=device).masked_fill_(~seen, float("-inf"))


def _pad(short: list[_Short]) -> _Group:
    length = len(short[-1][2])
    new = max(count for _, count, _ in short)
    device = short[0][2].device
    slots = torch.empty(len(short), length, dtype=torch.int64, device=device)
    tokens = torch.empty(len(short), new, dtype=torch.int64)
    seen = torch.empty(len(short), new, dtype=torch.int64)  # how many tokens each query sees
    steps = torch.arange(new)
    for row, (place, count, own) in enumerate(short):
        slots[row, : len(own)] = own
        slots[row, len(own) :] = own[-1]
        tokens[row] = place + steps.clamp(max=count - 1)
        seen[row] = len(own) - count + 1 + steps.clamp(max=count - 1)
    mask = None
    if int(seen.min()) < length:
        hidden = torch.arange(length) >= seen[:, :, None]
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None].to(device)
    return _Group(tokens.view(-1).to(device), new, slots.view(-1), length, mask)
