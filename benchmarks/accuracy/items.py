"""HellaSwag and MMLU: which choice a model finds likeliest. The prompts' common beginnings are run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from benchmarks.accuracy.passes import Piece, Subject

LETTERS = "ABCD"
AT_ONCE = 8
"""Items in a pass."""

Encode = Callable[[str], list[int]]
Item = Mapping[str, Any]


def hellaswag(subject: Subject, encode: Encode, shots: Sequence[Item], items: Sequence[Item]) -> list[bool]:
    """Whether the ending of greatest mean log probability per token is the right one; solved examples stand before each query."""
    solved = "".join(f"{shot['query']} {shot['endings'][shot['label']].strip()}\n\n" for shot in shots)
    right: list[bool] = []
    for batch, prefix in _batches(subject, items, encode(solved)):
        pieces: list[Piece] = []
        for item in batch:
            query = subject.piece(encode(item["query"]), prefix)
            endings = [encode(" " + ending.strip()) for ending in item["endings"]]
            pieces += [query, *(subject.piece(tokens, query) for tokens in endings)]
        hidden = subject.run(pieces)
        width = 1 + len(batch[0]["endings"])
        for index, item in enumerate(batch):
            of_item = range(index * width + 1, (index + 1) * width)
            last = hidden[index * width][-1:]
            likely = [_mean(subject, last, hidden[at], pieces[at].tokens) for at in of_item]
            right.append(likely.index(max(likely)) == item["label"])
    return right


def mmlu(subject: Subject, encode: Encode, shots: Sequence[Item], items: Sequence[Item]) -> list[bool]:
    """Whether the right letter is the likeliest of the four, after the solved examples of its subject."""
    letters = [encode(f" {letter}")[0] for letter in LETTERS]
    right: list[bool] = []
    for name, group in groupby(items, lambda item: item["subject"]):
        solved = "".join(
            f"{_question(shot)} {LETTERS[shot['answer']]}\n\n" for shot in shots if shot["subject"] == name
        )
        for batch, prefix in _batches(subject, list(group), encode(solved)):
            hidden = subject.run([subject.piece(encode(_question(item)), prefix) for item in batch])
            logits = torch.cat(list(subject.logits(torch.stack([rows[-1] for rows in hidden]))))
            found = logits[:, letters].argmax(dim=-1).tolist()
            right += [letter == item["answer"] for letter, item in zip(found, batch, strict=True)]
    return right


def _batches(
    subject: Subject, items: Sequence[Item], prefix: list[int]
) -> Iterator[tuple[Sequence[Item], Piece | None]]:
    """Items with the prefix before them, which is run already."""
    for begin in range(0, len(items), AT_ONCE):
        subject.forget()
        common = subject.piece(prefix) if prefix else None
        if common is not None and not begin:
            subject.run([common])
        yield items[begin : begin + AT_ONCE], common


def _mean(subject: Subject, before: torch.Tensor, hidden: torch.Tensor, tokens: Sequence[int]) -> float:
    """Log probability per token of an ending: `before` is the row before it, `hidden` [tokens, hidden] its own rows."""
    total, at = 0.0, 0
    for logits in subject.logits(torch.cat([before, hidden[:-1]])):
        chosen = torch.tensor(tokens[at : at + len(logits)])
        total += float(logits.log_softmax(dim=-1).gather(1, chosen[:, None]).double().sum())
        at += len(logits)
    return total / len(tokens)


def _question(item: Item) -> str:
    choices = "".join(map("\n{}. {}".format, LETTERS, item["choices"]))
    return f"Question: {item['question']}{choices}\nAnswer:"


__all__ = ["AT_ONCE", "LETTERS", "Encode", "Item", "hellaswag", "mmlu"]
