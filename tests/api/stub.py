"""One small server that speaks the APIs of OpenAI (and of Azure and compatible servers), Anthropic and Gemini, on loopback.

A test says what it answers (`Stub.script`) and reads what it was asked (`Stub.asked`). What it answers is the same for all three: a `Reply` (what the
model would write if nobody stopped it, and how its stream goes wrong), a `Fault` (an error's status), a body as it is, or a function of what was asked that gives
one of them.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sgl_actors.lang.backends.words import Words
from tests.api.replies import (
    CUT,
    DROPPED,
    ENDED,
    ERROR,
    HANG,
    MALFORMED,
    Answer,
    Asked,
    Fault,
    Protocol,
    Reply,
    Script,
    write,
)
from tests.api.stub_anthropic import AnthropicProtocol
from tests.api.stub_gemini import GeminiProtocol
from tests.api.stub_openai import OpenAIProtocol

__all__ = [
    "CUT",
    "DROPPED",
    "ENDED",
    "ERROR",
    "HANG",
    "MALFORMED",
    "Asked",
    "Fault",
    "Reply",
    "Stub",
    "build_app",
]


class Stub:
    """The server's state; `reset` before each test.

    Attributes:
        script: what is answered; of a list one after the other, and the last one from then on.
        asked: requests for completions so far.
        visited: paths of all requests.
        models: what `/v1/models` lists; None for a server without.
        locked: whether `/v1/models` wants another key.
        template: what `/tokenizer_info` and `/props` say; None for a server without.
        gone: set when a client leaves before its answer is through.
    """

    def __init__(self) -> None:
        self.url = ""
        self.gone = threading.Event()
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.script: Script = Reply()
        self.asked: list[Asked] = []
        self.visited: list[str] = []
        self.models: list[dict[str, Any]] | None = None
        self.locked = False
        self.template: dict[str, Any] | None = None
        self.words = Words()
        self.gone.clear()

    @property
    def body(self) -> dict[str, Any]:
        """Of the last request."""
        return self.asked[-1].body

    def answer(self, asked: Asked) -> Answer:
        """The script's answer to a request."""
        self.asked.append(asked)
        if isinstance(self.script, Reply | Fault | bytes):
            return self.script
        if callable(self.script):
            return self.script(asked)
        return self.script[min(len(self.asked), len(self.script)) - 1]


class _Told(Response):
    """An answer that goes wrong where its reply says."""

    def __init__(
        self, stub: Stub, chunks: list[bytes], reply: Reply | None, *, media_type: str, bad: bytes = b""
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._stub, self._chunks, self._reply, self._bad = stub, chunks, reply, bad

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        breaks = "" if self._reply is None else self._reply.breaks
        silent = self._reply is None
        if not silent:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for number, chunk in enumerate(self._chunks):
            if breaks and self._reply is not None and number == self._reply.after:
                rest = {CUT: chunk[: len(chunk) // 2], MALFORMED: b"data: {oh no\n\n", ERROR: self._bad}
                await self._send(send, rest.get(breaks, b""))
                break
            await self._send(send, chunk)
            await asyncio.sleep(0)
        if silent or breaks == HANG:
            while (await receive())["type"] != "http.disconnect":
                pass
        elif breaks != DROPPED:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        self._stub.gone.set()

    async def _send(self, send: Send, chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


def build_app(stub: Stub) -> Starlette:
    """The server."""

    def completions(protocol: Protocol) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            stub.visited.append(request.url.path)
            raw = Asked(
                request.url.path, dict(request.query_params), dict(request.headers), await request.json()
            )
            asked = protocol.read(raw)
            answer = stub.answer(asked)
            if isinstance(answer, bytes):
                return Response(
                    answer, media_type="text/event-stream" if asked.stream else "application/json"
                )
            if isinstance(answer, Fault):
                if not answer.status:
                    return _Told(stub, [], None, media_type="")
                return JSONResponse(protocol.error(answer), answer.status, answer.headers)
            written = write(asked, answer)
            gone = protocol.error(Fault(message="the model went away", code="overloaded_error"))
            if asked.stream:
                events = list(protocol.events(asked, written))
                return _Told(stub, events, answer, media_type="text/event-stream", bad=protocol.event(gone))
            body = json.dumps(protocol.whole(asked, written)).encode()
            step = max(len(body) // (answer.after + 1), 1)
            pieces = [body[at : at + step] for at in range(0, len(body), step)]
            bad = b"oh no" if answer.after else json.dumps(gone).encode()
            return _Told(stub, pieces, answer, media_type="application/json", bad=bad)

        return endpoint

    async def models(request: Request) -> Response:
        stub.visited.append(request.url.path)
        if stub.locked:
            return JSONResponse({"error": {"message": "bad key"}}, 401)
        if stub.models is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse({"object": "list", "data": stub.models})

    async def template(request: Request) -> Response:
        stub.visited.append(request.url.path)
        return JSONResponse(
            stub.template if stub.template is not None else {"detail": "Not Found"},
            404 if stub.template is None else 200,
        )

    async def tokenize(request: Request) -> Response:
        stub.visited.append(request.url.path)
        ids = stub.words.ids((await request.json())["prompt"])
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": 4096})

    openai, anthropic, gemini = (
        completions(one) for one in (OpenAIProtocol(), AnthropicProtocol(), GeminiProtocol())
    )
    return Starlette(
        routes=[
            Route("/v1/chat/completions", openai, methods=["POST"]),
            Route("/v1/completions", openai, methods=["POST"]),
            Route("/openai/deployments/{name}/chat/completions", openai, methods=["POST"]),
            Route("/openai/deployments/{name}/completions", openai, methods=["POST"]),
            Route("/v1/models", models),
            Route("/tokenizer_info", template),
            Route("/props", template),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/v1/messages", anthropic, methods=["POST"]),
            Route("/v1/models/{name}", gemini, methods=["POST"]),
        ]
    )
