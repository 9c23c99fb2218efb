"""Forced tokens on their way through the scheduler: told, counted, scored, run in one step, and cut where the output ends."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from sgl_actors.actors.scheduler.messages import Decoding, Finish, Logprobs, Sampling
from sgl_actors.actors.worker.fake import complete, extend, forces
from sgl_actors.lang.constraints.constraint import Constraint
from tests.scheduler.desk import Desk, info, request

JUMPING = Sampling(0, constraint=Constraint("regex", "some tokens are forced"))
SLOW = msgspec.structs.replace(JUMPING, jump_forward=False)


def prompt_with(count: int, place: int = 1) -> list[int]:
    """A prompt behind which, after `place` sampled tokens without any, the fake model forces `count` tokens."""
    for first in range(5000):
        state, sizes = extend(0, first), list[int]()
        for token in complete([first], JUMPING, place, 1000):
            state = extend(state, token)
            sizes.append(forces(state))
        if sizes == [0] * (place - 1) + [count]:
            return [first]
    raise AssertionError("the hash is not what it was")


def jumped(desk: Desk, max_tokens: int, sampling: Sampling = JUMPING, **fields: object) -> list[int]:
    prompt = prompt_with(7)
    desk.submit(request("a", prompt, max_tokens, sampling=sampling, **fields))
    desk.run()
    desk.idle()
    assert desk.output("a") == complete(prompt, sampling, max_tokens, 1000)
    return [work.count for step in desk.steps for work in step.work]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_jump_saves_a_step_for_each_forced_token(ahead: int) -> None:
    """Output is as without; what was forced is run by the next step, all of it at once."""
    desk, slow = (Desk(info(pages=400, context=400), ahead=ahead) for _ in range(2))
    counts = jumped(desk, 200)
    steps = len(jumped(slow, 200, SLOW))
    forced = desk.updates[-1][1].decoding.forced
    assert forced >= 7
    assert len(counts) < steps - forced / 2 if ahead else len(counts) == steps - forced
    assert counts[:2] == ([1, 1] if ahead else [1, 8])


def test_decoding_is_told() -> None:
    """Every update says how the output was made: the last one in all."""
    desk = Desk()
    jumped(desk, 8)
    assert desk.updates[-1][1].decoding == Decoding(steps=1, sampled=1, forced=7)
    slow = Desk()
    jumped(slow, 8, SLOW)
    assert slow.updates[-1][1].decoding == Decoding(steps=8, sampled=8)


def test_a_jump_ends_at_max_tokens() -> None:
    """Tokens beyond are no output, and the next step is not sent."""
    desk = Desk()
    jumped(desk, 3)
    assert desk.finish("a") == Finish("length")
    assert len(desk.steps) == 1


@pytest.mark.parametrize("place", [1, 4, 7])
def test_a_jump_ends_at_a_stop_id(place: int) -> None:
    """Wherever in the forced tokens it stands; it is the last of the output."""
    prompt = prompt_with(7)
    end = complete(prompt, JUMPING, 9, 1000)[place]
    desk = Desk()
    desk.submit(request("a", prompt, 9, sampling=msgspec.structs.replace(JUMPING, end_ids=(end,))))
    desk.run()
    desk.idle()
    assert desk.finish("a") == Finish("stop", end)
    assert desk.output("a")[-1] == end
    assert len(desk.output("a")) == place + 1


def test_scores_of_forced_tokens_come_with_the_step_that_runs_them() -> None:
    """Nothing is told without its log probability; an output that ends with forced tokens ends once these are run, and samples no more."""
    desk = Desk()
    counts = jumped(desk, 8, logprobs=Logprobs(output=True))
    assert counts == [1, 8]
    assert [work.sample for step in desk.steps for work in step.work] == [True, False]
    told = [(update.token_ids, update.logprobs) for _, update in desk.updates]
    assert [len(tokens) for tokens, _ in told] == [1, 7]
    for tokens, logprobs in told:
        assert [entry.token_id for entry in logprobs] == tokens
        assert all(entry.logprob is not None for entry in logprobs)


def test_free_sequences_bound_the_jumps_beside_them() -> None:
    """While somebody without a constraint generates, forced tokens are run in pieces, as prompts are."""
    desk = Desk(stall=3.0, chunk=512)
    prompt = prompt_with(23)
    desk.core.steps.budget.decode, desk.core.steps.budget.rate = 0.05, 0.05 * 2 / 16
    desk.submit(
        request("free", [5], 30), request("a", prompt, 24, sampling=JUMPING, logprobs=Logprobs(output=True))
    )
    desk.run()
    counts = [work.count for step in desk.steps for work in step.work]
    assert max(counts) == 1 + 16
    alone = Desk(stall=3.0, chunk=512)
    alone.submit(request("a", prompt, 24, sampling=JUMPING, logprobs=Logprobs(output=True)))
    alone.run()
    assert max(work.count for step in alone.steps for work in step.work) == 24


def test_a_jump_beyond_its_pages_waits_for_more() -> None:
    """The tokens are run as the pages come, in order."""
    desk = Desk(info(pages=60))
    desk.core.estimate.first = 2
    prompt = prompt_with(23)
    desk.submit(request("a", prompt, 40, sampling=JUMPING))
    desk.run()
    desk.idle()
    assert desk.output("a") == complete(prompt, JUMPING, 40, 1000)


def test_forced_tokens_that_nobody_was_told_of_come_again_after_a_crash() -> None:
    """A request that is retracted between a jump and its scores loses the jump, not a token."""
    desk = Desk()
    prompt = prompt_with(7)
    desk.submit(request("a", prompt, 20, sampling=JUMPING, logprobs=Logprobs(output=True)))
    while not desk.updates:
        desk.run(1)
    desk.restart_worker()
    desk.run()
    desk.idle()
    assert desk.output("a") == complete(prompt, JUMPING, 20, 1000)
    firsts = [update.first_index for _, update in desk.updates]
    assert all(one <= two for one, two in pairwise(firsts))
    assert sum(len(update.token_ids) for _, update in desk.updates) == 20


@pytest.mark.parametrize("ahead", [0, 1])
def test_every_token_that_was_run_is_counted(ahead: int) -> None:
    """Forced tokens that a step ran before anybody had heard of them, too: its time is theirs, not that of a step without."""
    desk = Desk(info(pages=400, context=400), ahead=ahead)
    jumped(desk, 200)
    told = len(desk.output("a"))
    assert desk.core.counters["computed_tokens"] >= told - 23
    assert sum(work.count for step in desk.steps for work in step.work) < told - 23 or not ahead


def test_jumps_of_a_step_share_its_bound() -> None:
    """However many sequences have forced tokens to run beside one that is free."""
    desk = Desk(stall=3.0, chunk=512)
    desk.core.steps.budget.decode, desk.core.steps.budget.rate = 0.05, 0.05 * 2 / 16
    scored = {"sampling": JUMPING, "logprobs": Logprobs(output=True)}
    prompt = prompt_with(23)
    desk.submit(request("free", [5], 30), *(request(name, prompt, 24, **scored) for name in "abc"))
    desk.run()
    assert max(sum(work.count - 1 for work in step.work) for step in desk.steps) == 16
