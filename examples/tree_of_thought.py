"""Tree of thought on a GSM8K question: each step is tried several times, and the search goes on from the best (arXiv 2305.10601).

The default model (135M parameters) seldom finds the right answer; what to see is the tree, and that its steps run side by side.
"""

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
async def solve(s: sgl.ProgramState, question: str, policy: str, depth: int, max_tokens: int) -> int:
    async def promising(branch: sgl.ProgramState) -> float:  # from 0 to 1, by the probabilities of the labels
        return float(await sgl.judge(branch, "Does this lead to the answer?", labels=["no", "maybe", "yes"]))

    s += sgl.system("You solve problems in small steps.") + sgl.user(question) + sgl.assistant_begin()
    step = "\nStep: " + sgl.gen("step", max_tokens, stop="\n")
    best = await sgl.tree_search(s, step, promising, n=3, policy=policy, width=2, depth=depth)
    for candidate in best.candidates:
        print(f"  {candidate.score or 0:.2f} {(candidate.value or '').strip()}")
    s += best + "\nSo the answer is " + (answer := sgl.gen_int("answer", max_tokens=8)) + sgl.assistant_end()
    return await s[answer]


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--number", type=int, default=0, help="which question of the sample data, from 0")
    parser.add_argument("--policy", choices=["bfs", "dfs", "best_first", "mcts"], default="bfs")
    parser.add_argument("--depth", type=int, default=2, help="steps")
    parser.add_argument("--max-tokens", type=int, default=24, help="of each step")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    file = Path(options.data or "", "gsm8k", "test_200.jsonl")
    if options.data and not file.is_file():
        parser.error("needs gsm8k/test_200.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither")
    lines = file.read_text("utf-8").split("\n") if options.data else []
    item = json.loads(lines[options.number]) if lines else {"question": QUESTION, "answer": "#### 140"}
    print(item["question"])
    program = solve.bind(item["question"], options.policy, options.depth, options.max_tokens)
    state = await program.run(temperature=0.5, seed=1)
    print(f"answer: {state.value}; right: {item['answer'].rpartition('#### ')[2]}\n{state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
