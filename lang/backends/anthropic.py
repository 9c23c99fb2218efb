"""Anthropic's models, over its own SDK (`/v1/messages`)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2
import msgspec

from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.errors import (
    BrokenAnswer,
    ConfigError,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    NoContinuation,
    NotReady,
    SglActorsError,
)
from sgl_actors.lang.backends import vendor
from sgl_actors.lang.backends.anthropic_answer import Answer, Event, Message
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, Capabilities
from sgl_actors.lang.backends.vendor import Ask, Settings, Text
from sgl_actors.lang.backends.vendor_errors import failure, retry_after, timed
from sgl_actors.lang.backends.vendor_help import (
    as_base64,
    calls,
    cause_of,
    functions,
    load_sdk,
    overridden,
    pieces,
    plain_address,
    said,
    schema_of,
    wraps,
)
from sgl_actors.lang.backends.writing import stops_of
from sgl_actors.lang.constraints.constraint import CHOICE, REGEX, Constraint
from sgl_actors.lang.ir import Media

IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")
"""Media types that the API takes."""
LIMITS: Final = (("claude-3-7|claude-.*-4", 32_000), ("claude-3-5", 8192), ("claude-[23]|instant", 4096))
"""Tokens of an answer that the asker set no limit to, as the API wants one, by the model's name; `LIMIT` for others."""
LIMIT: Final = 64_000
_VERSION_4: Final = r"claude-4-|claude-[a-z]+-4"
_DATE: Final = r"(-latest|-\d{6,})?$"
_PREFILLED: Final = re.compile(rf"claude-[23]|claude-instant|({_VERSION_4})(-[015])?{_DATE}")
_NO_SCHEMA: Final = re.compile(rf"claude-[23]|claude-instant|({_VERSION_4})(-[01])?{_DATE}")
_SAMPLED: Final = re.compile(rf"claude-[23]|claude-instant|({_VERSION_4})(-[0156])?{_DATE}")
_NO_PREFILL: Final = re.compile(
    r"prefill|final assistant|(must end|ends?) with an? (user|assistant)", re.IGNORECASE
)
_TOO_LONG: Final = re.compile(r"prompt is too long|context (window|limit|length)", re.IGNORECASE)
_UNPAID: Final = re.compile(r"credit balance|billing", re.IGNORECASE)
_STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Of an error by its type: in mid-stream it has no status of its own."""


def capabilities_of(model: str) -> Capabilities:
    """What a model can do, by its name; an unknown one is taken for a new one.

    Newer ones do not go on with an assistant's turn (from 4.6 on) and take no temperature and the like (from 4.7 on); older ones follow no schema.
    """
    schema = not _NO_SCHEMA.search(model)
    return Capabilities(
        continuation=PREFILL if _PREFILLED.search(model) else NONE,
        stops=None,
        schema=schema,
        constraints=(CHOICE, REGEX) if schema else (),
        images=not re.search("claude-2|instant", model),
        tools=True,
        sampling=("temperature", "top_p", "top_k") if _SAMPLED.search(model) else (),
    )


class Anthropic:
    """A Claude model; see `lang.backends.vendor.Vendor`.

    System turns that a chat begins with are the request's `system`, later ones stand where they are. Stops of white space only are refused by the API, and not
    sent. A JSON schema is sent as the SDK writes it: what the API's dialect has no word for stands in descriptions, so that who asked has to check it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.title = f"anthropic {settings.model}"
        self.capabilities = capabilities_of(settings.model)
        self._sdk: Any = None
        self._client: Any = None

    def __repr__(self) -> str:
        return f"<{self.title}>"

    async def open(self) -> None:
        """See `Vendor`."""
        told = self.settings
        self.capabilities = overridden(self.capabilities, told.capabilities, self.title)
        if not told.key and not told.base_url:
            raise ConfigError(
                f'{self.title}: there is no key: set ANTHROPIC_API_KEY, or say key="env:NAME"', param="key"
            )
        self._sdk = await load_sdk("anthropic", "anthropic", self.title)
        self._client = self._sdk.AsyncAnthropic(
            api_key=told.key or "none",
            base_url=told.base_url or None,
            default_headers=told.headers,
            max_retries=0,
            http_client=self._sdk.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def close(self) -> None:
        """See `Vendor`."""
        if self._client is not None:
            await self._client.close()

    async def template(self) -> tuple[str, Mapping[str, str]]:
        """None: it goes on with no bare text."""
        return "", {}

    async def token_ids(self, text: str) -> list[int]:  # noqa: ARG002
        """Nobody knows them."""
        raise InvalidRequest(
            f"{self.title} tells no token ids; a model behind `/v1/completions` does", param="text"
        )

    async def ask(self, ask: Ask, *, timeout: float) -> AsyncGenerator[vendor.Event]:
        """See `Vendor`."""
        body, lead = self._body(ask)
        answer = Answer(ask, lead, self.title)
        try:
            async with aclosing(self._events(body, timeout)) as events:
                async for event in events:
                    piece = answer.feed(event)
                    if ask.stream and piece:
                        yield Text(piece)
            end = answer.end()
        except (
            self._sdk.APIError,
            httpx2.HTTPError,
            msgspec.MsgspecError,
            ValueError,
            RecursionError,
            TimeoutError,
        ) as error:
            raise self._failure(error, ask, timeout) from cause_of(error, self.settings.key)
        if ask.stream and (rest := answer.writing.rest(end.completions[0])):
            yield Text(rest)
        yield end

    async def _events(self, body: dict[str, Any], timeout: float) -> AsyncGenerator[Event]:
        """Events of the answer, or the one that is all of it."""
        deadline = asyncio.get_running_loop().time() + timeout
        async with asyncio.timeout_at(deadline):
            reply = await self._client.messages.create(**body, timeout=timeout)
        if not body["stream"]:
            yield Event("message", message=msgspec.convert(reply, Message, from_attributes=True))
            return
        try:
            async with aclosing(timed(aiter(reply), deadline)) as events:
                async for event in events:
                    yield msgspec.convert(event, Event, from_attributes=True)
        finally:
            await reply.close()

    def _body(self, ask: Ask) -> tuple[dict[str, Any], str]:
        """The request's body, and the white space that its last turn ends with: the API refuses it there."""
        sampling, extra = ask.sampling, dict(self.settings.extra)
        config = dict(extra.pop("output_config", {}))
        if sampling.constraint is not None:
            if ask.continue_final:
                raise NoContinuation(
                    f"{self.title} keeps a constraint only in an answer of its own, not where it goes on with a turn"
                )
            config["format"] = {"type": "json_schema", "schema": self._schema(sampling.constraint)}
        system, turns, lead = self._turns(ask)
        body = {
            "model": self.settings.model,
            "max_tokens": sampling.max_tokens or _limit(self.settings.model),
            "messages": turns,
            "stream": ask.stream,
            "extra_body": _sampling(sampling) | extra,
            "system": system,
            "stop_sequences": [stop for stop in stops_of(ask, self.capabilities.stops) if stop.strip()],
            "output_config": config,
            "tools": [
                {"name": one.name, "description": one.description, "input_schema": one.parameters}
                for one in functions(ask.tools)
            ],
            "tool_choice": {"type": "any"} if ask.tools else None,
        }
        return {name: value for name, value in body.items() if value not in ("", [], {}, None)}, lead

    def _schema(self, constraint: Constraint) -> dict[str, Any]:
        schema = schema_of(constraint)
        if wraps(constraint):
            return schema
        _refuse_open(schema, self.title)
        try:
            made: dict[str, Any] = self._sdk.transform_schema(schema)
        except (ValueError, TypeError, AttributeError, AssertionError) as error:
            raise InvalidRequest(
                f"{self.title} does not take the JSON schema: {error}", param="constraint"
            ) from error
        return made

    def _turns(self, ask: Ask) -> tuple[str, list[dict[str, Any]], str]:
        """System prompt, turns, and the white space at the end of a turn that is gone on with."""
        messages = list(ask.messages or ())
        system: list[str] = []
        while messages and messages[0].role == "system" and not messages[0].media:
            system.append(messages.pop(0).content)
        lead = ""
        if ask.continue_final and messages:
            last = messages.pop()
            kept = last.content.rstrip()
            lead = last.content[len(kept) :]
            messages.append(msgspec.structs.replace(last, content=kept))
        turns = [turn for turn in map(self._turn, messages) if turn["content"]]
        if not turns:
            raise InvalidRequest(
                f"{self.title} answers a user's turn; there is none that says anything", param="messages"
            )
        if not ask.continue_final and turns[-1]["role"] == "assistant":
            raise InvalidRequest(
                f"{self.title} answers a user's turn; the last one is an assistant's", param="messages"
            )
        return "\n\n".join(system), turns, lead

    def _turn(self, message: ChatMessage) -> dict[str, Any]:
        if message.role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
            return {"role": "user", "content": [result]}
        if message.role not in {"user", "assistant", "system"}:
            raise InvalidRequest(f"{self.title} knows no role {message.role!r}", param="messages")
        blocks = [
            {"type": "text", "text": one} if isinstance(one, str) else self._image(one)
            for one in pieces(message)
        ]
        blocks += [
            {"type": "tool_use", "id": one.id, "name": one.name, "input": one.arguments}
            for one in calls(message)
        ]
        bare = len(blocks) == 1 and blocks[0]["type"] == "text"
        return {"role": message.role, "content": message.content if bare else blocks}

    def _image(self, media: Media) -> dict[str, Any]:
        if media.media_type not in IMAGES:
            raise InvalidRequest(
                f"{self.title} looks at {', '.join(IMAGES)}, not at {media.media_type}", param="messages"
            )
        return {
            "type": "image",
            "source": {"type": "base64", "media_type": media.media_type, "data": as_base64(media)},
        }

    def _failure(self, error: Exception, ask: Ask, timeout: float) -> SglActorsError:
        """What an error of the SDK means."""
        sdk, words = self._sdk, said(error, self.settings.key)
        if isinstance(error, sdk.APIStatusError):
            return self._refusal(error, ask)
        if isinstance(error, TimeoutError | httpx2.TimeoutException | sdk.APITimeoutError):
            return DeadlineExceeded(
                f"{self.title}: no (whole) answer within {timeout:g} s; ask again, or give it more time"
            )
        if isinstance(error, sdk.APIConnectionError):
            cause = said(error.__cause__ or error, self.settings.key)
            return NotReady(
                f"{self.title}: {plain_address(self._client.base_url)} cannot be reached, or hung up ({cause}); ask again later"
            )
        return BrokenAnswer(
            f"{self.title}: the answer broke off, or cannot be read ({type(error).__name__}: {words}); ask again"
        )

    def _refusal(self, error: Any, ask: Ask) -> SglActorsError:
        """What an error that the API told means."""
        words = said(error.api_message or error.message, self.settings.key)
        status = _STATUS.get(str(error.type), error.status_code if error.status_code >= 300 else 500)
        if status == 400 and ask.continue_final and _NO_PREFILL.search(words):
            self.capabilities = msgspec.structs.replace(self.capabilities, continuation=NONE)
            return NoContinuation(f"{self.title} does not go on with an assistant's turn ({words})")
        if status == 400 and _TOO_LONG.search(words):
            return ContextLengthExceeded(
                f"{self.title}: prompt and max_tokens are too long ({words}); shorten the prompt"
            )
        if status == 400 and _UNPAID.search(words):
            status = 402
        return failure(status, words, self.title, retry_after(error.response.headers))


def _limit(model: str) -> int:
    return next((limit for pattern, limit in LIMITS if re.search(pattern, model)), LIMIT)


def _sampling(sampling: SamplingOptions) -> dict[str, Any]:
    """What differs from the API's own way; the SDK has no arguments for it any more."""
    named = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    return {
        name: getattr(sampling, name) for name, usual in named.items() if getattr(sampling, name) != usual
    }


def _refuse_open(schema: object, title: str) -> None:
    """Refuse a schema with objects of any keys: as the SDK writes it, they could only be empty."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("additionalProperties"), Mapping) or "patternProperties" in schema:
            raise InvalidRequest(
                f"{title} takes JSON schemas only of objects whose properties are all named; use a list of pairs instead of a mapping",
                param="constraint",
            )
        for one in schema.values():
            _refuse_open(one, title)
    elif isinstance(schema, Iterable) and not isinstance(schema, str):
        for one in schema:
            _refuse_open(one, title)
