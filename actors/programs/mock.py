"""A model that says what a script has it say, for tests of programs: no model, no process, no port.

`Mock` is a backend like a node. Its streams are the same actors, in a kernel of their own; what they ask of the node, they ask of a
`MockClient`. What it answers is decided in `lang.backends.mock`.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from sgl_actors.actors.cache.messages import DEFAULT, Pinned
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.program import LiveRun
from sgl_actors.actors.programs.runtime import Backend, NodeHandle
from sgl_actors.actors.scheduler.messages import Finish, Flushed
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate, TokenIds, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import InvalidRequest, RemoteError, SglActorsError
from sgl_actors.lang.backends.mock import (
    MockCall,
    Place,
    Script,
    UnscriptedCall,
    logprobs_of,
    pieces_of,
    scores_of,
    tail_of,
    write,
)
from sgl_actors.lang.backends.words import Prompts, Words, grown
from sgl_actors.lang.ir import IMAGE, VIDEO
from sgl_actors.lang.protocols import ApiModel, Call, Client, RunOptions

T = TypeVar("T")

PLAIN: Final = Call("gen")
"""What a request is for that does not say so."""


class MockClient:
    """Answers what streams ask of a node; see `lang.protocols.Client`.

    Attributes:
        takes: it looks at no image, so it takes all.
        calls: gens and selects in the order of their arrival.
        wrong: calls that the script could not answer, for people.
    """

    takes = frozenset({IMAGE, VIDEO})
    api: ApiModel | None = None

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[MockCall] = []
        self.wrong: list[str] = []
        self._words = Words()
        self._prompts: defaultdict[str, Prompts] = defaultdict(Prompts)
        self._runs: dict[str, Place] = {}
        self._batch = self._rank = 0
        self._scores: dict[tuple[str, str], asyncio.Future[list[list[float | None]]]] = {}

    def __repr__(self) -> str:
        return f"<MockClient: {len(self.calls)} calls, {self.script}>"

    def began(self, program: str, *, alone: bool) -> None:
        """A run has begun; `alone`: no other one goes on."""
        self._batch, self._rank = (self._batch + 1, 0) if alone else (self._batch, self._rank + 1)
        self._runs[program] = (self._batch, self._rank)

    async def generate(
        self,
        request: Generate,
        *,
        timeout: float = 600.0,  # noqa: ARG002
        trace: str = "",  # noqa: ARG002
        call: Call | None = None,
    ) -> AsyncIterator[Chunk]:
        """See `Client.generate`."""
        if request.sampling.max_tokens == 0:
            yield await self._computed(request, call or PLAIN)
            return
        prompt, store = self._prompt(request), self._prompts[request.salt]
        ends, cached = store.measure(prompt)
        store.add(prompt, ends)
        made = self._note(request, call or PLAIN, prompt, len(ends), cached)
        written = write(await self._answer(made, pieces_of), request.sampling)
        made.answer = "".join(text for text, _ in written.pieces)
        whole = prompt + made.answer
        store.add(whole, grown(whole, ends, len(prompt))[0])
        start, count = request.prompt_logprobs_start, 0
        scored = _scored(self._words.ids(prompt), start, ()) if start >= 0 else []
        last = len(written.pieces) - 1
        for number, (text, tokens) in enumerate(written.pieces):
            if number < last and count + len(tokens) <= len(request.output):
                count += len(tokens)  # the asker has it
                continue
            if number:
                await asyncio.sleep(0)  # whoever listens takes a piece before the next one comes
            ids = self._words.ids_of(tokens)
            values = [_certain(token, request.top_logprobs) for token in ids] if request.logprobs else []
            finish = written.finish if number == last else None
            first, count = count, count + len(ids)
            yield Chunk(
                first, ids, text, values, len(ends), cached, scored if not number else [], finish, count
            )

    async def complete(
        self, request: Generate, *, timeout: float = 600.0, trace: str = "", call: Call | None = None
    ) -> Chunk:
        """See `Client.complete`."""
        if request.sampling.max_tokens == 0:
            return await self._computed(request, call or PLAIN)
        from sgl_actors.actors.node.client import joined

        return await joined(self.generate(request, timeout=timeout, trace=trace, call=call))

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Client.tokenize`. Chats are written in ChatML."""
        text = request.text
        if request.messages is not None:
            text = chatml(
                request.messages, generation=request.add_generation_prompt, open_=request.continue_final
            )
        assert text is not None
        return TokenIds(self._words.ids(text), text)

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = "",
        salt: str = "",
        timeout: float = 600.0,  # noqa: ARG002
        trace: str = "",  # noqa: ARG002
    ) -> Pinned:
        """See `Client.pin`. Nothing is ever evicted here."""
        self._remember(self._text(token_ids), salt)
        return Pinned(name or "mock", DEFAULT, len(token_ids), len(token_ids), ttl)

    async def flush(self) -> Flushed:
        """See `Client.flush`: no prompt is known any more."""
        self._prompts.clear()
        return Flushed(done=True)

    async def _computed(self, request: Generate, call: Call) -> Chunk:
        """What is asked of a prompt alone: that it be in the cache, or how likely it is."""
        prompt, start = self._prompt(request), request.prompt_logprobs_start
        if start < 0:
            tokens, cached = self._remember(prompt, request.salt)
            return Chunk(0, [], "", [], tokens, cached, finish=Finish("length"))
        ids = request.input_ids or self._words.ids(prompt)
        asks = not call.part and call.choices
        chosen = self._begin_select(request, call, prompt) if asks else None
        tokens, cached = self._remember(prompt, request.salt)
        if chosen is not None:
            await self._select(chosen, ids[start:], start)
        values: Sequence[float | None] = ()
        if call.part < len(call.choices):  # beyond are the choices without their prompt
            values = (await self._scores[request.program, call.stream])[call.part]
        return Chunk(0, [], "", [], tokens, cached, _scored(ids, start, values), Finish("length"))

    def _begin_select(self, request: Generate, call: Call, whole: str) -> MockCall:
        """The first of its requests is here."""
        prompt = whole[: len(whole) - len(call.choices[0])]
        ends, cached = self._prompts[request.salt].measure(prompt)
        made = self._note(request, call, prompt, len(ends), cached)
        self._scores[made.program, made.path] = asyncio.get_running_loop().create_future()
        return made

    async def _select(self, made: MockCall, first: Sequence[int], start: int) -> None:
        """Choose; `first` are the tokens of the first choice, from token `start` on."""
        scores = await self._answer(made, lambda answer: scores_of(made.choices, answer))
        made.answer = made.choices[scores.index(max(scores))]
        others = [self._words.ids(made.prompt + choice)[start:] for choice in made.choices[1:]]
        values: list[list[float | None]] = [[*row] for row in logprobs_of([first, *others], scores)]
        if not made.prompt:
            values = [[None, *row[1:]] for row in values]  # as a model, that has nothing to tell it by
        self._scores[made.program, made.path].set_result(values)

    def _note(self, request: Generate, call: Call, prompt: str, tokens: int, cached: int) -> MockCall:
        made = MockCall(
            prompt, call.name, call.stream, call.choices, request.sampling, call.media, request.program,
            self._place(request, call), tokens, cached,
        )  # fmt: skip
        self.calls.append(made)
        return made

    def _place(self, request: Generate, call: Call) -> Place:
        return (*self._runs.get(request.program, (0, 0)), *call.position)

    async def _answer(self, made: MockCall, read: Callable[[Any], T]) -> T:
        """What the script says; raises what it says is to be raised, as a node would.

        That the script goes wrong is remembered, because a program may catch the error.
        """
        try:
            answer = self.script.answer(made)
            if inspect.isawaitable(answer):
                answer = await answer
            if not isinstance(answer, BaseException):
                return read(answer)
        except UnscriptedCall as error:
            self.wrong.append(f"{tail_of(made)}: {error.message}")
            raise
        except SglActorsError:
            raise
        except Exception as error:
            self.wrong.append(f"{tail_of(made)}: the script raised {type(error).__name__}: {error}")
            raise RemoteError(f"{type(error).__name__}: {error}") from error
        if isinstance(answer, SglActorsError):
            raise copy.copy(answer)
        raise RemoteError(f"{type(answer).__name__}: {answer}")

    def _remember(self, text: str, salt: str) -> tuple[int, int]:
        """Take a prompt for computed; its tokens, and those that were."""
        store = self._prompts[salt]
        ends, cached = store.measure(text)
        store.add(text, ends)
        return len(ends), cached

    def _prompt(self, request: Generate) -> str:
        if request.messages is not None:
            return chatml(
                request.messages, generation=not request.continue_final, open_=request.continue_final
            )
        return request.text if request.text is not None else self._text(request.input_ids or [])

    def _text(self, token_ids: Sequence[int]) -> str:
        try:
            return self._words.text(token_ids)
        except KeyError as error:
            raise InvalidRequest(
                f"the mock knows no token {error}; it has those that `tokenize` gave"
            ) from None


def _scored(ids: Sequence[int], start: int, values: Sequence[float | None]) -> list[TokenLogprob]:
    """Those log probabilities of ids[start:]; without any 0, but for a prompt's first token, which has none."""
    if not values:
        values = [0.0 if start + number else None for number in range(len(ids) - start)]
    return [TokenLogprob(token, value) for token, value in zip(ids[start:], values, strict=True)]


def _certain(token: int, top: int) -> TokenLogprob:
    return TokenLogprob(token, 0.0, ((token, 0.0),) if top else ())


def chatml(messages: Sequence[ChatMessage], *, generation: bool, open_: bool) -> str:
    """A chat in ChatML, without a system turn of the template's own."""
    text = "".join(f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in messages)
    if open_:
        return text.removesuffix("<|im_end|>\n")
    return text + "<|im_start|>assistant\n" if generation else text


class Mock(Backend):
    """A model that answers what it is told to, so that programs can be tested without one.

    A script is one of

    - a list: answers in program order;
    - a dictionary: by variable (or by `(path, variable)`, for one branch), a list of answers or one answer for all calls. `default`
      answers what has no entry;
    - a function of the `MockCall`; it may be `async`.

    An answer to a gen is its text, a list of strings (the text as it is streamed), plain data (its JSON), or an exception, which is
    raised as the node's. Stop strings and `max_tokens` end it as they would end a model's text. An answer to a select is the
    choice, or a dictionary of weights. Branches of a fork, which ask at the same time, take one answer each of a list, in the order of the
    branches; where that does not say which answer is meant, the call is refused.

    A call that the script has no answer for fails with `UnscriptedCall`. Tokens are words and punctuation marks.

    Args:
        script: see above.
        default: answer for what a dictionary has no entry for, or a function.

    Raises:
        InvalidPrimitive: the script is none of these.

    Example:
        >>> mock = Mock({"capital": "Paris", "tip": ["walk", "eat", "rest"]})
        >>> mock
        <Mock not open>
    """

    def __init__(
        self, script: Sequence[Any] | Mapping[Any, Any] | Callable[[MockCall], Any], *, default: Any = None
    ) -> None:
        client = self._client = MockClient(Script(script, default))

        async def opens() -> tuple[NodeHandle, Callable[[Context], Client], bool]:
            return await open_kernel(), lambda _context: client, False

        super().__init__(opens, "Mock")

    @property
    def calls(self) -> list[MockCall]:
        """Gens and selects that it was asked for, in program order: run by run, branch by branch, whatever came first."""
        return sorted(self._client.calls, key=lambda call: call.place)

    def assert_done(self) -> None:
        """Raise `AssertionError` unless each answer of the script was used and each call had one."""
        problems = list(self._client.wrong)
        left = self._client.script.left()
        if left:
            problems.append(f"not used: {left}")
        if problems:
            raise AssertionError("Mock: " + "\n      ".join(problems))

    async def start(self, name: str, options: RunOptions) -> LiveRun:
        """See `Runtime.start`."""
        run = await super().start(name, options)
        self._client.began(run.setup.program, alone=self._opened is not None and self._opened.runs == 1)
        return run
