"""Frames that nobody should send do no harm. The long form is `benchmarks/chaos/frame_fuzz.py`."""

from __future__ import annotations

from benchmarks.chaos import frame_fuzz


def test_fuzzed_frames_crash_and_grow_nothing() -> None:
    """Counted and dropped, while an honest client is answered."""
    found = frame_fuzz.run(4000, seed=3)
    assert found["crashes"] == 0, found["why"]
    assert found["rss_growth"] < 20 << 20
    assert found["kernel"]["protocol_errors"] > 500
    assert found["bridge"]["bad_frames"] > 500
    assert all(size < 10_000 for size in found["tables"].values())
