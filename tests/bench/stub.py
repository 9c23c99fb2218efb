"""A server that answers every completion with as many chunks as tokens were asked for, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

USAGE = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}


class Stub:
    """An OpenAI-compatible server.

    Attributes:
        refuses: fields of a body that it answers with 400; "ids" for token ids as a prompt.
        bodies: what it was asked.
        most: requests at a time.
    """

    def __init__(self, *, refuses: tuple[str, ...] = ()) -> None:
        self.refuses = refuses
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most = 0
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.completions, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"data": [{"id": "stub"}]})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        refused = [name for name in self.refuses if name in body]
        if "ids" in self.refuses and isinstance(body.get("prompt"), list):
            refused.append("ids")
        if refused or body.get("prompt") == [0]:
            return JSONResponse({"error": {"message": f"no such thing: {refused}"}}, 400)
        self.bodies.append(body)
        return StreamingResponse(self.chunks(body), media_type="text/event-stream")

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.running += 1
        self.most = max(self.most, self.running)
        chat = "messages" in body
        if chat:
            yield self.event([{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for n in range(body["max_tokens"]):
            text = {"delta": {"content": "x"}} if chat else {"text": "" if n == 0 else "x"}
            yield self.event([text | {"finish_reason": None}])
            await asyncio.sleep(0)
        yield self.event(
            [{"delta": {}, "finish_reason": "length"} if chat else {"text": "", "finish_reason": "length"}]
        )
        if "stream_options" in body:
            yield self.event([], {"completion_tokens": body["max_tokens"]} | USAGE)
        yield "data: [DONE]\n\n"
        self.running -= 1

    def event(self, choices: list[Any], usage: dict[str, Any] | None = None) -> str:
        return f"data: {json.dumps({'choices': choices, 'usage': usage})}\n\n"


@asynccontextmanager
async def serving(stub: Stub) -> AsyncIterator[str]:
    """The stub on a free port for as long as the block runs; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(stub.app, port=0, log_level="warning", ws="none", lifespan="off"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        async with asyncio.timeout(5):
            while not server.started:
                await asyncio.sleep(0)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
