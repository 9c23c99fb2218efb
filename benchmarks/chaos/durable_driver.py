"""A user's script with durable programs: `python durable_driver.py ENDPOINT JOURNAL PREFIX COUNT TOKENS`.

Prints what they returned as JSON. Exit code 3 if the node failed them; the same command again goes on where they were.
"""

from __future__ import annotations

import asyncio
import json
import sys

import sgl_actors as sgl
from sgl_actors.errors import SglActorsError

FAILED = 3


@sgl.function
async def essay(s: sgl.ProgramState, topic: str, tokens: int) -> dict[str, object]:
    """Four parts from one prefix, a value from outside, a choice, an end; sampled."""
    s += sgl.user(f"Write about {topic}.")
    forks = s.fork(4)
    forks += lambda number: sgl.assistant(f"{number}: " + sgl.gen("part", max_tokens=tokens, ignore_eos=True))
    parts = await forks.join("part")
    s += sgl.assistant("; ".join(parts))
    drawn = await s.once("drawn", len, parts)
    s += sgl.user(f"{drawn} parts. Good?") + sgl.assistant(sgl.select("grade", ["good", "fair", "poor"]))
    s += sgl.user("And?") + sgl.assistant(sgl.gen("end", max_tokens=tokens, ignore_eos=True))
    return {"grade": await s["grade"], "drawn": drawn}


async def main(endpoint: str, journal: str, prefix: str, count: int, tokens: int) -> int:
    """Run them all at the same time."""

    async def run(number: int) -> list[object]:
        state = await essay.bind(topic=f"topic {number}", tokens=tokens).run(
            durable=journal,
            id=f"{prefix}-{number}",
            seed=number,
            temperature=0.8,
            backend=backend,
            timeout=300,
        )
        return [state.value, state.text(), state["part"], state["end"]]

    try:
        async with sgl.connect(endpoint) as backend:
            outcomes = await asyncio.gather(*(run(number) for number in range(count)))
    except SglActorsError as error:
        print(repr(error), file=sys.stderr)
        return FAILED
    print(json.dumps(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
