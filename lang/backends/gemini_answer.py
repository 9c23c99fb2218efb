"""Answers of Gemini's API, read: whole ones, and the parts of a stream, which look the same."""

from __future__ import annotations

from typing import Any, Final

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import BrokenAnswer, ContentFiltered, Forbidden
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Tokens, counted
from sgl_actors.lang.backends.vendor_help import said
from sgl_actors.lang.backends.writing import Writing

FINISHES: Final = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}
FILTERED: Final = {
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "ESCALATION",
    "MODEL_ARMOR",
}


class Answer:
    """An answer, put together from its parts.

    Attributes:
        writings: its completions.
        used: tokens so far; None if it has not said so.
    """

    def __init__(self, ask: Ask, title: str) -> None:
        self.writings = [Writing(ask) for _ in range(ask.count)]
        self.used: Tokens | None = None
        self._title, self._model, self._thought = title, "", False
        self._finishes: list[tuple[str, str]] = [("", "")] * ask.count
        self._logprobs: list[list[tuple[TokenLogprob, str]]] = [[] for _ in range(ask.count)]

    def feed(self, chunk: Any) -> str:
        """One more part; text of the first completion that may be shown now.

        Raises:
            ContentFiltered: the prompt was not let through.
        """
        feedback = chunk.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            words = said(feedback.block_reason_message or "", "")
            raise ContentFiltered(
                f"{self._title}: the prompt was filtered: {feedback.block_reason.value} {words}".rstrip()
                + "; change it"
            )
        self._model = chunk.model_version or self._model
        self._use(chunk.usage_metadata)
        shown = [self._add(candidate) for candidate in chunk.candidates or ()]
        return "".join(text for index, text in shown if index == 0)

    def end(self) -> End:
        """All of it.

        Raises:
            BrokenAnswer: it broke off, or the model failed.
            ContentFiltered: it was not let through.
            Forbidden: the account may not ask.
            InvalidRequest: see `Writing.completion`.
        """
        completions = tuple(map(self._completion, range(len(self.writings))))
        return End(completions, self.used or Tokens(), model=self._model)

    def _add(self, candidate: Any) -> tuple[int, str]:
        index = candidate.index or 0
        if not 0 <= index < len(self.writings):
            return index, ""
        writing, text = self.writings[index], ""
        for part in (candidate.content and candidate.content.parts) or ():
            if part.function_call is not None:
                writing.called.append((part.function_call.name or "", part.function_call.args or {}))
            elif part.text and not part.thought:
                text += writing.add(part.text)
        if candidate.finish_reason is not None:
            self._finishes[index] = (candidate.finish_reason.value, candidate.finish_message or "")
        if candidate.logprobs_result is not None:
            self._logprobs[index] += _logprobs(candidate.logprobs_result)
        return index, text

    def _completion(self, index: int) -> Completion:
        name, words = self._finishes[index]
        told = f"{name} {said(words, '')}".rstrip()
        if name in FILTERED:
            raise ContentFiltered(f"{self._title}: the answer was filtered: {told}; change the prompt")
        if name == "PUP_LIMITED_DISABLED":
            raise Forbidden(
                f"{self._title}: the account was limited for what it asked for ({told}); ask the provider"
            )
        if name not in FINISHES:
            raise BrokenAnswer(
                f"{self._title}: the answer broke off ({told or 'no reason given'}); ask again"
            )
        listed = self._logprobs[index]
        return self.writings[index].completion(
            self._title,
            Finish(FINISHES[name]),
            tuple(one for one, _ in listed),
            tuple(text for _, text in listed),
            thought=self._thought,
        )

    def _use(self, usage: Any) -> None:
        """Each part's numbers are of the whole answer so far."""
        if usage is not None:
            output = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
            prompt = (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0)
            self._thought = bool(usage.thoughts_token_count)
            self.used = counted(prompt, usage.cached_content_token_count or 0, output)


def _logprobs(result: Any) -> list[tuple[TokenLogprob, str]]:
    tops = [one.candidates or () for one in result.top_candidates or ()]
    return [
        (
            TokenLogprob(
                -1,
                chosen.log_probability,
                tuple((-1, one.log_probability) for one in (tops[index] if index < len(tops) else ())),
            ),
            chosen.token or "",
        )
        for index, chosen in enumerate(result.chosen_candidates or ())
    ]
