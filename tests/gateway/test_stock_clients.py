"""Stock clients, unchanged, against the gateway on a loopback port."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import openai
import pytest

from tests.gateway.fake_node import FakeNode
from tests.gateway.stock_checks import CHECKS

SCRIPT = Path(__file__).with_name("sglang_script.py")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
async def test_openai(url: str, check: Callable[[openai.AsyncOpenAI, str], Awaitable[None]]) -> None:
    """The stock openai client finds all that it reads."""
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        await check(client, "fake")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
async def test_openai_with_a_key(
    url: str, check: Callable[[openai.AsyncOpenAI, str], Awaitable[None]]
) -> None:
    """It reads streams whose events have ids as it reads any."""
    headers = {"Idempotency-Key": str(check.__name__)}
    async with openai.AsyncOpenAI(
        base_url=url + "/v1", api_key="none", max_retries=0, default_headers=headers
    ) as client:
        await check(client, "fake")


async def test_openai_raises_mid_stream_errors(url: str) -> None:
    """An error event in the middle of a stream becomes the client's APIError."""
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="fake", prompt="<fail>", max_tokens=9, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_openai_closing_a_stream_aborts(url: str, node: FakeNode) -> None:
    """Closing the client's stream aborts the generation."""
    async with asyncio.timeout(10), openai.AsyncOpenAI(base_url=url + "/v1", api_key="none") as client:
        stream = await client.completions.create(model="fake", prompt="<hold>", max_tokens=9, stream=True)
        await node.holding.wait()
        await stream.close()
        await node.aborting.wait()
    assert node.running == 0


async def test_sglang(url: str) -> None:
    """The stock RuntimeEndpoint of SGLang works for gen, select by all methods, fork and join, streams and batches."""
    python = os.environ.get("SGLANG_PYTHON")
    if not python:
        pytest.skip("SGLANG_PYTHON names no interpreter with sglang==0.5.3.post3")
    process = await asyncio.create_subprocess_exec(
        python, str(SCRIPT), url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert found["model"] == "/models/fake.gguf"
    assert {found[name] for name in ("TokenLengthNormalized", "GreedyTokenSelection")} <= {
        "Paris",
        "Parsley",
        "Rome",
    }
