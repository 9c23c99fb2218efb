"""The real node over HTTP, as a user meets it."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

from sgl_actors.actors.node.record import NodeRecord

pytestmark = pytest.mark.model

MESSAGES = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture
async def http(node: NodeRecord) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=node.url, timeout=60)


async def served(http: httpx2.AsyncClient) -> str:
    name: str = (await http.get("/v1/models")).json()["data"][0]["id"]
    return name


async def test_chat_completion(http: httpx2.AsyncClient) -> None:
    """A chat answers with text, a finish reason and usage."""
    async with http:
        body = {"model": await served(http), "messages": MESSAGES, "max_tokens": 32, "temperature": 0}
        answer = (await http.post("/v1/chat/completions", json=body)).json()
        choice = answer["choices"][0]
        assert choice["message"]["content"].strip()
        assert choice["finish_reason"] in ("stop", "length")
        assert 0 < answer["usage"]["completion_tokens"] <= 32


async def test_second_time_is_cached_and_the_same(http: httpx2.AsyncClient) -> None:
    """The same prompt again comes from the cache but for its last page, with the same text."""
    async with http:
        prompt = "The cache must not change what a model says. " * 12
        body = {"text": prompt, "sampling_params": {"max_new_tokens": 24, "temperature": 0}}
        await http.post("/flush_cache")
        first = (await http.post("/generate", json=body)).json()
        second = (await http.post("/generate", json=body)).json()
        assert first["meta_info"]["cached_tokens"] < 16
        assert second["meta_info"]["cached_tokens"] >= second["meta_info"]["prompt_tokens"] - 1
        assert second["text"] == first["text"]
        assert second["output_ids"] == first["output_ids"]


async def test_stream_equals_the_whole(http: httpx2.AsyncClient) -> None:
    """The deltas of a stream put together are the text of the plain answer."""
    async with http:
        body = {"model": await served(http), "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
        whole = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"][
            "content"
        ]
        text = ""
        async with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        for line in lines[:-1]:
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                text += choice["delta"].get("content") or ""
        assert text == whole


async def test_seed_repeats(http: httpx2.AsyncClient) -> None:
    """The same seed gives the same text at temperature 1; other seeds give others."""
    async with http:
        body = {"model": await served(http), "prompt": "Once upon a time", "max_tokens": 16, "temperature": 1}

        async def say(seed: int) -> str:
            text: str = (await http.post("/v1/completions", json=body | {"seed": seed})).json()["choices"][0][
                "text"
            ]
            return text

        texts = await asyncio.gather(*(say(seed) for seed in (1, 1, 2, 3)))
        assert texts[0] == texts[1]
        assert len(set(texts)) > 1


async def test_many_at_once(http: httpx2.AsyncClient) -> None:
    """Requests of different lengths that share steps each get their own answer, the same as alone."""
    async with http:
        prompts = [f"Count from {n}: {n}, {n + 1}, {n + 2}," for n in range(1, 13)]

        async def ask(prompt: str, tokens: int) -> str:
            body = {"text": prompt, "sampling_params": {"max_new_tokens": tokens, "temperature": 0}}
            text: str = (await http.post("/generate", json=body)).json()["text"]
            return text

        together = await asyncio.gather(*(ask(prompt, 4 + n) for n, prompt in enumerate(prompts)))
        await http.post("/flush_cache")
        alone = [await ask(prompt, 4 + n) for n, prompt in enumerate(prompts)]
        assert together == alone


async def test_too_long(http: httpx2.AsyncClient) -> None:
    """A prompt over the context is refused with both numbers and nothing is truncated."""
    async with http:
        body = {"model": await served(http), "prompt": [100] * 9000, "max_tokens": 10}
        response = await http.post("/v1/completions", json=body)
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["code"] == "context_length_exceeded"
        assert "9000" in error["message"] or "9010" in error["message"]
        assert "8192" in error["message"]


async def test_disconnect_frees(http: httpx2.AsyncClient, node: NodeRecord) -> None:
    """A client that goes away stops its generation: the cache can be flushed soon after, long before it would have ended."""
    async with http:
        body = {
            "text": "Tell a very long story.",
            "stream": True,
            "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True},
        }
        async with http.stream("POST", "/generate", json=body) as response:
            async for _ in response.aiter_lines():
                break
        async with asyncio.timeout(20):
            while (await http.post("/flush_cache")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_metrics(http: httpx2.AsyncClient) -> None:
    """The metrics page counts requests and tokens."""
    async with http:
        text = (await http.get("/metrics")).text
        assert "sgl_actors_" in text
        assert "generation_tokens_total" in text
