"""What gens and selects ask of an API model that writes only whole turns: one call per assistant turn.

A turn that is one gen is asked for as it is. One with template text, or several gens, becomes a form (`lang.forms`): as far as the program has said how the turn goes
on, the model is asked for all its blanks at once, as an object of a JSON schema or, where there are no schemas, as the turn's text. What comes is checked blank by blank; what
does not fit is asked for again, with the reason, and after `TRIES` it is a `SpeculationMiss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from sgl_actors.actors.programs.interpreter import Completion, call_of, check_room, complete, define_as, nth
from sgl_actors.actors.programs.lookahead import FORM_PART, looked_at
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.chat_messages import messages_of
from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, Constraint
from sgl_actors.lang.errors import SpeculationMiss, Unsupported
from sgl_actors.lang.form_values import COMPACT, SPACED, ordered, read_json, write_json
from sgl_actors.lang.forms import Blank, Form, Mismatch
from sgl_actors.lang.ir import ConstantText, Gen, ScopeBegin, ScopeEnd, Select, SetVariable
from sgl_actors.lang.results import Usage
from sgl_actors.lang.sampling import resolve
from sgl_actors.lang.speculation import alike
from sgl_actors.lang.stops import Cutter, left_over, sent
from sgl_actors.lang.typed import InvalidValue

TRIES: Final = 3
"""Of one turn, or one constrained gen."""


async def generate(
    stream: Stream,
    node: Gen,
    setup: Setup,
    sampling: SamplingOptions,
    timeout: float,
    emit: Callable[[str], None],
    *,
    live: bool,
) -> None:
    """Have the model write here; see `remote.generate`."""
    number = stream.number
    known = stream.filled.pop(number, None)
    if known is not None:
        stream.gens += 1
        emit(known)
        define_as(stream, node, [known], _meta(sampling, calls=0))
        return
    turn = _Turn(stream, setup, node, timeout)
    own = Blank(number, node.name or "", sampling)
    parts: list[str | Blank] = [own]
    if node.count == 1 and not node.tools:
        parts = turn.parts(own, sampling)
    if turn.is_plain(parts, sampling.constraint):
        await turn.plain(sampling, emit, live=live)
        return
    texts, used = [], Usage()
    for part in range(node.count):
        filled, one = await turn.fill(parts, nth(sampling, part), FORM_PART + part * TRIES)
        texts.append(filled.pop(number))
        stream.filled.update(filled)
        used += one
    stream.gens += 1
    emit(texts[0])
    define_as(stream, node, texts, _meta(sampling, used.calls, used))


async def choose(stream: Stream, node: Select, setup: Setup, timeout: float) -> tuple[str, Usage]:
    """The choice for a select, and what the call for it used."""
    number = stream.number
    known = stream.filled.pop(number, None)
    if known is not None:
        return known, Usage()
    sampling = resolve(Gen().sampling, setup.sampling, 0)
    turn = _Turn(stream, setup, Gen(node.name), timeout)
    own = Blank(number, node.name or "", sampling, node.choices)
    filled, used = await turn.fill(turn.parts(own, sampling), sampling, FORM_PART)
    choice = filled.pop(number)
    stream.filled.update(filled)
    return choice, used


class _Turn:
    """The assistant's turn that is open, from the primitive on that is being done."""

    def __init__(self, stream: Stream, setup: Setup, node: Gen, timeout: float) -> None:
        self._stream, self._setup, self._node, self._timeout = stream, setup, node, timeout
        self._messages = messages_of(stream.prompt)
        self._looked = 0
        if not stream.prompt.open:
            raise Unsupported(
                f"{self._title} writes assistant's turns only; write s += sgl.assistant(…) around the gen, or use a model that goes on with text"
            )
        self.written = stream.prompt.turns[-1].content
        if self._messages[-1].role == "assistant":
            self._messages.pop()
        if not self._messages:
            raise Unsupported(f"{self._title} answers a turn; there is none before the assistant's")

    @property
    def _title(self) -> str:
        model = self._setup.client.api
        return model.title if model else ""

    @property
    def _capabilities(self) -> Capabilities:
        model = self._setup.client.api
        assert model is not None
        return model.capabilities

    def parts(self, own: Blank, sampling: SamplingOptions) -> list[str | Blank]:
        """How the turn goes on, as far as the program has said so and one call can be for it."""
        parts: list[str | Blank] = [own]
        if self._setup.speculation == 0:
            return parts
        known = looked_at(self._stream, self._setup)
        steps = self._stream.later()
        for number, node in steps if known is None else steps[: max(0, known)]:
            match node:
                case ConstantText(text):
                    parts.append(text)
                case SetVariable() | ScopeBegin() | ScopeEnd():
                    pass
                case Gen(count=1, tools="") if not (node.logprobs or node.top_logprobs):
                    following = resolve(node.sampling, self._setup.sampling, 0, node.constraint)
                    if not alike(sampling, following):
                        break
                    parts.append(Blank(number, node.name or "", following))
                case Select():
                    parts.append(Blank(number, node.name or "", sampling, node.choices))
                case _:
                    break
            self._looked += 1
        return parts

    def is_plain(self, parts: list[str | Blank], constraint: Constraint | None) -> bool:
        """Whether the turn is one gen, which the model can write as it is."""
        able = self._capabilities
        kept = constraint is None or constraint.kind in able.constraints
        kept = kept or (constraint is not None and constraint.kind == JSON_SCHEMA and able.schema)
        blanks = sum(isinstance(part, Blank) for part in parts)
        return kept and not self.written and blanks == 1 and isinstance(parts[0], Blank)

    async def plain(self, sampling: SamplingOptions, emit: Callable[[str], None], *, live: bool) -> None:
        """The turn, or its beginning, is one gen: the model writes it as it would."""
        node, stream = self._node, self._stream
        live = live and node.constraint is None
        check_room(self._setup, sampling, node.count, self._capabilities.count)
        for attempt in range(TRIES):
            asks = [
                self._completion(nth(sampling, part), self._messages, part, sampling, live=live)
                for part in range(attempt * node.count, (attempt + 1) * node.count)
            ]
            await complete(stream, asks, emit if live else _ignore)
            self._check_written(asks[0], sampling)
            texts = [_canonical(one.text, node.constraint) for one in asks]
            wrong = [
                text for text, one in zip(texts, asks, strict=True) if not _fits(text, one, node.constraint)
            ]
            if not wrong:
                stream.count(Usage(wasted_tokens=sum(one.unused for one in asks)))
                break
            stream.count(Usage(wasted_tokens=sum(one.used.completion_tokens for one in asks)))
        else:
            raise InvalidValue(
                f"{self._title} wrote in {TRIES} tries what its constraint does not allow: {wrong[0][:80]!r}"
            )
        if not live:
            emit(texts[0])
        stream.gens += 1
        meta = dict(asks[0].meta)
        if node.count > 1:
            meta["completions"] = [one.meta for one in asks]
        define_as(stream, node, texts, meta)

    def _check_written(self, one: Completion, sampling: SamplingOptions) -> None:
        """Raise if a model that thinks first had no tokens left for its answer."""
        if one.finish.reason == "length" and not one.text and one.used.completion_tokens:
            raise Unsupported(
                f"{self._title} used up max_tokens={sampling.max_tokens} before it wrote anything: its hidden reasoning counts; give it more"
            )

    async def fill(
        self, parts: list[str | Blank], sampling: SamplingOptions, first: int
    ) -> tuple[dict[int, str], Usage]:
        """Texts of all blanks, by the numbers of their nodes, and what the calls used. `first`: `Call.part` of the first request."""
        form, by_schema = Form(self.written, parts), self._capabilities.schema
        asked = form.instruction() if by_schema else form.request()
        constraint = (
            Constraint(JSON_SCHEMA, msgspec.json.encode(form.schema()).decode()) if by_schema else None
        )
        how = msgspec.structs.replace(
            sampling,
            max_tokens=form.max_tokens(by_schema),
            stop=(),
            stop_regex=(),
            no_stop_trim=False,
            constraint=constraint,
        )
        messages = [*self._messages, ChatMessage("user", asked)]
        used, why = Usage(), ""
        for attempt in range(TRIES):
            one = self._completion(nth(how, attempt), messages, first + attempt, sampling, live=False)
            await complete(self._stream, [one], _ignore)
            used += one.used
            try:
                if one.finish.reason == "length":
                    raise Mismatch("it was cut off by max_tokens")  # noqa: TRY301 - the same way out
                return form.read(one.text) if by_schema else form.match(one.text), used
            except Mismatch as mismatch:
                why = mismatch.why
                self._stream.count(Usage(wasted_tokens=one.used.completion_tokens))
                messages = [
                    *messages[: len(self._messages) + 1],
                    *([ChatMessage("assistant", one.text)] if one.text.strip() else []),
                    ChatMessage("user", form.feedback(why)),
                ]
        raise SpeculationMiss(
            f"{self._title} did not keep to the turn {form.sketch!r:.200} in {TRIES} tries: {why}; make it simpler, or several turns"
        )

    def _completion(
        self,
        how: SamplingOptions,
        messages: list[ChatMessage],
        part: int,
        own: SamplingOptions,
        *,
        live: bool,
    ) -> Completion:
        node = self._node
        call = call_of(self._stream, node, part)._replace(
            live=live,
            tools=node.tools if self._capabilities.tools else "",
            looked=self._looked,
            basis=(self._messages, own),
            completions=node.count if part < FORM_PART else 1,
        )
        taken = self._capabilities.sampling
        cut, how = Cutter(left_over(how, taken)), sent(how, taken)
        calls = int(call.completions == 1 or part % call.completions % self._capabilities.count == 0)
        return Completion(self._setup, node, how, self._timeout, call, cut, calls=calls, messages=messages)


def _fits(text: str, one: Completion, constraint: Constraint | None) -> bool:
    """Whether it is what its constraint says; a text that was cut off is whoever reads it to judge."""
    if constraint is None or one.finish.reason == "length":
        return True
    return bytewise.accepts(constraint, text.encode())


def _canonical(text: str, constraint: Constraint | None) -> str:
    """JSON as our own nodes write it, so that a program sees the same text everywhere; anything else as it is."""
    if constraint is None or constraint.kind != JSON_SCHEMA:
        return text
    try:
        value = ordered(read_json(text), msgspec.json.decode(constraint.source))
    except (ValueError, RecursionError):
        return text
    written = (write_json(value, separators) for separators in (SPACED, COMPACT))
    return next((one for one in written if bytewise.accepts(constraint, one.encode())), text)


def _meta(sampling: SamplingOptions, calls: int, used: Usage = Usage()) -> dict[str, Any]:  # noqa: B008 - frozen
    """What a program may know of a blank of a form."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "finish_reason": {"type": "stop", "matched": None},
        "seed": sampling.seed,
        "speculated": not calls,
    }


def _ignore(_text: str) -> None: ...
