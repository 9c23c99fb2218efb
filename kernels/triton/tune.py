"""Measure tiles of the quantised products on this machine's GPU and write its table (see `tuning`).

    python -m sgl_actors.kernels.triton.tune --shape 4096x4096 --shape 28672x4096 --format int4

Not run on hardware yet: what ships are the guesses of `linear.guess_tile`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator

import torch

from sgl_actors.kernels.quantized import Format, QuantizedWeight, quantize_weight
from sgl_actors.kernels.triton import linear, tuning

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

Measure = Callable[[tuning.Tile], float]
"""Milliseconds of a product with that tile; raises where the device cannot run it."""


def candidates(wanted: Format, rows: int, *, grouped: bool) -> Iterator[tuning.Tile]:
    """Tiles to try for that many rows; the guess comes first."""
    yield linear.guess_tile(wanted, rows, grouped=grouped)
    if rows <= 4:
        for channels, depth, warps in itertools.product((1, 2, 4, 8, 16), (256, 512, 1024), (2, 4, 8)):
            yield {"BLOCK_M": 1, "BLOCK_N": channels, "BLOCK_K": depth, "num_warps": warps}
    if rows > 1:
        most = max(16, min(128, 1 << (rows - 1).bit_length()))
        sizes = (size for size in (16, 32, 64, 128) if most // 4 <= size <= most)
        depths = (64, 128) if wanted is Format.INT4 or not grouped else (128,)
        for size, channels, depth, warps, stages in itertools.product(
            sizes, (32, 64, 128, 256), depths, (4, 8), (2, 3, 4)
        ):
            yield {
                "BLOCK_M": size,
                "BLOCK_N": channels,
                "BLOCK_K": depth,
                "num_warps": warps,
                "num_stages": stages,
            }


def find_best(tiles: Iterable[tuning.Tile], measure: Measure) -> tuple[tuning.Tile, float]:
    """The fastest tile and its milliseconds; one that does not compile, or needs more than the device has, is passed over.

    Raises:
        RuntimeError: none runs; from the last one's error.
    """
    best: tuple[tuning.Tile, float] | None = None
    last: Exception | None = None
    for tile in tiles:
        try:
            took = measure(tile)
        except Exception as error:  # noqa: BLE001 - out of resources, a compiler's limit: whatever it is, the tile is not for this device
            last = error
            continue
        if best is None or took < best[1]:
            best = (tile, took)
    if best is None:
        raise RuntimeError("no tile runs on this device") from last
    return best


def tune(weight: QuantizedWeight, device: torch.device, rows: Iterable[int]) -> dict[str, tuning.Tile]:
    """The best tiles of one weight, by bucket; prints a line for each."""
    import triton

    found = {}
    grouped = weight.group < weight.shape[1]
    for count in rows:
        x = torch.randn(count, weight.shape[1], dtype=torch.bfloat16, device=device)
        out = torch.empty(count, weight.shape[0], dtype=torch.bfloat16, device=device)

        def measure(tile: tuning.Tile, x: torch.Tensor = x, out: torch.Tensor = out) -> float:
            took: float = triton.testing.do_bench(lambda: linear.launch(x, weight, out, tile))
            return took

        key = tuning.bucket(count, *weight.shape)
        found[key], took = find_best(candidates(weight.format, count, grouped=grouped), measure)
        print(f"{weight.format.name.lower()} {key}: {took * 1000:.1f} us, {found[key]}", flush=True)  # noqa: T201
    return found


def main(arguments: list[str]) -> int:
    """Parse the command line, tune, and merge the result into the device's table."""
    parser = argparse.ArgumentParser(prog="python -m sgl_actors.kernels.triton.tune", description=__doc__)
    parser.add_argument("--shape", action="append", required=True, help="OUTxIN of a weight; may be repeated")
    parser.add_argument("--format", action="append", choices=[wanted.name.lower() for wanted in Format])
    parser.add_argument(
        "--group", type=int, default=None, help="weights per scale; by default all of a channel's"
    )
    wanted = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune: torch sees no GPU here; run this on the machine that the table is for", file=sys.stderr)  # noqa: T201
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    path = tuning.table_path(tuning.device_name(device))
    table = {kernel: dict(tiles) for kernel, tiles in tuning.load_table(path).items()}
    formats = [Format[name.upper()] for name in wanted.format or ()] or list(Format)
    for shape, kind in itertools.product(wanted.shape, formats):
        out, width = map(int, shape.split("x"))
        weight = quantize_weight(torch.randn(out, width), kind, wanted.group).to(device)
        table.setdefault(linear.kernel_name(weight.format, weight.group, weight.shape[1]), {}).update(
            tune(weight, device, ROWS)
        )
        tuning.write_table(path, table)
    print(f"wrote {path}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
