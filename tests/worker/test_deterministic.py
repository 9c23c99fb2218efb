"""The promise of the native engine: a sequence's output depends on nothing but itself, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.checkpoint import Compute, load_native_model
from sgl_actors.actors.worker.messages import Logprobs, Sampling, Work
from sgl_actors.actors.worker.model.native_lm import NativeLM
from sgl_actors.kernels.cpu import native
from tests.worker.harness import Driver, Generation, make_runner, parity_prompts, read_tokenizer
from tests.worker.test_parity import check_parity

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")
COUNT = 6
EVERYTHING = Logprobs(output=True, top=3, prompt_start=0)


def load(path: Path, compute: Compute) -> NativeLM:
    return load_native_model(path, compute=compute, threads=2)


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> NativeLM:
    return load(gguf_path, "auto")


@pytest.fixture(scope="module")
def prompts(gguf_path: Path) -> list[list[int]]:
    """From 5 to 64 tokens, and one that is longer than a partition of the attention."""
    made = parity_prompts(read_tokenizer(gguf_path))
    return [prompt for prompt in made if len(prompt) <= 64][:5] + [
        prompt for prompt in made if 256 < len(prompt) < 450
    ][:1]


@pytest.fixture(scope="module")
def alone(model: NativeLM, prompts: list[list[int]]) -> list[Generation]:
    """Each prompt by itself in one pass, then token by token, on consecutive pages."""
    return [
        Driver(make_runner(model, tokens=len(prompt) + COUNT)).generate(
            [prompt], COUNT, sampling=sampling(index), logprobs=EVERYTHING
        )[0]
        for index, prompt in enumerate(prompts)
    ]


def sampling(index: int) -> Sampling:
    """Greedy and drawn ones."""
    return Sampling(seed=index, temperature=0.7 * (index % 2), top_p=0.9)


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_batch_chunks_and_pages_leave_every_bit(
    model: NativeLM, prompts: list[list[int]], alone: list[Generation], data: st.DataObject
) -> None:
    """Tokens and all log probabilities, of prompt and output, are those of the sequence alone."""
    chosen = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=6))
    runner = make_runner(
        model,
        tokens=sum(len(prompts[index]) + COUNT + 16 for index in chosen),
        page_size=data.draw(st.sampled_from([1, 16])),
    )
    together = Driver(runner, shuffle=data.draw(st.integers(0, 99))).generate(
        [prompts[index] for index in chosen],
        COUNT,
        sampling=[sampling(index) for index in chosen],
        logprobs=EVERYTHING,
        chunk=data.draw(st.sampled_from([1 << 20, 100, 33, 7])),
    )
    for index, generation in zip(chosen, together, strict=True):
        assert generation.tokens == alone[index].tokens
        assert generation.logprobs == alone[index].logprobs
        assert generation.prompt_logprobs == alone[index].prompt_logprobs


def test_a_cached_prefix_leaves_every_bit(
    model: NativeLM, prompts: list[list[int]], alone: list[Generation]
) -> None:
    """KV that another sequence wrote, in chunks of its own, serves as if it were computed anew."""
    for index in (4, 5):
        prompt, cached = prompts[index], len(prompts[index]) * 2 // 3
        driver = Driver(make_runner(model, tokens=2 * len(prompt) + 2 * COUNT), shuffle=3)
        first = driver.new(prompt, COUNT, sampling(index))
        begin = driver.step([Work(first.seq, 3, sample=False)], [first])
        assert not begin[first.seq].error
        driver.step([Work(first.seq, cached - 3, sample=False)])
        pages = first.pages[:cached] + driver.pages(len(prompt) - cached + COUNT)
        second = driver.new(
            prompt, COUNT, sampling(index), Logprobs(output=True, top=3), cached=cached, pages=pages
        )
        result = driver.step([Work(second.seq, len(prompt) - cached)], [second], [first.seq])[second.seq]
        tokens, logprobs = [result.token_id], [result.logprob]
        while len(tokens) < COUNT:
            result = driver.step([Work(second.seq, 1)])[second.seq]
            tokens.append(result.token_id)
            logprobs.append(result.logprob)
        assert (tokens, logprobs) == (alone[index].tokens, alone[index].logprobs)


def test_another_load_gives_the_same_bits(gguf_path: Path, model: NativeLM, prompts: list[list[int]]) -> None:
    """As after a restart; with one thread instead of two."""
    again = load_native_model(gguf_path, compute="auto", threads=1)
    one, two = (
        Driver(make_runner(which, tokens=len(prompts[4]) + COUNT)).generate(
            [prompts[4]], COUNT, logprobs=EVERYTHING
        )[0]
        for which in (model, again)
    )
    assert one == two


def test_fp32_is_transformers_greedy_output(gguf_path: Path, oracle: Any, prompts: list[list[int]]) -> None:
    """Native fp32: the same tokens and prompt scores, alone and in one batch."""
    fp32 = load(gguf_path, "fp32")
    assert len(check_parity(fp32, oracle, prompts[4:], COUNT)) <= 1
