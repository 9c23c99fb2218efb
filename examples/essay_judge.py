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
ASPECTS = ("clarity", "depth", "style")


@sgl.function
async def judge(s: sgl.ProgramState, essay: str) -> None:
    s += sgl.system("You are a careful judge of essays.") + sgl.user(f"Essay:\n{essay}")
    forks = s.fork(len(ASPECTS))
    for f, aspect in zip(forks, ASPECTS, strict=True):
        f += sgl.user(f"In one sentence, judge the {aspect} of this essay.")
        f += sgl.assistant(sgl.gen("note", max_tokens=64, stop=["\n", ". "]))
    notes = await forks.join("note")
    s += sgl.user("Judge the essay.") + sgl.assistant_begin() + "\n".join(notes)
    s += "\nMy grade for the essay is " + sgl.select("grade", choices=["good", "fair", "poor"])
    s += sgl.assistant_end()


def essays(file: Path, count: int) -> list[str]:
    """The first articles of the sample data."""
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
    file = Path(options.data or "", "judge", "articles_20.jsonl")
    if options.data and not file.is_file():
        parser.error(
            "needs judge/articles_20.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither"
        )
    batch = [{"essay": essay} for essay in (essays(file, options.count) if options.data else [ESSAY])]
    for item, state in zip(batch, await judge.run_batch(batch, temperature=0), strict=True):
        print(f"{item['essay'].split(chr(10))[0][:70]} …\n  grade: {state['grade']}")
        for aspect, note in zip(ASPECTS, state["note"], strict=True):
            print(f"  {aspect}: {note}")
        print(f"  {state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
