"""MMLU: five solved questions of a subject, then one to solve. `select` picks the letter, `run_batch` solves many at once."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sgl_actors as sgl

LETTERS = ["A", "B", "C", "D"]


def show(item: dict[str, Any]) -> str:
    choices = "".join(map("\n{}. {}".format, LETTERS, item["choices"]))
    return f"Question: {item['question']}{choices}\nAnswer: "


@sgl.function
async def solve(s: sgl.ProgramState, shots: list[dict[str, Any]], item: dict[str, Any]) -> None:
    for shot in shots:  # all programs of a subject begin with these: they are computed once
        s += show(shot) + f"{LETTERS[shot['answer']]}\n\n"
    s += show(item) + sgl.select("answer", LETTERS)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").strip().split("\n")]


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=12, help="questions")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    files = [Path(options.data or "", "mmlu", name) for name in ("dev_5shot.jsonl", "test_200.jsonl")]
    if not all(file.is_file() for file in files):
        parser.error("needs mmlu/{dev_5shot,test_200}.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md)")
    solved, items = lines(files[0]), lines(files[1])[: options.count]
    batch = [{"shots": [s for s in solved if s["subject"] == i["subject"]], "item": i} for i in items]
    states = await solve.run_batch(batch, progress_bar=True, max_concurrency=8)
    right = [state["answer"] == LETTERS[item["answer"]] for state, item in zip(states, items, strict=True)]
    for item, state, good in list(zip(items, states, right, strict=True))[:3]:
        print(f"{item['question']}\n  {state['answer']}, which is {'right' if good else 'wrong'}")
    cached, prompt = sum(s.usage.cached_tokens for s in states), sum(s.usage.prompt_tokens for s in states)
    print(f"accuracy: {sum(right) / len(items):.0%} of {len(items)} (guessing: 25%)")
    print(f"{cached:,} of {prompt:,} prompt tokens came from the cache")


if __name__ == "__main__":
    asyncio.run(main())
