"""`benchmarks.kernel.attention`: its cases, not its times."""

from __future__ import annotations

import pytest

from benchmarks.kernel import attention
from benchmarks.kernel.limits import Limits
from sgl_actors.kernels.cpu.native import library


@pytest.mark.skipif(library() is None, reason="the native library is not built")
def test_cases_that_fit_into_the_pool_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes, a prefill and a fork come with their rates, longer ones are left out, and the slope is over the contexts that were measured."""
    monkeypatch.setattr(attention, "CALLS", 1)
    monkeypatch.setattr(attention, "FORKS", ((2, 70, 3), (2, 500, 3)))
    cases = list(
        attention.run(Limits(read=1e9, sgemm=1e9), threads=1, rounds=1, contexts=(8, 64, 999), slots=200)
    )
    by_name = {case["case"]: case for case in cases}
    assert set(by_name) == {
        "call",
        "decode 8",
        "decode 64",
        "prefill 128 after 0",
        "fork 2 x 3 behind 70",
        "slope",
    }
    assert by_name["decode 64"]["gb_s"] > 0
    assert by_name["prefill 128 after 0"]["gflop_s"] > 0
    assert by_name["fork 2 x 3 behind 70"]["ratio"] > 0
