"""ReAct on HotpotQA: thought, search, observation, in a loop of plain Python; the search is SQLite's FTS5 over sample passages."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import sgl_actors as sgl

SHOTS = """Question: Who wrote the novel behind the film Blade Runner?\nThought: I need to find the novel behind Blade Runner.
Search: Blade Runner film novel\nObservation: Blade Runner is a film based on a novel by Philip K. Dick.\nAnswer: Philip K. Dick\n
Question: In which country was Marie Curie born?\nThought: I need to find the birthplace of Marie Curie.
Search: Marie Curie born\nObservation: Marie Curie was born in Warsaw, a town in Poland.\nAnswer: Poland\n\n"""
FIND = "SELECT title, text FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT 1"  # by BM25


@sgl.function
async def react(s: sgl.ProgramState, question: str, base: sqlite3.Connection, steps: int) -> None:
    s += SHOTS + f"Question: {question}\n"
    for _ in range(steps):
        s += "Thought: I need to find" + sgl.gen("thought", stop="\n")
        s += "\nSearch:" + sgl.gen("query", stop="\n")
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", await s["query"])) or '""'
        title, text = base.execute(FIND, [words]).fetchone() or ("nothing", "was found")
        s += f"\nObservation: {title}: {text[:300]}\n"
    s += "Answer:" + sgl.gen("answer", stop="\n")


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--number", type=int, default=10, help="which question of the sample data, from 0")
    parser.add_argument("--steps", type=int, default=1, help="searches")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    files = [Path(options.data or "", "rag", f"{name}.jsonl") for name in ("questions_100", "passages")]
    if not all(file.is_file() for file in files):
        parser.error("needs rag/*.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md)")
    items, texts = ([json.loads(line) for line in f.read_text("utf-8").strip().split("\n")] for f in files)
    (base := sqlite3.connect(":memory:")).execute("CREATE VIRTUAL TABLE passages USING fts5(title, text)")
    base.executemany("INSERT INTO passages VALUES (:title, :text)", texts)
    program = react.bind(items[options.number]["question"], base, options.steps)
    state = await program.run(temperature=0, max_tokens=32)
    print(f"{state.text().removeprefix(SHOTS)}\n(right: {items[options.number]['answer']})\n{state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
