"""Each rule of the scheduler by itself: core against a fake worker and a real cache, message by message."""

from __future__ import annotations

import msgspec
import pytest

from sgl_actors.actors.cache.messages import Commit, Entry, Grant, Granted
from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.scheduler.core import SchedulerCore
from sgl_actors.actors.scheduler.messages import (
    Finish,
    Logprobs,
    Options,
    Sampling,
    Sequence,
    Stop,
)
from sgl_actors.actors.scheduler.orphans import ORPHAN
from sgl_actors.actors.worker.fake import FakeModel, complete
from sgl_actors.actors.worker.messages import Reset as ResetWorker
from sgl_actors.actors.worker.messages import ResetDone, SequenceResult, Step, StepDone
from sgl_actors.errors import ConfigError
from sgl_actors.lang.constraints.constraint import Constraint
from tests.scheduler.desk import ASKER, GREEDY, OTHER, POISON, Desk, info, request


def test_request_gets_the_models_tokens_and_ends_by_length() -> None:
    """A prompt is prefilled, decoded to max_tokens, and its pages stay in the tree."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 4))
    desk.run()
    assert desk.output("a") == complete([5, 6, 7], GREEDY, 4, 1000)
    assert desk.finish("a") == Finish("length")
    assert desk.cached([5, 6, 7, *desk.output("a")]) == 6
    desk.idle()


def test_last_sampled_token_never_enters_the_tree() -> None:
    """It has no KV: prompt 3 + output 4 leave 6 tokens cached."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 4))
    desk.run()
    assert desk.cache.cached == 6


def test_new_request_joins_a_running_batch() -> None:
    """One that comes while another decodes is in a step together with it."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 20))
    desk.run(6)
    desk.submit(request("b", [8, 9], 3))
    desk.run()
    assert any(len(step.work) == 2 for step in desk.steps)
    assert desk.output("b") == complete([8, 9], GREEDY, 3, 1000)


def test_decoding_goes_on_while_a_grant_is_out() -> None:
    """Steps are sent and settled although the cache has not answered."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 20))
    desk.run(4)
    desk.submit(request("b", [8, 9], 3))
    assert isinstance(desk.to_cache[-1], Grant)
    for _ in range(5):
        desk.worker_once()
    assert len(desk.output("a")) >= 5


def test_long_prompt_is_prefilled_in_chunks_beside_decodes() -> None:
    """No step has more than `chunk` prompt tokens, and the stream that decodes is in each of them."""
    desk = Desk(chunk=4)
    desk.submit(request("a", [1, 2, 3], 30))
    desk.run(4)
    first = len(desk.steps)
    desk.submit(request("b", list(range(10, 28)), 2))
    desk.run()
    shares = [{work.seq: work.count for work in step.work} for step in desk.steps[first:]]
    chunks = [max(share.values()) for share in shares if len(share) == 2]
    assert chunks[:5] == [4, 4, 4, 4, 2]
    assert all(1 in share.values() for share in shares[:5])
    assert desk.output("b") == complete(list(range(10, 28)), GREEDY, 2, 1000)


def test_max_tokens_zero_computes_the_prompt_only() -> None:
    """It ends by length without a token, and the whole prompt is cached."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 0))
    desk.run()
    assert desk.finish("a") == Finish("length")
    assert desk.output("a") == []
    assert desk.cached([5, 6, 7]) == 3
    desk.idle()


def test_one_prompt_token_is_always_computed() -> None:
    """A prompt that is cached as a whole has its last token run again."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 2))
    desk.run()
    desk.submit(request("b", [5, 6, 7], 2))
    desk.run()
    assert desk.steps[-2].start[0].cached == 2
    assert desk.updates[-1][1].cached == 2
    assert desk.output("b") == desk.output("a")


@pytest.mark.parametrize(("start", "cached"), [(0, 0), (1, 0), (3, 2), (5, 4), (-1, 5)])
def test_prompt_logprobs_cap_the_match(start: int, cached: int) -> None:
    """The token before the first one asked for is computed, so that this one has a real value."""
    desk = Desk()
    prompt = [5, 6, 7, 8, 9, 10]
    desk.submit(request("a", prompt, 1))
    desk.run()
    desk.submit(request("b", prompt, 1, logprobs=Logprobs(prompt_start=start)))
    desk.run()
    assert desk.steps[-1].start[0].cached == cached
    entries = [entry for _, update in desk.updates if update.id == "b" for entry in update.prompt_logprobs]
    assert [entry.token_id for entry in entries] == (prompt[start:] if start >= 0 else [])
    assert [entry.logprob is None for entry in entries] == [
        start + index == 0 for index in range(len(entries))
    ]


def test_prompt_is_shared_as_soon_as_it_is_computed() -> None:
    """A second request finds the prompt of a first one that is still running."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7, 8], 20))
    desk.run(6)
    assert not desk.commits[0].entries[0].release
    desk.submit(request("b", [5, 6, 7, 8, 9], 1))
    desk.run()
    assert desk.updates[-1][1].finish is not None
    assert next(update.cached for _, update in desk.updates if update.id == "b") == 4


def test_end_token_ends_unless_min_tokens_forbids_it() -> None:
    """An end id counts from output token number min_tokens on, and is part of the output."""
    forced = Sampling(0, end_ids=(77,), logit_bias=((77, 100.0),))
    later = Sampling(0, end_ids=(77,), logit_bias=((77, 100.0),), min_tokens=2)
    desk = Desk()
    desk.submit(request("a", [5], 9, sampling=forced), request("b", [5], 9, sampling=later))
    desk.run()
    assert desk.output("a") == [77]
    assert desk.finish("a") == Finish("stop", 77)
    assert len(desk.output("b")) == 3
    assert desk.output("b")[-1] == 77


def test_stop_truncates_and_drops_the_overshoot() -> None:
    """Tokens past the one that completed the stop string are not told, not counted and not cached."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 20))
    desk.run(8)
    known = desk.output("a")
    assert len(known) > 3
    desk.take(desk.core.stop(Stop("a", 2, "END")))
    desk.run()
    last = desk.updates[-1][1]
    assert (last.first_index, last.token_ids, last.finish) == (2, [], Finish("stop", "END"))
    assert desk.cached([5, 6, 7, *known]) == 5
    desk.idle()


def test_pages_of_an_aborted_request_wait_for_its_step() -> None:
    """The asker hears at once; the release is sent only after the StepDone of the step that names the pages."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 20))
    desk.run(4)
    desk.to_cache.clear()
    desk.take(desk.core.abort(["a"]))
    assert desk.finish("a") == Finish("abort", None, "cancelled", "cancelled")
    early = desk.to_cache.pop(0)
    assert isinstance(early, Commit)
    assert [entry.release for entry in early.entries] == [False], "what is computed may be used at once"
    assert not desk.to_cache
    desk.worker_once()
    commit = desk.to_cache[0]
    assert isinstance(commit, Commit)
    assert commit.entries[0].release
    desk.run()
    desk.idle()


def test_abort_of_an_unknown_id_leaves_nothing() -> None:
    """Neither one that comes before a request nor one that crosses its end hits a later request of the same id."""
    desk = Desk()
    desk.take(desk.core.abort(["a"]))
    desk.submit(request("a", [5], 1))
    desk.run()
    desk.take(desk.core.abort(["a"]))
    desk.updates.clear()
    desk.submit(request("a", [5], 1))
    desk.run()
    assert desk.finish("a") == Finish("length")


def test_deadline_ends_a_request() -> None:
    """When its time is up it ends as aborted with `deadline_exceeded`, running or waiting."""
    desk = Desk()
    desk.submit(request("a", [5], 50, timeout=3.0))
    desk.run(6)
    assert desk.core.wakeup() == 3.0
    desk.take(desk.core.tick(2.9))
    assert desk.core.busy == 1
    desk.take(desk.core.tick(3.0))
    desk.run()
    assert (desk.finish("a").reason, desk.finish("a").code) == ("abort", "deadline_exceeded")
    assert desk.core.wakeup() is None
    desk.idle()


def test_default_timeout_applies_to_who_states_none() -> None:
    """`[scheduler] timeout` is the deadline of a request without one of its own."""
    desk = Desk(timeout=7.0)
    desk.submit(request("a", [5], 50))
    assert desk.core.wakeup() == 7.0


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "code", "words"),
    [
        ([1] * 90, 20, "context_length_exceeded", ["90", "20", "100"]),
        ([1] * 50, 20, "invalid_request", ["70", "60"]),
        ([], 5, "invalid_request", ["empty"]),
        ([1, 1000], 5, "invalid_request", ["1000", "vocabulary"]),
        ([-1], 5, "invalid_request", ["-1"]),
        ([1], -1, "invalid_request", ["max_tokens", "-1"]),
    ],
)
def test_what_can_never_run_is_refused_with_numbers(
    prompt: list[int], max_tokens: int, code: str, words: list[str]
) -> None:
    """Nothing is truncated in silence: the error says what was asked and what there is."""
    desk = Desk(info(pages=60))
    desk.submit(request("a", prompt, max_tokens))
    finish = desk.finish("a")
    assert (finish.reason, finish.code) == ("error", code)
    assert all(word in finish.message for word in words), finish.message


def test_request_before_the_worker_is_checked_when_it_is_up() -> None:
    """Submissions wait for the first worker; what its model cannot take is refused then."""
    desk = Desk(up=False)
    desk.submit(request("a", [5, 6], 2), request("b", [5] * 200, 2))
    assert not desk.updates
    desk.take(desk.core.worker_up())
    desk.take(desk.core.cache_up())
    desk.run()
    assert desk.finish("a") == Finish("length")
    assert desk.finish("b").code == "context_length_exceeded"


def test_full_queue_refuses() -> None:
    """More than `queue` waiting requests are told `overloaded`; those inside are served."""
    desk = Desk(queue=2, up=False)
    desk.submit(*(request(name, [5], 1) for name in "abc"))
    assert desk.finish("c").code == "overloaded"
    desk.take(desk.core.worker_up())
    desk.take(desk.core.cache_up())
    desk.run()
    assert desk.finish("b") == Finish("length")


def test_who_does_not_fit_waits_and_holds_up_those_behind() -> None:
    """First come, first served, also when a later one would fit; pages given back let it in."""
    desk = Desk(info(pages=40))
    desk.submit(request("a", [5] * 20, 10), request("b", [6] * 20, 10), request("c", [7], 1))
    desk.run(4)
    assert len(desk.core.batch.running) == 1
    assert [generation.spec.id for generation in desk.core.waiting] == ["b", "c"]
    desk.run()
    starts = [new.token_ids[0] for step in desk.steps for new in step.start]
    assert starts == [5, 6, 7]
    desk.idle()


def test_max_batch_bounds_a_step() -> None:
    """No step names more sequences than `max_batch`."""
    desk = Desk(max_batch=2)
    desk.submit(*(request(f"r{number}", [number + 3], 5) for number in range(7)))
    desk.run()
    assert max(len(step.work) for step in desk.steps) == 2
    assert all(desk.finish(f"r{number}") == Finish("length") for number in range(7))


def test_one_progress_per_step_and_submitter() -> None:
    """Updates of one step travel together."""
    desk = Desk()
    desk.submit(*(request(f"r{number}", [number + 3], 5) for number in range(4)))
    desk.submit(request("other", [9], 5), owner=OTHER)
    desk.progress = 0
    desk.run()
    assert desk.progress <= 2 * len(desk.steps)
    assert {owner for owner, update in desk.updates if update.id == "other"} == {OTHER}


def test_worker_restart_is_not_noticed() -> None:
    """Requests go on with the tokens they have, in their old order, under a new epoch."""
    desk = Desk(max_batch=2)
    desk.submit(*(request(f"r{number}", [number + 3, 4], 12) for number in range(4)))
    desk.run(9)
    epoch = desk.core.links.epoch
    desk.to_worker.clear()
    desk.take(desk.core.worker_down())
    assert [generation.spec.id for generation in desk.core.waiting] == ["r0", "r1", "r2", "r3"]
    desk.to_cache.clear()
    desk.model = FakeModel(desk.info)
    desk.take(desk.core.worker_up())
    desk.run()
    assert desk.core.links.epoch > epoch
    for number in range(4):
        assert desk.output(f"r{number}") == complete([number + 3, 4], GREEDY, 12, 1000)
        assert desk.finish(f"r{number}") == Finish("length")
    desk.idle()


@pytest.mark.parametrize("how", ["cache down", "need full", "foreign cache", "refused", "wrong step"])
def test_lost_batch_or_cache_is_not_noticed(how: str) -> None:
    """Worker and cache are reset under a new epoch, in that order, and everything is computed anew."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 12))
    desk.run(5)
    desk.submit(request("b", [5, 6, 8], 3))
    epoch = desk.core.links.epoch
    match how:
        case "cache down":
            desk.take(desk.core.cache_down())
            desk.take(desk.core.cache_up())
        case "need full":
            desk.take(desk.core.batch_lost(epoch))
        case "foreign cache":
            desk.take(desk.core.granted(epoch, Granted(7, [])))
        case "refused":
            desk.take(desk.core.grant_refused(epoch))
        case _:
            desk.take(desk.core.step_done(StepDone(epoch, 99, [])))
    kinds = [type(message) for message in desk.to_worker]
    assert kinds[-1] is ResetWorker
    desk.to_cache.clear()
    desk.to_worker = [message for message in desk.to_worker if not isinstance(message, Step)]
    desk.run()
    assert desk.core.links.epoch == epoch + 1
    assert desk.output("a") == complete([5, 6, 7], GREEDY, 12, 1000)
    assert desk.output("b") == complete([5, 6, 8], GREEDY, 3, 1000)
    desk.idle()


def test_no_page_is_granted_before_the_worker_is_quiet() -> None:
    """After a loss the cache is reset only when ResetDone has come."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 12))
    desk.run(5)
    desk.to_cache.clear()
    desk.take(desk.core.cache_down())
    desk.take(desk.core.cache_up())
    assert not desk.to_cache
    desk.take(desk.core.quieted(ResetDone(desk.core.links.epoch - 1)))
    assert not desk.to_cache
    desk.take(desk.core.quieted(ResetDone(desk.core.links.epoch)))
    assert isinstance(desk.to_cache[0], ResetCache)


def test_silent_cache_is_asked_again() -> None:
    """A round without an answer gives back what it may have got, and is repeated a little later."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 2))
    grant = desk.to_cache.pop()
    assert isinstance(grant, Grant)
    desk.take(desk.core.grant_failed(grant.epoch, 1.0))
    assert [type(message) for message in desk.to_cache] == [Commit]
    assert desk.core.wakeup() == pytest.approx(1.1)
    desk.take(desk.core.tick(1.2))
    desk.run()
    assert desk.finish("a") == Finish("length")


def test_submitting_a_live_id_attaches_to_it() -> None:
    """Tokens are told anew from the first that the new asker lacks; nothing is computed twice."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 9, logprobs=Logprobs(output=True)))
    desk.run(8)
    known = desk.output("a")
    assert len(known) > 3
    told = len(desk.updates)
    desk.submit(request("a", [5, 6], 9, logprobs=Logprobs(output=True), output=known[:2]), owner=OTHER)
    owner, update = desk.updates[told]
    assert (owner, update.first_index, update.token_ids) == (OTHER, 2, known[2:])
    assert [entry.token_id for entry in update.logprobs] == known[2:]
    desk.run()
    assert {owner for owner, _ in desk.updates[told:]} == {OTHER}
    assert desk.output("a") == complete([5, 6], GREEDY, 9, 1000)
    assert sum(len(step.start) for step in desk.steps) == 1


def test_resubmission_goes_on_after_the_tokens_it_brings() -> None:
    """Output of an earlier attempt counts towards max_tokens and is not told again."""
    whole = complete([5, 6], GREEDY, 6, 1000)
    desk = Desk()
    desk.submit(request("a", [5, 6], 6, output=whole[:4]))
    desk.run()
    first = desk.updates[0][1]
    assert first.first_index == 4
    assert desk.output("a")[-2:] == whole[4:]
    assert desk.finish("a") == Finish("length")


@pytest.mark.parametrize(
    ("output", "finish"), [([8, 9, 77], Finish("stop", 77)), ([8, 9, 10, 11], Finish("length"))]
)
def test_resubmission_that_has_everything_ends_at_once(output: list[int], finish: Finish) -> None:
    """An output that is complete already is ended without a step."""
    desk = Desk()
    desk.submit(request("a", [5], 4, sampling=Sampling(0, end_ids=(77,)), output=output))
    assert desk.finish("a") == finish
    assert not desk.steps


@pytest.mark.parametrize("code", ["", "invalid_request"])
def test_sequence_error_ends_that_request_alone(code: str) -> None:
    """The others of the batch go on, and the doubtful KV does not enter the tree. The worker may say of what class the error is."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 5), request("b", [7, 8], 5))
    desk.cache_once()
    step = desk.to_worker.pop()
    assert isinstance(step, Step)
    done = desk.model.step(step)
    assert isinstance(done, StepDone)
    bad = SequenceResult(step.work[0].seq, error="NaN", code=code)
    desk.model._held.pop(bad.seq)
    desk.take(desk.core.step_done(StepDone(done.epoch, done.number, [bad, *done.results[1:]])))
    desk.run()
    assert desk.finish("a") == Finish("error", None, code or "remote_error", "NaN")
    assert desk.output("b") == complete([7, 8], GREEDY, 5, 1000)
    assert desk.cached([5, 6]) == 0
    assert sum(step.end.count(bad.seq) for step in desk.steps) == 1
    desk.idle()


def test_constraint_goes_to_the_worker_and_its_end_counts_at_once() -> None:
    """The worker gets it with every stay; an end token under a constraint ends the output, however early it comes."""
    constraint = Constraint("regex", "a")
    end = complete([5, 6], GREEDY, 1, 1000)[0]
    free = Sampling(0, end_ids=(end,), min_tokens=3)
    assert not free.ended_by(end, 3)
    assert free.ended_by(end, 4)
    desk = Desk()
    sampling = msgspec.structs.replace(free, min_tokens=1, constraint=constraint)
    desk.submit(request("a", [5, 6], 9, sampling=sampling, output=[end]))
    assert desk.finish("a") == Finish("stop", end)
    desk.submit(request("b", [5, 6], 9, sampling=sampling, output=[end + 1]))
    desk.run()
    (new,) = (new for step in desk.steps for new in step.start)
    assert (new.sampling.constraint, new.token_ids, new.prompt_length) == (constraint, [5, 6, end + 1], 2)


def test_prefill_that_fails_gives_its_pages_back_empty() -> None:
    """The KV of a prompt whose computation failed is neither shared nor committed, nor is that of its earlier chunks."""
    desk = Desk(chunk=2)
    desk.submit(request("a", [5, 6, 7], 0))
    desk.cache_once()
    desk.worker_once()
    step = desk.to_worker.pop()
    assert isinstance(step, Step)
    bad = SequenceResult(step.work[0].seq, error="not finite")
    desk.take(desk.core.step_done(StepDone(step.epoch, step.number, [bad])))
    desk.run()
    assert desk.finish("a").reason == "error"
    assert [entry for commit in desk.commits for entry in commit.entries] == [Entry(bad.seq, b"")]
    assert desk.cache.cached == 0
    desk.idle()


def test_missing_result_is_an_error_of_that_request() -> None:
    """A StepDone that leaves a sequence out does not leave its request hanging, and the worker is told to forget it."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 5))
    desk.cache_once()
    (step,) = desk.to_worker
    assert isinstance(step, Step)
    desk.to_worker.clear()
    desk.model.step(step)
    desk.take(desk.core.step_done(StepDone(desk.core.links.epoch, 0, [])))
    desk.run()
    assert desk.finish("a").code == "remote_error"
    desk.submit(request("b", [5, 6], 5))
    desk.run()
    assert not desk.model._held.keys() & {step.work[0].seq}
    desk.idle()


def test_draining_refuses_new_requests_and_finishes_the_old() -> None:
    """Who is inside gets everything; who comes is told `not_ready`."""
    desk = Desk()
    desk.submit(request("a", [5], 5))
    desk.core.drain()
    desk.submit(request("b", [5], 5))
    desk.run()
    assert desk.finish("b").code == "not_ready"
    assert desk.finish("a") == Finish("length")
    assert desk.core.busy == 0


def test_successor_of_a_submitter_takes_its_requests_over() -> None:
    """They go on while nobody owns them, and are told to the successor from where it stands; nothing is computed twice."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 9))
    desk.run(6)
    known = desk.output("a")[:2]
    told = len(desk.updates)
    desk.take(desk.core.owner_down(ASKER, 0.0))
    desk.run(4)
    assert len(desk.updates) == told
    desk.submit(request("a", [5, 6], 9, output=known), owner=OTHER)
    assert desk.updates[told][0] == OTHER
    assert desk.updates[told][1].first_index == 2
    desk.run()
    assert desk.output("a") == complete([5, 6], GREEDY, 9, 1000)
    assert desk.updates[-1][1].cached == 0
    assert sum(len(step.start) for step in desk.steps) == 1
    assert (desk.core.wakeup() or 2 * ORPHAN) > ORPHAN
    desk.idle()


def test_end_of_an_orphan_is_kept_for_its_successor() -> None:
    """One that ended while nobody owned it is told as a whole to who submits it again, without another step."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 4))
    desk.take(desk.core.owner_down(ASKER, 0.0))
    desk.run()
    steps = len(desk.steps)
    desk.submit(request("a", [5, 6], 4), owner=OTHER)
    desk.run()
    assert (desk.output("a"), desk.finish("a")) == (complete([5, 6], GREEDY, 4, 1000), Finish("length"))
    assert len(desk.steps) == steps
    desk.idle()


def test_orphans_end_when_nobody_comes() -> None:
    """After `ORPHAN` seconds, quietly; the requests of other submitters go on."""
    desk = Desk()
    desk.submit(request("a", [5], 20))
    desk.submit(request("b", [6], 20), owner=OTHER)
    desk.run(6)
    desk.take(desk.core.owner_down(ASKER, 1.0))
    assert desk.core.wakeup() == 1.0 + ORPHAN
    desk.take(desk.core.tick(0.9 + ORPHAN))
    assert desk.core.busy == 2
    desk.take(desk.core.tick(1.0 + ORPHAN))
    assert desk.core.busy == 1
    desk.run()
    assert all(update.finish is None for owner, update in desk.updates if owner == ASKER)
    assert desk.finish("b") == Finish("length")
    desk.idle()


@pytest.mark.parametrize(
    "other",
    [
        request("a", [5, 7], 9),
        request("a", [5, 6], 8),
        request("a", [5, 6], 9, tenant="other"),
        request("a", [5, 6], 9, sampling=Sampling(0, temperature=0.5)),
        request("a", [5, 6], 9, logprobs=Logprobs(output=True)),
        request("a", [5, 6], 9, output=[998]),
    ],
)
@pytest.mark.parametrize("orphan", [False, True])
def test_another_request_under_a_live_id_is_refused(other: Sequence, orphan: bool) -> None:
    """It gets an error that names the id, and nothing of the other's tokens; the live one goes on."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 9))
    desk.run(6)
    if orphan:
        desk.take(desk.core.owner_down(ASKER, 0.0))
    desk.submit(other, owner=OTHER)
    ((_, update),) = [told for told in desk.updates if told[0] == OTHER]
    assert (update.token_ids, update.finish and update.finish.code) == ([], "invalid_request")
    assert update.finish is not None
    assert "id a" in update.finish.message
    desk.updates.clear()
    desk.submit(request("a", [5, 6], 9, sampling=Sampling(77)))
    desk.run()
    assert desk.output("a") == complete([5, 6], GREEDY, 9, 1000)


def test_resubmission_does_not_count_its_own_prefill_as_cached() -> None:
    """Who brings output has computed the prompt before: what it finds in the tree is its own."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 4))
    desk.run()
    desk.submit(request("a", [5, 6, 7], 6, output=desk.output("a")))
    desk.run()
    assert desk.steps[-1].work[0].count == 1
    assert desk.updates[-1][1].cached == 0


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("place", [0, 13, 31])
def test_poison_is_found_within_seven_crashes_of_thirty_two(place: int, ahead: int) -> None:
    """It ends as quarantined; its 31 neighbours and one that came in between get their whole output."""
    desk = Desk(info(pages=2000), ahead=ahead)
    prompts = {f"r{number}": [number + 3, 4, 5] for number in range(32)}
    prompts[f"r{place}"] = [3, POISON, 5]
    desk.submit(*(request(name, prompt, 4) for name, prompt in prompts.items()))
    while not desk.crashes:
        desk.run(1)
    prompts["late"] = [40, 41]
    desk.submit(request("late", [40, 41], 4))
    desk.run(10_000)
    assert 2 <= desk.crashes <= 7
    for name, prompt in prompts.items():
        if name == f"r{place}":
            assert (desk.finish(name).code, desk.output(name)) == ("quarantined", [])
        else:
            assert desk.output(name) == complete(prompt, GREEDY, 4, 1000)
            assert desk.finish(name) == Finish("length")
    desk.idle()


def test_suspects_of_a_crash_run_in_halves() -> None:
    """After a crash only half of those in flight are admitted, then the other half; then who waited."""
    desk = Desk()
    desk.submit(*(request(f"r{number}", [number + 3], 30) for number in range(4)))
    desk.run(5)
    desk.submit(request("late", [9], 3))
    desk.restart_worker()
    seen: list[set[int]] = []
    while desk.core.busy:
        desk.run(1)
        batch = {generation.arrival for generation in desk.core.batch.running}
        if not seen or batch - seen[-1]:
            seen.append(batch)
    assert [batch for batch in seen if batch] == [{1, 2}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}]


def test_restarts_by_an_operator_count_against_nobody() -> None:
    """However often the worker is stopped while a request runs alone, the request goes on."""
    desk = Desk()
    desk.submit(request("a", [5, 6], 30))
    for _ in range(4):
        desk.run(9)
        desk.restart_worker(crashed=False)
    desk.run()
    assert desk.output("a") == complete([5, 6], GREEDY, 30, 1000)


def test_commit_that_the_cache_did_not_take_is_sent_again() -> None:
    """Its entries go with the next commit, or a little later by themselves; no lease is left behind."""
    desk = Desk()
    desk.submit(request("a", [5, 6, 7], 1))
    desk.cache_once()
    desk.worker_once()
    commit = desk.to_cache.pop()
    assert isinstance(commit, Commit)
    desk.core.uncommitted(commit, 5.0)
    assert desk.core.wakeup() == pytest.approx(5.1)
    desk.take(desk.core.tick(5.2))
    assert desk.to_cache == [commit]
    desk.run()
    assert desk.cached([5, 6, 7]) == 3
    desk.idle()


def test_one_step_ahead_gives_the_same() -> None:
    """With two steps in flight the outputs are those of the plain loop, also past an end token."""
    outputs = []
    for ahead in (0, 1):
        desk = Desk(ahead=ahead)
        sampling = Sampling(0, end_ids=tuple(range(0, 1000, 7)))
        desk.submit(*(request(f"r{number}", [number + 3, 9], 20, sampling=sampling) for number in range(6)))
        desk.run()
        outputs.append([desk.output(f"r{number}") for number in range(6)])
        desk.idle()
    assert outputs[0] == outputs[1]
    assert any(len(output) < 20 for output in outputs[0])


@pytest.mark.parametrize("options", [{"policy": "lottery"}, {"max_batch": 0}, {"chunk": 0}, {"queue": 0}])
def test_wrong_option_is_named(options: dict[str, object]) -> None:
    """A policy that does not exist and limits below 1 are configuration errors that name the key."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        SchedulerCore(Options(**options))  # type: ignore[arg-type]
