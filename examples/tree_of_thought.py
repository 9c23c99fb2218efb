"""A tree of thought on a GSM8K question: three plans, each carried out twice and checked; the answers vote.

The default model (135M parameters) seldom finds the right one; what to see is the tree, and how much of it comes from the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import sgl_actors as sgl

QUESTION = "Andy plants 90 geraniums and 40 fewer petunias. How many flowers does he plant?"


@sgl.function
async def tree(s: sgl.ProgramState, question: str, plans: int, works: int, max_tokens: int) -> list[str]:
    s += sgl.system("You solve problems in small steps.") + sgl.user(question) + sgl.assistant_begin()
    proposed = s.fork(plans)
    proposed += "My plan:" + sgl.gen("plan", max_tokens=max_tokens, stop="\n\n") + "\n\n"
    executed = [branch.fork(works) for branch in proposed]
    for group in executed:
        group += "Step by step:" + sgl.gen("work", max_tokens=max_tokens, stop="\n\n") + "\n\n"
        group += "Looking at it again:" + sgl.gen("check", max_tokens=max_tokens // 2, stop="\n") + "\n"
        group += "So the answer is" + sgl.gen("answer", max_tokens=12, stop=["\n", ". "])
        group.join("answer")
    answers = await proposed.join("answer")
    s += sgl.assistant_end()
    return [answer.strip() for group in answers for answer in group]


def vote(answers: Sequence[str]) -> tuple[str, int]:
    """The number named most often, and how often."""
    numbers = [found.group().replace(",", "") for a in answers if (found := re.search(r"-?\d[\d,]*", a))]
    return Counter(numbers).most_common(1)[0] if numbers else ("none", 0)


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--plans", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    file = Path(options.data or "", "gsm8k", "test_200.jsonl")
    if options.data and not file.is_file():
        parser.error("needs gsm8k/test_200.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither")
    item = {"question": QUESTION, "answer": "140"}
    if options.data:
        item = json.loads(file.read_text("utf-8").split("\n", 1)[0])
    question, right = item["question"], item["answer"].rpartition("#### ")[2]
    state = await tree.bind(question, options.plans, 2, options.max_tokens).run(temperature=0.3, seed=1)
    number, times = vote(state.value)
    print(question, *(f"  answer {n}: {answer}" for n, answer in enumerate(state.value, 1)), sep="\n")
    print(f"vote: {number} ({times} of {len(state.value)}); right: {right}\n{state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
