"""What the commands on a virtual clock say to wrong arguments."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

REPLAY, STARVATION = "benchmarks.replay", "benchmarks.starvation"


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (REPLAY, ["--workload", "mmlu,foo"], "--workload: unknown 'foo'; there are mmlu"),
        (REPLAY, ["--policy", "foo"], "--policy: unknown 'foo'; there are lpm"),
        (REPLAY, ["--pool", "foo"], "--pool: unknown 'foo'; there are unlimited, quarter"),
        (REPLAY, ["--costs", "nope"], "--costs nope: No such file"),
        (REPLAY, ["--costs", "."], "--costs .: "),
        (REPLAY, ["--costs", "wrong.json"], "unknown field `stop`"),
        (REPLAY, ["--foo"], "usage: python -m benchmarks.replay"),
        (
            STARVATION,
            ["--only", "lpm,foo"],
            "--only: no configuration begins with 'foo'; there are lpm alone",
        ),
        (STARVATION, ["--only", "lpm", "--check"], "leave out --only"),
        (STARVATION, ["--costs", "nope"], "--costs nope: No such file"),
    ],
)
def test_wrong_arguments_are_said_before_anything_runs(
    module: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Usage, what is wrong and what there is, with exit code 2."""
    (tmp_path / "wrong.json").write_text('{"stop": 1}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)  # another test may have imported it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True), err
