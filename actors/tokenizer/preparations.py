"""What cannot be answered at once: long texts go to a thread, constraints to the grammar actor, and after a start the model is not known yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from sgl_actors.actors.microkernel import Context, Message, Request
from sgl_actors.actors.tokenizer import constraints, prompts
from sgl_actors.actors.tokenizer.handover import Question
from sgl_actors.actors.tokenizer.messages import Generate, Tokenize
from sgl_actors.actors.tokenizer.outbox import Spawn
from sgl_actors.actors.tokenizer.prompts import Prompts
from sgl_actors.actors.tokenizer.served import ServedModel
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import Cancelled, InvalidRequest, SglActorsError

Admit = Callable[[Generate, list[int], Request], None]
"""Lets a request in whose prompt has become token ids."""


class Preparation:
    """A request that is not admitted yet: its constraint is compiled, its prompt is tokenised in a thread, or no model is known."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False

    def cancel(self, why: str) -> None:
        """End it; of no effect on a request that is admitted or has failed."""
        if self.task is not None and self.task.done():
            return
        self.cancelled = True
        self.request.fail(Cancelled(why))
        if self.task is not None:
            self.task.cancel()


class Preparations:
    """Questions that a task works on, beside the messages; nothing of them is lost if they are begun anew.

    Attributes:
        waiting: requests by id that are not admitted yet.
    """

    def __init__(self, ctx: Context, model: ServedModel, spawn: Spawn, admit: Admit) -> None:
        self.waiting: dict[str, Preparation] = {}
        self._questions: dict[Request, Message] = {}
        self._ctx = ctx
        self._model = model
        self._spawn = spawn
        self._admit = admit

    def begin(self, message: Generate, request: Request, reader: Prompts) -> None:
        """Get a request ready: its prompt is long, it has a constraint or stop patterns, or it came before the model was known.

        Raises:
            InvalidRequest: another request of that id is being prepared.
        """
        old = self.waiting.get(message.id)
        if old is not None:
            if _essence(self._questions.get(old.request, message)) != _essence(message):
                raise InvalidRequest(f"id {message.id} is in use by another request", param="id")
            old.cancel(f"another asker has taken over request {message.id}")
        preparation = self.waiting[message.id] = Preparation(request)
        request.on_cancel(partial(preparation.cancel, "its asker is gone"))
        work = partial(self._prepare, message, preparation, reader)
        self._work(request, message, work, f"prepare {message.id}")

    def tokenise(self, message: Tokenize, request: Request, reader: Prompts) -> None:
        """Answer for a long text."""

        async def work() -> None:
            request.reply(await asyncio.to_thread(reader.tokenise, message))

        self._work(request, message, work, "tokenise")

    def describe_vocabulary(self, message: Message, request: Request, vocabulary: Vocabulary) -> None:
        """Answer, once the model is known: it may have to name the end tokens."""

        async def work() -> None:
            model = await self._model.wait()
            request.reply(await asyncio.to_thread(constraints.describe, vocabulary, model.eos_ids))

        self._work(request, message, work, "vocabulary")

    def cancel(self, request: str) -> None:
        """An operator has cancelled it."""
        self.waiting.pop(request).cancel(f"request {request} was cancelled")

    def state(self, place: Callable[[Request], int]) -> list[Question]:
        """All questions, for `handover`; `place` puts a `Request` where the successor finds it."""
        return [
            Question(
                place(request),
                message if isinstance(message, Generate) else None,
                message if isinstance(message, Tokenize) else None,
            )
            for request, message in self._questions.items()
        ]

    def _work(
        self, request: Request, message: Message, work: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> None:
        """Work on an answer beside the messages; the asker is told of what goes wrong."""
        self._questions[request] = message

        async def answer() -> None:
            try:
                await work()
            except SglActorsError as error:
                request.fail(error)
            finally:
                self._questions.pop(request, None)

        self._spawn(answer(), name)

    async def _prepare(self, message: Generate, preparation: Preparation, reader: Prompts) -> None:
        request, preparation.task = preparation.request, asyncio.current_task()
        try:
            if preparation.cancelled:
                return
            model = await self._model.wait()
            prompts.check_size(message, reader.vocabulary, model.context)
            if message.sampling.constraint is not None:
                await constraints.check_constraint(self._ctx, message.sampling.constraint, request)
            self._admit(message, await asyncio.to_thread(_ids, message, reader), request)
        finally:
            if self.waiting.get(message.id) is preparation:
                del self.waiting[message.id]


def _ids(message: Generate, reader: Prompts) -> list[int]:
    """The prompt's ids; runs in a thread."""
    constraints.check_stop_patterns(message.sampling)
    return reader.ids(message)


def _essence(message: Message) -> Message:
    """What a request is, however much of its output the asker has."""
    return msgspec.structs.replace(message, output=[], known=-1) if isinstance(message, Generate) else message
