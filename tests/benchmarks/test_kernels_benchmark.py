"""`benchmarks.kernels`: its cases, not its times."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import kernels
from benchmarks.kernel import linear
from benchmarks.kernel.limits import Limits, medians
from sgl_actors.kernels.cpu.native import library


@pytest.mark.skipif(library() is None, reason="the native library is not built")
def test_every_format_stands_beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case per kernel and number of rows, with the shares of the limits given."""
    monkeypatch.setattr(linear, "COLD_BYTES", 1)
    cases = list(
        linear.run(Limits(read=1e9, sgemm=1e9), threads=1, rounds=1, shapes=((64, 64),), rows=(1, 3))
    )
    names = {"f32", "bf16", "q8", "q4", "q4w", "torch fp32", "fbgemm"}
    assert {(case["weight"], case["rows"]) for case in cases} == {
        (name, rows) for name in names for rows in (1, 3)
    }
    fbgemm = next(case for case in cases if case["weight"] == "fbgemm")
    assert fbgemm["share_fbgemm"] == 1


@pytest.mark.skipif(library() is None, reason="the native library is not built")
def test_a_vocabulary_is_not_multiplied_by_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as wide as a vocabulary are measured up to the rows that a step samples."""
    monkeypatch.setattr(linear, "COLD_BYTES", 1)
    monkeypatch.setattr(linear, "WIDE", 64)
    rows = (1, linear.HEAD_ROWS + 1)
    cases = linear.run(Limits(1e9, 1e9), threads=1, rounds=1, shapes=((64, 64),), rows=rows)
    assert {case["rows"] for case in cases} == {1}


def test_candidates_take_turns() -> None:
    """Each round calls every candidate once; the first round does not count."""
    calls: list[str] = []
    taken = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert set(taken) == {"a", "b"}


def test_an_unknown_suite_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    """The command ends with those that there are."""
    monkeypatch.setattr("sys.argv", ["kernels", "--only", "linear,lineal"])
    with pytest.raises(SystemExit):
        kernels.main()
    assert "no suite lineal: there are linear" in capsys.readouterr().err
