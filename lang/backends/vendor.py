"""What every API backend is asked, and what it answers; the files beside this one say it in their vendor's words.

A vendor's SDK does the I/O and is imported only when a vendor is opened. A vendor never asks twice by itself, limits nothing and keeps no state but
what it has learnt of its model: that is `actors.api`'s part.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.lang.backends.capabilities import Capabilities


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request. Exactly one of text, messages; within what the model's `Capabilities` say.

    Attributes:
        text: prompt of a model that goes on with text.
        messages: a chat. Media stand in a message's `media`.
        continue_final: the last message is an assistant's and is to be gone on with (`PREFILL`).
        sampling: arguments; `max_tokens` None leaves it to the model, `constraint` is one it can follow. Stops beyond what the model takes are left out by
            the vendor; whoever asks cuts the text at all of them itself. `max_tokens` 0 with `score`: nothing is generated.
        count: completions.
        tools: functions of which it is to call one or more, as the JSON text of a list in the OpenAI API's form; "" for none.
        logprobs, top_logprobs: report log probabilities of what is generated, and of that many alternatives.
        score: report log probabilities of the prompt's tokens.
        stream: pieces are wanted as they come.
    """

    text: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    continue_final: bool = False
    sampling: SamplingOptions = SamplingOptions()
    count: int = 1
    tools: str = ""
    logprobs: bool = False
    top_logprobs: int = 0
    score: bool = False
    stream: bool = False


MOST_TOKENS: Final = 1 << 40
"""Of one request, more than which nobody believes."""


class Tokens(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request used: input tokens, those of them from the provider's cache, output tokens (hidden reasoning included)."""

    prompt: int = 0
    cached: int = 0
    output: int = 0


def counted(prompt: int, cached: int, output: int) -> Tokens:
    """What a provider says was used. Numbers that cannot be count for nothing: books and budgets that took them would be wrong for good.

    Example:
        >>> counted(10, 20, -3)
        Tokens(prompt=10, cached=10, output=0)
    """
    prompt, cached, output = (one if 0 <= one <= MOST_TOKENS else 0 for one in (prompt, cached, output))
    return Tokens(prompt, min(cached, prompt), output)


class Text(msgspec.Struct, frozen=True):
    """A piece of the answer (of several, the first one's), and what was used so far if the stream says so."""

    text: str
    used: Tokens | None = None


class Completion(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer, whole.

    Attributes:
        text: without the stop that ended it, whole otherwise. Of called tools the JSON array ``[{"tool": name, "arguments": {…}}, …]``.
        finish: "stop" (with the stop string if the API tells it) or "length".
        logprobs: of its tokens, if asked for; their ids are -1, for APIs tell texts.
        tokens: those texts.
    """

    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: tuple[str, ...] = ()


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of an answer: always the last event.

    Attributes:
        completions: as many as were asked for.
        used: tokens.
        scores, scored: if `score`: log probabilities of the prompt's tokens, and their texts, which add up to it. Their ids are equal for equal tokens, and
            no others' (-1 if that is not known).
        model: which model says it answered.
    """

    completions: tuple[Completion, ...]
    used: Tokens = Tokens()
    scores: tuple[TokenLogprob, ...] = ()
    scored: tuple[str, ...] = ()
    model: str = ""


Event: TypeAlias = Text | End


class Vendor(Protocol):
    """One model behind one API.

    Attributes:
        title: for messages, as "openai gpt-4o (chat)".
        capabilities: known once it is open; what a 400 teaches changes them.
    """

    title: str
    capabilities: Capabilities

    async def open(self) -> None:
        """Import the SDK (in a thread: it takes seconds), and find out what the model can do.

        Raises:
            ConfigError: the SDK is not installed (which extra brings it), there is no key, an option has no meaning.
        """

    def ask(self, ask: Ask, *, timeout: float) -> AsyncGenerator[Event, None]:
        """Ask once; `Text` pieces only with `stream`, then `End`. Closing the generator ends the request.

        Raises:
            Unauthorized, Forbidden: the key is wrong, or may not do that.
            ModelNotFound: there is no such model (any more).
            ContextLengthExceeded, InvalidRequest: the request is wrong.
            NoContinuation: the model does not go on with an assistant's turn; `capabilities` say so from here on.
            Overloaded: too many requests, or the provider has no room; `retry_after` if it said so.
            QuotaExceeded: nothing is left of what was paid for.
            NotReady: nothing answers, or with a status of 500 and more.
            DeadlineExceeded: nothing (more) came in time.
            BrokenAnswer: the answer is cut off, or is no JSON.
            Refused, ContentFiltered: the model, or the provider, does not want to answer.
        """

    async def template(self) -> tuple[str, Mapping[str, str]]:
        """The model's chat template (Jinja) and its special tokens by name, for a model that goes on with text; "" if nobody knows."""

    async def token_ids(self, text: str) -> list[int]:
        """Ids of a text, if `capabilities.tokenizer`."""

    async def close(self) -> None:
        """Close its connections."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a vendor is told; the part of `actors.api.messages.Options` that is about the API itself.

    Attributes:
        model: its name there.
        api: of "openai": "chat" or "completions".
        base_url: address of the API; "" for the vendor's own.
        key: it, not where it stands; "" for none.
        dialect: whose server speaks the protocol: "openai", "sgl-actors", "vllm", "sglang", "llama.cpp" or "other"; "" finds it out.
        azure_endpoint: of Azure.
        api_version: of Azure and Gemini.
        capabilities: what is to be taken for true of the model, by the names of `Capabilities`.
        headers: sent with every request.
        extra: fields of every request's body beyond what we know.
    """

    model: str
    api: str = "chat"
    base_url: str = ""
    key: str = ""
    dialect: str = ""
    azure_endpoint: str = ""
    api_version: str = ""
    capabilities: dict[str, Any] = {}
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Settings of {self.model}>"
