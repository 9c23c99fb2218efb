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

SHOT = (
    "Question: Who wrote the novel behind the film Blade Runner?\nThought: I need to find that novel.\n"
    "Search: Blade Runner novel\nObservation: Blade Runner is a film based on a novel by Philip K. Dick.\nAnswer: Philip K. Dick\n\n"
)


def index(file: Path) -> sqlite3.Connection:
    """A full-text index of the passages."""
    base = sqlite3.connect(":memory:")
    base.execute("CREATE VIRTUAL TABLE passages USING fts5(title, text)")
    with file.open(encoding="utf-8") as lines:
        base.executemany("INSERT INTO passages VALUES (:title, :text)", map(json.loads, lines))
    return base


def search(base: sqlite3.Connection, query: str) -> str:
    """The best passage for a query in plain words."""
    words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query)) or '""'
    row = base.execute(
        "SELECT * FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT 1", (words,)
    ).fetchone()
    return f"{row[0]}: {row[1][:300]}" if row else "nothing found"


@sgl.function
async def react(s: sgl.ProgramState, question: str, tool: Callable[[str], str], steps: int) -> None:
    s += SHOT + f"Question: {question}\n"
    for _ in range(steps):
        s += "Thought: " + sgl.gen("thought", stop="\n") + "\nSearch: " + sgl.gen("query", stop="\n")
        s += f"\nObservation: {tool(await s['query'])}\n"
    s += "Answer: " + sgl.gen("answer", stop="\n")


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if not options.data:
        parser.error("needs --data DIR (or $SGL_ACTORS_DATA), with passages of HotpotQA")
    if options.url:
        sgl.connect(options.url)
    base = index(Path(options.data, "rag", "passages.jsonl"))
    item = json.loads(Path(options.data, "rag", "questions_100.jsonl").read_text("utf-8").split("\n", 1)[0])
    program = react.bind(item["question"], lambda query: search(base, query), options.steps)
    state = await program.run(temperature=0, max_tokens=32)
    print(state.text().removeprefix(SHOT), f"(right: {item['answer']})", state.usage, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
