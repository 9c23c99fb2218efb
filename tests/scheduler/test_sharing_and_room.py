"""Who waits for whose prefix, and what happens when pages run out: rule by rule."""

from __future__ import annotations

import pytest

from sgl_actors.actors.cache.messages import Grant, Granted
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.messages import Configure, Finish
from sgl_actors.actors.scheduler.queue import Queue
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import SequenceResult, Step, StepDone
from sgl_actors.errors import InvalidRequest
from tests.scheduler.desk import GREEDY, Desk, info, request

PREFIX = list(range(10, 50))


def computed(desk: Desk) -> int:
    """Prompt tokens that steps have run."""
    return sum(work.count for step in desk.steps for work in step.work if work.count > 1 or not work.sample)


def test_siblings_wait_for_the_one_that_computes_their_prefix() -> None:
    """Of four requests with a common prefix one computes it, the others find it."""
    desk = Desk(info(pages=500), sharing=True)
    desk.submit(*[request(f"r{n}", [*PREFIX, 100 + n, 200 + n], 2) for n in range(4)])
    desk.run()
    cached = {update.id: update.cached for _, update in desk.updates}
    assert cached == {"r0": 0, "r1": 40, "r2": 40, "r3": 40}
    assert [len(step.start) for step in desk.steps if step.start] == [1, 3]
    assert all(desk.finish(f"r{n}") == Finish("length") for n in range(4))
    desk.idle()


def test_without_sharing_each_computes_it() -> None:
    """The switch for comparison: all four run at once."""
    desk = Desk(info(pages=500), sharing=False)
    desk.submit(*[request(f"r{n}", [*PREFIX, 100 + n, 200 + n], 2) for n in range(4)])
    desk.run()
    assert {update.cached for _, update in desk.updates} == {0}


def test_a_sibling_does_not_wait_for_more_than_it_shares() -> None:
    """The one that leads has a long prompt of its own behind the common prefix: the chunk that completes the prefix is shared at once."""
    desk = Desk(info(pages=500, context=400), sharing=True, chunk=20)
    desk.submit(request("long", [*PREFIX, *range(300, 500)], 2), request("short", [*PREFIX, 7], 2))
    desk.run()
    ends = [update.id for _, update in desk.updates if update.finish is not None]
    assert ends == ["short", "long"]
    assert {update.cached for _, update in desk.updates if update.id == "short"} == {40}


def test_when_the_leader_goes_away_the_next_leads() -> None:
    """An abort of the one that computes: what it has is kept, another computes the rest, nobody waits for ever."""
    desk = Desk(info(pages=500), sharing=True, chunk=8)
    desk.submit(*[request(f"r{n}", [*PREFIX, 100 + n, 200 + n], 2) for n in range(3)])
    while len(desk.steps) < 3 or desk.to_cache:
        desk.cache_once() if desk.to_cache else desk.worker_once()
    desk.take(desk.core.abort(["r0"]))
    desk.run()
    cached = {update.id: update.cached for _, update in desk.updates if update.finish is not None}
    assert desk.finish("r0").reason == "abort"
    assert cached["r1"] == 24, "its first three chunks"
    assert cached["r2"] == 40
    desk.idle()


def test_when_the_leader_fails_the_next_leads() -> None:
    """A worker error ends the leader alone."""
    desk = Desk(info(pages=500), sharing=True)
    desk.submit(*[request(f"r{n}", [*PREFIX, 100 + n, 200 + n], 2) for n in range(3)])
    while not desk.to_worker:
        desk.cache_once()
    step = desk.to_worker.pop(0)
    assert isinstance(step, Step)
    desk.model.step(step)
    seq = step.work[0].seq
    failed = StepDone(step.epoch, step.number, [SequenceResult(seq, error="broken")])
    desk.model._held.pop(seq, None)
    desk.take(desk.core.step_done(failed))
    desk.run()
    assert desk.finish("r0").reason == "error"
    assert [desk.finish(f"r{n}") for n in (1, 2)] == [Finish("length")] * 2
    desk.idle()


def test_namespaces_do_not_share() -> None:
    """Requests of two tenants, or of one with different salts, compute the same prompt each."""
    desk = Desk(info(pages=500), sharing=True)
    desk.submit(
        request("a", [*PREFIX, 1], 2, tenant="one"),
        request("b", [*PREFIX, 1], 2, tenant="two"),
        request("c", [*PREFIX, 1], 2, tenant="one", salt="s"),
    )
    desk.run()
    assert {update.cached for _, update in desk.updates} == {0}


def test_cache_off_computes_everything() -> None:
    """`reuse` false: nothing is taken from the cache and nothing is left there; true again works at once."""
    desk = Desk(info(pages=500), sharing=True)
    desk.take(desk.core.configure(Configure(reuse=False)))
    desk.submit(request("a", [*PREFIX, 1], 2))
    desk.run()
    desk.submit(request("b", [*PREFIX, 1], 2))
    desk.run()
    assert (desk.cache.cached, {update.cached for _, update in desk.updates}) == (0, {0})
    desk.take(desk.core.configure(Configure(reuse=True)))
    desk.submit(request("c", [*PREFIX, 1], 2))
    desk.run()
    assert desk.cache.cached == 42
    desk.idle()


@pytest.mark.parametrize("change", [Configure(overtake=-1), Configure(stall=1.0), Configure(stall=-3.0)])
def test_numbers_out_of_range_change_nothing(change: Configure) -> None:
    """A configuration that makes no sense is refused as a whole."""
    desk = Desk()
    before = desk.core.configuration()
    with pytest.raises(InvalidRequest):
        desk.core.configure(change)
    assert desk.core.configuration() == before


def modest(desk: Desk, first: int = 2) -> Desk:
    """With few output tokens expected of everybody."""
    desk.core.estimate.first, desk.core.estimate.least = first, 1
    return desk


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("page_size", [1, 4])
def test_outputs_longer_than_expected_get_more_pages(ahead: int, page_size: int) -> None:
    """Few pages are reserved, more are asked for before they are used up, and no step is lost."""
    desk = modest(Desk(info(pages=200 // page_size, page_size=page_size), ahead=ahead))
    desk.submit(request("a", [5, 6, 7], 60))
    desk.run()
    assert desk.output("a") == complete([5, 6, 7], GREEDY, 60, 1000)
    assert len(desk.steps) <= 61 + ahead, "prefill, and one step per token"
    assert desk.core.counters["retracted"] == 0
    desk.idle()


@pytest.mark.parametrize("ahead", [0, 1])
def test_when_pages_run_out_the_least_work_is_put_off(ahead: int) -> None:
    """Two grow and only one fits: the one with less to lose waits, its KV stays in the tree, and both get the model's tokens."""
    desk = modest(Desk(info(pages=70), ahead=ahead))
    desk.submit(request("a", [*PREFIX[:20]], 40))
    desk.run(10)
    desk.submit(request("b", [5, 6, 7], 40))
    desk.run()
    assert desk.core.counters["retracted"] == 1
    assert desk.output("a") == complete(PREFIX[:20], GREEDY, 40, 1000)
    assert desk.output("b") == complete([5, 6, 7], GREEDY, 40, 1000)
    resumed = [new for step in desk.steps for new in step.start if len(new.token_ids) > new.prompt_length]
    assert [new.prompt_length for new in resumed] == [3]
    desk.idle()


@pytest.mark.parametrize("ahead", [0, 1])
def test_nobody_is_retracted_twice(ahead: int) -> None:
    """A pool of two requests' size and sixty-four of them: no livelock, everybody ends, at most one retraction each."""
    desk = modest(Desk(info(pages=100), ahead=ahead, policy="lpm", sharing=True))
    desk.submit(*[request(f"r{n}", [n + 1, 7, 8], 40) for n in range(64)])
    desk.run(100_000)
    for n in range(64):
        assert desk.finish(f"r{n}") == Finish("length")
        assert desk.output(f"r{n}") == complete([n + 1, 7, 8], GREEDY, 40, 1000)
    assert 0 < desk.core.counters["retracted"] <= 64
    desk.idle()


def test_no_answer_about_growth_begins_a_new_epoch() -> None:
    """Whether the lease has grown is not known, so its pages cannot be counted on: the batch is computed anew, tokens are kept."""
    desk = modest(Desk(info(pages=200)))
    desk.submit(request("a", [5, 6, 7], 40))
    while not (desk.to_cache and isinstance(desk.to_cache[-1], Grant) and desk.to_cache[-1].more):
        desk.cache_once() if desk.to_cache else desk.worker_once()
    lost = desk.to_cache.pop()
    assert isinstance(lost, Grant)
    desk.take(desk.core.grant_failed(lost.epoch, desk.now))
    assert desk.core.links.epoch == lost.epoch + 1
    desk.take(desk.core.granted(lost.epoch, Granted(lost.epoch, [], [[1, 2]])))
    desk.run()
    assert desk.output("a") == complete([5, 6, 7], GREEDY, 40, 1000)
    desk.idle()


def test_a_lower_class_gives_way_first() -> None:
    """Pages run out: not the one with least to lose of all, but of the lowest class."""
    desk = modest(Desk(info(pages=70)))
    desk.submit(request("low", [*PREFIX[:20]], 40))
    desk.run(10)
    desk.submit(request("high", [5, 6, 7], 40, priority=9))
    desk.run()
    resumed = [new for step in desk.steps for new in step.start if len(new.token_ids) > new.prompt_length]
    assert [new.prompt_length for new in resumed] == [20]
    desk.idle()


def test_nobody_gives_way_while_there_are_pages() -> None:
    """Where what is asked for in advance does not fit, as much as is needed now does: room for all of both is enough."""
    desk = Desk(info(pages=66))
    desk.core.estimate.first = 2
    desk.submit(request("a", [5, 6, 7], 30), request("b", [8, 9, 10], 30))
    desk.run()
    assert desk.core.counters["retracted"] == 0
    desk.idle()


def test_a_prompt_without_output_says_nothing_of_outputs() -> None:
    """Prefixes that are only computed, and answers cut short by their asker, do not make outputs look short."""
    desk = Desk(info(pages=500))
    before = desk.core.estimate.expect(0)
    desk.submit(*[request(f"r{n}", [n + 1, 2, 3], n % 2) for n in range(40)])
    desk.run()
    assert desk.core.estimate.expect(0) == before


def test_a_hint_that_was_too_high_is_looked_up_again() -> None:
    """A request overtakes another because of what was cached; the pages are gone when it asks for them: nobody waits for ever."""
    desk = Desk(info(pages=500, context=400), policy="lpm", overtake=50, max_batch=1)
    desk.core.queue.most_grace = 0
    desk.submit(request("warm", PREFIX, 1))
    desk.run()
    desk.submit(request("running", [1, 2], 3))
    desk.run(2)
    desk.submit(request("cold", [3, *range(200, 260)], 1), request("hot", [*PREFIX, 7], 1))
    for waiting in desk.core.waiting:
        waiting.place = waiting.arrival
        if waiting.spec.id == "hot":
            waiting.hint = 40
    desk.cache.flush()
    desk.run()
    assert {desk.finish(name) for name in ("cold", "hot")} == {Finish("length")}
    desk.idle()


def test_who_overtakes_states_what_it_was_counted_with() -> None:
    """Its lease asks for no fewer cached tokens than it was expected to find; who overtakes nobody takes what there is."""
    desk = Desk(info(pages=500, context=400), policy="lpm", overtake=50, max_batch=1, chunk=8)
    desk.core.queue.most_grace = 0
    desk.submit(request("warm", PREFIX, 1))
    desk.run()
    desk.submit(request("running", [1, 2], 30))
    desk.run(4)
    desk.submit(request("cold", [3, *range(200, 260)], 1))
    desk.run(6)
    desk.submit(request("hot", [*PREFIX, 7], 1))
    desk.run()
    least = {want.tokens: want.least for want in desk.wants}
    assert least[42] == 40, "hot, before cold"
    assert least[62] == 0, "cold"


def test_calls_of_a_program_stand_where_it_began() -> None:
    """Per tenant, and no further back than its seniority; a request by itself stands where it came."""
    queue = Queue("lpm", 100, sharing=True)
    queue.seniority = 1000
    places = []
    for arrival, (program, tenant, processed) in enumerate(
        [("p", "one", 0), ("", "one", 500), ("p", "one", 600), ("p", "two", 700), ("p", "one", 5000)]
    ):
        spec = request(f"r{arrival}", [1, 2, 3], 1, program=program, tenant=tenant)
        generation = Generation(spec, None, arrival, [1, 2, 3])
        queue.arrive(generation, processed)
        places.append(generation.place)
    assert places == [0, 500, 0, 700, 4000]
