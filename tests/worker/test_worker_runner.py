"""A runner in one process, on a small random model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.batch import StaleBatchError
from sgl_actors.actors.worker.messages import Logprobs, Sampling, Step, Work
from sgl_actors.actors.worker.model.causal_lm import HEAD_ROWS, ForwardBatch
from sgl_actors.actors.worker.runner import NOT_FINITE
from tests.worker.harness import GREEDY, Driver, Generation, make_runner, tiny_config, tiny_model

MODEL = tiny_model()
PROMPTS = [[5, 9, 60], [7], list(range(3, 40)), [80, 2, 2, 2, 11], [1, 50, 90, 33, 21, 8, 8, 8, 8, 70]]
ALL = Logprobs(output=True, top=3, prompt_start=0)


def generate(prompts: list[list[int]] = PROMPTS, count: int = 8, **options: Any) -> list[Generation]:
    page_size, shuffle = options.pop("page_size", 1), options.pop("shuffle", None)
    model = options.pop("model", MODEL)
    return Driver(make_runner(model, page_size=page_size), shuffle=shuffle).generate(
        prompts, count, **options
    )


def assert_close(ours: list[Generation], expected: list[Generation]) -> None:
    """Equal tokens, and scores up to rounding."""
    for one, two in zip(ours, expected, strict=True):
        assert one.tokens == two.tokens
        assert one.error == two.error == ""
        for kind in ("logprobs", "prompt_logprobs"):
            a, b = getattr(one, kind), getattr(two, kind)
            assert [entry.token_id for entry in a] == [entry.token_id for entry in b]
            for left, right in zip(a, b, strict=True):
                assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
                assert [value for _, value in left.top] == pytest.approx(
                    [value for _, value in right.top], abs=1e-4
                )


@pytest.fixture(scope="module")
def expected() -> list[Generation]:
    """Each prompt by itself, whole, at page size 1."""
    return [generate([prompt], logprobs=ALL)[0] for prompt in PROMPTS]


def test_output_varies_with_the_prompt(expected: list[Generation]) -> None:
    """The model is no constant: otherwise the comparisons of this file would say nothing."""
    assert len({tuple(generation.tokens) for generation in expected}) == len(PROMPTS)


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_a_prompt_in_chunks_is_the_same_as_a_whole_one(expected: list[Generation], chunk: int) -> None:
    """Chunks mix with decodes of shorter prompts in one pass; tokens and all scores stay."""
    assert_close(generate(logprobs=ALL, chunk=chunk), expected)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("shuffle", [None, 3])
def test_page_size_and_place_do_not_matter(
    expected: list[Generation], page_size: int, shuffle: int | None
) -> None:
    """Consecutive or scattered pages of any size hold the same sequence."""
    assert_close(generate(logprobs=ALL, page_size=page_size, shuffle=shuffle, chunk=7), expected)


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_cached_prefix_is_the_same_as_a_computed_one(expected: list[Generation], page_size: int) -> None:
    """A sequence that starts on pages of another one computes only the rest."""
    driver = Driver(make_runner(MODEL, page_size=page_size))
    prompt = PROMPTS[2]
    first = driver.new(prompt, 8)
    driver.step([Work(first.seq, len(prompt))], [first])
    driver.step(end=[first.seq])
    cached = len(prompt) // page_size * page_size - page_size
    shared = first.pages[: cached // page_size]
    second = driver.new(prompt, 0, cached=cached, pages=shared + driver.pages(len(prompt) + 8 - cached))
    result = driver.step([Work(second.seq, len(prompt) - cached)], [second])[second.seq]
    tokens = [result.token_id] + [driver.step([Work(second.seq)])[second.seq].token_id for _ in range(7)]
    assert tokens == expected[2].tokens
    assert driver.runner.counters.prefill_tokens == 2 * len(prompt) - cached


def test_output_is_continued_where_it_broke_off(expected: list[Generation]) -> None:
    """Prompt plus tokens so far give the tokens that were to come, at a temperature too."""
    sampling = Sampling(seed=77, temperature=1.5, frequency_penalty=0.4, presence_penalty=0.1)
    (whole,) = generate([PROMPTS[4]], sampling=sampling)
    driver = Driver(make_runner(MODEL))
    resumed = driver.new(PROMPTS[4] + whole.tokens[:3], 8, sampling, prompt_length=len(PROMPTS[4]))
    tokens = [driver.step([Work(resumed.seq, len(resumed.token_ids))], [resumed])[resumed.seq].token_id]
    tokens += [driver.step([Work(resumed.seq)])[resumed.seq].token_id for _ in range(4)]
    assert tokens == whole.tokens[3:]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 12), page_size=st.sampled_from([1, 3]))
def test_sampled_tokens_do_not_depend_on_the_batch(seed: int, chunk: int, page_size: int) -> None:
    """A seeded sequence gives the same tokens alone and among others with other settings."""
    samplings = [
        Sampling(seed=seed + index, temperature=0.5 * index, top_p=1 - 0.1 * index) for index in range(4)
    ]
    together = generate(PROMPTS[:4], 5, sampling=samplings, chunk=chunk, page_size=page_size, shuffle=seed)
    alone = [generate([p], 5, sampling=s)[0] for p, s in zip(PROMPTS, samplings, strict=False)]
    assert [generation.tokens for generation in together] == [generation.tokens for generation in alone]


def test_output_scores_belong_to_the_sampled_tokens(expected: list[Generation]) -> None:
    """Greedy tokens are the first of their own alternatives; prompt scores begin with a token without a value."""
    for prompt, generation in zip(PROMPTS, expected, strict=True):
        for token, entry in zip(generation.tokens, generation.logprobs, strict=True):
            assert entry.token_id == token == entry.top[0][0]
            assert entry.logprob == entry.top[0][1]
            assert len(entry.top) == 3
        assert [entry.token_id for entry in generation.prompt_logprobs] == prompt
        assert [entry.logprob is None for entry in generation.prompt_logprobs] == [True] + [False] * (
            len(prompt) - 1
        )


def test_long_prompts_are_scored_in_parts() -> None:
    """More prompt tokens than are scored at once give one entry each, the same as in chunks."""
    prompt = [index % 90 for index in range(2 * HEAD_ROWS + 7)]
    (whole,) = generate([prompt], 1, logprobs=Logprobs(prompt_start=5))
    (parts,) = generate([prompt], 1, logprobs=Logprobs(prompt_start=5), chunk=10)
    assert [entry.token_id for entry in whole.prompt_logprobs] == prompt[5:]
    assert_close([whole], [parts])


def test_a_prompt_alone_may_be_computed() -> None:
    """Work that does not sample fills the cache and appends nothing."""
    driver = Driver(make_runner(MODEL))
    new = driver.new(PROMPTS[0], 1)
    result = driver.step([Work(new.seq, 3, sample=False)], [new])[new.seq]
    assert result.token_id == -1
    assert driver.runner.batch.sequences[new.seq].token_ids == PROMPTS[0]


def test_a_sliding_window_limits_what_is_seen() -> None:
    """Tokens before the window change nothing, tokens within do; chunked or not."""
    model = tiny_model(tiny_config(layers=1, windows=(4,)))
    one, two, other = [1, 2, 3, 4, 5, 6, 7, 8], [50, 60, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 9, 6, 7, 8]
    scores = [
        generate([p], 3, model=model, logprobs=ALL, chunk=c)[0] for p in (one, two, other) for c in (100, 3)
    ]
    assert scores[0].logprobs[0].logprob == pytest.approx(scores[2].logprobs[0].logprob, abs=1e-5)
    assert scores[0].tokens == scores[1].tokens == scores[2].tokens == scores[3].tokens
    assert scores[0].logprobs[0].logprob != pytest.approx(scores[4].logprobs[0].logprob, abs=1e-4)
    assert scores[4].tokens == scores[5].tokens


def test_nan_in_one_sequence_fails_it_alone(expected: list[Generation]) -> None:
    """Its result says so, it leaves the batch, and the others go on as they would without it."""
    driver = Driver(make_runner(MODEL))
    news = [driver.new(prompt, 8) for prompt in PROMPTS]
    driver.step([Work(new.seq, len(new.token_ids)) for new in news], news)
    bad = news[1]
    driver.runner.pool.layer(0)[torch.tensor(bad.pages)] = float("nan")
    results = driver.step([Work(new.seq) for new in news])
    assert results[bad.seq].error == NOT_FINITE
    assert results[bad.seq].token_id == -1
    for new, generation in zip(news, expected, strict=True):
        if new is not bad:
            assert results[new.seq].token_id == generation.tokens[1]
    assert "not in the batch" in driver.step([Work(bad.seq)])[bad.seq].error
    assert driver.runner.counters.failed == 2


def test_a_prefill_over_broken_kv_fails() -> None:
    """KV that is not finite is an error of that sequence even where nothing is sampled, and its neighbour is scored and goes on."""
    model = tiny_model()
    model.weights.embedding[7] = float("nan")
    driver = Driver(make_runner(model))
    bad, good = driver.new([5, 7, 6, 9], 0), driver.new([5, 9, 6], 0, logprobs=ALL)
    results = driver.step([Work(bad.seq, 2, sample=False), Work(good.seq, 3, sample=False)], [bad, good])
    assert results[bad.seq].error == NOT_FINITE
    assert (results[good.seq].error, len(results[good.seq].prompt_logprobs)) == ("", 3)
    later = driver.new([5, 7, 6, 9], 4, cached=3, pages=bad.pages)
    assert driver.step([Work(later.seq, 1)], [later])[later.seq].error == NOT_FINITE
    assert driver.runner.counters.failed == 2


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError, AssertionError])
def test_a_pass_that_raises_is_run_again_without_the_culprit(
    expected: list[Generation], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """The sequence whose first token makes the forward pass fail gets the error; all others get their tokens."""
    driver = Driver(make_runner(MODEL))
    forward = driver.runner.model.forward

    def fragile(batch: ForwardBatch, pool: Any) -> torch.Tensor:
        if (80, 0) in zip(batch.token_ids.tolist(), batch.positions.tolist(), strict=True):
            raise error("out of memory")
        return forward(batch, pool)

    monkeypatch.setattr(driver.runner.model, "forward", fragile)
    generations = driver.generate(PROMPTS, 8)
    assert "out of memory" in generations[3].error
    for index in (0, 1, 2, 4):
        assert generations[index].tokens == expected[index].tokens


def test_results_come_in_the_order_of_the_work() -> None:
    """Whatever failed or sampled; a sequence that failed at its start without work comes last."""
    runner = make_runner(MODEL)
    driver = Driver(runner)
    good, bad, idle = driver.new([1, 2], 4), driver.new([1, 500], 4), driver.new([500], 4)
    step = Step(1, 0, [], [idle, bad, good], [Work(bad.seq, 2), Work(42), Work(good.seq, 2)])
    done = runner.execute(step)
    assert [result.seq for result in done.results] == [bad.seq, 42, good.seq, idle.seq]
    assert [bool(result.error) for result in done.results] == [True, True, False, True]


def test_steps_of_another_epoch_are_refused() -> None:
    """The runner raises and keeps what it holds; after a reset only the new epoch counts."""
    runner = make_runner(MODEL)
    with pytest.raises(StaleBatchError):
        runner.execute(Step(2, 0, [], [], []))
    runner.reset(2)
    assert runner.execute(Step(2, 0, [], [], [])).results == []
    with pytest.raises(StaleBatchError):
        runner.execute(Step(1, 0, [], [], []))


def test_min_tokens_and_bias_reach_the_sampler() -> None:
    """End tokens stay out for the first output tokens; a bias decides a greedy choice."""
    (free,) = generate([PROMPTS[0]], 4)
    banned = Sampling(seed=0, temperature=0.0, end_ids=(free.tokens[0],), min_tokens=2)
    (held,) = generate([PROMPTS[0]], 4, sampling=banned)
    assert free.tokens[0] not in held.tokens[:2]
    (forced,) = generate(
        [PROMPTS[0]], 3, sampling=Sampling(seed=0, temperature=0.0, logit_bias=((42, 1000.0),))
    )
    assert forced.tokens == [42, 42, 42]
    assert GREEDY.temperature == 0


def test_repetition_is_penalised_over_prompt_and_output() -> None:
    """With a strong penalty no token of the prompt or the output comes again."""
    (generation,) = generate(
        [PROMPTS[2]], 20, sampling=Sampling(seed=0, temperature=0.0, presence_penalty=1000.0)
    )
    assert len(set(generation.tokens)) == 20
    strong = Sampling(
        seed=0,
        temperature=0.0,
        repetition_penalty=1e6,
        logit_bias=tuple((token, 50.0) for token in range(97)),
    )
    (generation,) = generate([[1, 2]], 5, sampling=strong)
    assert generation.error == ""
