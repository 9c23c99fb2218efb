"""Drafts as the scheduler sees them: results with several tokens, and what the cache knows of how a prompt went on."""

from __future__ import annotations

import pytest

from sgl_actors.actors.scheduler.messages import Configure, Decoding, Stop
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import Logprobs, Sampling
from sgl_actors.errors import ConfigError
from sgl_actors.lang.constraints.constraint import Constraint
from tests.scheduler.desk import Desk, info, request

PROMPT = [7, 8, 9, 10, 11]


def expected(prompt: list[int], max_tokens: int, sampling: Sampling | None = None) -> list[int]:
    return complete(prompt, sampling or Sampling(0), max_tokens, 1000)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_drafts_save_steps_and_change_no_output(page_size: int, ahead: int) -> None:
    """With several sequences, in whole pages and small ones; all pages come back."""
    steps = {}
    for on in (False, True):
        desk = Desk(
            info(pages=320 // page_size, page_size=page_size), ahead=ahead, drafting=True, speculation=on
        )
        desk.submit(*(request(name, [*PROMPT, number], 40) for number, name in enumerate("abcd")))
        desk.run()
        for number, name in enumerate("abcd"):
            assert desk.output(name) == expected([*PROMPT, number], 40)
            assert desk.finish(name).reason == "length"
        steps[on] = len(desk.steps)
        assert desk.cache.check() == []
        assert desk.cache.leases == 0
    assert steps[True] < 0.6 * steps[False]


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_output_ends_within_accepted_drafts(ahead: int) -> None:
    """At max_tokens, whatever that is, and at an end token; usage counts to there."""
    whole = expected(PROMPT, 40)
    for most in range(1, 24):
        desk = Desk(ahead=ahead, drafting=True)
        desk.submit(request("a", PROMPT, most))
        desk.run()
        assert desk.output("a") == whole[:most]
        decoding = desk.updates[-1][1].decoding
        assert decoding.sampled == most
        assert decoding.accepted == most - decoding.steps
    for end in (whole[4], whole[9], whole[17]):
        desk = Desk(ahead=ahead, drafting=True)
        sampling = Sampling(0, end_ids=(end,))
        desk.submit(request("a", PROMPT, 40, sampling=sampling))
        desk.run()
        assert desk.output("a") == expected(PROMPT, 40, sampling)
        assert desk.finish("a").matched == end


def test_a_stop_string_within_accepted_drafts_cuts_there() -> None:
    """What comes behind it is neither output nor in the cache."""
    desk = Desk(drafting=True)
    desk.submit(request("a", PROMPT, 60))
    while not desk.updates or desk.updates[-1][1].first_index + len(desk.updates[-1][1].token_ids) < 12:
        desk.cache_once() if desk.to_cache else desk.worker_once()
    desk.take(desk.core.stop(Stop("a", 7, "stop")))
    desk.run()
    whole = expected(PROMPT, 60)
    assert desk.output("a")[:7] == whole[:7]
    assert desk.cached(PROMPT + whole) == len(PROMPT) + 7
    assert desk.cache.leases == 0


def test_every_accepted_token_has_its_log_probability() -> None:
    """One for each, in order, told together with it."""
    desk = Desk(drafting=True)
    desk.submit(request("a", PROMPT, 30, logprobs=Logprobs(output=True, top=1)))
    desk.run()
    for _, update in desk.updates:
        assert [entry.token_id for entry in update.logprobs] == update.token_ids
    assert desk.core.counters["accepted_tokens"] > 5
    assert desk.core.counters["drafted_tokens"] > desk.core.counters["accepted_tokens"]


def test_what_followed_a_prompt_comes_with_its_lease() -> None:
    """The output of the last one with that prompt, as far as the output may go; nobody else's, and nothing where it goes on otherwise."""
    desk = Desk()
    desk.submit(request("a", PROMPT, 20))
    desk.run()
    desk.submit(
        request("b", PROMPT, 12),
        request("c", [*PROMPT, 998], 12),
        request("d", PROMPT, 12, tenant="other"),
        request("e", PROMPT[:3], 12),
    )
    desk.run()
    output = expected(PROMPT, 20)
    started = [new for step in desk.steps for new in step.start]
    by_name = dict(zip("abcde", started, strict=True))
    assert by_name["a"].continuation == []
    assert by_name["b"].continuation == output[:11]
    assert by_name["c"].continuation == []
    assert by_name["d"].continuation == []
    assert by_name["e"].continuation == (PROMPT[3:] + output)[:11]
    assert by_name["b"].most == len(PROMPT) + 12


def test_no_drafts_where_they_are_of_no_use() -> None:
    """Under a constraint, for a single token, without the cache, and when they are switched off; that goes for requests that begin later."""
    desk = Desk()
    desk.submit(request("a", PROMPT, 20))
    desk.run()
    constrained = Sampling(0, constraint=Constraint("regex", "x"))
    desk.submit(request("b", PROMPT, 12, sampling=constrained), request("c", PROMPT, 1))
    desk.run()
    desk.take(desk.core.configure(Configure(reuse=False)))
    desk.submit(request("d", PROMPT, 12))
    desk.run()
    desk.take(desk.core.configure(Configure(reuse=True, speculation=False)))
    desk.submit(request("e", PROMPT, 12))
    desk.run()
    started = [new for step in desk.steps for new in step.start]
    assert [new.drafts for new in started] == [16, 0, 0, 16, 0]
    assert [new.continuation for new in started] == [[]] * 5
    assert not desk.core.configuration().speculation


def test_decoding_counts_add_up_over_a_retraction() -> None:
    """A worker that is restarted in the middle of an output changes nothing of it."""
    desk = Desk(drafting=True)
    desk.submit(request("a", PROMPT, 40))
    while not desk.output("a"):
        desk.cache_once() if desk.to_cache else desk.worker_once()
    desk.restart_worker()
    desk.run()
    assert desk.output("a") == expected(PROMPT, 40)
    decoding = desk.updates[-1][1].decoding
    assert isinstance(decoding, Decoding)
    assert decoding.sampled == 40


def test_speculation_tokens_have_a_least() -> None:
    """A scheduler that is to draft nothing says so with `speculation`."""
    with pytest.raises(ConfigError, match="speculation_tokens"):
        Desk(speculation_tokens=0)
