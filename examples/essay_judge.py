"""LLM as a judge: three aspects of an essay are judged at once, in branches; the notes lead to a grade from 1 to 5.

`judge` looks at the probabilities of all grades: between a sure 3 and a 3 that could be a 5 it makes a difference.
"""

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
async def review(s: sgl.ProgramState, essay: str, max_tokens: int) -> float:
    """The expected grade."""
    s += sgl.system("You are a careful judge of essays.") + sgl.user(f"Essay:\n{essay}")
    forks = s.fork(len(ASPECTS))
    for f, aspect in zip(forks, ASPECTS, strict=True):
        f += sgl.user(f"In one sentence, judge the {aspect} of this essay.")
        f += sgl.assistant(sgl.gen("note", max_tokens, stop=["\n", ". "]))
    notes = await forks.join("note")
    s += sgl.user("Judge the essay.") + sgl.assistant("\n".join(notes))
    return (await sgl.judge(s, "How good is the essay?", scale=(1, 5))).value


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=2, help="essays of the sample data")
    parser.add_argument("--max-tokens", type=int, default=32, help="of each note")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    file = Path(options.data or "", "judge", "articles_20.jsonl")
    if options.data and not file.is_file():
        parser.error("needs judge/*.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither")
    lines = file.read_text("utf-8").split("\n")[: options.count] if options.data else []
    essays = [json.loads(line) for line in lines] or [ESSAY]
    states = await review.run_batch([(essay, options.max_tokens) for essay in essays], temperature=0)
    for essay, state in zip(essays, states, strict=True):
        print(f"{essay[:70].partition(chr(10))[0]} …\n  grade: {state.value:.1f} of 5")
        for aspect, note in zip(ASPECTS, state["note"], strict=True):
            print(f"  {aspect}: {note}")


if __name__ == "__main__":
    asyncio.run(main())
