"""The check for people with hardware: it finds what is wrong, and says when there is nothing to check."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.interpreted

CPU = torch.device("cpu")


def test_right_kernels_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of pages are exact, attention is within the tolerance."""
    from sgl_actors.kernels.triton import check

    assert check.pages_error(torch.bfloat16, 16, CPU) == 0
    assert (
        check.attention_error("drafts", torch.float32, (2, 1, 80), 300, CPU) < check.TOLERANCE[torch.float32]
    )


def test_a_wrong_kernel_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A case over its tolerance is marked in the table and gives exit code 1; NaN is wrong, too."""
    from sgl_actors.kernels.triton import check

    cases = [
        check.Case("good", torch.float32, lambda: 0.0),
        check.Case("bad", torch.float32, lambda: 1.0),
        check.Case("ugly", torch.float32, lambda: float("nan")),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    monkeypatch.setattr(check, "cases", lambda _: iter(cases))
    assert check.main() == 1
    printed = capsys.readouterr().out
    assert "| good | float32 | 0.0e+00 | ok |" in printed
    assert printed.count("WRONG") == 2


def test_without_a_gpu_there_is_nothing_to_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so and returns 2."""
    from sgl_actors.kernels.triton import check

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main() == 2
    assert "no GPU" in capsys.readouterr().err
