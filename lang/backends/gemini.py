"""Google's Gemini models, over its own SDK (`/v1/models/M:generateContent`; Vertex AI is another API)."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
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
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, Capabilities
from sgl_actors.lang.backends.gemini_answer import Answer
from sgl_actors.lang.backends.vendor import Ask, Event, Settings, Text
from sgl_actors.lang.backends.vendor_errors import failure, retry_after, timed
from sgl_actors.lang.backends.vendor_help import (
    calls,
    cause_of,
    functions,
    load_sdk,
    overridden,
    pieces,
    plain_address,
    said,
    schema_of,
    seconds_of,
)
from sgl_actors.lang.backends.writing import stops_of
from sgl_actors.lang.constraints.constraint import CHOICE

ROLES: Final = {"user": "user", "assistant": "model", "tool": "user"}
STOPS: Final = 5
MAX_SEED: Final = (1 << 31) - 1
SIGNATURE: Final = base64.urlsafe_b64decode("skip_thought_signature_validator")
"""What stands for the signature of a call that the model made elsewhere; models from 3 on want one."""
_PREFILLED: Final = re.compile(r"gemini-(1\.|2\.|3-|3\.1-|3\.5-flash(?!-lite)|pro-latest)")
_VERSION_2: Final = re.compile(r"gemini-[12]\.")
_NO_PREFILL: Final = re.compile(r"ending with a model turn|end with a (user|model)", re.IGNORECASE)
_TOO_LONG: Final = re.compile(
    r"token count.{0,60}exceeds|exceeds the maximum number of (input )?tokens", re.IGNORECASE
)
_BAD_KEY: Final = re.compile(r"API[_ ]key (not valid|expired|not found)|API_KEY_INVALID", re.IGNORECASE)
_NO_ROOM: Final = re.compile(r"overloaded|high demand|capacity", re.IGNORECASE)
_UNPAID: Final = re.compile(r"per ?day|credits? (are|is) depleted|limit: 0\b", re.IGNORECASE)
UNREADABLE: Final = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What the SDK raises of an answer that is JSON of another form than the API's, or none: it looks at no type before it uses a value."""
_OPENED: ContextVar[list[httpx2.Response]] = ContextVar("opened")
"""Where responses are noted, for the SDK leaves one that is not read to its end to the garbage collector."""


def capabilities_of(model: str) -> Capabilities:
    """What a model can do, by its name; an unknown one is taken for a new one.

    Newer ones (3.5 Flash-Lite, and from 3.6 on) neither go on with a model's turn nor take a temperature and the like.
    """
    old, second = bool(_PREFILLED.search(model)), bool(_VERSION_2.search(model))
    names = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
    return Capabilities(
        continuation=PREFILL if old else NONE,
        stops=STOPS,
        schema=True,
        constraints=(CHOICE,),
        logprobs=20 if second else -1,
        images=True,
        videos=True,
        tools=True,
        seed=True,
        count=8 if second else 1,
        sampling=names if old else (),
        counting=True,
    )


class Gemini:
    """A Gemini model; see `lang.backends.vendor.Vendor`.

    System turns stand at the beginning of a chat only. Of a JSON schema it follows what its dialect has words for; who asked has to check the rest. What a model
    thinks counts as output and against `max_tokens`; `extra={"generationConfig": {"thinkingConfig": {…}}}` limits it. It does not tell which stop it met.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.title = f"gemini {settings.model}"
        self.capabilities = capabilities_of(settings.model)
        self._errors: Any = None
        self._types: Any = None
        self._client: Any = None
        self._http: httpx2.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"<{self.title}>"

    async def open(self) -> None:
        """See `Vendor`."""
        told = self.settings
        self.capabilities = overridden(self.capabilities, told.capabilities, self.title)
        if not told.key and not told.base_url:
            raise ConfigError(
                f'{self.title}: there is no key: set GEMINI_API_KEY, or say key="env:NAME"', param="key"
            )
        sdk = await load_sdk("google.genai", "gemini", self.title)
        self._errors, self._types = sdk.errors, sdk.types
        self._http = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=None),
            event_hooks={"response": [_note]},
        )
        options = {
            "base_url": told.base_url or None,
            "api_version": told.api_version or None,
            "headers": told.headers,
            "retry_options": {"attempts": 1},
            "httpx_async_client": self._http,
        }
        self._client = await asyncio.to_thread(
            sdk.Client,
            api_key=told.key or "none",
            vertexai=False,
            http_options=sdk.types.HttpOptions(**options),
        )

    async def close(self) -> None:
        """See `Vendor`."""
        if self._http is not None:
            await self._http.aclose()
        if self._client is not None:
            self._client.close()

    async def template(self) -> tuple[str, Mapping[str, str]]:
        """None: it goes on with no bare text."""
        return "", {}

    async def token_ids(self, text: str) -> list[int]:  # noqa: ARG002
        """Nobody knows them."""
        raise InvalidRequest(
            f"{self.title} tells no token ids; a model behind `/v1/completions` does", param="text"
        )

    async def ask(self, ask: Ask, *, timeout: float) -> AsyncGenerator[Event]:
        """See `Vendor`."""
        request = self._request(ask, timeout)
        answer = Answer(ask, self.title)
        try:
            async with aclosing(self._chunks(request, timeout, stream=ask.stream)) as chunks:
                async for chunk in chunks:
                    piece = answer.feed(chunk)
                    if ask.stream and piece:
                        yield Text(piece, answer.used)
            end = answer.end()
        except (self._errors.APIError, httpx2.HTTPError, TimeoutError, *UNREADABLE) as error:
            raise self._failure(error, ask, timeout) from cause_of(error, self.settings.key)
        if ask.stream and (rest := answer.writings[0].rest(end.completions[0])):
            yield Text(rest, answer.used)
        yield end

    async def _chunks(self, request: dict[str, Any], timeout: float, *, stream: bool) -> AsyncGenerator[Any]:
        """Parts of the answer, or all of it."""
        deadline = asyncio.get_running_loop().time() + timeout
        models = self._client.aio.models
        opened: list[httpx2.Response] = []
        _OPENED.set(opened)
        try:
            if stream:
                reply = await models.generate_content_stream(**request)
                async with aclosing(reply), aclosing(timed(reply, deadline)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            else:
                async with asyncio.timeout_at(deadline):
                    whole = await models.generate_content(**request)
                yield whole
        finally:
            for response in opened:
                await response.aclose()

    def _request(self, ask: Ask, timeout: float) -> dict[str, Any]:
        if ask.sampling.constraint is not None and ask.continue_final:
            raise NoContinuation(
                f"{self.title} keeps a constraint only in an answer of its own, not where it goes on with a turn"
            )
        messages = list(ask.messages or ())
        system: list[str] = []
        while messages and messages[0].role == "system" and not messages[0].media:
            system.append(messages.pop(0).content)
        http = {"timeout": max(1, round(timeout * 1000)), "extra_body": self.settings.extra or None}
        config = self._config(ask) | {
            "http_options": http,
            "system_instruction": {"parts": [{"text": "\n\n".join(system)}]} if system else None,
            "automatic_function_calling": {"disable": True},
            "automatic_continuation": False,
        }
        contents = self._contents(messages, continued=ask.continue_final)
        return {
            "model": self.settings.model,
            "contents": contents,
            "config": self._types.GenerateContentConfig(**config),
        }

    def _config(self, ask: Ask) -> dict[str, Any]:
        sampling = ask.sampling
        config: dict[str, Any] = {
            "max_output_tokens": sampling.max_tokens,
            "stop_sequences": stops_of(ask, self.capabilities.stops) or None,
            "seed": None if sampling.seed is None or not self.capabilities.seed else sampling.seed & MAX_SEED,
            "candidate_count": ask.count if ask.count > 1 else None,
        }
        config |= _sampling(sampling)
        if ask.logprobs or ask.top_logprobs:
            config |= {"response_logprobs": True, "logprobs": ask.top_logprobs or None}
        if sampling.constraint is not None:
            config |= {
                "response_mime_type": "application/json",
                "response_json_schema": schema_of(sampling.constraint),
            }
        if ask.tools:
            declared = [
                {"name": one.name, "description": one.description, "parameters_json_schema": one.parameters}
                for one in functions(ask.tools)
            ]
            config |= {
                "tools": [{"function_declarations": declared}],
                "tool_config": {"function_calling_config": {"mode": "ANY"}},
            }
        return config

    def _contents(self, messages: list[ChatMessage], *, continued: bool) -> list[dict[str, Any]]:
        contents: list[dict[str, Any]] = []
        was = ""
        for message in messages:
            role, parts = ROLES.get(message.role), list(self._parts(message))
            if role is None:
                raise InvalidRequest(
                    f"{self.title} takes turns of user, assistant and tool, and system turns only at the beginning of a chat; this one is of {message.role!r}",
                    param="messages",
                )
            if was == message.role == "tool":
                contents[-1]["parts"] += parts
            elif parts:
                contents.append({"role": role, "parts": parts})
                was = message.role
        if not contents:
            raise InvalidRequest(
                f"{self.title} answers a user's turn; there is none that says anything", param="messages"
            )
        if not continued and contents[-1]["role"] == "model":
            raise InvalidRequest(
                f"{self.title} answers a user's turn; the last one is an assistant's", param="messages"
            )
        return contents

    def _parts(self, message: ChatMessage) -> Iterator[dict[str, Any]]:
        if message.role == "tool":
            response = {"name": message.name, "response": {"output": message.content}}
            yield {
                "function_response": response | ({"id": message.tool_call_id} if message.tool_call_id else {})
            }
            return
        for one in pieces(message):
            if isinstance(one, str):
                yield {"text": one}
            else:
                yield {"inline_data": {"mime_type": one.media_type, "data": one.data}}
        for made in calls(message):
            call = {"name": made.name, "args": made.arguments} | ({"id": made.id} if made.id else {})
            signature = {} if _VERSION_2.search(self.settings.model) else {"thought_signature": SIGNATURE}
            yield {"function_call": call} | signature

    def _failure(self, error: Exception, ask: Ask, timeout: float) -> SglActorsError:
        """What an error of the SDK means."""
        if isinstance(error, self._errors.APIError):
            return self._refusal(error, ask, timeout)
        words = said(error, self.settings.key)
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return _late(self.title, timeout)
        if isinstance(error, httpx2.ConnectError):
            return NotReady(
                f"{self.title}: nothing answers at {plain_address(self.settings.base_url) if self.settings.base_url else 'the API'} ({words}); ask again later"
            )
        return BrokenAnswer(
            f"{self.title}: the answer broke off, or cannot be read ({type(error).__name__}: {words}); ask again"
        )

    def _refusal(self, error: Any, ask: Ask, timeout: float) -> SglActorsError:
        """What an error that the API told means."""
        words = said(error.message or error.details, self.settings.key)
        details = _details(error.details)
        status = error.code if isinstance(error.code, int) and error.code >= 300 else 500
        if status == 504 or error.status == "DEADLINE_EXCEEDED":
            return _late(self.title, timeout)
        if status == 400:
            if ask.continue_final and _NO_PREFILL.search(words):
                self.capabilities = msgspec.structs.replace(self.capabilities, continuation=NONE)
                return NoContinuation(f"{self.title} does not go on with an assistant's turn ({words})")
            if _TOO_LONG.search(words):
                return ContextLengthExceeded(f"{self.title}: the prompt is too long ({words}); shorten it")
            status = 401 if _BAD_KEY.search(f"{words} {details}") else 402 if "billing" in words else 400
        elif status == 429 and _UNPAID.search(f"{words} {[one.get('violations') for one in details]}"):
            status = 402
        elif status == 503 and _NO_ROOM.search(words):
            status = 529
        delays = [seconds_of(one.get("retryDelay")) for one in details]
        headers = getattr(error.response, "headers", None) or {}
        return failure(status, words, self.title, max(delays, default=0.0) or retry_after(headers))


async def _note(response: httpx2.Response) -> None:
    _OPENED.get([]).append(response)


def _sampling(sampling: SamplingOptions) -> dict[str, Any]:
    """What differs from our usual way; the API's own stands for the rest."""
    named = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    return {
        name: getattr(sampling, name) for name, usual in named.items() if getattr(sampling, name) != usual
    }


def _details(body: object) -> list[dict[str, Any]]:
    """An error's details, as far as it has any."""
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    listed = error.get("details") if isinstance(error, Mapping) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _late(title: str, timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{title}: no (whole) answer within {timeout:g} s; ask again, or give it more time"
    )
