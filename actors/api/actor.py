"""An API model for all programs of a node, or of a process: one place for its limits, its retries, its budget and its prices.

Owns: the vendor (its connections and what it has learnt of the model), the line of requests, the books.
In: `AskModel`, `DescribeApi`, `TokenizeText`. Out: HTTP, by the vendor's SDK.
When it crashes the requests under way end with it, and their askers get `ActorDown`, whereupon `ApiClient` asks its successor for those that nothing was handed out
of; what the lost ones used is not in the books, which begin anew. A class that is swapped in goes on with all of it, under its own limits; only another model, address
or key needs a restart. Prompts, answers and keys are in no log.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Final

from sgl_actors.actors.api.desk import Desk
from sgl_actors.actors.api.handover import LAYOUT, ApiState
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
from sgl_actors.actors.microkernel import Actor, Context, MailboxSpec, Message, Request, Snapshot
from sgl_actors.errors import ConfigError, InvalidRequest, RemoteError, SglActorsError, SwapFailed
from sgl_actors.lang.backends.vendor import Settings, Vendor
from sgl_actors.lang.backends.vendor_help import said

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

    Attributes:
        chance: numbers from 0 to 1, for the pauses between tries.
    """

    mailbox = MailboxSpec(capacity=16384)
    chance = staticmethod(random.random)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        api: Mapping[str, Any] = context.config.get("api", context.config)
        self._options = read_options(api.get("options", {}))
        given = api.get("key")
        key = find_key(self._options, os.environ) if given is None else given and checked(given, "api_key")
        self._settings = settings_of(self._options, key)
        vendor = self.make_vendor(self._settings)
        self._desk = Desk(vendor, self._options, context.now, keyed=bool(key), chance=self.chance)
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
            await self._desk.open()
        except ConfigError:
            raise
        except SglActorsError as error:
            self.log.warning("API does not answer", api=self._desk.vendor.title, code=error.code)

    async def receive(self, message: Message, request: Request) -> None:
        """See `Actor.receive`."""
        self._desk.adopt(self._options)
        work: Callable[[], Awaitable[None]]
        match message:
            case AskModel() if request.kind == "stream":
                work = partial(self._answer, message, request)
            case DescribeApi() if request.kind == "call":
                work = partial(self._describe, request)
            case TokenizeText() if request.kind == "call":
                work = partial(self._tokenize, message, request)
            case _:
                raise InvalidRequest(f"an API's actor does not take {message.TAG} as a {request.kind}")
        task = self.ctx.task(self._guard(work, request), name=f"{self.ctx.address.name} {message.TAG}")

        def give_up() -> None:
            task.cancel()

        request.on_cancel(give_up)

    async def stop(self) -> None:
        """Close the vendor's connections, also if who waits for that is cancelled once more: they would stay open."""
        await asyncio.shield(asyncio.ensure_future(self._desk.close()))

    def statistics(self) -> dict[str, float]:
        """See `Actor.statistics`."""
        return self._desk.statistics()

    # -- what it is asked -------------------------------------------------------------------------------------

    async def _guard(self, work: Callable[[], Awaitable[None]], request: Request) -> None:
        """A request's failure is its asker's, and never the end of this actor."""
        try:
            await work()
        except SglActorsError as error:
            request.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever a vendor's SDK may raise
            self.log.warning("request failed", api=self._desk.vendor.title, error=type(error).__name__)
            request.fail(RemoteError(f"{type(error).__name__}: {said(error, self._settings.key)}"))

    async def _answer(self, message: AskModel, request: Request) -> None:
        deadline = self._deadline(request)
        await self._desk.patiently(self._desk.open, deadline)
        request.end(await self._desk.answer(message, Outlet(request, live=message.live), deadline))

    async def _describe(self, request: Request) -> None:
        deadline = self._deadline(request)
        await self._desk.patiently(self._desk.open, deadline)
        if self._template is None:
            look = partial(template_of, self._options, self._desk.vendor)
            self._template = await self._desk.patiently(look, deadline)
        source, tokens = self._template
        vendor = self._desk.vendor
        request.reply(ApiInfo(vendor.title, vendor.capabilities, source, tokens, self._options.prices))

    async def _tokenize(self, message: TokenizeText, request: Request) -> None:
        deadline = self._deadline(request)
        await self._desk.patiently(self._desk.open, deadline)
        ids = await self._desk.patiently(partial(self._desk.vendor.token_ids, message.text), deadline)
        request.reply(ApiTokens(ids))

    def _deadline(self, request: Request) -> float:
        left = request.remaining
        return self.ctx.now() + (LONGEST if left is None else left)

    # -- swap ---------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        return Snapshot.of(LAYOUT, ApiState(), desk=self._desk, settings=self._settings)

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on with that desk, by the own limits, prices and budget from the first message on.

        Raises:
            SwapFailed: another model, address or key is asked for.
        """
        snapshot.read(LAYOUT, ApiState)
        if snapshot.handle("settings", Settings) != self._settings:
            raise SwapFailed("another model, address or key needs a restart (--restart)")
        self._desk = snapshot.handle("desk", Desk)
