from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from benchmarks.chaos.case import Outcome
from benchmarks.chaos.node import ChaosNode, toml


@pytest.fixture(scope="module")
def chaos_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosNode]:
    """One node of the fake worker for the small forms of all cases that do not need a node of their own."""
    node = ChaosNode(tmp_path_factory.mktemp("chaos"), toml(delay=0.005))
    node.launch()
    yield node
    node.process.terminate()
    try:
        assert node.process.wait(60) == 0
    finally:
        node.process.kill()


@pytest.fixture
async def chaos_node(chaos_process: ChaosNode) -> AsyncIterator[ChaosNode]:
    """It, joined from this test's loop; idle afterwards."""
    await chaos_process.join()
    yield chaos_process
    left = await chaos_process.until_idle()
    await chaos_process.leave()
    assert not any(left.values()), left


@pytest.fixture
def outcome() -> Iterator[Outcome]:
    """What the test's case found; nothing of it may be a failure."""
    found = Outcome()
    yield found
    assert not found.failures
