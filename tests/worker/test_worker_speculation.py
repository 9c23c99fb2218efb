"""How many drafts are run, and that an output is the same with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.batch import Batch, Limits, Run
from sgl_actors.actors.worker.messages import Logprobs, NewSequence, Sampling, Step, Work
from sgl_actors.actors.worker.runner import ModelRunner
from sgl_actors.actors.worker.speculation import MIXED, PassCost, Speculation
from tests.worker.harness import Driver, Generation, make_runner, tiny_config, tiny_model

MODEL = tiny_model(tiny_config(windows=(None, 6)))
PROMPTS = [[3, 17, 90, 4, 4, 61], [5, 5, 8, 1], [20, 21, 22, 23, 24, 25, 26, 27, 28]]
PENALTIES = Sampling(
    seed=9, temperature=0.9, top_p=0.9, frequency_penalty=0.7, presence_penalty=0.3, repetition_penalty=1.2
)


# -- what a pass costs ------------------------------------------------------------------------------------


def test_cost_lies_between_what_was_measured() -> None:
    """And on the same line above, as far as may be tried; it never falls with more tokens."""
    cost = PassCost()
    assert cost.expect(1, 3).tolist() == []
    cost.learn(1, 0.010)
    assert cost.expect(1, 9).tolist() == [0.010] * 4
    for _ in range(100):
        cost.learn(1, 0.010)
        cost.learn(9, 0.018)
    expected = cost.expect(1, 50)
    assert len(expected) == 20
    assert expected[4] == pytest.approx(0.014, rel=0.02)
    assert expected[16] == pytest.approx(0.026, rel=0.02)
    for _ in range(20):
        cost.learn(5, 0.030)
    assert (cost.expect(1, 30)[1:] >= cost.expect(1, 30)[:-1]).all()


def test_cost_follows_what_all_passes_have_in_common() -> None:
    """The machine gets busy: measurements with one token say something about those with more."""
    cost = PassCost()
    for _ in range(20):
        cost.learn(1, 0.010)
        cost.learn(8, 0.020)
    for _ in range(30):
        cost.learn(1, 0.015)
    assert cost.expect(1, 0)[0] == pytest.approx(0.015, rel=0.05)
    assert cost.expect(8, 0)[0] > 0.023


def test_the_first_measurement_may_have_been_a_bad_moment() -> None:
    """Until there are more, it is taken to cost less, so that it gets another chance."""
    cost = PassCost()
    for _ in range(10):
        cost.learn(1, 0.010)
    cost.learn(5, 0.040)
    once = cost.expect(5, 0)[0]
    for _ in range(9):
        cost.learn(5, 0.040)
    assert once == pytest.approx(0.025)
    assert cost.expect(5, 0)[0] == pytest.approx(0.040, rel=0.01)


def test_one_odd_measurement_does_little() -> None:
    """A pass that was held up by something else."""
    cost = PassCost()
    for _ in range(10):
        cost.learn(4, 0.010)
    cost.learn(4, 5.0)
    assert cost.expect(4, 0)[0] < 0.0125


def test_what_was_dear_is_tried_again_in_the_end() -> None:
    """After many passes without it, not soon."""
    cost = PassCost()
    cost.learn(1, 0.010)
    cost.learn(5, 0.040)
    cost.learn(5, 0.040)
    cost.learn(5, 0.040)
    for _ in range(30):
        cost.learn(1, 0.010)
    assert 0.030 < cost.expect(5, 0)[0] < 0.040
    for _ in range(3000):
        cost.learn(1, 0.010)
    assert cost.expect(5, 0)[0] < 0.013


# -- how many drafts --------------------------------------------------------------------------------------


class Bench:
    """A `Speculation` over sequences whose text the test writes, with a made-up cost per pass."""

    def __init__(self, seconds: Callable[[float], float], texts: Sequence[Sequence[int]]) -> None:
        self.batch = Batch(Limits(1000, 4096, 4096, 1))
        self.batch.reset(1)
        self.speculation = Speculation(self.batch)
        self.seconds = seconds
        self.texts = [list(text) for text in texts]
        self.number = 0
        pages, room = iter(range(4096)), 4096 // len(texts)
        start = [
            NewSequence(
                seq, [1, 2], 2, 0, [next(pages) for _ in range(room)], Sampling(0), most=room, drafts=16
            )
            for seq in range(len(texts))
        ]
        self.batch.apply(Step(1, 0, [], start, []))
        self.passes: list[tuple[int, int]] = []

    def step(self) -> None:
        """One pass: tokens run as drafts, and tokens that came of it."""
        runs = [
            Run(held, held.computed, len(held.token_ids), sample=True)
            for held in self.batch.sequences.values()
        ]
        runs = self.speculation.draft(runs)
        self.speculation.passed(self.seconds(sum(run.count for run in runs)), 0.0)
        came = 0
        for run, text in zip(runs, self.texts, strict=True):
            place = len(run.sequence.token_ids) - 2
            written = run.right(text[place : place + 1 + len(run.drafts)])
            self.batch.finish(run, written)
            self.speculation.sampled(run, written.tokens)
            came += len(written.tokens)
        self.passes.append((sum(len(run.drafts) for run in runs), came))

    def run(self, steps: int) -> tuple[float, float]:
        """Drafts and tokens per pass."""
        before = len(self.passes)
        for _ in range(steps):
            self.step()
        drafts, came = zip(*self.passes[before:], strict=True)
        return sum(drafts) / steps, sum(came) / steps


def noise(seed: int, length: int = 580) -> list[int]:
    """Text in which a pair of tokens often comes again, and says little about what follows."""
    rng = random.Random(seed)
    return [rng.randrange(12) for _ in range(length)]


def cheap(tokens: float) -> float:
    return 0.010 + 0.001 * tokens


def dear(tokens: float) -> float:
    return 0.010 * tokens


def test_text_that_repeats_itself_is_drafted_as_far_as_it_pays() -> None:
    """Nearly all drafts are right, so that the most that may be run are."""
    bench = Bench(cheap, [[*range(3, 40)] * 15])
    bench.run(40)
    drafts, came = bench.run(10)
    assert drafts > 12
    assert came > 0.9 * drafts


def test_what_is_rarely_right_is_not_run() -> None:
    """Guesses are compared with the text all the same, so that this is known without a trial."""
    bench = Bench(lambda tokens: 0.010 + 0.004 * tokens, [noise(1)])
    bench.run(100)
    drafts, came = bench.run(300)
    assert drafts < 0.1
    assert came / bench.seconds(1 + drafts) > 0.98 / bench.seconds(1)


def test_where_a_token_costs_as_much_in_any_pass_none_is_drafted() -> None:
    """However right the guesses are; now and then it is tried, which costs next to nothing."""
    bench = Bench(dear, [[*range(3, 40)] * 100])
    bench.run(60)
    drafts, came = bench.run(200)
    assert came / dear(1 + drafts) > 0.99 / dear(1)


def test_of_several_sequences_those_are_drafted_that_repeat_themselves() -> None:
    """The others run as they are."""
    bench = Bench(cheap, [noise(2), [*range(3, 30)] * 20, noise(3)])
    bench.run(40)
    before = {seq: len(held.token_ids) for seq, held in bench.batch.sequences.items()}
    bench.run(20)
    grown = [len(held.token_ids) - before[seq] for seq, held in bench.batch.sequences.items()]
    assert grown[1] > 5 * max(grown[0], grown[2])


def test_a_pass_that_computes_prompts_has_no_drafts_and_teaches_nothing() -> None:
    """Its time says little about drafts."""
    bench = Bench(cheap, [[*range(3, 40)] * 15])
    bench.run(40)
    held = bench.batch.sequences[0]
    prompt = replace(held, seq=9, token_ids=list(range(MIXED + 1)), computed=0)
    known = repr(bench.speculation.cost)
    runs = [
        Run(held, held.computed, len(held.token_ids), sample=True),
        Run(prompt, 0, MIXED + 1, sample=False),
    ]
    assert bench.speculation.draft(runs) == runs
    bench.speculation.passed(9.0, 0.0)
    assert repr(bench.speculation.cost) == known
    assert bench.speculation.draft(runs[:1])[0].drafts


def test_time_between_passes_makes_drafts_worth_more() -> None:
    """A pass costs it whether it has drafts or not."""
    bench = Bench(lambda tokens: 0.010 + 0.0095 * (tokens - 1), [[*range(3, 40)] * 15])
    bench.run(60)
    few = bench.run(10)[0]
    bench.speculation.gap = 0.030
    assert bench.run(10)[0] > few


# -- the same output --------------------------------------------------------------------------------------


class Scripted(Speculation):
    """Drafts what the output is known to be, with wrong tokens at random places."""

    def __init__(self, batch: Batch, outputs: dict[int, list[int]], seed: int) -> None:
        super().__init__(batch)
        self.outputs, self.rng = outputs, random.Random(seed)

    def draft(self, runs: list[Run]) -> list[Run]:
        return [self._scripted(run) if run.sample else run for run in runs]

    def _scripted(self, run: Run) -> Run:
        held = run.sequence
        place = len(held.token_ids) - held.prompt_length
        count = self.rng.randint(0, self._batch.room_for_drafts(run))
        drafts = self.outputs[held.seq][place : place + count]
        wrong = [token if self.rng.random() < 0.8 else self.rng.randrange(97) for token in drafts]
        return replace(run, drafts=tuple(wrong))


def generate(
    samplings: Sequence[Sampling],
    count: int,
    *,
    logprobs: Logprobs | None = None,
    page_size: int = 1,
    script: tuple[dict[int, list[int]], int] | None = None,
) -> tuple[list[Generation], ModelRunner]:
    """All prompts in one batch to `count` tokens each or an end token; sequence numbers from 1 on."""
    runner = make_runner(MODEL, page_size=page_size)
    driver = Driver(runner, shuffle=3)
    if script is not None:
        runner.speculation = Scripted(runner.batch, *script)
    news = []
    for prompt, sampling in zip(PROMPTS, samplings, strict=False):
        new = driver.new(prompt, count, sampling, logprobs)
        fields = {name: getattr(new, name) for name in new.__struct_fields__}
        news.append(NewSequence(**(fields | {"most": len(prompt) + count, "drafts": 7})))
    done = {new.seq: Generation() for new in news}
    live, start = {new.seq: new for new in news}, news
    while live:
        work = [Work(seq, len(new.token_ids) if start else 1) for seq, new in live.items()]
        for seq, result in driver.step(work, start).items():
            one = done[seq]
            assert not result.error
            assert result.ran == (len(live[seq].token_ids) if start else 1) + len(result.accepted)
            assert len(result.accepted) <= result.drafted
            one.tokens += [result.token_id, *result.accepted]
            one.logprobs += [*([result.logprob] if result.logprob else []), *result.accepted_logprobs]
            one.steps += 1
            if len(one.tokens) >= count or one.tokens[-1] in live[seq].sampling.end_ids:
                del live[seq]
        start = []
    return list(done.values()), runner


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    penalised=st.booleans(),
    least=st.sampled_from([0, 5]),
    page_size=st.sampled_from([1, 4, 16]),
)
def test_drafts_change_steps_and_nothing_else(
    seed: int, temperature: float, penalised: bool, least: int, page_size: int
) -> None:
    """Tokens, their log probabilities and the end are as without, at any temperature, with penalties, bias, end tokens and min_tokens."""
    base = replace_sampling(
        PENALTIES if penalised else Sampling(0), temperature=temperature, min_tokens=least
    )
    samplings = [
        replace_sampling(base, seed=seed + index, end_ids=(4, 11, 60), logit_bias=((11, 2.0 * index),))
        for index in range(3)
    ]
    logprobs = Logprobs(output=True, top=2)
    plain, _ = generate(samplings, 24, logprobs=logprobs, page_size=page_size)
    script = {seq: [*one.tokens, *noise(seed, 30)] for seq, one in enumerate(plain, 1)}
    drafted, runner = generate(samplings, 24, logprobs=logprobs, page_size=page_size, script=(script, seed))
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    for one, other in zip(plain, drafted, strict=True):
        assert [entry.token_id for entry in other.logprobs] == one.tokens
        for left, right in zip(one.logprobs, other.logprobs, strict=True):
            assert right.logprob == pytest.approx(left.logprob, abs=1e-4)
            assert [token for token, _ in right.top] == [token for token, _ in left.top]
    assert runner.counters.accepted <= runner.counters.drafted
    if max(len(one.tokens) for one in plain) > 12:
        assert sum(one.steps for one in drafted) < sum(one.steps for one in plain)


def replace_sampling(sampling: Sampling, **changes: object) -> Sampling:
    fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    return Sampling(**(fields | changes))


def test_a_draft_whose_row_has_no_distribution_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token comes as without; the next pass begins with it and fails as it does without."""
    (plain,), _ = generate([Sampling(0, temperature=0.0)], 6)
    runner = make_runner(MODEL)
    driver = Driver(runner)
    runner.speculation = Scripted(runner.batch, {1: plain.tokens}, 0)
    monkeypatch.setattr(
        runner.speculation, "_scripted", lambda run: replace(run, drafts=tuple(plain.tokens[:3]))
    )
    forward = MODEL.forward

    def broken(batch: object, pool: object) -> object:
        hidden = forward(batch, pool)  # type: ignore[arg-type]
        hidden[len(PROMPTS[0]) + 1] = float("nan")
        return hidden

    monkeypatch.setattr(runner.model, "forward", broken)
    new = driver.new(PROMPTS[0], 10, Sampling(0, temperature=0.0))
    result = driver.step([Work(new.seq, len(PROMPTS[0]))], [new])[new.seq]
    assert (result.token_id, *result.accepted) == tuple(plain.tokens[:2])
    assert result.ran == len(PROMPTS[0]) + 1
    assert runner.batch.sequences[new.seq].computed == len(PROMPTS[0]) + 1


@pytest.fixture
def batch() -> Batch:
    made = Batch(Limits(97, 64, 100, 4))
    made.reset(1)
    return made


@pytest.mark.parametrize(
    ("most", "pages", "drafts", "room"),
    [(40, 8, 7, 7), (12, 8, 7, 3), (8, 8, 7, 0), (40, 3, 7, 3), (40, 2, 7, 0), (40, 8, 0, 0), (0, 8, 7, 0)],
)
def test_drafts_stay_within_output_and_pages(
    batch: Batch, most: int, pages: int, drafts: int, room: int
) -> None:
    """With a token behind them, and a place for the next one: a step that is on its way already does not know of them."""
    new = NewSequence(1, list(range(8)), 8, 0, list(range(pages)), Sampling(0), most=most, drafts=drafts)
    plan = batch.apply(Step(1, 0, [], [new], [Work(1, 8)]))
    assert batch.room_for_drafts(plan.runs[0]) == room


def test_a_continuation_that_is_no_token_fails_its_sequence(batch: Batch) -> None:
    """It would be run as a draft."""
    new = NewSequence(1, [1], 1, 0, [0], Sampling(0), continuation=[97])
    plan = batch.apply(Step(1, 0, [], [new], [Work(1)]))
    assert "continuation 97" in plan.errors[1]
