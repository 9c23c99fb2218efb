"""Which tile a kernel takes on which device: measured tables where there are any, heuristics otherwise.

A table is a JSON file per device, written by `python -m sgl_actors.kernels.triton.tune` on the machine that has it; none is shipped, as
none was measured. Its entries are keyed by kernel and shape bucket, `{"kernel": {"m16 n4096 k4096": {"BLOCK_N": 64, …}}}`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

Tile = dict[str, int]
"""Constants and launch options by name."""


def round_rows(rows: int) -> int:
    """Rows rounded up to a power of two, at least 1 and at most 4,096."""
    return min(1 << max(rows - 1, 0).bit_length(), 4096)


def bucket(rows: int, out: int, width: int) -> str:
    """The key of a product's shape; rows are rounded."""
    return f"m{round_rows(rows)} n{out} k{width}"


def device_name(device: torch.device) -> str:
    """The device's name as a file name, e.g. `nvidia_h100_80gb_hbm3`; `none` for a CPU (the interpreter's)."""
    if device.type != "cuda":
        return "none"
    return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")


def table_path(device: str) -> Path:
    """Where a device's table is looked for: `$SGL_ACTORS_TUNING`, else `$XDG_CACHE_HOME/sgl-actors/triton` (`~/.cache`)."""
    folder = os.environ.get("SGL_ACTORS_TUNING")
    base = (
        Path(folder)
        if folder
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sgl-actors" / "triton"
    )
    return base.expanduser() / f"{device}.json"


@cache
def load_table(path: Path) -> Mapping[str, Mapping[str, Tile]]:
    """The table in a file; an empty one if there is none. Read once per process.

    Raises:
        ValueError: the file is no table; names it.
    """
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_bytes())
        return {
            str(kernel): {
                str(key): {str(name): int(value) for name, value in tile.items()}
                for key, tile in tiles.items()
            }
            for kernel, tiles in table.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}: no table of tiles ({error}); delete it, or write it anew with the tune command"
        ) from None


def choose(kernel: str, key: str, default: Tile, device: torch.device) -> Tile:
    """The measured tile of that kernel, shape and device, or `default`."""
    return dict(load_table(table_path(device_name(device))).get(kernel, {}).get(key, default))


def write_table(path: Path, table: Mapping[str, Mapping[str, Tile]]) -> None:
    """Write a table over what is there, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    draft.replace(path)
    load_table.cache_clear()
