"""Arguments of the benchmarks on a virtual clock; what is wrong ends the command with its usage."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import msgspec

from benchmarks.replay.engine import Costs


def chosen(parser: argparse.ArgumentParser, option: str, text: str, known: Collection[str]) -> list[str]:
    """The names of a list with commas, all of them known."""
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option}: unknown {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return names


def read_costs(parser: argparse.ArgumentParser, path: Path | None) -> Costs:
    """The costs of a file, or without one the measured ones."""
    if path is None:
        return Costs()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Costs)
    except OSError as error:
        parser.error(f"--costs {path}: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        parser.error(f"--costs {path}: {error}")
