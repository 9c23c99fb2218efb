"""Multi-chain reasoning: several chains of thought at once, and an answer that has read all of them (arXiv 2304.13007)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

import sgl_actors as sgl

QUESTION = "Andy plants 90 geraniums and 40 fewer petunias. How many flowers does he plant?"


@sgl.function
async def solve(s: sgl.ProgramState, question: str, count: int, max_tokens: int) -> None:
    s += sgl.system("You solve problems in small steps.") + sgl.user(question)
    forks = s.fork(count)
    forks += sgl.assistant("Let us think step by step. " + sgl.gen("chain", max_tokens, temperature=0.7))
    chains = await forks.join("chain")
    attempts = "\n\n".join(f"Attempt {number}: {chain}" for number, chain in enumerate(chains, 1))
    s += sgl.user(f"{attempts}\n\nWhich number is right? {question}")
    s += sgl.assistant("The right number is " + sgl.gen_int("answer", max_tokens=8))


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--number", type=int, default=0, help="which question of the sample data, from 0")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=48, help="of each chain")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    file = Path(options.data or "", "gsm8k", "test_200.jsonl")
    if options.data and not file.is_file():
        parser.error("needs gsm8k/test_200.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither")
    lines = file.read_text("utf-8").split("\n") if options.data else []
    item = json.loads(lines[options.number]) if lines else {"question": QUESTION, "answer": "#### 140"}
    program = solve.bind(item["question"], options.chains, options.max_tokens)
    state = await program.run(temperature=0, seed=1)
    print(item["question"])
    for number, chain in enumerate(state["chain"], 1):
        print(f"  {number}: {' '.join(chain.split())}")
    print(f"answer: {state['answer']}; right: {item['answer'].rpartition('#### ')[2]}\n{state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
