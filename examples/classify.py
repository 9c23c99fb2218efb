"""Batch classification with select: MMLU questions after five solved ones of their subject, many programs at once."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sgl_actors as sgl

LETTERS = "ABCD"


def show(item: dict[str, Any], *, solved: bool) -> str:
    """A question with its choices, and its answer if it is one of the examples."""
    choices = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item["choices"], strict=True)
    )
    end = f" {LETTERS[item['answer']]}\n\n" if solved else ""
    return f"Question: {item['question']}{choices}\nAnswer:{end}"


@sgl.function
async def classify(s: sgl.ProgramState, shots: str, question: str) -> None:
    s += shots
    s += question + sgl.select("answer", choices=[f" {letter}" for letter in LETTERS])


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    files = [Path(options.data or "", "mmlu", name) for name in ("dev_5shot.jsonl", "test_200.jsonl")]
    if not all(file.is_file() for file in files):
        parser.error("needs mmlu/{dev_5shot,test_200}.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md)")
    solved, items = (
        [json.loads(line) for line in file.read_text("utf-8").strip().split("\n")] for file in files
    )
    items = items[: options.count]
    batch = []
    for item in items:
        shots = "".join(show(one, solved=True) for one in solved if one["subject"] == item["subject"])
        batch.append({"shots": shots, "question": show(item, solved=False)})
    states = await classify.run_batch(batch, progress_bar=True, max_concurrency=8)
    given = [LETTERS.index(state["answer"].strip()) for state in states]
    right = sum(one == item["answer"] for one, item in zip(given, items, strict=True))
    cached, prompt = sum(s.usage.cached_tokens for s in states), sum(s.usage.prompt_tokens for s in states)
    for item, one in zip(items[:3], given, strict=False):
        print(
            f"{item['question']}\n  {item['choices'][one]} ({'right' if one == item['answer'] else 'wrong'})"
        )
    print(
        f"right: {right} of {len(items)} (guessing: {len(items) / 4:g}); {cached} of {prompt} prompt tokens came from the cache"
    )


if __name__ == "__main__":
    asyncio.run(main())
