"""Select against a computation with transformers, on the same weights in fp32: every method, every score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sgl_actors as sgl
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.lang.choices import (
    METHODS,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from tests.conftest import start_node, stop_node
from tests.worker.harness import read_tokenizer

pytestmark = pytest.mark.model

NEAR_TIE = 1e-3
"""Scores agree if they differ by less, and another choice may win if it is behind by less."""
INSIDE = "inside a word"
TOGETHER = 10
"""Items that the reference computes in one pass."""


class Item(NamedTuple):
    """A question, and what may follow."""

    kind: str
    prompt: str
    choices: list[str]


class Scores(NamedTuple):
    """What one method makes of an item: what it compares (of the greedy one, rows), the scores, and tokens by choice."""

    compared: list[Any]
    scores: list[float]
    lengths: list[int]

    def behind(self, index: int) -> float:
        """By how much choice number `index` loses; 0 for the winner."""
        best = self.compared[self.compared.index(max(self.compared))]
        if not isinstance(best, list):
            return float(best - self.compared[index])
        columns = zip(best, self.compared[index], strict=True)
        return next((one - other for one, other in columns if one != other), 0.0)


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / name).read_text().splitlines()]


def mmlu(data: Path) -> Iterator[Item]:
    """Answers of different lengths, after a colon."""
    for row in rows(data, "mmlu/test_200.jsonl"):
        yield Item("mmlu", f"{row['question']}\nAnswer:", [f" {choice}" for choice in row["choices"]])


def hellaswag(data: Path) -> Iterator[Item]:
    """Endings of a dozen tokens and more."""
    for row in rows(data, "hellaswag/val_200.jsonl"):
        yield Item("hellaswag", row["query"], [f" {ending}" for ending in row["endings"]])


def gsm8k(data: Path) -> Iterator[Item]:
    """The prompt ends with a space, which is part of a word's first token, but not of a number's."""
    for row in rows(data, "gsm8k/test_200.jsonl"):
        answer = row["answer"].rpartition("#### ")[2]
        choices = [answer, "unknown", f"{answer}0", "a number of three digits"]
        yield Item("gsm8k", f"{row['question']} The answer is ", choices)


def inside(data: Path) -> Iterator[Item]:
    """The prompt ends inside a word: its rest, that of another word, and ends that leave it a word of its own."""
    rest = "ing"
    for row in rows(data, "hellaswag/val_200.jsonl"):
        words = row["ctx"].split()
        at = next((i for i, word in enumerate(words) if i > 4 and len(word) > 5 and word.isalpha()), None)
        if at is None:
            continue
        half = len(words[at]) // 2
        prompt, own = " ".join([*words[:at], words[at][:half]]), words[at][half:]
        choices = [own, ", again", " ".join([own, *words[at + 1 : at + 3], "then"]), rest, " 12"]
        yield Item(INSIDE, prompt, list(dict.fromkeys(choices)))
        rest = own


def sample(data: Path, counts: dict[Any, int], *, short: bool) -> list[Item]:
    """That many items of each source; the shortest, with their first three choices, or as they come."""
    items: list[Item] = []
    for source, count in counts.items():
        found = [item for item in source(data) if len(set(item.choices)) == len(item.choices)]
        if short:
            found = [Item(item.kind, item.prompt, item.choices[:3]) for item in found]
            found.sort(key=lambda item: len(item.prompt) + sum(map(len, item.choices)))
        items += found[:count]
    return items


class Piece(NamedTuple):
    """Tokens, and the number of the piece that they follow; -1 for none."""

    ids: list[int]
    follows: int = -1


class Reference:
    """Transformers' model with the default model's weights, and a tokenizer made of its vocabulary."""

    def __init__(self, model: Any, path: Path) -> None:
        self._model = model
        self._tokenizer = read_tokenizer(path)

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[dict[str, Scores], int]]:
        """Each method's scores of each item, and how many of the prompt's own tokens count in them."""
        for group in (items[at : at + TOGETHER] for at in range(0, len(items), TOGETHER)):
            pieces: list[Piece] = []
            places = []
            for item in group:
                prompt = self._ids(item.prompt)
                wholes = [self._ids(item.prompt + choice) for choice in item.choices]
                common = takewhile(lambda column: len(set(column)) == 1, zip(prompt, *wholes, strict=False))
                start = len(list(common))
                tails = [ids[start:] for ids in wholes]
                places.append((len(pieces) + 1, len(tails), len(prompt) - start))
                after = [Piece(tail, len(pieces)) for tail in tails]
                pieces += [Piece(prompt[:start]), *after, *(Piece(tail) for tail in tails)]
            values = self._logprobs(pieces)
            for first, count, border in places:
                last = first + count
                yield methods(values[first:last], values[last : last + count]), border

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def _logprobs(self, pieces: list[Piece]) -> list[list[float]]:
        """Of each piece's tokens after the piece that it follows; 0 for a first token that follows none.

        All in one row of one pass: a mask lets each token see its own piece so far, and the one before.
        """
        lengths = torch.tensor([len(piece.ids) for piece in pieces])
        number = torch.arange(len(pieces)).repeat_interleave(lengths)
        follows = torch.tensor([piece.follows for piece in pieces])[number]
        place = torch.cat([torch.arange(length) for length in lengths])
        after = torch.where(follows >= 0, lengths[follows], 0)
        earlier = (number[:, None] == number) & (place[:, None] >= place)
        tokens = torch.tensor([token for piece in pieces for token in piece.ids])
        with torch.inference_mode():
            logits = self._model(
                tokens[None],
                attention_mask=(earlier | (follows[:, None] == number))[None, None],
                position_ids=(place + after)[None],
            ).logits[0]
        last = lengths.cumsum(0) - 1
        before = torch.where(place > 0, torch.arange(len(tokens)) - 1, last[follows])
        values = logits.log_softmax(-1)[before, tokens]
        values[(place == 0) & (follows < 0)] = 0.0
        # what is said of the same tokens is the same, wherever in the row they stand
        known: dict[tuple[int, ...], float] = {}
        return [
            [
                known.setdefault((piece.follows, *piece.ids[:end]), value)
                for end, value in enumerate(row.tolist(), 1)
            ]
            for piece, row in zip(pieces, values.split(lengths.tolist()), strict=True)
        ]


def methods(after: list[list[float]], bare: list[list[float]]) -> dict[str, Scores]:
    """What each method makes of log probabilities after the prompt and without it."""
    lengths = list(map(len, after))
    means = [sum(row) / len(row) for row in after]
    padded = [row + [mean] * (max(lengths) - len(row)) for row, mean in zip(after, means, strict=True)]
    gains = [(sum(row) - sum(plain)) / len(row) for row, plain in zip(after, bare, strict=True)]
    return {
        token_length_normalized: Scores(means, means, lengths),
        greedy_token_selection: Scores(padded, means, lengths),
        unconditional_likelihood_normalized: Scores(gains, gains, lengths),
    }


@sgl.function
async def three(s: sgl.ProgramState, prompt: str, choices: Sequence[str]) -> None:
    """The same choice by each method."""
    s += prompt
    group = s.fork(len(METHODS))
    for branch, method in zip(group, METHODS, strict=True):
        branch += sgl.select("x", choices, choices_method=method)
    await group.join("x")


@pytest.fixture(scope="module")
def reference(oracle: Any, gguf_path: Path) -> Iterator[Reference]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Reference(oracle, gguf_path)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRecord]:
    """A node that computes in fp32, as the reference does."""
    process, record = start_node(tmp_path_factory.mktemp("fp32"), "model.compute=fp32")
    yield record
    assert stop_node(process) == 0


async def check(node: NodeRecord, reference: Reference, items: list[Item]) -> list[str]:
    """Compare all; notes on the near ties that went the other way."""
    async with sgl.connect(node.endpoint) as backend:
        states = await three.run_batch(
            [{"prompt": item.prompt, "choices": item.choices} for item in items],
            backend=backend,
        )
    notes, borders, lengths = [], {item.kind: 0 for item in items}, 0
    for item, state, (expected, border) in zip(items, states, reference(items), strict=True):
        borders[item.kind] += border > 0
        for method, branch in zip(METHODS, state.branches[0], strict=True):
            meta, scores = branch.meta("x"), expected[method]
            where = f"{method} of {item}"
            assert meta["method"] == method
            assert list(meta["lengths"].values()) == scores.lengths, where
            assert list(meta["scores"].values()) == pytest.approx(scores.scores, abs=NEAR_TIE), where
            assert branch.text() == item.prompt + branch["x"]
            behind = scores.behind(item.choices.index(branch["x"]))
            assert behind < NEAR_TIE, f"{where}: {branch['x']!r} is behind by {behind}"
            notes += [f"{where}: {branch['x']!r}, behind by {behind:.1e}"] if behind else []
        lengths += len(set(expected[token_length_normalized].lengths)) > 1
    assert lengths > len(items) // 2, "most items have choices of different token lengths"
    assert borders["gsm8k"] == sum(item.kind == "gsm8k" for item in items), "a space at the end is healed"
    assert borders[INSIDE] > sum(item.kind == INSIDE for item in items) // 2, "most borders are healed"
    return notes


async def test_twenty_choices_are_those_of_transformers(
    node: NodeRecord, data: Path, reference: Reference, record_property: Any
) -> None:
    """Every method's scores are within 1e-3 of the reference's, and its winner is the reference's."""
    items = sample(data, {mmlu: 7, hellaswag: 2, gsm8k: 2, inside: 9}, short=True)
    assert len(items) == 20
    record_property("near ties", await check(node, reference, items))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_choices_are_those_of_transformers(
    node: NodeRecord, data: Path, reference: Reference, record_property: Any
) -> None:
    """The same of the samples as they come, long questions and endings among them."""
    items = sample(data, {mmlu: 40, hellaswag: 20, gsm8k: 20, inside: 20}, short=False)
    assert len(items) == 100
    record_property("near ties", await check(node, reference, items))
