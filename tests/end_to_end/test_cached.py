"""Cached or not, the same: every parity prompt twice through a real node."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from sgl_actors.actors.node.models import resolve
from sgl_actors.actors.node.record import NodeRecord
from tests.worker.harness import parity_prompts, read_tokenizer

pytestmark = pytest.mark.model

PAGE_SIZE = 1
"""Of the default node.toml, which the node was started with."""


async def ask_twice(node: NodeRecord, prompts: list[list[int]], tokens: int) -> None:
    async with httpx2.AsyncClient(base_url=node.url, timeout=120) as http:
        for prompt in prompts:
            assert (await http.post("/flush_cache")).status_code == 200
            body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": tokens, "temperature": 0}}
            first, second = [(await http.post("/generate", json=body)).json() for _ in range(2)]
            assert first["meta_info"]["cached_tokens"] == 0
            assert second["meta_info"]["cached_tokens"] >= len(prompt) - PAGE_SIZE
            assert second["output_ids"] == first["output_ids"]


async def test_cached_or_not_the_same(node: NodeRecord) -> None:
    """Of each prompt, all but the last page comes from the cache the second time, with the same output."""
    prompts = parity_prompts(read_tokenizer(Path(resolve("smollm2").path)))
    await ask_twice(node, [prompt for prompt in prompts if len(prompt) <= 400][:6], 16)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_cached_or_not_the_same_for_twenty(node: NodeRecord) -> None:
    """The same for all twenty prompts, from 5 to 800 tokens, with 64 tokens of output."""
    await ask_twice(node, parity_prompts(read_tokenizer(Path(resolve("smollm2").path))), 64)
