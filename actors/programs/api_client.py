"""An API model as programs ask it: `Generate` and `Call` become `AskModel` to the model's actor, its answers become chunks without token ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final, NoReturn, cast

from sgl_actors.actors.api.messages import (
    Answered,
    ApiInfo,
    ApiTokens,
    AskModel,
    Piece,
    TokenizeText,
)
from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.node.client import joined
from sgl_actors.actors.programs.api_group import Groups, shares
from sgl_actors.actors.programs.api_hosts import PATIENCE, await_actor, describe
from sgl_actors.actors.programs.mock import chatml
from sgl_actors.actors.scheduler.messages import Finish, Flushed
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, TokenIds, Tokenize
from sgl_actors.errors import ActorDown, DeadlineExceeded, NoContinuation
from sgl_actors.lang.backends.capabilities import TEXT
from sgl_actors.lang.backends.vendor import Ask
from sgl_actors.lang.chat_template import ChatTemplate
from sgl_actors.lang.errors import Unsupported
from sgl_actors.lang.ir import IMAGE, VIDEO
from sgl_actors.lang.protocols import ApiModel, Call

PLAIN: Final = Call("gen")


class ApiClient:
    """See `lang.protocols.Client`.

    Args:
        context: asks.
        address: name of the model's actor.
        info: what it has said of itself.
        patience: seconds that it may be away.

    Attributes:
        takes: kinds of media that the model looks at.
    """

    def __init__(self, context: Context, address: str, info: ApiInfo, *, patience: float = PATIENCE) -> None:
        self._ctx, self._address, self._info, self._patience = context, address, info, patience
        self._template: ChatTemplate | None = None
        self._groups = Groups(context)
        self.takes = _takes(info)

    def __repr__(self) -> str:
        return f"<ApiClient {self._info.title} at {self._address}>"

    @property
    def api(self) -> ApiModel:
        """What is known of the model now."""
        return ApiModel(self._info.title, self._info.capabilities, self._info.prices is not None)

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`.

        Raises:
            Unsupported: token ids as a prompt, or scores of a model that tells none.
            SglActorsError: what the API, or its actor's limits and budget, said.
        """
        call = call or PLAIN
        score = request.prompt_logprobs_start >= 0
        if (
            request.sampling.max_tokens == 0 and not score
        ):  # to have a prefix cached, which an API does by itself
            yield Chunk(0, [], "", finish=Finish("length"))
            return
        group = self._groups.of(request.program, call, self._info.capabilities.count)
        if group is not None:
            whole = partial(self._whole, request, call, timeout=timeout, trace=trace)
            yield await group.part(call.part % call.completions, whole)
            return
        known = ""
        message = self._message(request, call, 1)
        async with aclosing(self._ask(message, timeout, trace)) as answers:
            async for answer in answers:
                if isinstance(answer, Piece):
                    known += answer.text
                    yield Chunk(0, [], answer.text)
                else:
                    yield shares(answer)[0].rest(known, request.prompt_logprobs_start)

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """See `Client.complete`."""
        return await joined(self.generate(request, timeout=timeout, trace=trace, call=call))

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`. A chat has a text and no ids: of a model that goes on with text, by its chat template; of others, in ChatML, for people.

        Raises:
            Unsupported: the model tells no token ids, or nobody knows its template.
        """
        if request.messages is None:
            return await self._token_ids(request.text or "")
        generation, open_ = request.add_generation_prompt, request.continue_final
        if self._info.capabilities.continuation != TEXT and not self._info.template:
            return TokenIds([], chatml(request.messages, generation=generation and not open_, open_=open_))
        return TokenIds([], await asyncio.to_thread(self._render, request))

    async def pin(
        self,
        token_ids: Sequence[int],  # noqa: ARG002
        *,
        ttl: float,  # noqa: ARG002
        name: str = "",  # noqa: ARG002
        salt: str = "",  # noqa: ARG002
        timeout: float = 600.0,  # noqa: ARG002
        trace: str = "",  # noqa: ARG002
    ) -> Pinned:
        """See `Client.pin`; there is none."""
        self._cannot("pins no prefixes: what its provider caches is the provider's; a node of ours does")

    async def flush(self) -> Flushed:
        """See `Client.flush`: the provider's cache is not ours to empty, so nothing is done."""
        return Flushed(done=False)

    # -- asking -------------------------------------------------------------------------------------------

    async def _whole(
        self, request: Generate, call: Call, count: int, *, timeout: float, trace: str
    ) -> Answered:
        """The answer with all completions."""
        message = self._message(request, call._replace(live=False, follow=()), count)
        async with aclosing(self._ask(message, timeout, trace)) as answers:
            async for answer in answers:
                if isinstance(answer, Answered):
                    return answer
        raise AssertionError("a stream ended without its answer")

    async def _ask(
        self, message: AskModel, timeout: float, trace: str
    ) -> AsyncGenerator[Piece | Answered, None]:
        """What the model's actor answers; asked again if it was restarted before anything was handed out."""
        deadline = self._ctx.now() + timeout
        begun = False
        while True:
            left = deadline - self._ctx.now()
            if left <= 0:
                raise DeadlineExceeded(f"request {message.id}: no answer within {timeout:g} s")
            stream = cast("Any", self._ctx.stream(self._address, message, timeout=left, trace=trace))
            try:
                async with aclosing(stream):
                    async for item in stream:
                        begun = True
                        yield item
            except ActorDown as error:
                if begun:
                    raise
                until = min(deadline, self._ctx.now() + self._patience)
                await await_actor(self._ctx, self._address, error, until)
            except NoContinuation:
                await self._learn()
                raise
            else:
                return

    async def _learn(self) -> None:
        """What the model's actor knows of it now."""
        self._info = await describe(self._ctx, self._address)
        self.takes = _takes(self._info)

    def _message(self, request: Generate, call: Call, count: int) -> AskModel:
        if request.input_ids is not None:
            self._cannot("takes text, not token ids; a node of ours takes both")
        score = request.prompt_logprobs_start >= 0
        if score and not self._info.capabilities.scoring:
            self._cannot("reports no log probabilities of given text; a node of ours does")
        ask = Ask(
            text=request.text,
            messages=None if request.messages is None else tuple(request.messages),
            continue_final=request.continue_final,
            sampling=request.sampling,
            count=count,
            tools=call.tools or request.tools,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            score=score,
            stream=call.live,
        )
        return AskModel(request.id, ask, call.live, call.follow, call.first, request.program)

    # -- tokens -------------------------------------------------------------------------------------------

    async def _token_ids(self, text: str) -> TokenIds:
        if not self._info.capabilities.tokenizer:
            self._cannot("tells no token ids")
        answer = await self._ctx.call(self._address, TokenizeText(text), ApiTokens)
        return TokenIds(answer.token_ids, text)

    def _render(self, request: Tokenize) -> str:
        info = self._info
        if not info.template:
            self._cannot("goes on with text, and nobody knows its chat template; give chat_template=")
        if self._template is None:
            self._template = ChatTemplate(info.template, info.special_tokens)
        return self._template.render(
            request.messages or [],
            add_generation_prompt=request.add_generation_prompt,
            continue_final=request.continue_final,
            tools=request.tools,
        )

    def _cannot(self, why: str) -> NoReturn:
        raise Unsupported(f"{self._info.title} {why}")


def _takes(info: ApiInfo) -> frozenset[str]:
    able = info.capabilities
    return frozenset(kind for kind, can in ((IMAGE, able.images), (VIDEO, able.videos)) if can)
