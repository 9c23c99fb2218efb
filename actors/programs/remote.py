"""What a gen asks of an API model. How much of it in one call, the model's continuation says; see `lang.backends.capabilities`.

A model that goes on with text, or with the assistant's turn, is asked for all that the program shows to come, and what it wrote is used as far as the program's
prompt keeps to it (`lang.speculation`). One that only writes whole turns is `whole_turn`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

import msgspec

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.programs import whole_turn
from sgl_actors.actors.programs.interpreter import (
    Completion,
    call_of,
    check_room,
    complete,
    define,
    define_as,
    nth,
)
from sgl_actors.actors.programs.lookahead import AHEAD_PART, FORM_PART, alone, upcoming, was_asked
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.tokenizer.messages import SamplingOptions, Tokenize
from sgl_actors.errors import BrokenAnswer, NoContinuation
from sgl_actors.lang.backends.asked import check_asked, check_media
from sgl_actors.lang.backends.capabilities import PREFILL, TEXT, Capabilities
from sgl_actors.lang.chat_messages import messages_of
from sgl_actors.lang.errors import Unsupported
from sgl_actors.lang.ir import Gen
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.protocols import ApiModel, Call
from sgl_actors.lang.results import Usage
from sgl_actors.lang.sampling import derive_seed, resolve
from sgl_actors.lang.speculation import Ahead, FollowUp, Taken
from sgl_actors.lang.stops import Cutter, left_over, sent

MARGIN: Final = 2
"""How many times more tokens a text may have than its share of the characters says."""


async def generate(
    stream: Stream, node: Gen, setup: Setup, timeout: float, emit: Callable[[str], None], *, live: bool
) -> None:
    """Have the model write here; see `interpreter.generate`. `live`: somebody reads while it is written.

    Raises:
        Unsupported: the model cannot do what the gen asks for.
        SpeculationMiss: it does not keep to the template of its turn.
        SglActorsError: what the API said.
    """
    model = model_of(setup)
    capabilities = model.capabilities
    sampling = resolve(node.sampling, setup.sampling, _seed(stream, setup), node.constraint)
    # of a form for what stands before it, or in a run before this one: also where gens by themselves go on
    if stream.number in stream.filled or was_asked(stream, setup, FORM_PART):
        await whole_turn.generate(stream, node, setup, sampling, timeout, emit, live=live)
        return
    native = bool(node.tools) and capabilities.tools and not _is_begun(stream.prompt)
    constraint = None if native else sampling.constraint
    kept = constraint is None or constraint.kind in capabilities.constraints
    goes_on = capabilities.continuation == TEXT or (capabilities.continuation == PREFILL and kept)
    seen = sampling if goes_on or node.tools else msgspec.structs.replace(sampling, constraint=None)
    what = f"gen({node.name!r})"
    check_asked(what, node, seen, capabilities, model.title)
    check_media(what, [one for _, _, one in stream.prompt.media], capabilities, model.title)
    if native:
        node = msgspec.structs.replace(node, constraint=None)
        sampling = msgspec.structs.replace(sampling, constraint=None)
    elif node.tools:
        node = msgspec.structs.replace(node, tools="")
    if sampling.max_tokens == 0:
        define_as(stream, node, [""] * node.count, {"prompt_tokens": 0, "completion_tokens": 0})
        return
    gen = _Gen(stream, node, setup, sampling, timeout, emit, live=live)
    if goes_on:
        try:
            await gen.go_on(capabilities)
        except NoContinuation:  # it was not known; the vendor knows it now
            stream.ahead = None
        else:
            return
    await whole_turn.generate(stream, node, setup, sampling, timeout, emit, live=live)


def _is_begun(prompt: Prompt) -> bool:
    """Whether the turn that is open holds something already, behind which no tool can be called."""
    return prompt.open and bool(prompt.turns[-1].content)


def model_of(setup: Setup) -> ApiModel:
    """The model that a program runs on, which is an API's."""
    model = setup.client.api
    assert model is not None
    return model


def _seed(stream: Stream, setup: Setup) -> int:
    return derive_seed(setup.seed, stream.path, stream.gens)


class Context(NamedTuple):
    """What a model goes on with.

    Attributes:
        before: what stands before the text, and has to stay as it is.
        text: it.
        request: both, as fields of `Generate`.
    """

    before: Hashable
    text: str
    request: dict[str, Any]


async def context(stream: Stream, setup: Setup, capabilities: Capabilities, what: str) -> Context:
    """The prompt as it is now; `Unsupported` if there is no place in it for a model's text."""
    prompt = stream.prompt
    if capabilities.continuation == TEXT:
        text = await setup.frames.text(prompt)
        return Context((), text, {"text": text})
    messages = messages_of(prompt)
    if not prompt.open:
        raise Unsupported(
            f"{what}: {model_of(setup).title} writes assistant's turns only; write s += sgl.assistant(…) around it, or use a model that goes on with text"
        )
    content = prompt.turns[-1].content
    before = messages[:-1] if content else messages
    return Context(tuple(before), content, {"messages": messages, "continue_final": bool(content)})


class _Gen:
    """One gen on a model that goes on with what is there."""

    def __init__(
        self,
        stream: Stream,
        node: Gen,
        setup: Setup,
        sampling: SamplingOptions,
        timeout: float,
        emit: Callable[[str], None],
        *,
        live: bool,
    ) -> None:
        self._stream, self._node, self._setup = stream, node, setup
        self._sampling, self._timeout, self._emit, self._live = sampling, timeout, emit, live
        self._handed = self._again = ""

    async def go_on(self, capabilities: Capabilities) -> None:
        """Take the text from what is known, or ask for it and what follows."""
        stream, node = self._stream, self._node
        here = await context(stream, self._setup, capabilities, f"gen({node.name!r})")
        plain = node.count == 1 and not (node.logprobs or node.top_logprobs or node.tools)
        taken = await self._take(here) if plain else None
        if taken is not None:
            self._emit(taken.text)
            self._end(taken, _meta_of(taken, self._sampling))
            return
        stream.ahead = None
        plan = upcoming(stream, self._setup, self._sampling) if plain else alone(self._sampling)
        ahead = plain and self._may_ask_ahead(plan, capabilities)
        if not (ahead and await self._ask_ahead(here, plan)):
            await self._ask(here)

    def _may_ask_ahead(self, plan: FollowUp, capabilities: Capabilities) -> bool:
        """Whether more than this gen's text can be asked for, and this gen's own is sure to be had of it. A resumed run does what the first one did.

        Not after it was not, once; not with a constraint, which ends where the model likes; not with `min_tokens`, before which a stop is none; not beyond what the program's budget has left; and not if somebody reads a text of limited length
        whose tokens nobody counts on the way: what is beyond the limit would have been handed out already.
        """
        if was_asked(self._stream, self._setup, AHEAD_PART):
            return True
        sampling, limited = self._sampling, self._sampling.max_tokens is not None
        if len(plan.parts) == 1 and (self._setup.speculation <= 0 or sampling.constraint is not None):
            return False
        if (
            self._stream.alone
            or sampling.min_tokens
            or (self._live and limited and not capabilities.counting)
        ):
            return False
        if was_asked(self._stream, self._setup, 0):
            return False
        left = self._setup.books.left
        return left is None or not limited or (plan.max_tokens is not None and plan.max_tokens <= left)

    async def _take(self, here: Context) -> Taken | None:
        """The text, if it has been written already, and is none that the gen's limit would have cut."""
        ahead = self._stream.ahead
        taken = ahead.find(here.before, here.text, self._sampling) if ahead else None
        if ahead is None or taken is None or not await self._is_within(taken):
            return None
        self._stream.count(Usage(wasted_tokens=-ahead.use(taken)))
        return taken

    async def _is_within(self, taken: Taken) -> bool:
        """Whether a text has no more than `max_tokens`: no token is less than a byte; beyond that the model's tokenizer knows it, or it is far below by its share of what was written."""
        limit, model = self._sampling.max_tokens, model_of(self._setup)
        if limit is None or len(taken.text.encode()) <= limit:
            return True
        if not model.capabilities.tokenizer:
            return MARGIN * taken.tokens <= limit
        ids = await self._setup.client.tokenize(Tokenize(taken.text, tenant=DEFAULT))
        return len(ids.token_ids) <= limit

    def _end(self, taken: Taken, meta: dict[str, Any]) -> None:
        """This gen has its text."""
        finish = {"type": taken.finish.reason, "matched": taken.finish.matched}
        define_as(self._stream, self._node, [taken.text], meta | {"finish_reason": finish})
        self._stream.gens += 1

    async def _ask_ahead(self, here: Context, plan: FollowUp) -> bool:
        """Ask for several gens at once; False if not even this one's text came of it."""
        stream, first = self._stream, self._sampling.max_tokens
        own = sent(self._sampling, model_of(self._setup).capabilities.sampling)
        # a resumed run reads the recorded answer, and has to know what ended it: the model alone
        stop = plan.stop if self._setup.entry is None else ()
        sampling = msgspec.structs.replace(own, max_tokens=plan.max_tokens, stop=stop)
        follow = plan.parts if len(plan.parts) > 1 else ()
        call = self._call(here, 0, follow=follow, first=first)._replace(part=AHEAD_PART)
        cut = Cutter(self._sampling)
        one = Completion(self._setup, self._node, sampling, self._timeout, call, cut, **here.request)
        await complete(stream, [one], self._shown if self._live else _ignore)
        tokens, ended = one.used.completion_tokens, one.finish.reason == "stop"
        if not ended and cut.stop is None and tokens == first:  # as it would have ended alone
            taken = Taken(one.text, one.finish, tokens)
        else:
            ended_by = stop if ended else None
            stream.ahead = Ahead(
                here.before, here.text, cut.text, self._sampling, ended_by=ended_by, tokens=tokens
            )
            stream.count(Usage(wasted_tokens=stream.ahead.wasted))
            found = await self._take(here)
            if found is None:
                stream.ahead = None
                stream.alone = True
                return False
            taken = found
        self._emit(taken.text[len(self._handed) :])
        self._end(taken, one.meta)
        return True

    def _shown(self, piece: str) -> None:
        """Hand out what is written. What has been handed out cannot be taken back: another answer has to begin with it."""
        self._again += piece
        if not (self._again.startswith(self._handed) or self._handed.startswith(self._again)):
            raise BrokenAnswer("the text was asked for again, and is not the one that was shown already")
        new = self._again[len(self._handed) :]
        self._handed += new
        self._emit(new)

    async def _ask(self, here: Context) -> None:
        """Ask for this gen alone."""
        node, sampling, self._again = self._node, self._sampling, ""
        able = model_of(self._setup).capabilities
        taken = able.sampling
        check_room(self._setup, sampling, node.count, able.count)
        asks = [
            Completion(
                self._setup,
                node,
                sent(nth(sampling, part), taken),
                self._timeout,
                self._call(here, part),
                Cutter(left_over(sampling, taken)),
                calls=int(part % able.count == 0),
                **here.request,
            )
            for part in range(node.count)
        ]
        await complete(self._stream, asks, self._shown)
        self._stream.count(Usage(wasted_tokens=sum(one.unused for one in asks)))
        self._stream.gens += 1
        define(self._stream, node, asks)

    def _call(self, here: Context, part: int, **fields: Any) -> Call:
        basis = (here.request.get("text", here.request.get("messages")), nth(self._sampling, part))
        return call_of(self._stream, self._node, part)._replace(
            completions=self._node.count, live=self._live, tools=self._node.tools, basis=basis, **fields
        )


def _meta_of(taken: Taken, sampling: SamplingOptions) -> dict[str, Any]:
    """What a program may know of a gen that needed no call."""
    return {
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": taken.tokens,
        "seed": sampling.seed,
        "speculated": True,
    }


def _ignore(_text: str) -> None: ...
