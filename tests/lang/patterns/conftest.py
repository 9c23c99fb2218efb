"""What all patterns are tried on: a fake node whose answers, failures and log probabilities the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs.runtime import Backend
from sgl_actors.actors.tokenizer.messages import Chunk, Generate
from sgl_actors.actors.worker.messages import TokenLogprob
from tests.programs.fakes import FakeClient, backend_of


class ScoredClient(FakeClient):
    """Reports for each piece of an answer what `scored(piece)` says, if log probabilities are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: Callable[[str], float] = lambda piece: -1.0

    async def generate(self, request: Generate, **more: Any) -> AsyncIterator[Chunk]:
        async with aclosing(cast("Any", super().generate(request, **more))) as chunks:
            async for chunk in chunks:
                if request.logprobs and chunk.text:
                    entry = TokenLogprob(len(chunk.text), self.scored(chunk.text))
                    yield msgspec.structs.replace(chunk, logprobs=[entry])
                else:
                    yield chunk

    def gens(self) -> list[str]:
        """Prompts of the gens that arrived, in order."""
        pairs = zip(self.calls, self.prompts, strict=True)
        return [prompt for call, prompt in pairs if call.kind == "gen"]

    async def quiet(self) -> None:
        """Until nothing is being generated: what was cancelled has ended."""
        async with asyncio.timeout(10):
            while self.running:
                await asyncio.sleep(0)


@pytest.fixture
def client() -> ScoredClient:
    return ScoredClient()


@pytest.fixture
async def backend(client: ScoredClient) -> AsyncIterator[Backend]:
    async with backend_of(client) as backend:
        yield backend


Runs = Callable[..., Any]


@pytest.fixture
def run(backend: Backend) -> Runs:
    """Run a body as a program."""

    async def runs(body: Any, **options: Any) -> sgl.FinishedState:
        return await sgl.function(body).run(**options)

    return runs


def in_turn(*answers: Any) -> Callable[[str, Generate], Any]:
    """The answers, one per request in order of arrival."""
    left = iter(answers)
    return lambda prompt, request: next(left)
