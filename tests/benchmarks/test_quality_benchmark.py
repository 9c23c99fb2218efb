"""What the quality benchmark computes: agreement against a plain computation, choices of items, and its verdict."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.accuracy.agreement import Agreement, compare
from benchmarks.accuracy.items import AT_ONCE, LETTERS, hellaswag, mmlu
from benchmarks.accuracy.passes import Subject
from benchmarks.harness import verdict
from benchmarks.quality import cut, measure, paired, text_targets, texts
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.kernels.linear import PlainLinear
from tests.worker.harness import all_logits, make_runner, tiny_config, tiny_model

ROOM = 400


def make_subject(seed: int = 0, *, noise: float = 0.0, context: int = 4096) -> Subject:
    """A tiny model of one thread's size; `noise` spoils its head."""
    model = tiny_model(tiny_config(context=context), seed)
    head = model.weights.head
    weight = model.weights.embedding
    if noise:
        spoiled = weight + noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        head = PlainLinear(spoiled)
    object.__setattr__(model.weights, "head", head)
    runner = make_runner(model, tokens=ROOM)
    return Subject("tiny", model, runner.pool)


def encode(text: str) -> list[int]:
    """A token per character."""
    return [ord(letter) % 97 for letter in text]


def sequences(*lengths: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(97) for _ in range(length)] for length in lengths]


def log_probabilities(subject: Subject, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] from a pass of its own."""
    assert isinstance(subject.model, CausalLM)
    return all_logits(subject.model, tokens).log_softmax(dim=-1).double()


def test_agreement_is_that_of_a_plain_computation() -> None:
    """Over several passes and parts of logits: every measure as computed from whole matrices of each text alone."""
    one, other = make_subject(), make_subject(noise=0.05)
    found = compare(one, other, sequences(150, 70, 300, 1))
    same = decided = decided_same = 0
    divergence = loss_one = loss_other = 0.0
    for tokens in sequences(150, 70, 300, 1):
        p, q = log_probabilities(one, tokens), log_probabilities(other, tokens)
        top = p.sort(descending=True).values
        sure = top[:, 0] - top[:, 1] > 0.1
        agree = p.argmax(dim=1) == q.argmax(dim=1)
        same += int(agree.sum())
        decided += int(sure.sum())
        decided_same += int((agree & sure).sum())
        divergence += float((p.exp() * (p - q)).sum())
        loss_one -= sum(float(p[i, token]) for i, token in enumerate(tokens[1:]))
        loss_other -= sum(float(q[i, token]) for i, token in enumerate(tokens[1:]))
    assert found.positions == 521
    assert found.known == 517
    assert 0 < found.same < found.positions
    assert (found.same, found.decided, found.decided_same) == (same, decided, decided_same)
    assert found.mean_divergence == pytest.approx(divergence / 521, rel=1e-3)
    assert found.perplexity == pytest.approx(math.exp(loss_one / 517), rel=1e-4)
    assert found.perplexity_ratio == pytest.approx(math.exp((loss_other - loss_one) / 517), rel=1e-4)


def test_a_model_agrees_with_itself() -> None:
    """No difference at all meets every target."""
    found = compare(make_subject(), make_subject(), sequences(90))
    assert (found.top_1, found.top_1_decided, found.perplexity_ratio) == (1.0, 1.0, 1.0)
    assert abs(found.mean_divergence) < 1e-6
    verdict(text_targets(found), check=True)


def test_a_text_longer_than_the_pool_is_refused() -> None:
    """Rather than overwritten keys."""
    with pytest.raises(ValueError, match="401 tokens, but the pool holds 400"):
        compare(make_subject(), make_subject(), sequences(401))


def endings(count: int) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {
            "query": "".join(draw.choices("abcdef", k=9)),
            "endings": ["".join(draw.choices("ghijk", k=draw.randrange(2, 7))) for _ in range(4)],
            "label": draw.randrange(4),
        }
        for _ in range(count)
    ]


def questions(count: int) -> list[dict[str, Any]]:
    draw = random.Random(2)
    return [
        {
            "subject": f"subject {index // 4}",
            "question": "".join(draw.choices("abcdef", k=5)),
            "choices": list("wxyz"),
            "answer": draw.randrange(4),
        }
        for index in range(count)
    ]


def test_the_likeliest_ending_is_chosen() -> None:
    """With common prefixes and many in a pass, as when each ending is scored in a pass of its own."""
    subject, shots, items = make_subject(), endings(1), endings(AT_ONCE + 3)
    solved = f"{shots[0]['query']} {shots[0]['endings'][shots[0]['label']]}\n\n"
    expected = []
    for item in items:
        scores = []
        for ending in item["endings"]:
            tokens, own = encode(solved + item["query"] + " " + ending), len(ending) + 1
            p = log_probabilities(subject, tokens)
            scores.append(
                sum(float(p[at - 1, tokens[at]]) for at in range(len(tokens) - own, len(tokens))) / own
            )
        expected.append(scores.index(max(scores)) == item["label"])
    assert hellaswag(subject, encode, shots, items) == expected
    assert 0 < sum(expected) < len(items)


def test_the_likeliest_letter_is_chosen() -> None:
    """Behind the examples of the question's own subject."""
    subject = make_subject()
    by_letter = {" A": [1], " B": [2], " C": [3], " D": [4]}
    read = lambda text: by_letter.get(text) or encode(text)  # noqa: E731 - a function of one expression
    shots, items = questions(8)[::4], questions(8)
    expected = []
    for item in items:
        shot = next(shot for shot in shots if shot["subject"] == item["subject"])
        text = "".join(
            f"Question: {one['question']}\nA. w\nB. x\nC. y\nD. z\nAnswer:{end}"
            for one, end in ((shot, f" {LETTERS[shot['answer']]}\n\n"), (item, ""))
        )
        p = log_probabilities(subject, encode(text))[-1, 1:5]
        expected.append(int(p.argmax()) == item["answer"])
    assert mmlu(subject, read, shots, items) == expected


def test_texts_are_cut_in_turns() -> None:
    """Every kind has its share, a short one what it has; no more positions than wanted."""
    kinds = [list(range(10)), list(range(100, 125)), list(range(200, 204))]
    assert [len(part) for part in cut(kinds, 1000, 10)] == [10, 10, 4, 10, 5]
    found = cut(kinds, 26, 10)
    assert [part[0] for part in found] == [0, 100, 200, 110]
    assert sum(map(len, found)) == 26


def test_pairs_count_what_was_lost_and_won() -> None:
    """The target is about the difference."""
    line, targets = paired("x", [True, True, False, True], [True, False, True, False])
    assert (line["right_fp32"], line["right"], line["lost"], line["won"]) == (3, 2, 2, 1)
    assert targets == [("x: fewer right than fp32", 1.0, "<=", 0.08)]


def test_a_missed_target_is_an_error_when_checked() -> None:
    """A model that disagrees exits with 1."""
    found = Agreement(positions=10, same=9, decided=5, decided_same=5)
    verdict(text_targets(found), check=False)
    with pytest.raises(SystemExit, match="1"):
        verdict(text_targets(found), check=True)


def test_all_parts_are_measured_and_shown(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small run over the real files: three lines, six targets."""
    words: dict[str, int] = {}

    def by_word(text: str) -> list[int]:
        return [words.setdefault(word, len(words) % 97) for word in text.split()[:40]] or [0]

    assert len(list(texts(data))) == 5
    found = measure(make_subject(), make_subject(noise=0.01), by_word, data, positions=100, items=2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["part"] for line in lines] == ["text", "hellaswag", "mmlu"]
    assert lines[0]["positions"] == 100
    assert lines[1]["items"] == lines[2]["items"] == 2
    assert len(found) == 6
