"""Classification: `select` says which team a message is for, and how sure it is; no data, no training, nothing to parse."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Sequence

import sgl_actors as sgl

TEAMS = ["billing", "delivery", "technical support"]
SOLVED = {
    "I was charged twice this month.": "billing",
    "My parcel should have been here on Monday.": "delivery",
    "The app does not let me log in.": "technical support",
}
MESSAGES = [
    "The invoice shows the wrong amount.",
    "The courier left the box with a neighbour whom I do not know.",
    "After the update the screen stays black.",
]


@sgl.function
async def triage(s: sgl.ProgramState, message: str) -> dict[str, float]:
    """The probability of each team, from the scores of the choices."""
    s += "Which team is each message for?\n\n"
    for solved, team in SOLVED.items():
        s += f"Message: {solved}\nTeam: {team}\n\n"
    s += f"Message: {message}\nTeam: " + sgl.select("team", TEAMS)
    weights = {team: math.exp(score) for team, score in (await s.meta("team"))["scores"].items()}
    return {team: weight / sum(weights.values()) for team, weight in weights.items()}


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("messages", nargs="*", default=MESSAGES)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    batch = [{"message": message} for message in options.messages]
    states = await triage.run_batch(batch, generator_style=True)
    async for state in states:  # each as soon as it and those before it are there
        message = batch.pop(0)["message"]
        print(f"{state['team']:>18} ({state.value[state['team']]:.0%})  {message}")


if __name__ == "__main__":
    asyncio.run(main())
