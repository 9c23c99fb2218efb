"""An API model for all programs of a node, or of a process: one place for its limits, its retries, its budget and its prices.

Owns: the vendor (its connections and what it has learnt of the model), the line of requests, the books.
In: `AskModel`, `DescribeApi`, `TokenizeText`. Out: HTTP, by the vendor's SDK.
When it crashes the requests under way end with it, and their askers get `ActorDown`, whereupon `ApiClient` asks its successor for those that nothing was handed out
of; what the lost ones used is not in the books, which begin anew. Prompts, answers and keys are in no log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from importlib import import_module
from typing import Any, Final

from sgl_actors.actors.api.desk import Desk
from sgl_actors.actors.api.keys import checked, find_key
from sgl_actors.actors.api.messages import (
    ApiInfo,
    ApiTokens,
    AskModel,
    DescribeApi,
    TokenizeText,
)
from sgl_actors.actors.api.outlet import Outlet
from sgl_actors.actors.api.settings import read_options, settings_of, template_of
from sgl_actors.actors.microkernel import Actor, Context, Message, Request
from sgl_actors.errors import ConfigError, InvalidRequest, SglActorsError
from sgl_actors.lang.backends.vendor import Settings, Vendor

VENDORS: Final = {
    "openai": ("sgl_actors.lang.backends.openai", "OpenAI"),
    "anthropic": ("sgl_actors.lang.backends.anthropic", "Anthropic"),
    "gemini": ("sgl_actors.lang.backends.gemini", "Gemini"),
}
LONGEST: Final = 600.0
"""Seconds for a request whose asker sets no deadline."""


class ApiActor(Actor):
    """See the module.

    Its options are ``[actors."api/NAME".options]``; an embedded backend hands them over as ``config["api"]``, with the key itself beside them.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        api: Mapping[str, Any] = context.config.get("api", context.config)
        self._options = read_options(api.get("options", {}))
        given = api.get("key")
        key = find_key(self._options, os.environ) if given is None else given and checked(given, "api_key")
        self._vendor = self.make_vendor(settings_of(self._options, key))
        self._desk = Desk(self._vendor, self._options, context.now)
        self._opening = asyncio.Lock()
        self._open = False
        self._template: tuple[str, dict[str, str]] | None = None

    def make_vendor(self, settings: Settings) -> Vendor:
        """The vendor; its SDK is imported when it is opened."""
        module, name = VENDORS[self._options.provider]
        vendor: Vendor = getattr(import_module(module), name)(settings)
        return vendor

    async def start(self) -> None:
        """Open the vendor. If the API cannot be reached now, that is tried again when it is needed.

        Raises:
            ConfigError: what cannot be.
        """
        try:
            await self._opened()
        except ConfigError:
            raise
        except SglActorsError as error:
            self.log.warning("API does not answer", api=self._vendor.title, code=error.code)

    async def receive(self, message: Message, request: Request) -> None:
        """See `Actor.receive`."""
        match message:
            case AskModel() if request.kind == "stream":
                work = self._answer(message, request)
            case DescribeApi() if request.kind == "call":
                work = self._describe(request)
            case TokenizeText() if request.kind == "call":
                work = self._tokenize(message, request)
            case _:
                raise InvalidRequest(f"an API's actor does not take {message.TAG} as a {request.kind}")
        task = self.ctx.task(self._guard(work, request), name=f"{self.ctx.address.name} {message.TAG}")
        request.on_cancel(lambda: task.cancel() and None)

    async def stop(self) -> None:
        """Close the vendor's connections."""
        self._desk.gate.close()
        await self._vendor.close()

    def statistics(self) -> dict[str, float]:
        """See `Actor.statistics`."""
        return self._desk.statistics()

    # -- what it is asked -------------------------------------------------------------------------------------

    async def _guard(self, work: Coroutine[Any, Any, None], request: Request) -> None:
        """A request's failure is its asker's, and never the end of this actor."""
        try:
            await work
        except SglActorsError as error:
            request.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever a vendor's SDK may raise
            self.log.warning("request failed", api=self._vendor.title, error=type(error).__name__)
            request.fail(error)

    async def _answer(self, message: AskModel, request: Request) -> None:
        await self._opened()
        left = request.remaining
        deadline = self.ctx.now() + (LONGEST if left is None else left)
        answered = await self._desk.answer(message, Outlet(request, live=message.live), deadline)
        request.end(answered)

    async def _describe(self, request: Request) -> None:
        await self._opened()
        if self._template is None:
            self._template = await template_of(self._options, self._vendor)
        source, tokens = self._template
        vendor = self._vendor
        request.reply(ApiInfo(vendor.title, vendor.capabilities, source, tokens, self._options.prices))

    async def _tokenize(self, message: TokenizeText, request: Request) -> None:
        await self._opened()
        request.reply(ApiTokens(await self._vendor.token_ids(message.text)))

    async def _opened(self) -> None:
        """Have the vendor open; one opens it."""
        async with self._opening:
            if not self._open:
                await self._vendor.open()
                self._open = True
