"""Requests cancelled at random moments, between a fake worker and a real cache."""

from __future__ import annotations

import heapq
import random

import pytest

from sgl_actors.actors.worker.fake import complete
from tests.scheduler.desk import Desk, info, request

REQUESTS = 5000
AT_ONCE = 30
VOCABULARY = 1000


@pytest.mark.parametrize("ahead", [0, 1])
def test_cancelled_requests_leave_nothing_behind(ahead: int) -> None:
    """5,000 requests that are all cancelled, each at a random moment of its life or just after its end: one end each, no token after it, no lease, page or step left."""
    rng = random.Random(ahead)
    desk = Desk(info(pages=60, page_size=4, context=64), ahead=ahead, max_batch=8, chunk=48, policy="lpm")
    cancels: list[tuple[int, str]] = []
    prompts: dict[str, list[int]] = {}
    for moment in range(100 * REQUESTS):
        while cancels and cancels[0][0] <= moment:
            desk.take(desk.core.abort([heapq.heappop(cancels)[1]]))
        if len(prompts) < REQUESTS and desk.core.busy < AT_ONCE and rng.random() < 0.4:
            name = f"r{len(prompts)}"
            prompts[name] = [rng.randrange(3) for _ in range(rng.randint(1, 10))]
            desk.submit(request(name, prompts[name], rng.randint(1, 6)))
            heapq.heappush(cancels, (moment + int(rng.expovariate(1 / 30)), name))
        if desk.to_cache and (not desk.to_worker or rng.random() < 0.6):
            desk.cache_once()
        elif desk.to_worker:
            desk.worker_once()
        elif len(prompts) == REQUESTS and not cancels:
            break
        if moment % 200 == 0:
            assert desk.cache.check(full=False) == []
    desk.idle()
    reasons = check_ends(desk, prompts)
    assert min(reasons.count("abort"), reasons.count("length")) > REQUESTS // 10


def check_ends(desk: Desk, prompts: dict[str, list[int]]) -> list[str]:
    """How each ended, once; with the model's tokens in order, and none behind its end."""
    outputs: dict[str, list[int]] = {name: [] for name in prompts}
    ends: dict[str, str] = {}
    for _, update in desk.updates:
        assert update.id not in ends, f"{update.id} was told something after its end"
        assert update.first_index == len(outputs[update.id])
        outputs[update.id] += update.token_ids
        if update.finish is not None:
            ends[update.id] = update.finish.reason
    assert ends.keys() == prompts.keys()
    for name, output in outputs.items():
        assert output == complete(prompts[name], request(name, []).sampling, len(output), VOCABULARY)
    return list(ends.values())
