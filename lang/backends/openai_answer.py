"""Reads answers of the OpenAI API, whole or in chunks, and of servers that speak it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any
from zlib import crc32

import msgspec

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import BrokenAnswer, ContentFiltered, Refused
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Text, Tokens, counted
from sgl_actors.lang.backends.vendor_help import said, tool_text, unwrapped


class CalledFunction(msgspec.Struct, frozen=True):
    """What is new of a called function; some servers give its arguments as an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class Call(msgspec.Struct, frozen=True):
    """What is new of a call."""

    index: int | None = None
    function: CalledFunction = CalledFunction()


class Said(msgspec.Struct, frozen=True):
    """A message, or what is new in it."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class Top(msgspec.Struct, frozen=True):
    """A token that might have been written instead."""

    logprob: float


class Token(msgspec.Struct, frozen=True):
    """A token of a chat's log probabilities."""

    token: str
    logprob: float | None = None
    top_logprobs: list[Top] | None = None


class Logprobs(msgspec.Struct, frozen=True):
    """Of a chat (`content`), or of a completion. Offsets are those of the tokens in the choice's text."""

    content: list[Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    text_offset: list[int] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct, frozen=True):
    """A completion, or what is new of it. `stop_reason` and `matched_stop` are vLLM's and SGLang's: the stop string, or the token."""

    index: int = 0
    text: str | None = None
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    logprobs: Logprobs | None = None


class Details(msgspec.Struct, frozen=True):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Body(msgspec.Struct, frozen=True):
    """An answer, or a chunk of one."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    model: str | None = None


class Answer:
    """Takes the parts of an answer and makes its end.

    Args:
        title: of the model, for messages.
        ask: what was asked.
        wrapped: see `openai_request.wrapped`.
        key: is kept out of messages.
    """

    def __init__(self, title: str, ask: Ask, wrapped: str, key: str) -> None:
        self._title, self._ask, self._wrapped, self._key = title, ask, wrapped, key
        self._choices = [_Choice() for _ in range(ask.count)]
        self._usage: Tokens | None = None
        self._model = ""
        self._shown = 0

    def __repr__(self) -> str:
        return f"<Answer of {self._title}, {self._shown} characters shown>"

    def feed(self, data: object) -> Text | None:
        """A whole answer, or a chunk: what is to be shown of it.

        Raises:
            BrokenAnswer: it is none.
        """
        try:
            body = msgspec.convert(data, Body)
        except msgspec.ValidationError as error:
            words = said(data, self._key) if isinstance(data, str) else str(error)
            raise self._broken(f"is none of the API's: {words}") from None
        for choice in body.choices or ():
            if not 0 <= choice.index < len(self._choices):
                raise self._broken(f"has a completion {choice.index}, {self._ask.count} were asked for")
            self._choices[choice.index].take(choice)
        self._model = body.model or self._model
        used = None if body.usage is None else _tokens(body.usage)
        self._usage = used or self._usage
        text = self._show(self._visible())
        return Text(text, used) if text or used else None

    def end(self) -> End:
        """All of it.

        Raises:
            BrokenAnswer: it is cut off.
            Refused, ContentFiltered: there is none.
        """
        for choice in self._choices:
            self._check(choice)
        completions = tuple(self._completion(choice) for choice in self._choices)
        used = self._usage or Tokens()
        scores, scored = self._scores(used.prompt) if self._ask.score else ((), ())
        return End(completions, used, scores, scored, self._model)

    def rest(self, end: End) -> str:
        """What was not shown of the first completion."""
        return self._show(end.completions[0].text)

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        self._shown += len(new)
        return new

    def _visible(self) -> str:
        if self._ask.tools or self._ask.score or self._wrapped == "json":
            return ""
        text = self._choices[0].text
        return unwrapped(text) if self._wrapped else text

    def _check(self, choice: _Choice) -> None:
        if choice.refusal:
            raise Refused(f"{self._title} refused: {said(choice.refusal, self._key)}; change the prompt")
        if choice.finish == "content_filter":
            raise ContentFiltered(f"{self._title}: the provider filtered the answer; change the prompt")
        if choice.finish in {"", "error", "abort"}:
            raise self._broken("broke off; it is asked again")

    def _completion(self, choice: _Choice) -> Completion:
        text, length = choice.text, choice.finish == "length"
        if self._ask.score:
            text = text.removeprefix(self._ask.text or "") if self._ask.sampling.max_tokens else ""
        elif self._ask.tools:
            text = self._called(choice, length=length)
        elif self._wrapped:
            text = self._unwrapped(text, length=length)
        finish = Finish("length") if length else Finish("stop", choice.matched)
        known = self._usage.prompt if self._ask.score and self._usage else 0
        tokens, entries = choice.tokens[known:], choice.entries[known:]
        if not self._ask.logprobs or self._ask.tools or self._wrapped:
            tokens, entries = [], []
        return Completion(text, finish, tuple(entries), tuple(tokens))

    def _called(self, choice: _Choice, *, length: bool) -> str:
        """Of a cut call as much as there is, so that the asker sees where it was cut."""
        if not choice.calls and not length:
            raise self._broken(f"was to call a function, and says {said(choice.text, self._key)!r}")
        try:
            return tool_text(
                [(name, json.loads(arguments or "{}")) for name, arguments in choice.calls.values()]
            )
        except ValueError as error:
            if length:
                return "".join(
                    f'[{{"tool": {json.dumps(n)}, "arguments": {a}' for n, a in choice.calls.values()
                )
            raise self._broken(f"calls a function with what is no JSON ({error})") from None

    def _unwrapped(self, text: str, *, length: bool) -> str:
        try:
            value = json.loads(text)["value"]
        except (ValueError, KeyError, TypeError):
            if length:
                return unwrapped(text)
            raise self._broken(
                f"had to be an object with a value, and is {said(text, self._key)!r}"
            ) from None
        return str(value) if self._wrapped == "text" else json.dumps(value, ensure_ascii=False)

    def _scores(self, prompt: int) -> tuple[tuple[TokenLogprob, ...], tuple[str, ...]]:
        choice, text = self._choices[0], self._ask.text or ""
        tokens, entries = choice.tokens[:prompt], choice.entries[:prompt]
        if not tokens:
            raise self._broken("has no log probabilities of the prompt")
        borders = [*choice.offsets[:prompt], len(text)]
        if len(borders) > len(tokens) and borders[0] == 0 and borders == sorted(borders):
            # a token's label may stand for half a character, a slice of the text does not
            tokens = [text[start:end] for start, end in pairwise(borders)]
        ids = [crc32(label.encode(errors="surrogatepass")) for label in choice.tokens[:prompt]]
        scores = tuple(TokenLogprob(one, entry.logprob) for one, entry in zip(ids, entries, strict=False))
        return scores, tuple(tokens)

    def _broken(self, why: str) -> BrokenAnswer:
        return BrokenAnswer(f"{self._title}: the answer {why}")


class _Choice:
    """What there is of one completion; called functions by their index, as name and arguments."""

    def __init__(self) -> None:
        self.text = self.refusal = self.finish = ""
        self.matched: int | str | None = None
        self.calls: dict[int, tuple[str, str]] = {}
        self.tokens: list[str] = []
        self.offsets: list[int] = []
        self.entries: list[TokenLogprob] = []

    def take(self, choice: Choice) -> None:
        """More of it."""
        message = choice.message or choice.delta or Said()
        self.text += choice.text or message.content or ""
        self.refusal += message.refusal or ""
        self.finish = choice.finish_reason or self.finish
        if choice.stop_reason is not None or choice.matched_stop is not None:
            self.matched = choice.matched_stop if choice.stop_reason is None else choice.stop_reason
        for number, call in enumerate(message.tool_calls or ()):
            self._call(number if call.index is None else call.index, call.function)
        if choice.logprobs is not None:
            self._logprobs(choice.logprobs)

    def _call(self, index: int, function: CalledFunction) -> None:
        name, arguments = self.calls.get(index, ("", ""))
        more = function.arguments or ""
        self.calls[index] = (
            function.name or name,
            arguments + (more if isinstance(more, str) else json.dumps(more)),
        )

    def _logprobs(self, logprobs: Logprobs) -> None:
        self.tokens += [one.token for one in logprobs.content or ()] + (logprobs.tokens or [])
        self.offsets += logprobs.text_offset or []
        for one in logprobs.content or ():
            tops = [top.logprob for top in one.top_logprobs or ()]
            self.entries.append(_entry(one.logprob, tops))
        others = logprobs.top_logprobs or []
        for place, value in enumerate(logprobs.token_logprobs or ()):
            tops = sorted(((place < len(others) and others[place]) or {}).values(), reverse=True)
            self.entries.append(_entry(value, tops))


def _entry(value: float | None, tops: list[float]) -> TokenLogprob:
    """A token's; APIs tell texts, no ids."""
    return TokenLogprob(-1, value, tuple((-1, top) for top in tops))


def _tokens(usage: Usage) -> Tokens:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return counted(usage.prompt_tokens or 0, cached or 0, usage.completion_tokens or 0)
