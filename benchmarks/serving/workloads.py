"""The workloads that servers are compared on: the same work for every server, drawn anew for every seed.

Each begins with a line of its own per seed, so that no round finds another's prefixes cached; within a round they are shared as the workload says.
Everything is greedy; outputs are forced to their length where a server can (`ignore_eos`), but for `json`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workload.programs import chat_notes, mmlu_items, read, read_text
from sgl_actors.bench.client import Request
from sgl_actors.bench.load import OUTPUT_TOKENS, Ask, Program, each_once, once, random_prompts


@dataclass(frozen=True)
class Workload:
    """A number of programs that run at once.

    Attributes:
        programs: (folder of the sample data, seed, count) -> the programs.
        count: of programs in a measurement.
        concurrency: most requests at a time.
    """

    programs: Callable[[Path, int, int], Sequence[Program]]
    count: int
    concurrency: int = 16


SINGLE_SEEDS = 10**9
"""Added to the seeds of `single`, or its prompts would begin like those of `random`."""


def fresh(seed: int) -> str:
    """The line that tells seeds apart; its first token differs."""
    return f"{chr(65 + seed % 26)}{seed}.\n"


def random_ids(_folder: Path, seed: int, count: int) -> Sequence[Program]:
    """Prompts of 128 random tokens, 64 out; nothing is shared."""
    return each_once(random_prompts(count, seed), OUTPUT_TOKENS)


def single(_folder: Path, seed: int, count: int) -> Sequence[Program]:
    """Prompts of 512 random tokens, one at a time, 64 out."""
    return each_once(random_prompts(count, seed + SINGLE_SEEDS, tokens=512), OUTPUT_TOKENS)


MMLU_SUBJECT = "electrical engineering"
"""Its five solved questions are some 420 tokens."""


def mmlu(folder: Path, seed: int, count: int) -> Sequence[Program]:
    """Questions of all subjects behind one five-shot prefix; the answer is one token."""
    items = list(mmlu_items(folder, 10))
    shots = next(item["shots"] for item in items if MMLU_SUBJECT in item["shots"])
    return [
        once(Request(fresh(seed) + shots + item["question"], tokens=1))
        for item in (items * (count // len(items) + 1))[:count]
    ]


def chat(tokens: int) -> Callable[[Path, int, int], Sequence[Program]]:
    """Dialogs of four turns behind a shared system prompt, with the real answers fed back; `tokens` per answer."""

    def programs(folder: Path, seed: int, count: int) -> Sequence[Program]:
        notes = chat_notes(folder, 330)
        system = {"role": "system", "content": fresh(seed) + SYSTEM}
        return [_dialog(system, notes[4 * n : 4 * n + 4], tokens) for n in range(count)]

    return programs


SYSTEM = (
    "You are a careful assistant of a small library. You answer questions about notes that readers have written. Keep to what the "
    "note says, name what is missing, use plain words, and never answer in more than two short sentences unless the reader asks for it."
)


def _dialog(system: dict[str, str], notes: Sequence[str], tokens: int) -> Program:
    async def program(ask: Ask) -> None:
        messages = [system]
        for note in notes:
            messages.append({"role": "user", "content": f"A note:\n{note}\nWhat does it say?"})
            answer = await ask(Request(messages=tuple(messages), tokens=tokens))
            messages.append({"role": "assistant", "content": answer.text})

    return program


BRANCHES, DEPTH = 3, 3


def tree_of_thought(folder: Path, seed: int, count: int) -> Sequence[Program]:
    """Trees of 39 calls: three branches, three levels, each call goes on from its parent's text; 24 tokens each."""
    stages = {
        one["stage"]: one
        for one in json.loads(read_text(folder, "tree_of_thought/prompts_gsm8k.json"))["stage"]
    }
    solved = "".join(
        f"Question: {one['question']}\nAnswer: {one['answer']}\n\n"
        for one in read(folder, "gsm8k/shots_16.jsonl")[1:3]
    )
    questions = [one["question"] for one in read(folder, "gsm8k/test_200.jsonl")[:count]]
    texts = [stages[name]["text"] for name in ("propose", "execute", "reflect")]
    return [
        _tree(fresh(seed) + solved, [text.replace("{question}", question) for text in texts])
        for question in questions
    ]


def _tree(prefix: str, texts: Sequence[str]) -> Program:
    async def program(ask: Ask) -> None:
        async def grow(state: str, level: int) -> None:
            if level == DEPTH:
                return
            async with asyncio.TaskGroup() as group:
                for branch in range(BRANCHES):
                    group.create_task(extend(f"{state}{texts[level]} ({branch + 1})", level))

        async def extend(state: str, level: int) -> None:
            answer = await ask(Request(state, tokens=24))
            await grow(state + answer.text, level + 1)

        await grow(prefix, 0)

    return program


RECORDED = 5


def react(folder: Path, seed: int, count: int) -> Sequence[Program]:
    """Agents of six steps: a step is generated, what was recorded takes its place, and the prompt grows; 24 tokens each."""
    examples = json.loads(read_text(folder, "react/prompts_hotpotqa.json"))["webthink_simple6"]
    prefix = fresh(seed) + "Question:".join(examples.split("Question:")[:2])
    traces = [one for one in read(folder, "react/hotpotqa_traces_100.jsonl") if len(one["steps"]) >= RECORDED]
    return [_agent(prefix, trace) for trace in traces[:count]]


def _agent(prefix: str, trace: dict[str, Any]) -> Program:
    async def program(ask: Ask) -> None:
        state = f"{prefix}Question: {trace['question']}\n"
        for number, step in enumerate(trace["steps"][:RECORDED], 1):
            await ask(Request(f"{state}Thought {number}:", tokens=24))
            state += f"Thought {number}: {step['thought'][:200]}\nAction {number}: {step['action']}\n"
            state += f"Observation {number}: {step['observation'][:300]}\n"
        await ask(Request(f"{state}Thought {RECORDED + 1}:", tokens=24))

    return program


CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "country": {"type": "string", "maxLength": 24},
        "continent": {"enum": ["Africa", "America", "Asia", "Australia", "Europe"]},
        "population": {"type": "integer"},
        "capital": {"type": "boolean"},
        "landmarks": {
            "type": "array",
            "items": {"type": "string", "maxLength": 24},
            "minItems": 2,
            "maxItems": 3,
        },
    },
    "required": ["name", "country", "continent", "population", "capital", "landmarks"],
    "additionalProperties": False,
}


def documents(folder: Path, seed: int, count: int) -> Sequence[Program]:
    """Chat requests for the facts of a text, held to a JSON schema; up to 160 tokens."""
    texts = [page["document"] for page in read(folder, "json_decode/city_documents_22.jsonl")]
    system = {"role": "system", "content": fresh(seed) + "Answer with JSON."}
    return [
        once(Request(messages=(system, {"role": "user", "content": f"Give the facts of this page:\n{text[:350]}"}),
                     tokens=160, schema=CITY))
        for text in texts[:count]
    ]  # fmt: skip


WORKLOADS = {
    "single": Workload(single, 4, concurrency=1),
    "random": Workload(random_ids, 32),
    "mmlu": Workload(mmlu, 64),
    "react": Workload(react, 8),
    "tot": Workload(tree_of_thought, 2),
    "chat_short": Workload(chat(32), 8),
    "chat_long": Workload(chat(128), 8),
    "json": Workload(documents, 16),
}
"""By name, in the order they are run."""
DATA_FREE = ("single", "random")
"""Those that need no sample data."""
