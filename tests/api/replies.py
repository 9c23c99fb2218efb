"""What the stub server answers, in no API's words, and what an API's words for it are made by (`Protocol`)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.backends.words import TOKEN
from sgl_actors.lang.stops import find_stop

HANG, CUT, ENDED, DROPPED, MALFORMED, ERROR = "hang", "cut", "ended", "dropped", "malformed", "error"


@dataclass(frozen=True)
class Reply:
    """What the model writes. The stub cuts it as the API would: at the first stop of the request, and at its limit of tokens (words, more or less).

    Attributes:
        texts: one per completion; the last one stands for all further ones.
        tools: called functions: name, arguments.
        refusal: the model's words when it refuses.
        finish: why it ended, in the API's own word; "" for what the text says ("stop" or the limit).
        prompt, cached, output: tokens; -1 counts them.
        logprobs: by token; others have -0.5.
        breaks: how it goes wrong after `after` events (an answer that is no stream: in its middle). HANG: nothing more comes. CUT: the body ends in the
            middle of an event. ENDED: it ends between two events. DROPPED: the connection breaks. MALFORMED: an event is no JSON. ERROR: an event is an error
            (an answer that is no stream: with `after` 0 all of it is one).
    """

    texts: tuple[str, ...] = ("Paris",)
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    refusal: str = ""
    finish: str = ""
    prompt: int = -1
    cached: int = 0
    output: int = -1
    logprobs: dict[str, float] = field(default_factory=dict)
    breaks: str = ""
    after: int = 2


@dataclass(frozen=True)
class Fault:
    """An error: its status, message, code (of Anthropic its type, of Gemini its status) and headers. Status 0: no answer until the client goes."""

    status: int = 0
    message: str = "that went wrong"
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request. What all three have in common is read from the body by the protocol's section below."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]
    prompt: str = ""
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    count: int = 1
    stream: bool = False


Answer: TypeAlias = Reply | Fault | bytes
Script: TypeAlias = Answer | Sequence[Answer] | Callable[[Asked], Answer]


@dataclass(frozen=True)
class Written:
    """One completion as it goes out; `finish` is "stop", "length" or what the reply says; `matched` the stop string."""

    text: str
    finish: str
    matched: str
    tools: tuple[tuple[str, dict[str, Any]], ...]
    reply: Reply

    @property
    def tokens(self) -> list[str]:
        """Its tokens: words, more or less."""
        return TOKEN.findall(self.text)


class Protocol(ABC):
    """How one API says all that. `reply` is asked about by `Written`s, one per completion."""

    @abstractmethod
    def read(self, asked: Asked) -> Asked:
        """What is asked for."""

    @abstractmethod
    def whole(self, asked: Asked, written: list[Written]) -> dict[str, Any]:
        """The answer in one piece."""

    @abstractmethod
    def events(self, asked: Asked, written: list[Written]) -> Iterator[bytes]:
        """The answer's events, the end marker included."""

    @abstractmethod
    def error(self, fault: Fault) -> dict[str, Any]:
        """An error's body."""

    def event(self, data: dict[str, Any]) -> bytes:
        """A server-sent event."""
        return b"data: " + json.dumps(data).encode() + b"\n\n"


def text_of(message: dict[str, Any]) -> str:
    """A message's text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def usage_of(asked: Asked, written: list[Written]) -> tuple[int, int, int]:
    """Tokens of the prompt, those of them from the cache, tokens of the answers."""
    reply = written[0].reply
    prompt = reply.prompt if reply.prompt >= 0 else len(TOKEN.findall(asked.prompt))
    output = reply.output if reply.output >= 0 else sum(len(one.tokens) for one in written)
    return prompt, reply.cached, output


def write(asked: Asked, reply: Reply) -> list[Written]:
    """The completions, cut where the request says."""
    texts = [reply.texts[min(index, len(reply.texts) - 1)] for index in range(asked.count)]
    return [_cut(asked, reply, text) for text in texts]


def _cut(asked: Asked, reply: Reply, text: str) -> Written:
    stop = find_stop(text, SamplingOptions(stop=asked.stops))
    kept = text if stop is None else text[: stop.keep]
    tokens = TOKEN.findall(kept)
    short = asked.max_tokens is not None and len(tokens) > asked.max_tokens
    kept = "".join(tokens[: asked.max_tokens]) if short else kept
    matched = stop.matched if stop and not short else ""
    return Written(kept, reply.finish or ("length" if short else "stop"), matched, reply.tools, reply)
