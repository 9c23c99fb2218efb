"""Three fields of a text, after worked examples: on an API model one call is for all of them (`sgl-actors run --api …`)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

import sgl_actors as sgl

SHOTS = """Text: With about 910,000 people, Naples is the regional capital of Campania, in the south of Italy.
City: Naples
Country: Italy
Population: 910,000

Text: Osaka lies on the island of Honshu. Some 2.75 million people live in what is Japan's third city.
City: Osaka
Country: Japan
Population: 2.75 million

"""
TEXTS = (
    "Porto, at the mouth of the Douro, is the second city of Portugal; 231,800 people live there.",
    "In Belgium, Ghent grew rich with cloth. Today it has 265,000 inhabitants.",
)


@sgl.function
async def extract(s: sgl.ProgramState, text: str) -> None:
    s += SHOTS + f"Text: {text}\nCity:" + sgl.gen("city", max_tokens=12, stop="\n")
    s += "\nCountry:" + sgl.gen("country", max_tokens=12, stop="\n")
    s += "\nPopulation:" + sgl.gen("population", max_tokens=12, stop="\n")


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=2, help="texts")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    file = Path(options.data or "", "json_decode", "city_documents_22.jsonl")
    if options.data and not file.is_file():
        parser.error("needs json_decode/*.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither")
    lines = file.read_text("utf-8").splitlines()[: options.count] if options.data else []
    texts = [" ".join(json.loads(line)["document"][:300].split()) for line in lines] or list(TEXTS)
    for state in await extract.run_batch([(text,) for text in texts], temperature=0):
        print(", ".join(state[name].strip() for name in ("city", "country", "population")))
        print(f"  {state.usage}")


if __name__ == "__main__":
    asyncio.run(main())
