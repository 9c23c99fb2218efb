"""JSON decoding: an article on a city becomes a `City`. The type is the schema, the model can write nothing else."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

import sgl_actors as sgl

ARTICLE = """Lisbon is the capital and largest city of Portugal, with 567,131 inhabitants. It lies on the mouth of the
river Tagus. Its landmarks are the Tower of Belém, the Castle of São Jorge and the bridge of the 25th of April."""

Words = Annotated[str, msgspec.Meta(max_length=32)]


class City(msgspec.Struct):
    """What is asked for."""

    name: Words
    country: Words
    population: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
    landmarks: Annotated[list[Words], msgspec.Meta(min_length=1, max_length=3)]


@sgl.function
async def extract(s: sgl.ProgramState, article: str) -> City:
    s += sgl.user(f"{article}\n\nGive the city's name, country, population and landmarks as JSON.")
    s += sgl.assistant(city := sgl.gen("city", max_tokens=160, type=City))
    return await s[city]  # a `City`, for the type checker too


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=2, help="articles of the sample data")
    parser.add_argument("--characters", type=int, default=1500, help="of each article")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    file = Path(options.data or "", "json_decode", "city_documents_22.jsonl")
    if options.data and not file.is_file():
        parser.error("needs json_decode/*.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md); or neither")
    lines = file.read_text("utf-8").split("\n")[: options.count] if options.data else []
    articles = [json.loads(line)["document"][: options.characters] for line in lines] or [ARTICLE]
    for state in await extract.run_batch([{"article": one} for one in articles], temperature=0):
        city: City = state.value
        print(f"{city.name} in {city.country}: {city.population:,} inhabitants; {', '.join(city.landmarks)}")


if __name__ == "__main__":
    asyncio.run(main())
