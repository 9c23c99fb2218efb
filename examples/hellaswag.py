"""HellaSwag: which ending goes on best? The three methods by which `select` judges choices, side by side in three branches."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sgl_actors as sgl

METHODS = ["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"]


@sgl.function
async def finish(s: sgl.ProgramState, shots: str, item: dict[str, Any]) -> list[bool]:
    """Whether each method finds the right ending."""
    s += shots + item["query"] + " "
    forks = s.fork(len(METHODS))
    forks += [sgl.select("ending", item["endings"], choices_method=method) for method in METHODS]
    return [ending == item["endings"][item["label"]] for ending in await forks.join("ending")]


def lines(file: Path, count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n", count)[:count]]


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--count", type=int, default=4, help="items")
    parser.add_argument("--shots", type=int, default=2, help="examples before each")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    files = [Path(options.data or "", "hellaswag", name) for name in ("shots_20.jsonl", "val_200.jsonl")]
    if not all(file.is_file() for file in files):
        parser.error("needs hellaswag/*.jsonl below --data or $SGL_ACTORS_DATA (docs/data.md)")
    solved = lines(files[0], options.shots)
    shots = "".join(f"{one['query']} {one['endings'][one['label']]}\n\n" for one in solved)
    items = lines(files[1], options.count)
    states = await finish.run_batch([{"shots": shots, "item": item} for item in items], progress_bar=True)
    first = states[0]
    print(items[0]["query"])
    for method, ending in zip(METHODS, first["ending"], strict=True):
        print(f"  … {ending}  ({method})")
    print(f"accuracy on {len(items)} items (guessing: 25%):")
    for method, found in zip(METHODS, zip(*(state.value for state in states), strict=True), strict=True):
        print(f"  {method:<36} {sum(found) / len(items):.0%}")


if __name__ == "__main__":
    asyncio.run(main())
