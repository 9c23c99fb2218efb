"""Any example on an API model: where a program runs is one line, and the program stays as it is.

    python examples/api.py --url http://127.0.0.1:30000/v1 tree_of_thought.py --max-tokens 12

Without --url it is OpenAI's own API, with the key in $OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import runpy
from collections.abc import Sequence
from pathlib import Path

import sgl_actors as sgl


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("example", help="a file beside this one; what follows is for it")
    parser.add_argument("--url", default="", help="of an API that is compatible with OpenAI's")
    parser.add_argument("--model", default="default", help="its name there")
    parser.add_argument("--api", default="completions", choices=["completions", "chat"])
    options, rest = parser.parse_known_args(argv)
    key = "none" if options.url else ""
    model = sgl.OpenAI(options.model, base_url=options.url, api=options.api, key=key)
    sgl.set_default_backend(model)
    run = runpy.run_path(str(Path(__file__).with_name(options.example)))["main"]
    ended = run(rest)
    if inspect.iscoroutine(ended):
        asyncio.run(ended)


if __name__ == "__main__":
    main()
