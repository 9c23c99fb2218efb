"""One choice of a request, put together from its chunks."""

from __future__ import annotations

from sgl_actors.actors.scheduler.messages import Decoding, Finish
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.actors.worker.messages import TokenLogprob


class Answer:
    """What one choice has so far.

    Only tokens that count are kept: after a stop string, those up to the one that completed it. The token that ended
    the output (end of text, stop id) counts and is kept, though it adds no text.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_ids: list[int] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.decoding = Decoding()
        self.finish: Finish | None = None
        self._text: list[str] = []

    def __repr__(self) -> str:
        return f"<Answer {self.index} tokens={len(self.token_ids)} finish={self.finish}>"

    @property
    def text(self) -> str:
        """All text so far."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended (stop, length, abort); None while it runs."""
        return None if self.finish is None else self.finish.reason

    def add(self, chunk: Chunk) -> None:
        """Append the next chunk."""
        if chunk.text:
            self._text.append(chunk.text)
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.prompt_ids = self.prompt_ids or chunk.prompt_ids
        self.prompt_logprobs = self.prompt_logprobs or chunk.prompt_logprobs
        self.prompt_tokens = chunk.prompt_tokens or self.prompt_tokens
        self.cached_tokens = max(self.cached_tokens, chunk.cached_tokens)
        self.completion_tokens = max(self.completion_tokens, chunk.completion_tokens)
        if chunk.decoding.steps:
            self.decoding = chunk.decoding
        if chunk.finish is not None:
            self.finish = chunk.finish
            del self.token_ids[self.completion_tokens :]
            del self.logprobs[self.completion_tokens :]
