"""The worker's bookkeeping of a batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.batch import Batch, Limits, Plan, StaleBatchError, Written
from sgl_actors.actors.worker.messages import JUMP, Logprobs, NewSequence, Sampling, Step, Work
from sgl_actors.lang.constraints.constraint import Constraint

GREEDY = Sampling(seed=0, temperature=0.0)


def make_batch(page_size: int = 2, context: int = 50) -> Batch:
    batch = Batch(Limits(vocabulary=10, context=context, pages=20, page_size=page_size))
    batch.reset(3)
    return batch


def new(seq: int = 1, tokens: tuple[int, ...] = (4, 5, 6), **changes: Any) -> NewSequence:
    fields: dict[str, Any] = {
        "prompt_length": len(tokens), "cached": 0, "pages": [7, 2, 3], "sampling": GREEDY, "logprobs": Logprobs(),
    }  # fmt: skip
    return NewSequence(seq, list(tokens), **(fields | changes))


def apply(batch: Batch, *work: Work, start: tuple[NewSequence, ...] = (), end: tuple[int, ...] = ()) -> Plan:
    return batch.apply(Step(batch.epoch, batch.next_number, list(end), list(start), list(work)))


def test_tokens_live_in_the_slots_of_their_pages() -> None:
    """Token i is in page i // page_size, slot i % page_size; pages that come later are appended."""
    batch = make_batch()
    (run,) = apply(batch, Work(1, 2, pages=(11,), sample=False), start=(new(),)).runs
    assert run.sequence.slots.tolist() == [14, 15, 4, 5, 6, 7, 22, 23]
    assert (run.start, run.stop, run.sample) == (0, 2, False)


@pytest.mark.parametrize(
    ("pages", "contiguous"), [([4, 5, 6], True), ([6, 5, 4], False), ([4, 6, 7], False), ([9], True)]
)
def test_consecutive_pages_are_recognised(pages: list[int], contiguous: bool) -> None:
    """Only pages in ascending order without a gap make one run of slots."""
    batch = make_batch()
    assert apply(batch, start=(new(tokens=(1,), pages=pages),)).errors == {}
    assert batch.sequences[1].contiguous is contiguous


def test_a_sampled_token_is_run_by_the_next_step() -> None:
    """The worker feeds its own token back: work of one token needs nothing from the scheduler."""
    batch = make_batch()
    (run,) = apply(batch, Work(1, 3), start=(new(),)).runs
    batch.finish(run, Written((9,)))
    assert batch.sequences[1].token_ids == [4, 5, 6, 9]
    (run,) = apply(batch, Work(1)).runs
    assert (run.start, run.stop) == (3, 4)


@pytest.mark.parametrize(("epoch", "number"), [(2, 0), (4, 0), (3, 1)])
def test_a_step_of_another_epoch_or_after_a_gap_is_stale(epoch: int, number: int) -> None:
    """Nothing changes, so that the scheduler can start the batch anew."""
    batch = make_batch()
    with pytest.raises(StaleBatchError):
        batch.apply(Step(epoch, number, [], [new()], []))
    assert not batch.sequences
    assert batch.next_number == 0


def test_a_fresh_batch_holds_no_epoch() -> None:
    """A restarted worker takes no step of a running epoch before it is reset."""
    with pytest.raises(StaleBatchError):
        Batch(Limits(10, 10, 10, 1)).apply(Step(7, 0, [], [], []))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (new(tokens=(4, 10)), "token 10 is not in the vocabulary"),
        (new(tokens=(4, -1)), "token -1 is not in the vocabulary"),
        (new(prompt_length=4), "prompt length 4 of 3"),
        (new(prompt_length=0), "prompt length 0 of 3"),
        (new(cached=3), "at least one has to be computed"),
        (new(cached=-1), "at least one has to be computed"),
        (new(cached=2, pages=[]), "do not fit into 0 pages"),
        (new(pages=[20]), "the pool has 0 to 19"),
        (new(sampling=Sampling(seed=1, end_ids=(11,))), "end token 11"),
        (new(sampling=Sampling(seed=1, logit_bias=((12, 1.0),))), "biased token 12"),
        (new(cached=2, logprobs=Logprobs(prompt_start=1)), "need the logits before it"),
    ],
)
def test_a_bad_sequence_is_refused_alone(bad: NewSequence, why: str) -> None:
    """Its error says what is wrong; a sequence started in the same step runs."""
    batch = make_batch()
    plan = apply(batch, Work(1, 3), Work(2, 3), start=(bad, new(2, pages=[0, 1])))
    assert why in plan.errors[1]
    assert [run.sequence.seq for run in plan.runs] == [2]
    assert 1 not in batch.sequences


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (Work(9), "not in the batch"),
        (Work(1, 4), "4 tokens to run, 3 have no KV yet"),
        (Work(1, 0), "0 tokens to run"),
        (Work(1, 2, sample=True), "cannot sample"),
        (Work(1, 3, pages=(99,)), "the pool has 0 to 19"),
    ],
)
def test_bad_work_ends_that_sequence_alone(work: Work, why: str) -> None:
    """It leaves the batch with an error; the others run."""
    batch = make_batch()
    plan = apply(batch, work, Work(2, 3), start=(new(1), new(2, pages=[0, 1])))
    assert why in plan.errors[work.seq]
    assert [run.sequence.seq for run in plan.runs] == [2]
    assert work.seq not in batch.sequences


def test_work_without_pages_or_over_the_context_is_refused() -> None:
    """Tokens need slots, and positions end with the context."""
    batch = make_batch()
    assert "do not fit into pages for 2" in apply(batch, Work(1, 3), start=(new(pages=[0]),)).errors[1]
    batch = make_batch(context=2)
    assert "over the context of 2" in apply(batch, Work(1, 3), start=(new(),)).errors[1]


def test_work_twice_in_a_step_ends_the_sequence() -> None:
    """No part of it runs: its state would be ambiguous."""
    batch = make_batch()
    plan = apply(batch, Work(1, 1, sample=False), Work(1, 1, sample=False), start=(new(),))
    assert "twice" in plan.errors[1]
    assert plan.runs == []


def test_a_reset_forgets_all_sequences() -> None:
    """The next epoch begins with step 0 and no sequence."""
    batch = make_batch()
    apply(batch, start=(new(),))
    batch.reset(8)
    assert not batch.sequences
    assert apply(batch, start=(new(),)).errors == {}


def test_token_statistics_are_kept_for_penalties_alone() -> None:
    """Output counts leave the prompt out, seen tokens hold both."""
    batch = make_batch()
    penal = Sampling(seed=0, frequency_penalty=1.0)
    (run, plain) = apply(
        batch,
        Work(1, 4),
        Work(2, 3),
        start=(new(1, (4, 4, 6, 6), prompt_length=3, sampling=penal), new(2, pages=[0, 1])),
    ).runs
    batch.finish(run, Written((6,)))
    batch.finish(plain, Written((6,)))
    assert dict(run.sequence.output_counts) == {6: 2}
    assert set(run.sequence.seen) == {4, 6}
    assert not plain.sequence.seen


@settings(deadline=None)
@given(
    length=st.integers(1, 30),
    start=st.integers(-1, 30),
    cached=st.integers(0, 29),
    extra=st.integers(0, 5),
    data=st.data(),
)
def test_prompt_targets_of_all_chunks_are_the_prompt_from_prompt_start(
    length: int, start: int, cached: int, extra: int, data: st.DataObject
) -> None:
    """However the prompt is cut, each wanted token is reported once and in order."""
    if cached and 0 <= start <= cached:
        cached = 0
    cached = min(cached, length - 1)
    batch = Batch(Limits(vocabulary=10, context=100, pages=100, page_size=1))
    batch.reset(1)
    total = length + extra
    first = new(
        1,
        (1,) * total,
        prompt_length=length,
        cached=cached,
        pages=list(range(total)),
        logprobs=Logprobs(prompt_start=start),
    )
    targets: list[int] = []
    starts: tuple[NewSequence, ...] = (first,)
    done = cached
    while done < total:
        count = data.draw(st.integers(1, total - done))
        (run,) = apply(batch, Work(1, count, sample=False), start=starts).runs
        batch.finish(run, None)
        targets += run.prompt_targets()
        starts, done = (), done + count
    assert targets == (list(range(start, length)) if start >= 0 else [])


CONSTRAINED = Sampling(seed=0, temperature=0.0, end_ids=(9,), constraint=Constraint("regex", "any"))


def test_forced_tokens_are_appended_with_the_first_and_run_with_it() -> None:
    """One result has them all; the next step runs them in one piece, also when its sender has not heard of them, as far as the pages reach."""
    batch = make_batch()
    (run,) = apply(batch, Work(1, 3), start=(new(sampling=CONSTRAINED),)).runs
    assert batch.finish(run, Written((1, 2, 3), 4)) == Written((1, 2, 3), 4)
    assert batch.sequences[1].token_ids == [4, 5, 6, 1, 2, 3]
    (run,) = apply(batch, Work(1)).runs
    assert (run.start, run.stop, run.sample) == (3, 6, True)
    batch.finish(run, Written((1, 1)))
    (run,) = apply(batch, Work(1, pages=(9,))).runs
    assert (run.start, run.stop, run.sample) == (6, 8, True)


def test_what_does_not_fit_into_the_pages_is_run_later() -> None:
    """The step samples nothing then; with more pages the rest is run, and it does."""
    batch = make_batch()
    (run,) = apply(batch, Work(1, 3), start=(new(sampling=CONSTRAINED),)).runs
    batch.finish(run, Written((1, 2, 3, 4)))
    (run,) = apply(batch, Work(1)).runs
    assert (run.start, run.stop, run.sample) == (3, 6, False)
    assert batch.finish(run, None) is None
    (run,) = apply(batch, Work(1, pages=(8,))).runs
    assert (run.start, run.stop, run.sample) == (6, 7, True)


def test_without_jump_forward_the_same_tokens_come_one_by_one() -> None:
    """What is known waits in the sequence; only the first of it can be the model's choice."""
    batch = make_batch()
    slow = Sampling(seed=0, constraint=CONSTRAINED.constraint, jump_forward=False)
    (run,) = apply(batch, Work(1, 3), start=(new(sampling=slow),)).runs
    known: Written | None = Written((1, 2, 3))
    told = []
    while known is not None:
        told.append(batch.finish(run, known))
        known = batch.sequences[1].written
        (run,) = apply(batch, Work(1, pages=(len(told),))).runs
    assert told == [Written((1,)), Written((2,), chosen=False), Written((3,), chosen=False)]


def test_nothing_is_appended_behind_an_end_token_nor_beyond_a_jump() -> None:
    """Behind the end token is no output; what is longer than a jump waits for the next result."""
    batch = make_batch()
    (run,) = apply(batch, Work(1, 3), start=(new(sampling=CONSTRAINED),)).runs
    assert batch.finish(run, Written((1, 9, 9))) == Written((1, 9))
    (run,) = apply(batch, Work(2, 3), start=(new(2, sampling=CONSTRAINED),)).runs
    written = batch.finish(run, Written((1,) * (JUMP + 5)))
    assert written is not None
    assert len(written.tokens) == 1 + JUMP
    assert batch.sequences[2].written == Written((1,) * 4, chosen=False)


def test_forced_tokens_are_scored_by_the_runs_that_come_to_them() -> None:
    """Each once, in order, however the tokens are divided; those of the prompt and sampled ones are not among them."""
    batch = make_batch()
    wanted = new(sampling=CONSTRAINED, logprobs=Logprobs(output=True))
    (run,) = apply(batch, Work(1, 3), start=(wanted,)).runs
    assert list(run.forced_targets()) == []
    batch.finish(run, Written((1, 2, 3, 4)))
    (run,) = apply(batch, Work(1)).runs
    assert list(run.forced_targets()) == [4, 5, 6]
    batch.finish(run, None)
    (run,) = apply(batch, Work(1, pages=(8,))).runs
    assert list(run.forced_targets()) == []
    batch.finish(run, Written((5,)))
    (run,) = apply(batch, Work(1)).runs
    assert list(run.forced_targets()) == []
