"""Scheduler, cache and fake worker together, in many seeded histories."""

from __future__ import annotations

import pytest

from tests.scheduler.simulation import Simulation


def simulate(seed: int, *, page_size: int, ahead: int, pages: int, poisoned: int = 0) -> Simulation:
    """Run one history; a failure names the seed that replays it."""
    simulation = Simulation(seed, page_size=page_size, ahead=ahead, pages=pages, poisoned=poisoned)
    try:
        simulation.run()
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed}, page_size {page_size}, ahead {ahead}, pages {pages}, poisoned {poisoned}: {error}"
        ) from error
    return simulation


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("page_size", "pages"), [(1, 100), (4, 40), (16, 24)])
def test_every_request_ends_once_with_the_models_output(page_size: int, pages: int, ahead: int) -> None:
    """Whatever crashes and whenever, nobody overtaken beyond the bound, with all pages accounted for and none left leased."""
    runs = [simulate(seed, page_size=page_size, ahead=ahead, pages=pages) for seed in range(60)]
    assert sum(run.restarts for run in runs) > 20
    assert sum(run.core.counters["cached_tokens"] for run in runs) > 0
    assert sum(run.orphaned_and_back for run in runs) > 0
    assert sum(asked.failed for run in runs for asked in run.asked.values()) > 0
    if page_size < 16:  # a page that large holds most outputs that are longer than expected
        assert sum(run.retractions + run.core.counters["retracted"] for run in runs) > 0
    assert sum(run.most_overtaken > 0 for run in runs) > 20
    counters = [run.core.counters for run in runs]
    assert (
        0 < sum(one["accepted_tokens"] for one in counters) < sum(one["drafted_tokens"] for one in counters)
    )
    if ahead:
        assert sum(run.failed_after_end for run in runs) > 0


@pytest.mark.parametrize("ahead", [0, 1])
def test_poisoned_requests_are_found_out_and_their_neighbours_spared(ahead: int) -> None:
    """Requests whose prompt crashes the worker end as quarantined, all others with the model's output."""
    runs = [simulate(seed, page_size=4, ahead=ahead, pages=40, poisoned=1 + seed % 2) for seed in range(60)]
    assert sum(run.poison_crashes for run in runs) > 60
    ends = [asked.finish for run in runs for asked in run.asked.values() if asked.poisoned]
    assert sum(finish is not None and finish.code == "quarantined" for finish in ends) > 30
