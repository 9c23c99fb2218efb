"""ReAct with a real tool: thought, search, observation, in a loop; the search is SQLite's FTS5 over sample passages."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import sgl_actors as sgl

SHOT = """Question: Who wrote the novel behind Blade Runner?\nThought: I need to find the novel.\nSearch: Blade Runner
Observation: Blade Runner is a film based on a novel by Philip K. Dick.\nAnswer: Philip K. Dick\n\n"""


def searcher(file: Path) -> Callable[[str], str]:
    """The tool: gives the best passage for a query in plain words, from a full-text index."""
    (base := sqlite3.connect(":memory:")).execute("CREATE VIRTUAL TABLE passages USING fts5(title, text)")
    passages = map(json.loads, file.read_text("utf-8").strip().split("\n"))
    base.executemany("INSERT INTO passages VALUES (:title, :text)", passages)

    def search(query: str) -> str:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query)) or '""'
        rows = base.execute("SELECT * FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT 1", [words])
        return next((f"{title}: {text[:300]}" for title, text in rows), "nothing found")

    return search


@sgl.function
async def react(s: sgl.ProgramState, question: str, tool: Callable[[str], str], steps: int) -> None:
    s += SHOT + f"Question: {question}\n"
    for _ in range(steps):
        s += "Thought: " + sgl.gen("thought", stop="\n") + "\nSearch: " + sgl.gen("query", stop="\n")
        s += f"\nObservation: {tool(await s['query'])}\n"
    s += "Answer: " + sgl.gen("answer", stop="\n")


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA", "."), help="sample data")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    folder = Path(options.data, "rag")
    item = json.loads((folder / "questions_100.jsonl").read_text("utf-8").split("\n", 1)[0])
    tool = searcher(folder / "passages.jsonl")
    state = await react.bind(item["question"], tool, options.steps).run(temperature=0, max_tokens=32)
    print(state.text().removeprefix(SHOT), f"(right: {item['answer']})", state.usage, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
