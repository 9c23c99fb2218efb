"""What our node has to reach against its peers, and the ratios of medians that tell."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

OURS, VLLM, LLAMA, TRANSFORMERS = "node", "vllm", "llama", "transformers"


class Target(NamedTuple):
    """A ratio of a median of ours over the peer's, and its limit: "<=" for times, ">=" for rates."""

    workload: str
    metric: str
    peer: str
    sign: str
    limit: float


TARGETS = (
    Target("single", "tpot_ms_p50", LLAMA, "<=", 0.6),
    Target("single", "tpot_ms_p50", VLLM, "<=", 0.22),
    Target("single", "ttft_ms_p50", LLAMA, "<=", 0.25),
    Target("single", "ttft_ms_p50", VLLM, "<=", 0.6),
    Target("random", "output_tok_per_s", LLAMA, ">=", 3.4),
    Target("random", "output_tok_per_s", VLLM, ">=", 2.0),
    Target("random", "output_tok_per_s", TRANSFORMERS, ">=", 3.0),
    Target("mmlu", "req_per_s", LLAMA, ">=", 5.0),
    Target("mmlu", "req_per_s", VLLM, ">=", 3.0),
    Target("react", "req_per_s", LLAMA, ">=", 4.0),
    Target("react", "req_per_s", VLLM, ">=", 2.3),
    Target("tot", "req_per_s", LLAMA, ">=", 3.8),
    Target("tot", "req_per_s", VLLM, ">=", 1.8),
    Target("chat_short", "req_per_s", LLAMA, ">=", 3.3),
    Target("chat_short", "req_per_s", VLLM, ">=", 2.0),
    Target("chat_long", "req_per_s", LLAMA, ">=", 2.0),
    Target("chat_long", "req_per_s", VLLM, ">=", 2.0),
)
COMPARED = ("req_per_s", "output_tok_per_s", "ttft_ms_p50", "tpot_ms_p50", "itl_ms_p50", "computed_tokens")

Lines = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""Results of the rounds by (workload, server)."""


def grouped(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Lines as printed, by workload and server; what is no result of a round is skipped."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if "server" in line and "workload" in line:
            found.setdefault((line["workload"], line["server"]), []).append(line)
    return found


def middle(lines: Lines, workload: str, server: str, metric: str) -> float | None:
    """The median over the rounds; None where it was not measured."""
    values = [line[metric] for line in lines.get((workload, server), ()) if line.get(metric) is not None]
    return statistics.median(values) if values else None


def ratio(lines: Lines, workload: str, metric: str, peer: str) -> float | None:
    """Ours over the peer's; None where one of them is missing or the peer's is 0."""
    ours, theirs = (middle(lines, workload, server, metric) for server in (OURS, peer))
    return ours / theirs if ours is not None and theirs else None


def ratios(lines: Lines) -> list[dict[str, Any]]:
    """A line per workload and peer with every ratio that there is."""
    found = []
    for workload, peer in lines:
        if peer != OURS and (workload, OURS) in lines:
            values = {metric: ratio(lines, workload, metric, peer) for metric in COMPARED}
            shown = {metric: round(value, 3) for metric, value in values.items() if value is not None}
            rounds = min(len(lines[workload, OURS]), len(lines[workload, peer]))
            found.append({"workload": workload, "over": peer, "rounds": rounds} | shown)
    return found


def reached(lines: Lines) -> list[tuple[str, float, str, float]]:
    """The targets whose ratio was measured, as `harness.verdict` takes them."""
    return [
        (f"{target.workload}: {target.metric} over {target.peer}", found, target.sign, target.limit)
        for target in TARGETS
        if (found := ratio(lines, target.workload, target.metric, target.peer)) is not None
    ]
