"""Frames and HTTP requests that nobody should send, and clients that are slow on purpose."""

from __future__ import annotations

import asyncio
import importlib.util

from benchmarks.chaos import frame_fuzz, http_fuzz
from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.node import ChaosNode, running, toml

GROWTH = 20 << 20
"""Bytes that memory may grow by."""


async def frame_round(plan: Plan) -> Outcome:
    """`plan.size` pairs of frames at a kernel and a bridge."""
    outcome = Outcome()
    found = await asyncio.to_thread(frame_fuzz.run, plan.size, plan.seed)
    outcome.count("frames", plan.size)
    outcome.count("crashes", found["crashes"])
    if found["crashes"]:
        outcome.fail(f"crashed: {found['why'][-500:]}")
        return outcome
    outcome.sample("MB grown", found["rss_growth"] / (1 << 20))
    outcome.sample("slowest honest answer", found["slowest_answer"])
    if found["rss_growth"] > GROWTH:
        outcome.fail(f"memory grew by {found['rss_growth'] >> 20} MB")
    return outcome


async def http_round(plan: Plan) -> Outcome:
    """`plan.size` bad requests at a node of the fake worker."""
    outcome = Outcome()
    async with running(plan.folder, toml(delay=0.0)) as node:
        await fuzz_http(node, plan, outcome)
    return outcome


async def fuzz_http(node: ChaosNode, plan: Plan, outcome: Outcome) -> None:
    """Send them; half of them are made from the node's own description."""
    if importlib.util.find_spec("schemathesis") is None:
        outcome.skipped = "schemathesis is not installed"
        return
    found = await asyncio.to_thread(http_fuzz.run, node.url, plan.size, plan.seed)
    outcome.count("requests", plan.size)
    for name in ("server_errors", "timeouts", "unanswered", "restarts"):
        outcome.count(name.replace("_", " "), found[name])
    for status, number in found["statuses"].items():
        outcome.count(f"answers {status}", number)
    outcome.sample("MB grown", found["rss_growth"] / (1 << 20))
    if not found["ok"]:
        outcome.failures += [str(one)[:500] for one in found["failures"][:20]] or [f"{found}"[:500]]


async def slow_round(plan: Plan) -> Outcome:
    """Good clients beside slow and greedy ones."""
    outcome = Outcome()
    async with running(plan.folder, toml(delay=0.01)) as node:
        found = await asyncio.to_thread(http_fuzz.slow, node.url, plan.seconds, plan.seed)
    outcome.count("good requests that failed", found["failed"])
    outcome.count("good requests", found["alone"]["requests"] + found["beside"]["requests"])
    outcome.sample("p99 beside bad clients, in p99 alone", found["p99_ratio"])
    outcome.sample("MB grown at most", (found["rss_most"] - found["rss_before"]) / (1 << 20))
    if found["failed"]:
        outcome.fail(f"{found['failed']} good requests failed")
    return outcome


FRAMES = Case(
    "frames",
    "random and mutated frames: no crash, memory + ≤ 20 MB, honest clients are answered",
    frame_round,
    Form(10, 100_000),
    Form(1, 5_000),
    {"slowest honest answer": (1.0, 5.0)},
)
HTTP = Case(
    "http",
    "malformed HTTP requests: no 5xx without a reason, no actor ends, memory + ≤ 20 MB",
    http_round,
    Form(5, 2_000),
    Form(1, 300),
    {"MB grown": (1.0, 20.0)},
)
SLOW = Case(
    "slow-clients",
    "slowloris, dribbling and 64 MB bodies, clients that do not read: good clients' p99 ≤ 2 × that without",
    slow_round,
    Form(3, 0, 40.0),
    Form(0, 0, 0.0),
    {"p99 beside bad clients, in p99 alone": (1.0, 2.0)},
)
