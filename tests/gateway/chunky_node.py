"""A fake node whose chunks the tokenizer's own code makes, of as many tokens as chance has it; so no two streams of a request are cut alike."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from sgl_actors.actors.scheduler.messages import Decoding, Finish, Update
from sgl_actors.actors.scheduler.messages import Sequence as Submitted
from sgl_actors.actors.tokenizer.generation import Generation
from sgl_actors.actors.tokenizer.messages import Chunk, Generate
from sgl_actors.actors.worker.messages import Logprobs, Sampling
from tests.gateway.fake_node import EOS, FakeNode, logprob, raw


class Bytes:
    """The fake node's vocabulary."""

    def bytes_of(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> list[bytes]:
        return [b"" if token == EOS and skip_special_tokens else raw(token) for token in ids]


class ChunkyNode(FakeNode):
    """Cuts by `random`, but where the asker wants a border."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def _match(self, namespace: str, prompt: list[int], start: int) -> int:
        """Who comes back for a request is told of the first one's cached tokens."""
        return 0

    async def _decode(
        self,
        request: Generate,
        prompt: list[int],
        most: int,
        first: Chunk,
        text: str,
    ) -> AsyncIterator[Chunk]:
        tokens, _, finish = self._output(request, prompt, most)
        finish = Finish("length") if isinstance(finish.matched, str) else finish
        sampling = Sampling(0, end_ids=(EOS, *request.sampling.stop_token_ids))
        logprobs = Logprobs(request.logprobs, request.top_logprobs)
        sequence = Submitted(request.id, prompt, most, sampling, logprobs)
        generation = Generation(cast("Any", Bytes()), sequence, request.sampling, request.known)
        position = 0
        while generation.finish is None:
            end = min(len(tokens), position + self.random.choice((1, 1, 2, 3, 8)))
            scores = [
                logprob(prompt + tokens[:index], tokens[index], request.top_logprobs)
                for index in range(position, end)
            ]
            over = finish if end == len(tokens) and (end == position or self.random.random() < 0.5) else None
            generation.update(
                Update(
                    request.id,
                    position,
                    tokens[position:end],
                    scores if request.logprobs else [],
                    first.prompt_logprobs if not position else [],
                    first.cached_tokens,
                    over,
                    Decoding(end, end),
                )
            )
            position = end
            while generation.has_news and (
                generation.pauses or generation.finish is not None or self.random.random() < 0.7
            ):
                chunk = generation.chunk()
                yield chunk
                if chunk.finish is not None:
                    return
