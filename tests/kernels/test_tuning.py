"""Tables of measured tiles: where they lie, how they are read, and what happens without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is installed on Linux x86-64 only")

from sgl_actors.kernels.quantized import Format
from sgl_actors.kernels.triton import linear, tune, tuning

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's tables are looked for."""
    monkeypatch.setenv("SGL_ACTORS_TUNING", str(tmp_path))
    tuning.load_table.cache_clear()
    yield tmp_path
    tuning.load_table.cache_clear()


@pytest.mark.parametrize(
    ("rows", "part"), [(1, "m1"), (2, "m2"), (3, "m4"), (16, "m16"), (17, "m32"), (90000, "m4096")]
)
def test_rows_share_a_bucket_up_to_a_power_of_two(rows: int, part: str) -> None:
    """Widths are exact."""
    assert tuning.bucket(rows, 576, 1536) == f"{part} n576 k1536"


def test_without_a_table_the_guess_holds(folder: Path) -> None:
    """None is shipped."""
    assert tuning.choose("linear", "m1 n2 k3", {"BLOCK_N": 8}, CPU) == {"BLOCK_N": 8}


def test_a_table_wins_over_the_guess(folder: Path) -> None:
    """For its kernel and its bucket alone."""
    tuning.write_table(tuning.table_path("none"), {"linear": {"m1 n2 k3": {"BLOCK_N": 64, "num_warps": 2}}})
    assert tuning.choose("linear", "m1 n2 k3", {"BLOCK_N": 8}, CPU) == {"BLOCK_N": 64, "num_warps": 2}
    assert tuning.choose("linear", "m2 n2 k3", {"BLOCK_N": 8}, CPU) == {"BLOCK_N": 8}
    assert tuning.choose("other", "m1 n2 k3", {"BLOCK_N": 8}, CPU) == {"BLOCK_N": 8}


@pytest.mark.parametrize("text", ["{", "[1]", '{"linear": {"m1": {"BLOCK_N": "wide"}}}'])
def test_a_broken_table_is_named(folder: Path, text: str) -> None:
    """With the way out."""
    path = tuning.table_path("none")
    path.write_text(text)
    with pytest.raises(ValueError, match=r"none\.json: no table.*delete it"):
        tuning.choose("linear", "m1 n2 k3", {}, CPU)


def test_tables_lie_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Below XDG_CACHE_HOME where that is set."""
    monkeypatch.delenv("SGL_ACTORS_TUNING", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.table_path("nvidia_h100") == tmp_path / "sgl-actors" / "triton" / "nvidia_h100.json"


def test_the_fastest_tile_that_runs_is_found() -> None:
    """Tiles that raise are passed over; if all do, that is an error."""
    times = {1: 3.0, 2: 1.0, 4: 2.0}

    def measure(tile: tuning.Tile) -> float:
        if tile["BLOCK_N"] not in times:
            raise MemoryError("out of shared memory")
        return times[tile["BLOCK_N"]]

    assert tune.find_best([{"BLOCK_N": n} for n in (8, 1, 2, 4)], measure) == ({"BLOCK_N": 2}, 1.0)
    with pytest.raises(RuntimeError, match="no tile runs"):
        tune.find_best([{"BLOCK_N": 8}], measure)


@pytest.mark.parametrize("wanted", list(Format))
@pytest.mark.parametrize("rows", [1, 2, 16, 4096])
def test_candidates_begin_with_the_guess_and_cover_few_rows(wanted: Format, rows: int) -> None:
    """So that tuning never ends worse than it began; a matrix-vector tile is tried for a few rows only."""
    tiles = list(tune.candidates(wanted, rows, grouped=False))
    assert tiles[0] == linear.guess_tile(wanted, rows, grouped=False)
    assert any(tile["BLOCK_M"] == 1 for tile in tiles) == (rows <= 4)
    assert any(tile["BLOCK_M"] > 1 for tile in tiles) == (rows > 1)


def test_tuning_without_a_gpu_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And writes nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--shape", "64x64"]) == 1
    assert "no GPU" in capsys.readouterr().err
    assert not list(folder.iterdir())
