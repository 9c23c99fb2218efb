"""The programs that are measured, each in the project's own language, with batches made of the sample data (docs/data.md).

Everything is greedy and bounded, so every mode does the same work. Shapes follow the field's usual benchmarks; numbers are for a small model
on a few cores.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sgl_actors as sgl

Item = Mapping[str, Any]
LETTERS = "ABCD"


@dataclass(frozen=True)
class Workload:
    """A program and what it is run on.

    Attributes:
        program: of the language.
        items: (folder of the data, count) -> arguments of each run, in the order of arrival.
        small, full: counts for a trial and for a measurement.
        faster: least throughput with the cache over that without; None where there is no target.
    """

    program: sgl.Function[Any]
    items: Callable[[Path, int], Sequence[Item]]
    small: int
    full: int
    faster: float | None = None


def read_text(folder: Path, name: str) -> str:
    """A file of the sample data; the benchmark ends if it is not there."""
    file = folder / name
    if not file.is_file():
        raise SystemExit(f"needs {name} below --data or $SGL_ACTORS_DATA (docs/data.md)")
    return file.read_text("utf-8")


def read(folder: Path, name: str) -> list[Any]:
    """All JSON lines of a file."""
    return [json.loads(line) for line in read_text(folder, name).strip().split("\n")]


# -- few-shot questions -----------------------------------------------------------------------------------


@sgl.function
async def mmlu(s: sgl.ProgramState, shots: str, question: str) -> None:
    """Five solved questions of a subject, then one; the answer is the next token."""
    s += shots
    s += question + sgl.gen("answer", max_tokens=1)


def mmlu_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` questions of each of the 20 subjects, shuffled as requests of many users would come."""

    def text(item: Mapping[str, Any], *, solved: bool) -> str:
        choices = "".join(f"\n{a}. {b}" for a, b in zip(LETTERS, item["choices"], strict=True))
        return f"{item['question']}{choices}\nAnswer:" + (f" {LETTERS[item['answer']]}\n\n" if solved else "")

    shots: dict[str, str] = {}
    for item in read(folder, "mmlu/dev_5shot.jsonl"):
        subject = item["subject"]
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        shots[subject] = shots.get(subject, head) + text(item, solved=True)
    by_subject: dict[str, list[Item]] = {}
    for item in read(folder, "mmlu/test_200.jsonl"):
        by_subject.setdefault(item["subject"], []).append(item)
    items = [
        {"shots": shots[subject], "question": text(item, solved=False)}
        for subject, questions in by_subject.items()
        for item in questions[:count]
    ]
    random.Random(0).shuffle(items)
    return items


@sgl.function
async def hellaswag(s: sgl.ProgramState, shots: str, query: str, endings: Sequence[str]) -> None:
    """Twenty finished stories, then one to finish with the likeliest of four endings."""
    s += shots
    s += query + sgl.select("ending", choices=[f" {ending.strip()}" for ending in endings])


def hellaswag_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` stories after the same twenty."""
    shots = "".join(
        f"{item['query']} {item['endings'][item['label']].strip()}\n\n"
        for item in read(folder, "hellaswag/shots_20.jsonl")
    )
    stories = read(folder, "hellaswag/val_200.jsonl")[:count]
    return [{"shots": shots, "query": one["query"], "endings": one["endings"]} for one in stories]


# -- agents and trees -------------------------------------------------------------------------------------


@sgl.function
async def react(
    s: sgl.ProgramState, examples: str, question: str, steps: Sequence[Mapping[str, str]], tokens: int
) -> None:
    """A recorded run of an agent: each step is generated in a branch, and what was recorded takes its place."""
    s += f"{examples}Question: {question}\n"
    for number, step in enumerate(steps, 1):
        s += f"Thought {number}:"
        draft = s.fork(1)
        draft += sgl.gen("draft", max_tokens=tokens)
        await draft.join("draft")
        s += f" {step['thought']}\nAction {number}: {step['action']}\nObservation {number}: {step['observation']}\n"


def react_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` recorded runs after the same six examples."""
    examples = json.loads(read_text(folder, "react/prompts_hotpotqa.json"))["webthink_simple6"]
    traces = read(folder, "react/hotpotqa_traces_100.jsonl")[:count]
    return [
        {"examples": examples, "question": one["question"], "steps": one["steps"], "tokens": 24}
        for one in traces
    ]


@sgl.function
async def tree_of_thought(
    s: sgl.ProgramState, stages: Mapping[str, Mapping[str, Any]], question: str
) -> None:
    """Plans, each carried out, checked, answered and rated, in forks of forks; a branch's number makes it differ under greedy decoding."""

    def grow(state: sgl.ProgramState, stage: str, tokens: int) -> list[sgl.ProgramState]:
        state += stages[stage]["text"].replace("{question}", question)
        group = state.fork(stages[stage]["fork"])
        group += lambda index: f" ({index + 1})" + sgl.gen(stage, max_tokens=tokens)
        return list(group)

    def rate(leaf: sgl.ProgramState) -> None:
        leaf += stages["answer"]["text"] + sgl.gen("answer", max_tokens=8)
        leaf += stages["value"]["text"] + sgl.select("rating", stages["value"]["choices"])

    for plan in grow(s, "propose", 32):
        for work in grow(plan, "execute", 48):
            for check in grow(work, "reflect", 24):
                rate(check)


def tree_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` arithmetic questions."""
    stages = {
        one["stage"]: one
        for one in json.loads(read_text(folder, "tree_of_thought/prompts_gsm8k.json"))["stage"]
    }
    questions = read(folder, "gsm8k/test_200.jsonl")[:count]
    return [{"stages": stages, "question": one["question"]} for one in questions]


# -- chats ------------------------------------------------------------------------------------------------


@sgl.function
async def chat(s: sgl.ProgramState, turns: Sequence[str], tokens: int) -> None:
    """One user and the model, turn by turn."""
    for turn in turns:
        s += sgl.user(turn) + sgl.assistant(sgl.gen("answer", max_tokens=tokens))


def chat_notes(folder: Path, length: int) -> list[str]:
    """The first `length` characters of texts that somebody wrote."""
    threads = json.loads(read_text(folder, "chat/oasst_sharegpt_format.json"))
    texts = [m["value"] for thread in threads for m in thread["conversations"] if m["from"] == "gpt"]
    return [text[:length] for text in texts if len(text) >= 700]


def chat_items(folder: Path, count: int, tokens: int) -> Sequence[Item]:
    """`count` chats of four turns; in each turn the user pastes some 250 tokens that somebody wrote."""
    notes = chat_notes(folder, 1100)
    turns = [f"Here is a note:\n\n{note}\n\nWhat does it say? Answer briefly." for note in notes]
    return [{"turns": turns[4 * n : 4 * n + 4], "tokens": tokens} for n in range(count)]


def chat_short(folder: Path, count: int) -> Sequence[Item]:
    """Answers of at most 8 tokens."""
    return chat_items(folder, count, 8)


def chat_long(folder: Path, count: int) -> Sequence[Item]:
    """Answers of at most 128 tokens."""
    return chat_items(folder, count, 128)


# -- documents --------------------------------------------------------------------------------------------

FIELDS = ("name", "country", "latitude", "population", "river", "landmark")


@sgl.function
async def json_decode(s: sgl.ProgramState, document: str) -> None:
    """Facts of a page as JSON: the program writes the keys, the model the values."""
    s += f"Read the page and give its facts as JSON.\n\nPage:\n{document}\n\nJSON:\n{{"
    for field in FIELDS:
        s += f'\n  "{field}": "' + sgl.gen(field, max_tokens=12, stop=['"', "\n"]) + '",'
    s += "\n}"


def json_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` short articles on cities."""
    pages = read(folder, "json_decode/city_documents_22.jsonl")
    return [{"document": page["document"]} for page in pages if page["kind"] == "lead"][:count]


ASPECTS = ("clarity", "accuracy", "depth", "style")


@sgl.function
async def judge(s: sgl.ProgramState, essay: str) -> None:
    """An essay is judged in four ways at once; the four notes decide its grade."""
    s += sgl.system("You are a careful judge of essays.") + sgl.user(f"Essay:\n{essay}")
    forks = s.fork(len(ASPECTS))
    forks += lambda n: sgl.user(f"In one sentence, judge the {ASPECTS[n]} of this essay.")
    forks += sgl.assistant(sgl.gen("note", max_tokens=40))
    notes = await forks.join("note")
    s += sgl.user("Judge the essay.") + sgl.assistant_begin() + "\n".join(notes)
    s += "\nMy grade for the essay is " + sgl.select("grade", choices=["good", "fair", "poor"])
    s += sgl.assistant_end()


def judge_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` articles."""
    return [{"essay": essay} for essay in read(folder, "judge/articles_20.jsonl")[:count]]


@sgl.function
async def rag(
    s: sgl.ProgramState, demos: tuple[str, str], question: str, search: Callable[[str], str]
) -> None:
    """Retrieval in two calls: a query after solved queries, an answer after solved answers with their passages."""
    asking, answering = demos
    both = s.fork(2)
    both[0] += f"{asking}Question: {question}\nQuery:" + sgl.gen("query", max_tokens=12, stop="\n")
    found = search(f"{question} {await both[0]['query']}")
    both[1] += f"{answering}{found}Question: {question}\nAnswer:" + sgl.gen(
        "answer", max_tokens=24, stop="\n"
    )


def rag_items(folder: Path, count: int) -> Sequence[Item]:
    """`count` questions over a thousand passages, after three solved ones."""
    passages = read(folder, "rag/passages.jsonl")
    questions = read(folder, "rag/questions_100.jsonl")
    texts = {one["title"]: f"Passage: {one['title']}: {one['text'][:600]}\n" for one in passages}
    asking = "Write a query that finds what the question needs.\n\n"
    answering = "Answer the question from the passages.\n\n"
    for one in questions[:3]:
        asking += f"Question: {one['question']}\nQuery: {', '.join(one['supporting_titles'])}\n\n"
        answering += "".join(texts[title] for title in one["supporting_titles"])
        answering += f"Question: {one['question']}\nAnswer: {one['answer']}\n\n"
    search = searcher(list(texts.values()))
    return [
        {"demos": (asking, answering), "question": one["question"], "search": search}
        for one in questions[3 : 3 + count]
    ]


def searcher(texts: Sequence[str]) -> Callable[[str], str]:
    """Gives the three best texts for some words: BM25 by SQLite's full-text index."""
    base = sqlite3.connect(":memory:")
    base.execute("CREATE VIRTUAL TABLE passages USING fts5(text)")
    base.executemany("INSERT INTO passages VALUES (?)", [(text,) for text in texts])

    def search(query: str) -> str:
        words = " OR ".join(f'"{word}"' for word in sorted(set(re.findall(r"\w+", query))))
        rows = base.execute("SELECT text FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT 3", [words])
        return "".join(text for (text,) in rows)

    return search


WORKLOADS = {
    "mmlu": Workload(mmlu, mmlu_items, 2, 7, 2.8),
    "hellaswag": Workload(hellaswag, hellaswag_items, 2, 6, 5.0),
    "react": Workload(react, react_items, 2, 8, 3.0),
    "tree_of_thought": Workload(tree_of_thought, tree_items, 1, 3, 2.0),
    "chat_short": Workload(chat, chat_short, 3, 16, 1.5),
    "chat_long": Workload(chat, chat_long, 2, 8),
    "json_decode": Workload(json_decode, json_items, 2, 8),
    "judge": Workload(judge, judge_items, 1, 6),
    "rag": Workload(rag, rag_items, 4, 24),
}
"""By name, in the order they are run."""
