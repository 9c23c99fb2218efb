"""A durable program: its process ends in the middle, and the next one goes on where it was. `sgl-actors resume --list` shows it."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import sgl_actors as sgl

ASPECTS = ("where it lives", "what it eats", "how it finds its way")


@sgl.function
async def report(s: sgl.ProgramState, animal: str) -> dict[str, str]:
    began = await s.once("began", time.strftime, "%H:%M:%S")  # what comes from outside is recorded, too
    s += sgl.user(f"I write about the {animal}.")
    notes = s.fork(len(ASPECTS))
    notes += [sgl.user(f"In one line: {what}.") for what in ASPECTS]
    notes += sgl.assistant(sgl.gen("note", max_tokens=16, stop="\n"))
    found = await notes.join("note")
    if "FIRST" in os.environ:
        os._exit(1)  # as a power cut would end it
    s += sgl.assistant(" ".join(found))
    s += sgl.user("A title?") + sgl.assistant(sgl.gen("title", max_tokens=12, stop="\n"))
    return {"began": began, "title": await s["title"]}


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", default=f"bee-{time.time():.0f}", help="under one id it is one program")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    if "FIRST" not in os.environ:
        command = [sys.executable, __file__, "--id", options.id]
        command += ["--url", options.url] if options.url else []
        ended = subprocess.run(command, env={**os.environ, "FIRST": "1"}, check=False)
        print(f"the first process ended with {ended.returncode}")
    state = await report.run("bee", durable=True, id=options.id, temperature=0)
    print(f"begun at {state.value['began']}, ended at {time.strftime('%H:%M:%S')}: {state.value['title']}")
    print(f"{state.usage.calls} calls of the model in both processes together")


if __name__ == "__main__":
    asyncio.run(main())
