"""The load generator's statistics and its reading of streams, against a stub server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.serve import (
    LoadError,
    Sample,
    complete,
    events,
    load,
    percentile,
    random_prompts,
    ratios,
    summary,
)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1), share=st.floats(0, 1))
def test_percentiles_lie_among_the_values(values: list[float], share: float) -> None:
    """A percentile lies between least and greatest, grows with the share, and at the ends is them."""
    assert min(values) <= percentile(values, share) <= max(values)
    assert percentile(values, share / 2) <= percentile(values, share) + 1e-6
    assert (percentile(values, 0), percentile(values, 1)) == (min(values), max(values))


def test_percentiles_interpolate() -> None:
    """Between two values the share decides; of nothing it is 0."""
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([], 0.5) == 0.0


def test_summary() -> None:
    """Rates are per second of the whole run; first tokens count from the sending, gaps from chunk to chunk."""
    samples = [Sample(0.0, [0.1, 0.2, 0.4], 3, 0.4), Sample(1.0, [1.3], 5, 1.4), Sample(1.0)]
    assert summary(samples, 2.0) == {
        "requests": 3, "seconds": 2.0, "req_per_s": 1.5, "output_tok_per_s": 4.0, "ttft_ms_p50": 200.0,
        "ttft_ms_p99": 298.0, "itl_ms_p50": 150.0, "itl_ms_p99": 199.0,
    }  # fmt: skip


def test_ratios_are_of_medians() -> None:
    """One slow round does not move them."""
    rates = {
        "node@1": [10.0, 1.0, 12.0],
        "node@16": [40.0, 30.0, 500.0],
        "transformers@16": [20.0, 20.0, 1.0],
    }
    assert ratios(rates) == {"batching": 4.0, "over_transformers": 2.0}


def test_prompts_depend_on_the_seed_alone() -> None:
    """The same seed gives the same prompts, another one shares nothing with them."""
    one, two = random_prompts(4, 1), random_prompts(4, 2)
    assert one == random_prompts(4, 1)
    assert [len(prompt) for prompt in one] == [128] * 4
    assert len({tuple(prompt[:4]) for prompt in one + two}) == 8


async def lines(text: str) -> AsyncIterator[str]:
    for line in text.split("\n"):
        yield line


async def test_events_of_a_stream() -> None:
    """Comments, other fields and what follows [DONE] are skipped; data over several lines is one object; spaces are optional."""
    text = ': ping\n\nid: 1\ndata: {"a": 1}\n\ndata:{"b":\ndata: 2}\n\n\ndata: [DONE]\n\ndata: {"c": 3}\n\n'
    assert [event async for event in events(lines(text))] == [{"a": 1}, {"b": 2}]


async def test_an_error_in_a_stream_ends_the_run() -> None:
    """A server that fails half-way is not measured."""
    with pytest.raises(LoadError, match="boom"):
        _ = [event async for event in events(lines('data: {"error": "boom"}\n\n'))]


class Stub:
    """Answers every completion with as many tokens as asked, one chunk each, and notes what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most = 0
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"data": [{"id": "stub"}]})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if body["prompt"] == [0]:
            return JSONResponse({"error": {"message": "no such token"}}, 400)
        return StreamingResponse(self.chunks(body["max_tokens"]), media_type="text/event-stream")

    async def chunks(self, count: int) -> AsyncIterator[str]:
        self.running += 1
        self.most = max(self.most, self.running)
        for n in range(count):
            yield self.event([{"text": "" if n == 0 else "x", "finish_reason": None}])
            await asyncio.sleep(0)
        yield self.event([{"text": "", "finish_reason": "length"}])
        yield self.event([], {"completion_tokens": count})
        yield "data: [DONE]\n\n"
        self.running -= 1

    def event(self, choices: list[Any], usage: dict[str, int] | None = None) -> str:
        return f"data: {json.dumps({'choices': choices, 'usage': usage})}\n\n"


@pytest.fixture
async def stub() -> AsyncIterator[tuple[Stub, str]]:
    """A stub server on a free port, and its URL."""
    stub = Stub()
    server = uvicorn.Server(uvicorn.Config(stub.app, port=0, log_level="warning", ws="none", lifespan="off"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        async with asyncio.timeout(5):
            while not server.started:
                await asyncio.sleep(0)
        yield stub, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True


async def test_a_load_of_prompts(stub: tuple[Stub, str]) -> None:
    """Every prompt is sent once, never more at a time than told, and all tokens are counted."""
    server, url = stub
    prompts = random_prompts(7, 3)
    result = await load(url, prompts, concurrency=3, tokens=5)
    assert sorted(body["prompt"] for body in server.bodies) == sorted(prompts)
    assert all(body["ignore_eos"] and body["stream"] and body["model"] == "stub" for body in server.bodies)
    assert server.most <= 3
    assert result["requests"] == 7
    assert result["output_tok_per_s"] == pytest.approx(35 / result["seconds"], rel=0.05)
    assert result["ttft_ms_p50"] > 0


async def test_chunks_with_output_are_arrivals(stub: tuple[Stub, str]) -> None:
    """A chunk whose text is still held back counts, the finishing and the usage chunk do not."""
    ticks = iter(range(100))
    async with httpx2.AsyncClient(base_url=stub[1]) as client:
        sample = await complete(client, "stub", [1, 2], 4, clock=lambda: float(next(ticks)))
    assert (sample.started, sample.arrivals, sample.ended, sample.tokens) == (
        0.0,
        [1.0, 2.0, 3.0, 4.0],
        5.0,
        4,
    )


async def test_a_refused_request_ends_the_run(stub: tuple[Stub, str]) -> None:
    """An error is shown, not measured."""
    async with httpx2.AsyncClient(base_url=stub[1]) as client:
        with pytest.raises(LoadError, match="no such token"):
            await complete(client, "stub", [0], 4)
