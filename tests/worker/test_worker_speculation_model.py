"""Speculative decoding on the default model, which repeats a text: fewer passes, the same output."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.worker.device import load_runner
from sgl_actors.actors.worker.messages import NewSequence, Options, Sampling, Step, Work
from sgl_actors.actors.worker.runner import ModelRunner
from tests.worker.harness import chat_ids, read_tokenizer

THREADS = 2
TEXT = "The old lighthouse stood at the edge of the cliff, and for 120 years its lamp had warned ships away from the rocks below."
TOKENS = 24


@pytest.fixture(scope="module")
def runner(gguf_path: Path) -> ModelRunner:
    made, info = load_runner(Options(str(gguf_path), threads=2), CacheOptions(pages=1024))
    if not info.deterministic:
        pytest.skip("the native kernels are not built: results may depend on how many tokens are run at once")
    ticks = count()
    made._clock = lambda: float(next(ticks))
    return made


def complete(
    runner: ModelRunner, prompt: list[int], sampling: Sampling, drafts: int
) -> tuple[list[int], int]:
    """`TOKENS` tokens, and in how many passes they came."""
    runner.reset(1)
    most = len(prompt) + TOKENS
    start = [NewSequence(1, prompt, len(prompt), 0, list(range(most)), sampling, most=most, drafts=drafts)]
    output: list[int] = []
    number = 0
    while len(output) < TOKENS:
        work = [Work(1, 1 if output else len(prompt))]
        (result,) = runner.execute(Step(1, number, [], start if not output else [], work)).results
        assert not result.error
        output += [result.token_id, *result.accepted]
        number += 1
    return output, number


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_the_output_is_the_same_in_fewer_passes(
    runner: ModelRunner, gguf_path: Path, temperature: float
) -> None:
    """Bit for bit, at a temperature too. The clock says that all passes take as long as each other, so that drafts pay."""
    prompt = chat_ids(read_tokenizer(gguf_path), f"Repeat this text word for word:\n\n{TEXT}")
    sampling = Sampling(seed=5, temperature=temperature, top_p=0.95, repetition_penalty=1.02)
    plain, passes = complete(runner, prompt, sampling, 0)
    assert passes == TOKENS
    before = runner.counters.accepted
    outputs = [complete(runner, prompt, sampling, 12) for _ in range(2)]
    assert [output for output, _ in outputs] == [plain] * 2
    assert runner.counters.accepted - before == sum(TOKENS - fewer for _, fewer in outputs)
    assert runner.counters.accepted > before
