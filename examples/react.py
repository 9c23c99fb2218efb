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

SHOTS = """Question: Who wrote the novel behind the film Blade Runner?\nThought: I need to find the novel behind Blade Runner.
Search: Blade Runner film novel\nObservation: Blade Runner is a film based on a novel by Philip K. Dick.\nAnswer: Philip K. Dick\n
Question: In which country was Marie Curie born?\nThought: I need to find the birthplace of Marie Curie.
Search: Marie Curie born\nObservation: Marie Curie was born in Warsaw, a town in Poland.\nAnswer: Poland\n\n"""


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
    s += SHOTS + f"Question: {question}\n"
    for _ in range(steps):
        s += (
            "Thought: I need to find"
            + sgl.gen("thought", stop="\n")
            + "\nSearch:"
            + sgl.gen("query", stop="\n")
        )
        s += f"\nObservation: {tool(await s['query'])}\n"
    s += "Answer:" + sgl.gen("answer", stop="\n")


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--number", type=int, default=10, help="which question of the sample data, from 0")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    questions, passages = (
        Path(options.data or "", "rag", f"{n}.jsonl") for n in ("questions_100", "passages")
    )
    if not (questions.is_file() and passages.is_file()):
        parser.error(
            "needs rag/{questions_100,passages}.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md)"
        )
    item = json.loads(questions.read_text("utf-8").split("\n")[options.number])
    tool = searcher(passages)
    state = await react.bind(item["question"], tool, options.steps).run(temperature=0, max_tokens=32)
    print(state.text().removeprefix(SHOTS), f"(right: {item['answer']})", state.usage, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
