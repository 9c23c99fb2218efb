"""Classification: `select` says what a sentence is about, and how sure it is; three examples, no training, nothing to parse."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Sequence

import sgl_actors as sgl

TOPICS = ["cooking", "sport", "weather"]
SOLVED = {
    "The sauce needs more salt.": "cooking",
    "She scored twice before the break.": "sport",
    "Fog until noon, then sun.": "weather",
}
SENTENCES = [
    "Bake it for an hour at low heat.",
    "They lost the final on penalties.",
    "It rained on the stadium all day.",
]


@sgl.function
async def classify(s: sgl.ProgramState, sentence: str) -> dict[str, float]:
    """The probability of each topic, from the scores of the choices."""
    s += "What is each sentence about?\n\n"
    for solved, topic in SOLVED.items():
        s += f"Sentence: {solved}\nTopic: {topic}\n\n"
    s += f"Sentence: {sentence}\nTopic: " + sgl.select("topic", TOPICS)
    weights = {topic: math.exp(score) for topic, score in (await s.meta("topic"))["scores"].items()}
    return {topic: weight / sum(weights.values()) for topic, weight in weights.items()}


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentences", nargs="*", default=SENTENCES)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    sentences = iter(options.sentences)
    batch = [{"sentence": sentence} for sentence in options.sentences]
    async for state in await classify.run_batch(batch, generator_style=True):  # each as soon as it is there
        print(f"{next(sentences)}\n  {state['topic']} ({state.value[state['topic']]:.0%})")


if __name__ == "__main__":
    asyncio.run(main())
