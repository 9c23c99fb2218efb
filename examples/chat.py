"""A chat of several turns, written while it is generated. One state grows; each turn finds the turns before it in the cache."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import sgl_actors as sgl

QUESTIONS = (
    "Name three things that bees make or do.",
    "Which of them is the most useful to people?",
    "Say that in five words.",
)


@sgl.function
async def chat(s: sgl.ProgramState, questions: Sequence[str], max_tokens: int) -> list[int]:
    """The cached prompt tokens of each turn."""
    s += sgl.system("You are a helpful assistant. Answer in one or two sentences.")
    cached = []
    for question in questions:
        print(f"> {question}")
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer", max_tokens))
        async for text in s.text_iter("answer"):
            print(text, end="", flush=True)
        print("\n")
        cached.append((await s.meta("answer"))["cached_tokens"])
    return cached


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="one per turn")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    state = await chat.bind(options.questions, options.max_tokens).run(temperature=0)
    print(f"cached prompt tokens per turn: {state.value}; in all: {state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
