"""Scheduler, cache and fake worker together, in many seeded histories."""

from __future__ import annotations

import pytest

from tests.scheduler.simulation import Simulation


def simulate(seed: int, *, page_size: int, ahead: int, pages: int) -> Simulation:
    """Run one history; a failure names the seed that replays it."""
    simulation = Simulation(seed, page_size=page_size, ahead=ahead, pages=pages)
    try:
        simulation.run()
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed}, page_size {page_size}, ahead {ahead}, pages {pages}: {error}"
        ) from error
    return simulation


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("page_size", "pages"), [(1, 100), (4, 40), (16, 24)])
def test_every_request_ends_once_with_the_models_output(page_size: int, pages: int, ahead: int) -> None:
    """Whatever crashes and whenever, in order of arrival, with all pages accounted for and none left leased."""
    runs = [simulate(seed, page_size=page_size, ahead=ahead, pages=pages) for seed in range(60)]
    assert sum(run.restarts for run in runs) > 20
    assert sum(run.core.counters["cached_tokens"] for run in runs) > 0
