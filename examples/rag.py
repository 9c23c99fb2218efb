"""RAG: a full-text index (SQLite FTS5) finds passages; the answer cites one of them, which `select` picks among their numbers."""

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

FIND = "SELECT title, text FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?"  # by BM25


@sgl.function
async def answer(s: sgl.ProgramState, base: sqlite3.Connection, question: str, top: int) -> list[str]:
    """The titles that were found."""
    words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", question))
    found = base.execute(FIND, [words, top]).fetchall()
    numbers = [str(number) for number in range(1, len(found) + 1)]
    s += sgl.system("You answer questions from the given passages, as briefly as possible.")
    passages = "\n".join(f"[{n}] {title}: {text[:400]}" for n, (title, text) in enumerate(found, 1))
    s += sgl.user(f"{passages}\n\nQuestion: {question}")
    with s.assistant():
        s += "Passage [" + sgl.select("source", numbers) + "] says:"
        s += sgl.gen("answer", max_tokens=24, stop="\n")
    return [title for title, _ in found]


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=3, help="questions")
    parser.add_argument("--top", type=int, default=3, help="passages for each")
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
    batch = [(base, item["question"], options.top) for item in items[: options.count]]
    for item, state in zip(items, await answer.run_batch(batch, temperature=0), strict=False):
        cited = state.value[int(state["source"]) - 1]
        helps = "supports" if cited in item["supporting_titles"] else "does not support"
        print(f"{item['question']}\n  {state['answer'].strip()} [{cited}, which {helps} it]")
        print(f"  right: {item['answer']}")


if __name__ == "__main__":
    asyncio.run(main())
