"""Fork, join and select: an essay is judged on three aspects at once, and the notes decide its grade."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

import sgl_actors as sgl

ESSAY = "Bees dance to tell each other where flowers are. Nobody taught them. A dance holds a direction and a distance."


@sgl.function
async def judge(s: sgl.ProgramState, essay: str) -> None:
    s += sgl.system("You are a careful judge.") + sgl.user(f"Essay: {essay}\nJudge it.")
    forks = s.fork(3)
    for f, aspect in zip(forks, ["clarity", "depth", "style"], strict=True):
        f += sgl.assistant(f"About its {aspect}: " + sgl.gen("note", max_tokens=48, stop="\n"))
    notes = await forks.join("note")
    s += sgl.assistant("\n".join(notes) + "\nGrade: " + sgl.select("grade", choices=["good", "fair", "poor"]))


def essays(data: str | None, count: int) -> list[str]:
    """Articles of the sample data, or the essay above."""
    file = Path(data or "", "judge", "articles_20.jsonl")
    if not data or not file.is_file():
        return [ESSAY]
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    batch = [{"essay": essay} for essay in essays(options.data, options.count)]
    for state in await judge.run_batch(batch, temperature=0):
        print(f"{state['grade']}: {state.meta('grade')['scores']}")
        for note in state["note"]:
            print(f"  - {note}")
        print(f"  {state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
