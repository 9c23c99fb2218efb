"""Numbers made of what a client saw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.bench.samples import Sample, percentile, summary


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1), share=st.floats(0, 1))
def test_percentiles_lie_among_the_values(values: list[float], share: float) -> None:
    """A percentile lies between least and greatest, grows with the share, and at the ends is them."""
    assert min(values) <= percentile(values, share) <= max(values)
    assert percentile(values, share / 2) <= percentile(values, share) + 1e-6
    assert (percentile(values, 0), percentile(values, 1)) == (min(values), max(values))


def test_percentiles_interpolate() -> None:
    """Between two values the share decides; of nothing it is 0."""
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([], 0.5) == 0.0


def test_summary() -> None:
    """Rates are per second of the whole run; first tokens count from the sending, gaps from chunk to chunk, a token's time over all after the first."""
    samples = [
        Sample(0.0, [0.1, 0.2, 0.4], 7, 0.4, 10, 4),
        Sample(1.0, [1.3], 5, 1.4, 6, 0),
        Sample(1.0),
    ]
    assert summary(samples, 2.0) == {
        "requests": 3, "seconds": 2.0, "req_per_s": 1.5, "output_tok_per_s": 6.0, "total_tok_per_s": 14.0, "ttft_ms_p50": 200.0,
        "ttft_ms_p99": 298.0, "itl_ms_p50": 150.0, "itl_ms_p99": 199.0, "tpot_ms_p50": 50.0, "output_tokens": 12, "prompt_tokens": 16,
        "cached_tokens": 4, "computed_tokens": 12,
    }  # fmt: skip


def test_what_a_server_does_not_say_is_not_made_up() -> None:
    """Without a count of cached tokens there is none in the summary."""
    assert "cached_tokens" not in summary([Sample(0.0, [1.0], 1, 1.0, 10)], 1.0)


@pytest.mark.parametrize(("arrivals", "tokens"), [([1.0], 3), ([], 0), ([1.0, 2.0], 1)])
def test_one_chunk_has_no_time_per_token(arrivals: list[float], tokens: int) -> None:
    """Neither has one token."""
    assert Sample(0.0, arrivals, tokens).per_token is None
