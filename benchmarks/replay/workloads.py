"""Workloads in token ids: what each program calls, what comes back, and which calls wait for which.

The texts are a `Corpus`: real ones, tokenised, or made-up ones of the same sizes (whose tokens nobody shares by chance). Instructions
and outputs are made up in both. Programs come in random order, as from many users at the same time.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.replay.engine import Call

Tokens = list[int]
FIRST = 1 << 24
"""Made-up tokens count up from here, those of workloads from twice that; no vocabulary is that large."""


@dataclass(frozen=True)
class Corpus:
    """Texts by the workload that uses them, in tokens.

    Attributes:
        subjects: MMLU, for each subject its 5-shot prompt and its questions.
        shots: HellaSwag, 20 examples.
        scenes: HellaSwag, queries with four endings each.
        agent: ReAct, the few-shot prompt.
        traces: ReAct, for each question its text and the steps: thought with action, and observation.
        problems: GSM8K questions, for the tree of thought.
        cities: documents to extract fields from.
        articles: to be judged.
        questions: RAG, passages and question.
        chats: how many there are.
    """

    subjects: list[tuple[Tokens, list[Tokens]]]
    shots: Tokens
    scenes: list[tuple[Tokens, list[Tokens]]]
    agent: Tokens
    traces: list[tuple[Tokens, list[tuple[Tokens, Tokens]]]]
    problems: list[Tokens]
    cities: list[Tokens]
    articles: list[Tokens]
    questions: list[tuple[list[Tokens], Tokens]]
    chats: int = 40


class Inventor:
    """Makes up tokens: each one new, so that nothing is shared that was not copied."""

    def __init__(self, seed: int, first: int) -> None:
        self.rng = random.Random(seed)
        self._next = count(first)

    def tokens(self, length: int) -> Tokens:
        """That many new tokens."""
        return [next(self._next) for _ in range(length)]

    def about(self, least: int, median: int, most: int) -> Tokens:
        """New tokens; their number is spread around the median, log-normally within the bounds."""
        spread = max(math.log(most / median), math.log(median / least)) / 2.5
        length = round(median * math.exp(self.rng.gauss(0.0, spread)))
        return self.tokens(min(most, max(least, length)))


def made_up(seed: int = 0, share: float = 1.0) -> Corpus:
    """A corpus of the sizes that the real one has with the default model's tokenizer; with `share`, fewer texts of the same lengths."""
    some = Inventor(seed, FIRST)

    def times(number: int) -> range:
        return range(max(1, round(share * number)))

    passages = [some.about(14, 125, 600) for _ in range(400)]
    return Corpus(
        subjects=[
            (some.about(195, 406, 2465), [some.about(29, 66, 217) for _ in range(10)]) for _ in times(20)
        ],
        shots=some.tokens(1888),
        scenes=[(some.about(10, 60, 100), [some.about(5, 25, 40) for _ in range(4)]) for _ in times(200)],
        agent=some.tokens(1629),
        traces=[
            (
                some.about(8, 20, 40),
                [(some.about(15, 40, 90), some.about(20, 90, 220)) for _ in range(some.rng.randint(2, 5))],
            )
            for _ in times(100)
        ],
        problems=[some.about(26, 62, 136) for _ in times(12)],
        cities=[some.about(477, 908, 2814) for _ in times(22)],
        articles=[some.about(468, 731, 906) for _ in times(20)],
        questions=[(some.rng.sample(passages, 3), some.about(8, 20, 50)) for _ in times(100)],
        chats=len(times(40)),
    )


def real(data: Path, encode: Callable[[str], Tokens]) -> Corpus:
    """The corpus of the sample data (docs name its sources), tokenised text by text."""

    def rows(name: str) -> list[Any]:
        return [json.loads(line) for line in (data / name).read_text().splitlines()]

    def asked(row: Any) -> str:
        options = zip("ABCD", row["choices"], strict=True)
        return f"{row['question']}\n" + "".join(f"{letter}. {text}\n" for letter, text in options) + "Answer:"

    examples, questions = defaultdict[str, list[Any]](list), defaultdict[str, list[Any]](list)
    for row in rows("mmlu/dev_5shot.jsonl"):
        examples[row["subject"]].append(f"{asked(row)} {'ABCD'[row['answer']]}\n\n")
    for row in rows("mmlu/test_200.jsonl"):
        questions[row["subject"]].append(encode(asked(row)))
    about = "The following are multiple choice questions (with answers) about "
    shots = "".join(
        f"{row['query']} {row['endings'][row['label']]}\n\n" for row in rows("hellaswag/shots_20.jsonl")
    )
    passages = {
        row["title"]: encode(f"{row['title']} | {row['text']}\n") for row in rows("rag/passages.jsonl")
    }
    prompts = json.loads((data / "react/prompts_hotpotqa.json").read_text())
    return Corpus(
        subjects=[
            (encode(f"{about}{subject}.\n\n" + "".join(examples[subject])), asked_)
            for subject, asked_ in questions.items()
        ],
        shots=encode(shots),
        scenes=[
            (encode(row["query"]), [encode(f" {ending}") for ending in row["endings"]])
            for row in rows("hellaswag/val_200.jsonl")
        ],
        agent=encode(prompts["webthink_simple6"]),
        traces=[
            (encode(f"Question: {row['question']}\n"), [_step(step, encode) for step in row["steps"]])
            for row in rows("react/hotpotqa_traces_100.jsonl")
        ],
        problems=[encode(f"Question: {row['question']}\n") for row in rows("gsm8k/test_200.jsonl")[:12]],
        cities=[encode(row["document"]) for row in rows("json_decode/city_documents_22.jsonl")],
        articles=[encode(text) for text in rows("judge/articles_20.jsonl")],
        questions=[
            ([passages[title] for title in _retrieved(row, passages)], encode(row["question"]))
            for row in rows("rag/questions_100.jsonl")
        ],
    )


def _step(step: Any, encode: Callable[[str], Tokens]) -> tuple[Tokens, Tokens]:
    """What an agent says in one step, and what it is told."""
    return encode(f" {step['thought']}\nAction: {step['action']}"), encode(
        f"\nObservation: {step['observation']}\n"
    )


def _retrieved(row: Any, passages: dict[str, Tokens]) -> list[str]:
    """Titles of three passages: the supporting ones first."""
    titles = dict.fromkeys([*row["supporting_titles"], *row["context_titles"]])
    return [title for title in titles if title in passages][:3]


class Workload:
    """Calls of programs that all begin at once."""

    def __init__(self, seed: int = 0) -> None:
        self.calls: list[Call] = []
        self.some = Inventor(seed, 2 * FIRST)
        self._programs = 0

    def begin(self) -> None:
        """What is called from here on belongs to a new program."""
        self._programs += 1

    def call(self, prompt: Tokens, output: int | Tokens = 0, **fields: Any) -> int:
        """Add a call; its place."""
        made = self.some.tokens(output) if isinstance(output, int) else output
        self.calls.append(Call(prompt, made, program=str(self._programs), **fields))
        return len(self.calls) - 1

    def shown(self, place: int) -> Tokens:
        """Prompt and output of a call: how a prompt that continues it begins."""
        return self.calls[place].prompt + self.calls[place].output


def mmlu(corpus: Corpus, work: Workload) -> None:
    """Each question after the examples of its subject, answered by a letter."""
    for shots, questions in corpus.subjects:
        for question in questions:
            work.begin()
            work.call(shots + question, 1)


def hellaswag(corpus: Corpus, work: Workload) -> None:
    """`select`: four endings of the same prompt are scored at the same time."""
    for query, endings in corpus.scenes:
        work.begin()
        prompt = corpus.shots + query
        for ending in endings:
            work.call(prompt + ending, scored=len(prompt))


def react(corpus: Corpus, work: Workload) -> None:
    """An agent: thought and action are generated, the observation is appended."""
    for question, steps in corpus.traces:
        work.begin()
        prompt, after = corpus.agent + question, tuple[int, ...]()
        for said, observed in steps:
            place = work.call(prompt, said, after=after, asked=200)
            prompt, after = work.shown(place) + observed, (place,)


def tree_of_thought(corpus: Corpus, work: Workload) -> None:
    """Propose three plans, carry each out twice, check each twice, answer, and rate every answer by `select`."""
    propose, execute, reflect, answer, value = (work.some.tokens(n) for n in (30, 18, 25, 16, 19))
    choices = [work.some.tokens(1) for _ in range(3)]

    def grow(places: Iterable[int], text: Tokens, width: int, output: int, asked: int) -> list[int]:
        return [
            work.call(
                work.shown(place) + text, output + work.some.rng.randint(-8, 8), after=(place,), asked=asked
            )
            for place in places
            for _ in range(width)
        ]

    for problem in corpus.problems:
        work.begin()
        plans = [work.call(problem + propose, 50, asked=128) for _ in range(3)]
        checked = grow(grow(plans, execute, 2, 100, 256), reflect, 2, 40, 128)
        for place in grow(checked, answer, 1, 10, 32):
            prompt = work.shown(place) + value
            for choice in choices:
                work.call(prompt + choice, after=(place,), scored=len(prompt))


def chat(corpus: Corpus, work: Workload, least: int, most: int) -> None:
    """Chats of four turns; a question has 256 to 512 tokens, an answer `least` to `most` (SGLang's multi-turn benchmark)."""
    rng = work.some.rng
    for _ in range(corpus.chats):
        work.begin()
        prompt, after = Tokens(), tuple[int, ...]()
        for turn in range(4):
            prompt = prompt + work.some.tokens(rng.randint(256, 512))
            place = work.call(prompt, rng.randint(least, most), after=after, kind=f"turn {turn + 1}")
            prompt, after = work.shown(place), (place,)


def chat_short(corpus: Corpus, work: Workload) -> None:
    """Answers of 4 to 8 tokens."""
    chat(corpus, work, 4, 8)


def chat_long(corpus: Corpus, work: Workload) -> None:
    """Answers of 256 to 512 tokens."""
    chat(corpus, work, 256, 512)


def json_decoding(corpus: Corpus, work: Workload) -> None:
    """Five fields extracted from each document, at the same time."""
    fields = [work.some.tokens(12) for _ in range(5)]
    for document in corpus.cities:
        work.begin()
        for text in fields:
            work.call(document + text, work.some.rng.randint(5, 40), asked=64)


def judge(corpus: Corpus, work: Workload) -> None:
    """Branch, solve, merge: four dimensions judged at the same time, then a verdict over all judgements."""
    task, verdict = work.some.tokens(40), work.some.tokens(20)
    dimensions = [work.some.tokens(25) for _ in range(4)]
    for article in corpus.articles:
        work.begin()
        places = [work.call(task + article + text, 80, asked=256) for text in dimensions]
        said = [token for place in places for token in work.calls[place].output]
        work.call(task + article + said + verdict, 60, after=tuple(places), asked=256)


def rag(corpus: Corpus, work: Workload) -> None:
    """Three retrieved passages and a question behind the same examples."""
    examples = work.some.tokens(500)
    for passages, question in corpus.questions:
        work.begin()
        work.call(examples + [token for text in passages for token in text] + question, 20, asked=64)


WORKLOADS: dict[str, Callable[[Corpus, Workload], None]] = {
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "react": react,
    "tree_of_thought": tree_of_thought,
    "chat_short": chat_short,
    "chat_long": chat_long,
    "json_decoding": json_decoding,
    "judge": judge,
    "rag": rag,
}


def build(name: str, corpus: Corpus, seed: int = 0) -> list[Call]:
    """The calls of a workload, its programs in random order."""
    work = Workload(seed)
    WORKLOADS[name](corpus, work)
    return shuffled(work.calls, seed)


def shuffled(calls: list[Call], seed: int) -> list[Call]:
    """The same calls, those that wait for none in random order before the others."""
    order = list(range(len(calls)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda place: bool(calls[place].after))
    places = {old: new for new, old in enumerate(order)}
    return [replace(calls[old], after=tuple(places[place] for place in calls[old].after)) for old in order]
