"""What a client saw of its requests, and the numbers made of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Sample:
    """One request as its client saw it; times in seconds.

    Attributes:
        started: clock when it was sent.
        arrivals: clock at each chunk with output.
        tokens: output tokens, by the server's usage (else the number of chunks).
        ended: clock at the end.
        prompt_tokens: by the server's usage; 0 where it has none.
        cached_tokens: how many of those came from its prefix cache; None where it does not say.
        text: the whole output.
    """

    started: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    text: str = ""

    @property
    def per_token(self) -> float | None:
        """Seconds per output token after the first chunk; None for fewer than two tokens or chunks.

        It does not depend on how many tokens a server puts into a chunk, as long as the first has one.
        """
        if len(self.arrivals) < 2 or self.tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, interpolated; 0 for none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(samples: Sequence[Sample], seconds: float) -> dict[str, float]:
    """Rates over `seconds`; times in milliseconds; how many prompt tokens were cached and computed, unless the server does not say.

    `ttft` is from sending to the first chunk, `itl` from chunk to chunk, `tpot` a request's mean time per output token after the first.
    """
    first = [sample.arrivals[0] - sample.started for sample in samples if sample.arrivals]
    between = [
        b - a for sample in samples for a, b in zip(sample.arrivals, sample.arrivals[1:], strict=False)
    ]
    per_token = [each for sample in samples if (each := sample.per_token) is not None]
    output, prompt = (sum(s.tokens for s in samples), sum(s.prompt_tokens for s in samples))
    known = [sample.cached_tokens for sample in samples if sample.cached_tokens is not None]
    reuse = {"cached_tokens": sum(known), "computed_tokens": prompt - sum(known)} if known else {}
    return {
        "requests": len(samples),
        "seconds": round(seconds, 3),
        "req_per_s": round(len(samples) / seconds, 3),
        "output_tok_per_s": round(output / seconds, 2),
        "total_tok_per_s": round((output + prompt) / seconds, 2),
        "ttft_ms_p50": round(percentile(first, 0.5) * 1e3, 1),
        "ttft_ms_p99": round(percentile(first, 0.99) * 1e3, 1),
        "itl_ms_p50": round(percentile(between, 0.5) * 1e3, 2),
        "itl_ms_p99": round(percentile(between, 0.99) * 1e3, 2),
        "tpot_ms_p50": round(percentile(per_token, 0.5) * 1e3, 2),
        "output_tokens": output,
        "prompt_tokens": prompt,
        **reuse,
    }
