"""ReAct: the model thinks, calls a tool, reads what comes of it, and answers. The tool is a search in passages (SQLite FTS5)."""

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

FIND = "SELECT title, text FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT 1"  # by BM25


@sgl.function
async def solve(s: sgl.ProgramState, question: str, base: sqlite3.Connection, steps: int) -> str:
    @sgl.tool
    async def search(query: str) -> str:
        """Find the passage that fits some words best."""
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query)) or '""'
        found = base.execute(FIND, [words]).fetchone() or ("nothing", "was found")
        return f"{found[0]}: {found[1][:300]}"

    s += await sgl.react(s, question, [search], max_steps=steps, max_tokens=48)
    return await s["answer"]


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--number", type=int, default=10, help="which question of the sample data, from 0")
    parser.add_argument("--steps", type=int, default=2, help="calls of the tool")
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
    item = items[options.number]
    state = await solve.bind(item["question"], base, options.steps).run(temperature=0)
    print(item["question"], state.messages()[-1]["content"], sep="\n")
    print(f"answer: {state.value.strip()} (right: {item['answer']})\n{state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
