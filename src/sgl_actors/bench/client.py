"""One OpenAI-compatible server as its client: what it understands, and one streamed request.

Fields that are not everybody's (`ignore_eos`, token ids as a prompt, usage in a stream) are tried once, by `connect`, and left out where a server
refuses them.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from sgl_actors.bench.samples import Sample
from sgl_actors.errors import RemoteError

TIMEOUT = 600.0
SHOWN = 500
"""Most characters of an answer that an error repeats."""


class LoadError(RemoteError):
    """The server refused or failed a request: there is nothing to measure. The message has its answer."""

    code = "load_error"


@dataclass(frozen=True)
class Request:
    """One completion, greedy: of `prompt` (text or token ids), or of `messages` as a chat.

    Attributes:
        tokens: most output tokens; exactly as many where the server has `ignore_eos` and there is no `schema`.
        schema: JSON schema that the output has to fit.
    """

    prompt: str | list[int] = ""
    messages: tuple[Mapping[str, str], ...] = ()
    tokens: int = 64
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Dialect:
    """What a server understands beyond the common fields."""

    ignore_eos: bool = True
    stream_options: bool = True
    token_ids: bool = True

    def body(self, model: str, request: Request) -> dict[str, Any]:
        """The request's JSON."""
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": request.tokens,
            "temperature": 0,
            "stream": True,
        }
        if request.messages:
            body["messages"] = [dict(message) for message in request.messages]
        elif isinstance(request.prompt, list) and not self.token_ids:
            body["prompt"] = words(request.prompt)
        else:
            body["prompt"] = request.prompt
        if self.ignore_eos and request.schema is None:
            body["ignore_eos"] = True
        if self.stream_options:
            body["stream_options"] = {"include_usage": True}
        if request.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


DIALECTS = (
    Dialect(),
    Dialect(ignore_eos=False),
    Dialect(token_ids=False),
    Dialect(ignore_eos=False, token_ids=False),
    Dialect(ignore_eos=False, stream_options=False, token_ids=False),
)
"""In the order in which they are tried."""


def words(ids: list[int]) -> str:
    """A text of about as many tokens as there are `ids`, another one for other ids, for servers that take no token ids."""
    return " ".join("".join(chr(97 + (token // 26**place) % 26) for place in range(2)) for token in ids)


@dataclass(frozen=True)
class Server:
    """A connected server; `ask` follows one request."""

    client: httpx2.AsyncClient
    model: str
    dialect: Dialect = DIALECTS[0]

    async def ask(self, request: Request, clock: Callable[[], float] = time.perf_counter) -> Sample:
        """Send it and follow its stream to the end.

        Raises:
            LoadError: anything but a complete answer.
        """
        path = "/v1/chat/completions" if request.messages else "/v1/completions"
        sample = Sample(started=clock())
        body = self.dialect.body(self.model, request)
        async with self.client.stream("POST", path, json=body) as response:
            if response.status_code != httpx2.codes.OK:
                answer = (await response.aread()).decode(errors="replace")[:SHOWN]
                raise LoadError(f"{response.status_code} from {response.url}: {answer}")
            async for event in events(response.aiter_lines()):
                _note_usage(event, sample)
                if _has_output(event, sample):
                    sample.arrivals.append(clock())
        sample.ended = clock()
        sample.tokens = sample.tokens or len(sample.arrivals)
        return sample


def _note_usage(event: Mapping[str, Any], sample: Sample) -> None:
    """Token counts, as OpenAI words them; llama.cpp's server says in `timings` what it took from its cache."""
    usage, timings = event.get("usage") or {}, event.get("timings") or {}
    sample.tokens = int(usage.get("completion_tokens", sample.tokens))
    sample.prompt_tokens = int(usage.get("prompt_tokens", sample.prompt_tokens))
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
    if cached is not None:
        sample.cached_tokens = int(cached)
    elif usage and "prompt_tokens_details" in usage:
        sample.cached_tokens = 0


def _has_output(event: Mapping[str, Any], sample: Sample) -> bool:
    """Whether a chunk brings output, which is added to the text; one whose text is still held back counts, the opening of a chat does not."""
    found = False
    for choice in event.get("choices", ()):
        delta = choice.get("delta")
        text = choice.get("text") or "" if delta is None else (delta.get("content") or "")
        sample.text += text
        found |= bool(text) or (delta is None and choice.get("finish_reason") is None)
    return found


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to ``[DONE]``; comments and other fields are skipped (WHATWG HTML, 9.2.6)."""
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text = "\n".join(data)
            data.clear()
            if text == "[DONE]":
                return
            event = json.loads(text)
            if "error" in event:
                raise LoadError(f"the server ended a stream with {event['error']}")
            yield event


async def complete(
    client: httpx2.AsyncClient,
    model: str,
    prompt: list[int],
    tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Send one prompt to a server that understands everything, such as our own, and follow its stream."""
    return await Server(client, model).ask(Request(prompt, tokens=tokens), clock)


@asynccontextmanager
async def connect(
    url: str, *, connections: int = 1, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """A server for as long as the block runs, with the first model that it lists; asks for a token to find its `Dialect`.

    Raises:
        LoadError: it refuses every form of a request, or lists no model.
        httpx2.HTTPError: it cannot be reached.
    """
    # a kept connection may be one that the server has just closed
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=0)
    timeout = httpx2.Timeout(TIMEOUT)
    async with httpx2.AsyncClient(base_url=url, timeout=timeout, limits=limits, headers=headers) as client:
        answer = await client.get("/v1/models")
        if answer.status_code != httpx2.codes.OK:
            raise LoadError(f"{answer.status_code} from {answer.url}: {answer.text[:SHOWN]}")
        models = answer.json().get("data")
        if not models:
            raise LoadError(f"{answer.url} lists no model")
        yield await _probe(client, str(models[0]["id"]))


async def _probe(client: httpx2.AsyncClient, model: str) -> Server:
    refused: LoadError | None = None
    for dialect in DIALECTS:
        server = Server(client, model, dialect)
        try:
            await server.ask(Request([1000, 1001, 1002], tokens=1))
        except LoadError as error:
            refused = refused or error
        else:
            return server
    assert refused is not None
    raise refused
