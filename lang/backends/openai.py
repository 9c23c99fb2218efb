"""OpenAI's models, and those of all servers that speak its API, over its own SDK: chats, completions, Azure.

What is sent is written in `openai_request`, what comes is read in `openai_answer`, what the models can do stands in `openai_models`. Here is what touches the
SDK, and what its errors mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2
import msgspec

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.errors import (
    BrokenAnswer,
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoContinuation,
    SglActorsError,
    Unauthorized,
)
from sgl_actors.lang.backends.capabilities import NONE, TEXT, Capabilities
from sgl_actors.lang.backends.openai_answer import Answer
from sgl_actors.lang.backends.openai_errors import failure_of, mid_stream
from sgl_actors.lang.backends.openai_models import (
    DIALECTS,
    LLAMA_CPP,
    OFFICIAL,
    OPENAI,
    OTHER,
    Found,
    capabilities_of,
    found_in,
)
from sgl_actors.lang.backends.openai_request import request_body, wrapped
from sgl_actors.lang.backends.vendor import Ask, Event, Settings, Text
from sgl_actors.lang.backends.vendor_errors import timed
from sgl_actors.lang.backends.vendor_help import load_sdk, overridden

BASE_URL: Final = "https://api.openai.com/v1"
PATHS: Final = {"chat": "/chat/completions", "completions": "/completions"}
LOOK_UP_TIMEOUT: Final = 30.0
"""Seconds for questions about the model."""
SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


class OpenAI:
    """A model behind the OpenAI API; see `lang.backends.vendor.Vendor`.

    Attributes:
        dialect: whose server it is, once it is open.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.title = f"openai {settings.model} ({settings.api})"
        self.capabilities = Capabilities()
        self.dialect = settings.dialect
        self._base = (settings.azure_endpoint or settings.base_url).rstrip("/") or BASE_URL
        self._context = 0
        self._refused: Unauthorized | None = None
        self._sdk: Any = None
        self._client: Any = None

    def __repr__(self) -> str:
        return f"<{self.title}>"

    async def open(self) -> None:
        """See `Vendor`.

        Raises:
            NotReady, DeadlineExceeded: it is not said whose server it is, and nothing answers there.
        """
        told = self.settings
        self._check()
        given = overridden(Capabilities(), told.capabilities, self.title)
        if unknown := set(given.sampling) - set(SamplingOptions.__struct_fields__):
            raise ConfigError(
                f"{self.title}: capabilities: no sampling argument is called {', '.join(sorted(unknown))}",
                param="capabilities",
            )
        self._sdk = await load_sdk("openai", "openai", self.title)
        http = self._sdk.DefaultAsyncHttpxClient(follow_redirects=False)
        if told.azure_endpoint:
            self._client = self._sdk.AsyncAzureOpenAI(
                azure_endpoint=told.azure_endpoint,
                api_version=told.api_version,
                api_key=told.key,
                default_headers=told.headers,
                max_retries=0,
                http_client=http,
            )
        else:
            self._client = self._sdk.AsyncOpenAI(
                base_url=self._base,
                api_key=told.key or "none",
                default_headers=told.headers,
                max_retries=0,
                http_client=http,
            )
        try:
            self.dialect, self._context = await self._find()
        except BaseException:
            await self.close()
            raise
        known = capabilities_of(told.api, self.dialect, told.model)
        self.capabilities = overridden(known, told.capabilities, self.title)

    async def close(self) -> None:
        """See `Vendor`."""
        if self._client is not None:
            await self._client.close()

    async def ask(self, ask: Ask, *, timeout: float) -> AsyncGenerator[Event]:
        """See `Vendor`."""
        if ask.continue_final and self.capabilities.continuation == NONE:
            raise NoContinuation(
                f"{self.title} goes on with no assistant's turn; it can only begin a new one"
            )
        deadline = asyncio.get_running_loop().time() + timeout
        answer = Answer(self.title, ask, wrapped(ask, self.dialect), self.settings.key)
        body = request_body(ask, self.settings, self.dialect, self.capabilities)
        begun = False
        try:
            if ask.sampling.max_tokens is None and ask.text is not None:
                body |= await self._room(ask.text)
            async with aclosing(self._parts(body, ask, deadline, timeout)) as parts:
                async for part in parts:
                    begun = True
                    if error := mid_stream(part, self.title, self.settings.key):
                        raise error
                    piece = answer.feed(part)
                    if ask.stream and piece is not None:
                        yield piece
        except (self._sdk.OpenAIError, httpx2.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            raise self._failure(error, ask, timeout, begun=begun) from None
        end = answer.end()
        if ask.stream and (rest := answer.rest(end)):
            yield Text(rest)
        yield end

    async def template(self) -> tuple[str, Mapping[str, str]]:
        """See `Vendor`.

        Raises:
            Unauthorized: the server did not say who it is, because of the key: nobody knows of a template, but that is not what is wrong.
        """
        if self.capabilities.continuation != TEXT:
            return "", {}
        info: Any = None
        if self.dialect not in {OPENAI, OTHER}:
            info = await self._known("props" if self.dialect == LLAMA_CPP else "tokenizer_info")
        if self._refused is not None:
            raise self._refused
        source = info.get("chat_template") if isinstance(info, dict) else None
        if not isinstance(source, str):
            return "", {}
        return source, {name: _plain(info[name]) for name in SPECIAL_TOKENS if info.get(name)}

    async def token_ids(self, text: str) -> list[int]:
        """See `Vendor`."""
        body: dict[str, Any] = {"model": self.settings.model, "prompt": text, "add_special_tokens": False}
        if self.dialect == LLAMA_CPP:
            body = {"content": text, "add_special": False, "parse_special": True}
        answer = await self._look_up("post", "tokenize", body)
        try:
            return msgspec.convert(answer["tokens"], list[int])
        except (TypeError, KeyError, msgspec.ValidationError) as error:
            raise ConfigError(
                f"{self.title}: /tokenize of {self._root} tells no token ids ({error!r}); say capabilities tokenizer = false"
            ) from None

    def _check(self) -> None:
        told = self.settings
        if told.api not in PATHS:
            raise ConfigError(
                f"{self.title}: api is one of {', '.join(PATHS)}, not {told.api!r}", param="api"
            )
        if told.dialect and told.dialect not in DIALECTS:
            raise ConfigError(
                f"{self.title}: dialect {told.dialect!r} is none of {', '.join(DIALECTS)}", param="dialect"
            )
        try:
            url = httpx2.URL(self._base)
        except httpx2.InvalidURL as error:
            raise ConfigError(
                f"{self.title}: {self._base!r} is no address: {error}", param="base_url"
            ) from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise ConfigError(
                f"{self.title}: {self._base!r} is no http:// or https:// address", param="base_url"
            )
        if told.azure_endpoint and not told.api_version:
            raise ConfigError(
                f'{self.title}: Azure wants an api_version, as "2024-10-21"', param="api_version"
            )
        if not told.key and (told.azure_endpoint or OFFICIAL.match(self._base)):
            raise ConfigError(
                f'{self.title}: there is no key: set OPENAI_API_KEY, or say key="env:NAME"', param="key"
            )
        if not told.key.isascii() or not told.key.isprintable() or " " in told.key:
            raise ConfigError(
                f"{self.title}: the key has characters that no key has, as a blank or the end of a line",
                param="key",
            )

    async def _find(self) -> Found:
        """Whose server it is: what was said, or what it says of itself."""
        told = self.settings
        if told.azure_endpoint or OFFICIAL.match(self._base):
            return Found(told.dialect or OPENAI)
        if told.dialect and (told.dialect in {OPENAI, OTHER} or told.api == "chat"):
            return Found(told.dialect)
        listed = await self._known("/models")
        if listed is None and self._refused is None and httpx2.URL(self._base).path == "/":
            await self._check_path()
        found = found_in(listed, told.model)
        return Found(told.dialect or found.dialect, found.context)

    async def _check_path(self) -> None:
        """`ConfigError` for an address that only lacks the path of the API, as nearly all servers have it."""
        if isinstance(await self._known("/v1/models"), dict):
            raise ConfigError(
                f'{self.title}: the API is not at {self._base} but at {self._base}/v1; say base_url="{self._base}/v1"',
                param="base_url",
            )
        self._refused = None

    async def _room(self, prompt: str) -> dict[str, int]:
        """The limit that stands for none: completions without one are short, whatever room the context leaves. Nothing if nobody knows it."""
        if not self._context or not self.capabilities.tokenizer:
            return {}
        return {"max_tokens": max(self._context - len(await self.token_ids(prompt)), 1)}

    @property
    def _root(self) -> str:
        return self._base.removesuffix("/v1")

    async def _look_up(self, method: str, path: str, body: object = None) -> Any:
        """What a server says of the model, at an address beside the API's or at one of its own."""
        url = path if path.startswith("/") else f"{self._root}/{path}"
        more = {} if body is None else {"body": body}
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT):
                return await getattr(self._client, method)(url, cast_to=object, **more)
        except (self._sdk.OpenAIError, TimeoutError, ValueError, RecursionError) as error:
            raise self._failure(error, Ask(), LOOK_UP_TIMEOUT, begun=False) from None

    async def _known(self, path: str) -> Any:
        """The same; None from a server that does not say it."""
        try:
            return await self._look_up("get", path)
        except Unauthorized as error:
            self._refused = error
            return None
        except (ModelNotFound, InvalidRequest, Forbidden, BrokenAnswer):
            return None

    async def _parts(
        self, body: dict[str, Any], ask: Ask, deadline: float, timeout: float
    ) -> AsyncGenerator[object]:
        """The answer, or its chunks. The connection is closed behind them."""
        path, options = PATHS[self.settings.api], {"timeout": timeout}
        async with asyncio.timeout_at(deadline):
            if not ask.stream:
                whole: object = await self._client.post(path, cast_to=object, body=body, options=options)
            else:
                kind = self._sdk.AsyncStream[object]
                stream = await self._client.post(
                    path, cast_to=object, body=body, options=options, stream=True, stream_cls=kind
                )
        if not ask.stream:
            yield whole
            return
        try:
            async with aclosing(timed(aiter(stream), deadline)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            await stream.close()

    def _failure(self, error: Exception, ask: Ask, timeout: float, *, begun: bool) -> SglActorsError:
        if isinstance(error, TimeoutError | self._sdk.APITimeoutError):
            what = "the answer was not through" if begun else "there was no answer"
            return DeadlineExceeded(
                f"{self.title}: {what} after {timeout:g} s; ask again, or raise `timeout`"
            )
        found = failure_of(
            error, self.title, self._base, self.settings.key, begun=begun, continued=ask.continue_final
        )
        if isinstance(found, NoContinuation):
            self.capabilities = msgspec.structs.replace(self.capabilities, continuation=NONE)
        return found


def _plain(token: object) -> str:
    """A special token; some servers give it as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
