"""Paged attention out of torch's own pieces: gathers and `scaled_dot_product_attention`.

How rows are run (measured on two cores, docs/design/0003):
- decodes are sorted by length and run in groups of similar length, each one padded gather and one attention call;
- a long decode, or one alone, runs by itself: over a slice of the pool without any copy if its slots are consecutive;
- a prefill chunk runs by itself, in blocks of queries, each over the tokens it can see.

Gathers of one pass go through one scratch buffer, as fresh large buffers cost more in page faults than the copy itself.
Padding repeats a slot of the row's own, never another sequence's: a bad value in one sequence cannot reach the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgl_actors.kernels.attention import AttentionRow

ALONE = 768
"""Decodes over at least that many tokens run by themselves."""
GROUP_TOKENS = 8192
"""Most tokens of one group's gather, padding included."""
PADDING = 1.25
"""A group's longest row is at most that many times its shortest (and 32 tokens longer in any case)."""
QUERY_BLOCK = 256
"""Queries of a prefill that are run at once."""


@dataclass(frozen=True)
class _Group:
    """Decodes run together: `tokens` [rows] places in the flat batch, `slots` [rows * length], `mask` [rows, 1, 1, length] or None."""

    tokens: torch.Tensor
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
        decodes: list[tuple[int, torch.Tensor]] = []
        place = 0
        for row in rows:
            if row.new == 1:
                slots = row.slots if window is None else row.slots[-window:]
                if len(slots) >= ALONE or len(rows) == 1:
                    self.blocks.append(_block(place, place + 1, slots, None, contiguous=row.contiguous))
                else:
                    decodes.append((place, slots))
            else:
                self._plan_prefill(place, row, window)
            place += row.new
        self._group(decodes)
        self._scratch: torch.Tensor | None = None

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        heads, kv_heads, head_dim = query.shape[1], pool.shape[2], query.shape[2]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in self.groups:
            rows = len(group.tokens)
            gathered = self._gather(pool, group.slots).view(rows, group.length, 2, kv_heads, head_dim)
            out[group.tokens] = self._attention(
                query[group.tokens].view(rows, heads, 1, head_dim),
                gathered[:, :, 0].transpose(1, 2),
                gathered[:, :, 1].transpose(1, 2),
                group.mask,
            ).view(rows, heads, head_dim)
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

    def _group(self, decodes: list[tuple[int, torch.Tensor]]) -> None:
        decodes.sort(key=lambda decode: len(decode[1]))
        begin = 0
        for end in range(1, len(decodes) + 1):
            if end < len(decodes):
                longest = len(decodes[end][1])
                shortest = len(decodes[begin][1])
                if (
                    longest <= max(shortest * PADDING, shortest + 32)
                    and longest * (end + 1 - begin) <= GROUP_TOKENS
                ):
                    continue
            self.groups.append(_pad(decodes[begin:end]))
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


def _pad(decodes: list[tuple[int, torch.Tensor]]) -> _Group:
    lengths = [len(slots) for _, slots in decodes]
    length = lengths[-1]
    device = decodes[0][1].device
    slots = torch.empty(len(decodes), length, dtype=torch.int64, device=device)
    for row, (_, own) in enumerate(decodes):
        slots[row, : len(own)] = own
        if len(own) < length:
            slots[row, len(own) :] = own[-1]
    mask = None
    if lengths[0] < length:
        hidden = torch.arange(length, device=device) >= torch.tensor(lengths, device=device)[:, None]
        mask = torch.zeros(len(decodes), length, device=device).masked_fill_(hidden, float("-inf"))[
            :, None, None, :
        ]
    tokens = torch.tensor([place for place, _ in decodes], device=device)
    return _Group(tokens, slots.view(-1), length, mask)
