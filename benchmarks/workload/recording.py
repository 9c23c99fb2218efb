"""A place where programs run that remembers every request they make."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from benchmarks.workload.optimum import Call
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.tokenizer.messages import Chunk, Generate


class Recorder(NodeClient):
    """Asks a node and adds each request to `calls`."""

    def __init__(self, context: Context, calls: list[Call]) -> None:
        super().__init__(context)
        self._calls = calls

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: object = None
    ) -> AsyncIterator[Chunk]:
        """See `NodeClient.generate`."""
        hint = request.sampling.max_tokens == 0 and request.prompt_logprobs_start < 0
        prompt = request.input_ids or []
        output: list[int] = []
        cached = 0
        chunks = cast("Any", super().generate(request, timeout=timeout, trace=trace, call=call))
        async with aclosing(chunks):
            async for chunk in chunks:
                prompt = prompt or chunk.prompt_ids
                output += chunk.token_ids
                cached = max(cached, chunk.cached_tokens)
                if chunk.finish is not None:
                    self._calls.append(Call(prompt, output, request.prompt_logprobs_start, cached, hint))
                yield chunk


def recording(endpoint: str, calls: list[Call]) -> Backend:
    """The node at that ZMQ address; requests are added to `calls` as they end."""

    async def opens() -> tuple[Any, Callable[[Context], NodeClient], bool]:
        return await join(endpoint), lambda context: Recorder(context, calls), True

    return Backend(opens, f"recorded {endpoint}")
