"""Programs under a bound, against a stub server."""

from __future__ import annotations

import pytest

from sgl_actors.bench.client import Request, connect
from sgl_actors.bench.load import Ask, load, random_prompts, run_programs, shared_prompts
from tests.bench.stub import Stub, serving


def test_prompts_depend_on_the_seed_alone() -> None:
    """The same seed gives the same prompts, another one shares nothing with them."""
    one, two = random_prompts(4, 1), random_prompts(4, 2)
    assert one == random_prompts(4, 1)
    assert [len(prompt) for prompt in one] == [128] * 4
    assert len({tuple(prompt[:4]) for prompt in one + two}) == 8


def test_shared_prompts_share_their_beginning_alone() -> None:
    """One prefix, then tokens of their own; another seed has another prefix."""
    prompts = shared_prompts(3, 5, prefix=20, tokens=4)
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1
    assert len({tuple(prompt[20:]) for prompt in prompts}) == 3
    assert shared_prompts(1, 6, prefix=20)[0][:20] != prompts[0][:20]


async def test_a_load_of_prompts() -> None:
    """Every prompt is sent once, never more at a time than told, and all tokens are counted."""
    stub = Stub()
    prompts = random_prompts(7, 3)
    async with serving(stub) as url:
        result = await load(url, prompts, concurrency=3, tokens=5)
    probe, *asked = stub.bodies
    assert probe["max_tokens"] == 1
    assert sorted(body["prompt"] for body in asked) == sorted(prompts)
    assert all(body["ignore_eos"] and body["stream"] and body["model"] == "stub" for body in asked)
    assert stub.most <= 3
    assert result["requests"] == 7
    assert result["output_tok_per_s"] == pytest.approx(35 / result["seconds"], rel=0.05)
    assert result["ttft_ms_p50"] > 0
    assert (result["cached_tokens"], result["computed_tokens"]) == (7 * 4, 7 * 6)


async def test_a_program_goes_on_with_its_answers() -> None:
    """What it asks depends on what it heard, and everything that it asks is measured."""

    async def program(ask: Ask) -> None:
        first = await ask(Request("a", tokens=3))
        await ask(Request(f"a{first.text}", tokens=2))

    stub = Stub()
    async with serving(stub) as url, connect(url) as server:
        samples, seconds = await run_programs(server, [program] * 2, concurrency=1)
    assert [sample.tokens for sample in samples] == [3, 3, 2, 2]
    assert [body["prompt"] for body in stub.bodies[1:]] == ["a", "a", "axx", "axx"]
    assert stub.most == 1
    assert seconds > 0
