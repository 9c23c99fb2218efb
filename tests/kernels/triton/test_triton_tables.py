"""The host's part of attention for GPUs: what is cut into work items is covered exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.triton import attention_decode, attention_prefill
from sgl_actors.kernels.triton.attention_tables import (
    FIRST,
    LAST,
    PARTIAL,
    POSITION,
    SLOTS,
    TOKEN,
    TOKENS,
    Tables,
    make_tables,
    read_batch,
)

ROWS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 24), st.sampled_from([0, 9, 21])), min_size=1, max_size=6
)
"""Rows as (own tokens before the new ones, new tokens, tokens of the common prefix before them)."""


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small splits, so that small batches have many."""
    monkeypatch.setattr(attention_decode, "SPLIT", 4)
    monkeypatch.setattr(attention_prefill, "SPLIT", 16)


def make_rows(shape: list[tuple[int, int, int]]) -> list[AttentionRow]:
    return [
        AttentionRow(torch.cat((torch.arange(shared), 1000 * (row + 1) + torch.arange(before + new))), new)
        for row, (before, new, shared) in enumerate(shape)
    ]


def pieces(tables: Tables) -> Iterator[tuple[int, int, range, np.ndarray, bool]]:
    """Token, position, positions of keys, their slots and whether the item knows causality: for each token of each item."""
    for table, members in ((tables.decodes, None), (tables.shared, tables.members), (tables.prefills, None)):
        for item in table:
            keys = range(item[FIRST], item[LAST])
            slots = tables.slots[item[SLOTS] + item[FIRST] : item[SLOTS] + item[LAST]]
            for step in range(item[TOKENS]):
                token = item[TOKEN] + step
                if members is None:
                    yield int(token), int(item[POSITION] + step), keys, slots, True
                else:
                    yield int(members[token]), -1, keys, slots, False


@settings(max_examples=150, deadline=None)
@given(shape=ROWS, group=st.sampled_from([1, 3, 8, 40]), window=st.sampled_from([None, 1, 6, 30]))
def test_every_token_sees_each_of_its_keys_once(
    shape: list[tuple[int, int, int]], group: int, window: int | None
) -> None:
    """Over all items, a token's keys are those of its own row up to itself, within the window: each once, from the right slot."""
    rows = make_rows(shape)
    tables = make_tables(read_batch(rows), group, window)
    seen: dict[int, Counter[int]] = {}
    for token, position, keys, slots, causal in pieces(tables):
        for key, slot in zip(keys, slots.tolist(), strict=True):
            if not causal or (key <= position and (window is None or key > position - window)):
                seen.setdefault(token, Counter())[slot] += 1
    token = 0
    for row in rows:
        for position in range(len(row.slots) - row.new, len(row.slots)):
            first = 0 if window is None else max(0, position - window + 1)
            assert seen[token] == Counter(row.slots[first : position + 1].tolist())
            token += 1
    assert len(seen) == token


@settings(max_examples=100, deadline=None)
@given(shape=ROWS, group=st.sampled_from([1, 4]), window=st.sampled_from([None, 6]))
def test_partial_results_are_merged_in_order(
    shape: list[tuple[int, int, int]], group: int, window: int | None
) -> None:
    """A token with one part has it final; one with several has each of them in its merge once, by their keys, under numbers of their own."""
    tables = make_tables(read_batch(make_rows(shape)), group, window)
    parts: dict[int, list[tuple[int, int]]] = {}
    for table, members in ((tables.decodes, None), (tables.shared, tables.members), (tables.prefills, None)):
        for item in table:
            for step in range(item[TOKENS]):
                token = int(item[TOKEN] + step) if members is None else int(members[item[TOKEN] + step])
                number = int(item[PARTIAL] + step) if item[PARTIAL] >= 0 else -1
                parts.setdefault(token, []).append((int(item[FIRST]), number))
    merged = {int(token): tables.numbers[begin:end].tolist() for token, begin, end, _ in tables.merges}
    for token, found in parts.items():
        numbers = [number for _, number in sorted(found)]
        assert numbers == merged.get(token, [-1])
    numbers = [number for found in merged.values() for number in found]
    assert sorted(numbers) == list(range(tables.partials))


def test_slots_that_only_end_alike_are_not_shared() -> None:
    """Splits whose first and last slots are equal but not those between stay with their rows."""
    first, second = torch.arange(9), torch.arange(9)
    second[8], second[2] = 50, 60
    tables = make_tables(read_batch([AttentionRow(first, 1), AttentionRow(second, 1)]), 1, None)
    assert tables.shared[:, FIRST].tolist() == [4]


def test_a_tree_of_forks_shares_level_by_level() -> None:
    """Four branches share the trunk's splits, and each two of them their own after it."""
    trunk = torch.arange(8)
    rows = [
        AttentionRow(
            torch.cat((trunk, 100 * (leaf // 2 + 1) + torch.arange(4), torch.tensor([1000 + leaf]))), 1
        )
        for leaf in range(4)
    ]
    tables = make_tables(read_batch(rows), 1, None)
    assert sorted(zip(tables.shared[:, FIRST].tolist(), tables.shared[:, TOKENS].tolist(), strict=True)) == [
        (0, 4),
        (4, 4),
        (8, 2),
        (8, 2),
    ]
