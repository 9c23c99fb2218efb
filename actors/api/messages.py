"""What an API model's actor understands and answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.backends.vendor import Ask, End
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.speculation import Part
from sgl_actors.lang.trace import Prices


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[actors."api/NAME".options]` of node.toml, and what `sgl.OpenAI(…)`, `sgl.Anthropic(…)` and `sgl.Gemini(…)` say.

    Attributes:
        provider: whose API: "openai" (and all that is compatible with it), "anthropic" or "gemini".
        model, api, base_url, dialect, azure_endpoint, api_version, capabilities, headers, extra: see `lang.backends.vendor.Settings`.
        key: ``"env:NAME"`` or ``"file:PATH"``; "none" for an API without keys; "" for the vendor's own variable ($OPENAI_API_KEY, …), which is sent to the
            vendor's own address only.
        concurrency: most requests at a time; more wait.
        queue: most requests that wait; more are refused with `Overloaded`.
        requests_per_minute, tokens_per_minute: limits that are kept on our side, at least 1; 0 for none.
        retries: most further tries of one request, where they help.
        timeout: seconds that one try may take.
        prices: of tokens.
        budget: for all programs together; `seconds` has no meaning here.
        chat_template: of a model that goes on with text: Jinja source, or "file:PATH"; "" asks the server.
    """

    provider: Literal["openai", "anthropic", "gemini"]
    model: str
    api: Literal["chat", "completions"] = "chat"
    base_url: str = ""
    key: str = ""
    dialect: str = ""
    azure_endpoint: str = ""
    api_version: str = ""
    capabilities: dict[str, Any] = {}
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    concurrency: int = 32
    queue: int = 16384
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    retries: int = 5
    timeout: float = 120.0
    prices: Prices | None = None
    budget: Budget = Budget()
    chat_template: str = ""


class AskModel(Message):
    """Stream of `Piece`s (with `live`), the last of them an `Answered`. Closing it ends the request.

    Attributes:
        id: of the request, for logs.
        ask: it.
        live: somebody reads while it is written: text that was handed out cannot be taken back, so a failure behind it is mended only by an answer
            that begins with the same text.
        follow: the template that the text has to follow, see `lang.speculation`; an answer that has left it, or is through with it, is not read any further
            if its tokens are counted as it goes.
        first: most tokens of its first slot: an answer that has written so many and is still there is not read any further either.
        program: id of the run.
    """

    id: str
    ask: Ask
    live: bool = False
    follow: tuple[Part, ...] = ()
    first: int | None = None
    program: str = ""


class Piece(Message):
    """More of the first completion's text."""

    text: str


class Answered(Message):
    """The end of an answer.

    Attributes:
        end: all of it, texts that came in pieces included.
        retries: tries that failed before.
        cost: by the price table, tries that failed included; 0 without one.
    """

    end: End
    retries: int = 0
    cost: float = 0.0


class DescribeApi(Message):
    """Call, answered by `ApiInfo` once the vendor is open."""


class ApiInfo(Message):
    """What is known of the model.

    Attributes:
        title: for messages.
        capabilities: as they are now.
        template, special_tokens: chat template and special tokens by name, of a model that goes on with text; "" if there is none.
        prices: of tokens.
    """

    title: str
    capabilities: Capabilities
    template: str = ""
    special_tokens: dict[str, str] = {}
    prices: Prices | None = None


class TokenizeText(Message):
    """Call, answered by `ApiTokens`: ids of a text."""

    text: str


class ApiTokens(Message):
    """Ids."""

    token_ids: list[int]
