"""Stock clients, unchanged, against the real node."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import openai
import pytest

from sgl_actors.actors.node.record import NodeRecord
from tests.gateway.stock_checks import CHECKS

pytestmark = pytest.mark.model

SCRIPT = Path(__file__).parent.parent / "gateway" / "sglang_script.py"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
async def test_openai(node: NodeRecord, check: Callable[[openai.AsyncOpenAI, str], Awaitable[None]]) -> None:
    """The stock openai client finds all that it reads."""
    async with openai.AsyncOpenAI(base_url=node.url + "/v1", api_key="none", max_retries=0) as client:
        served = (await client.models.list()).data[0].id
        await check(client, served)


async def test_sglang(node: NodeRecord) -> None:
    """The stock RuntimeEndpoint of SGLang works for gen, select by all methods, fork and join, streams and batches."""
    python = os.environ.get("SGLANG_PYTHON")
    if not python:
        pytest.skip("SGLANG_PYTHON names no interpreter with sglang==0.5.3.post3")
    process = await asyncio.create_subprocess_exec(
        python, str(SCRIPT), node.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    assert json.loads(out.splitlines()[-1])["model"].endswith(".gguf")
