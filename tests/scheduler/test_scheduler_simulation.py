"""Scheduler, cache and fake worker together, in many seeded histories."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scheduler.simulation import Simulation


def simulate(
    seed: int, *, page_size: int, ahead: int, pages: int, poisoned: int = 0, **faults: Any
) -> Simulation:
    """Run one history; a failure names the seed that replays it."""
    simulation = Simulation(seed, page_size=page_size, ahead=ahead, pages=pages, poisoned=poisoned, **faults)
    try:
        simulation.run()
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed}, page_size {page_size}, ahead {ahead}, pages {pages}, poisoned {poisoned}, {faults}: {error}"
        ) from error
    return simulation


LONG = 120
"""Seeds in the long form."""


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    ("page_size", "pages", "seeds"),
    [
        (1, 100, 40),
        (4, 40, 60),  # in few of them anything is retracted
        (16, 24, 40),
        *(pytest.param(*pool, LONG, marks=pytest.mark.slow) for pool in ((1, 100), (4, 40), (16, 24))),
    ],
)
def test_every_request_ends_once_with_the_models_output(
    page_size: int, pages: int, ahead: int, seeds: int
) -> None:
    """Whatever crashes and whenever, nobody overtaken beyond the bound, with all pages accounted for and none left leased."""
    runs = [simulate(seed, page_size=page_size, ahead=ahead, pages=pages) for seed in range(seeds)]
    assert sum(run.restarts for run in runs) > seeds / 3
    assert sum(run.core.counters["cached_tokens"] for run in runs) > 0
    assert sum(run.orphaned_and_back for run in runs) > 0
    assert sum(asked.failed for run in runs for asked in run.asked.values()) > 0
    if page_size < 16:  # a page that large holds most outputs that are longer than expected
        assert sum(run.retractions + run.core.counters["retracted"] for run in runs) > 0
    assert sum(run.most_overtaken > 0 for run in runs) > seeds / 3
    counters = [run.core.counters for run in runs]
    assert (
        0 < sum(one["accepted_tokens"] for one in counters) < sum(one["drafted_tokens"] for one in counters)
    )
    if ahead:
        assert sum(run.failed_after_end for run in runs) > 0


@pytest.mark.parametrize("seeds", [40, pytest.param(LONG, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ahead", [0, 1])
def test_poisoned_requests_are_found_out_and_their_neighbours_spared(ahead: int, seeds: int) -> None:
    """Requests whose prompt crashes the worker end as quarantined, all others with the model's output."""
    runs = [
        simulate(seed, page_size=4, ahead=ahead, pages=40, poisoned=1 + seed % 2) for seed in range(seeds)
    ]
    assert sum(run.poison_crashes for run in runs) > seeds
    ends = [asked.finish for run in runs for asked in run.asked.values() if asked.poisoned]
    assert sum(finish is not None and finish.code == "quarantined" for finish in ends) > seeds / 2


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("page_size", "pages"), [(1, 100), (4, 40)])
def test_scheduler_and_cache_are_swapped_while_requests_run(page_size: int, pages: int, ahead: int) -> None:
    """A successor that has nothing but plain data goes on with every request, in the midst of crashes and trials, and a swap that comes to nothing is not noticed."""
    runs = [
        simulate(seed, page_size=page_size, ahead=ahead, pages=pages, poisoned=seed % 2, swaps=8)
        for seed in range(10)
    ]
    assert min(sum(run.swapped for run in runs), sum(run.caches_swapped for run in runs)) > 10
    assert sum(run.rolled_back for run in runs) > 2
    assert sum(run.core.counters["cached_tokens"] for run in runs) > 0


@pytest.mark.parametrize("ahead", [0, 1])
def test_lost_mail_of_the_worker_is_noticed(ahead: int) -> None:
    """Whichever step, answer or reset is lost, the worker is asked and the requests go on, without an end or a deadline that would say so."""
    runs = [simulate(seed, page_size=4, ahead=ahead, pages=40, losses=0.02) for seed in range(20)]
    assert sum(run.lost for run in runs) > 20
    assert sum(run.core.counters["overdue_answers"] for run in runs) > 10
