"""Skeleton of thought: first a list of tips, one line each; then all of them are explained at the same time, in branches."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import sgl_actors as sgl


@sgl.function
async def advise(s: sgl.ProgramState, topic: str, count: int, max_tokens: int) -> str:
    s += sgl.system("You give practical advice.")
    s += sgl.user(f"Give {count} short tips for {topic}, as a list. Do not explain them.")
    with s.assistant():
        for number in range(1, count + 1):
            s += f"{number}." + sgl.gen(f"tip {number}", max_tokens=16, stop="\n") + "\n"
    forks = s.fork(count)  # what has been said so far is computed once; the branches go on from there
    forks += lambda index: sgl.user(f"Explain tip {index + 1} in two sentences.")
    forks += sgl.assistant(sgl.gen("detail", max_tokens=max_tokens))
    details = await forks.join("detail")
    tips = [await s[f"tip {number}"] for number in range(1, count + 1)]
    return "\n".join(f"*{tip}\n    {detail}" for tip, detail in zip(tips, details, strict=True))


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topic", default="keeping bees in a city")
    parser.add_argument("--count", type=int, default=4, help="tips")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each explanation")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    program = advise.bind(options.topic, options.count, options.max_tokens)
    state = await program.run(temperature=0, repetition_penalty=1.2)
    print(f"{options.topic}:\n{state.value}\n{state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
