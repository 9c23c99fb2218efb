"""The small form of the HTTP fuzz: mutations of good requests, and cases made from the API's description, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.chaos.http_fuzz import Tally, Target, described_cases, mutations, send_all
from sgl_actors.actors.gateway.openapi import document
from sgl_actors.actors.gateway.service import Service
from tests.gateway.fake_node import FakeNode


async def fuzz(url: str, service: Service, node: FakeNode, cases: int, *, described: bool) -> Tally:
    """Send so many; afterwards nothing runs, is held or can be aborted."""
    target, tally = Target(url), Tally()
    made = described_cases(target, document(), cases, 7) if described else mutations(target, cases, 7)
    await send_all(target, made, tally)
    async with asyncio.timeout(20):
        while service.gate.requests or node.running:
            await asyncio.sleep(0.01)
    assert (service.gate.held, service.running) == (0, {})
    return tally


async def test_mutations_of_good_requests(url: str, service: Service, node: FakeNode) -> None:
    """Odd values, broken JSON, deep nesting and broken HTTP are answered by 4xx (or a connection's end), never by 5xx; some get through as answers."""
    tally = await fuzz(url, service, node, 400, described=False)
    assert tally.failures == []
    assert (tally.server_errors, tally.timeouts, tally.unanswered) == (0, 0, 0)
    assert tally.statuses["400"] > 200
    assert tally.statuses["200"] > 10
    assert tally.statuses.total() == 400


async def test_cases_from_the_description(url: str, service: Service, node: FakeNode) -> None:
    """What schemathesis makes of the OpenAPI description, right and wrong, is answered."""
    pytest.importorskip("schemathesis")
    tally = await fuzz(url, service, node, 15, described=True)
    assert tally.failures == []
    assert tally.statuses.total() == 15


def test_the_same_seed_makes_the_same_requests() -> None:
    """A failure can be sent again."""
    target = Target("http://127.0.0.1:1")
    first, again, other = (list(mutations(target, 100, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
