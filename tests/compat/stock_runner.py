"""Run by an interpreter that has the stock sglang: programs of this folder against a node, what they return as JSON.

Usage: ``python stock_runner.py http://host:port FILE…``.
"""
# mypy: ignore-errors

from __future__ import annotations

import json
import runpy
import sys

import sglang as sgl


def main(url: str, files: list[str]) -> dict:
    sgl.set_default_backend(sgl.RuntimeEndpoint(url, chat_template_name="chatml"))
    return {file: runpy.run_path(file)["main"]() for file in files}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))  # noqa: T201 - its answer
