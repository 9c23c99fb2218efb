"""Answers of Anthropic's API, read: whole ones, and the events of a stream."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.errors import BrokenAnswer, Refused
from sgl_actors.lang.backends.vendor import Ask, End, counted
from sgl_actors.lang.backends.vendor_help import said
from sgl_actors.lang.backends.writing import Writing


class Usage(msgspec.Struct):
    """Tokens, as far as they are told."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Details(msgspec.Struct):
    """Why the model refused."""

    explanation: str | None = None


class Block(msgspec.Struct):
    """Part of an answer, or what comes to it: a text, or a function's call."""

    type: str = ""
    text: str = ""
    name: str = ""
    input: Any = None
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Details | None = None


class Message(msgspec.Struct):
    """A whole answer; of a stream what it begins with."""

    content: list[Block]
    usage: Usage
    model: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Details | None = None


class Event(msgspec.Struct):
    """One of a stream, or of type "message" the whole answer."""

    type: str
    index: int = 0
    message: Message | None = None
    content_block: Block | None = None
    delta: Block | None = None
    usage: Usage | None = None


class Answer:
    """An answer, put together from its events."""

    def __init__(self, ask: Ask, lead: str, title: str) -> None:
        self.writing = Writing(ask, lead)
        self._title, self._model, self._over, self._thought = title, "", False, False
        self._stop: Block | Message = Block()
        self._usage: dict[str, int] = {}
        self._calls: dict[int, tuple[str, list[str]]] = {}

    def feed(self, event: Event) -> str:
        """One more event; text that may be shown now."""
        self._over = self._over or event.type in {"message", "message_stop"}
        self._use(event.usage)
        shown = ""
        if event.message is not None:
            self._model, self._stop = event.message.model, event.message
            self._use(event.message.usage)
            shown = "".join([self._begin(index, one) for index, one in enumerate(event.message.content)])
        if event.content_block is not None:
            shown = self._begin(event.index, event.content_block)
        if event.delta is not None:
            if event.type == "message_delta":
                self._stop = event.delta
            elif event.delta.type == "text_delta":
                shown = self.writing.add(event.delta.text)
            elif event.delta.type == "input_json_delta":
                self._calls.setdefault(event.index, ("", []))[1].append(event.delta.partial_json)
        return shown

    def end(self) -> End:
        """All of it.

        Raises:
            BrokenAnswer: it broke off.
            Refused: so the model did.
            InvalidRequest: see `Writing.completion`.
        """
        reason, details = self._stop.stop_reason, self._stop.stop_details
        if not self._over or reason is None:
            raise BrokenAnswer(f"{self._title}: the answer broke off; ask again")
        if reason == "refusal":
            words = (details.explanation if details else None) or self.writing.raw or "it gave no reason"
            raise Refused(
                f"{self._title}: the model refuses to answer ({said(words, '')}); change the prompt"
            )
        length = reason in {"max_tokens", "model_context_window_exceeded"}
        for name, parts in self._calls.values():
            if not length:
                self.writing.called.append((name, json.loads("".join(parts) or "{}")))
        finish = Finish("length") if length else Finish("stop", self._stop.stop_sequence)
        used = self._usage
        cached = used.get("cache_read_input_tokens", 0)
        prompt = used.get("input_tokens", 0) + cached + used.get("cache_creation_input_tokens", 0)
        tokens = counted(prompt, cached, used.get("output_tokens", 0))
        whole = self.writing.completion(self._title, finish, thought=self._thought)
        return End((whole,), tokens, model=self._model)

    def _begin(self, index: int, block: Block) -> str:
        self._thought = self._thought or "thinking" in block.type
        if block.type == "tool_use":
            self._calls[index] = (block.name, [json.dumps(block.input)] if block.input else [])
        return self.writing.add(block.text) if block.text else ""

    def _use(self, usage: Usage | None) -> None:
        """Later numbers are of the whole answer so far."""
        if usage is not None:
            self._usage |= {
                name: number for name, number in msgspec.structs.asdict(usage).items() if number is not None
            }
