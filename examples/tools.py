"""Tools: the model thinks, calls Python functions and reads what they return, until it knows the answer. `react` is the loop."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import sgl_actors as sgl

SOLVED = """Thought: 12 * 5 = 50
Action: multiply
Action Input: {"a": 12, "b": 5}
Observation: 60
Thought: I know the answer.
Action: finish
Answer: 60"""


@sgl.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@sgl.tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@sgl.function
async def solve(s: sgl.ProgramState, question: str) -> int:
    s += sgl.user("Question: What is 12 times 5?") + sgl.assistant(SOLVED)
    number = sgl.gen_int("number", max_tokens=12)
    found = await sgl.react(s, question, [add, multiply], finish=number, max_steps=3, max_tokens=32)
    s += found
    return found.value


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="What is 17 + 25?")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    state = await solve.bind(options.question).run(temperature=0)
    print(options.question, state.messages()[-1]["content"], sep="\n")
    print(f"as a number: {state.value:,}")


if __name__ == "__main__":
    asyncio.run(main())
