"""Completions of one primitive that an API is asked for all at once, each of which is somebody else's; and answers as chunks."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

from sgl_actors.actors.api.messages import Answered
from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import BrokenAnswer
from sgl_actors.lang.protocols import Call

GROUPS: Final = 1024
"""Of which some parts have not come yet, at most."""
Key: TypeAlias = tuple[str, str, tuple[int, ...], int, int]


class Share(NamedTuple):
    """One completion of an answer: how many tokens are its, and what the whole cost if it is the asker's."""

    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...]
    tokens: tuple[str, ...]
    output: int
    answer: Answered | None

    def rest(self, known: str, start: int = -1) -> Chunk:
        """What there is beyond the text that was handed out; with the prompt's log probabilities from token `start` on."""
        answer = self.answer
        used = answer.end.used if answer else None
        scored = answer is not None and start >= 0
        return Chunk(
            0,
            [],
            self.text[len(known) :],
            list(self.logprobs),
            used.prompt if used else 0,
            used.cached if used else 0,
            list(answer.end.scores[start:]) if answer and scored else [],
            self.finish,
            self.output,
            tokens=list(answer.end.scored[start:]) if answer and scored else list(self.tokens),
            retries=answer.retries if answer else 0,
            cost=answer.cost if answer else 0.0,
            shared=answer is None,
        )


def shares(answer: Answered) -> list[Share]:
    """Each completion with its share of the output tokens, by its length; prompt, retries and cost are the first one's."""
    found, end = [], answer.end
    whole = sum(len(one.text) for one in end.completions)
    seen = given = 0
    for number, one in enumerate(end.completions):
        seen += len(one.text)
        last = number == len(end.completions) - 1
        upto = end.used.output if last or not whole else end.used.output * seen // whole
        found.append(
            Share(one.text, one.finish, one.logprobs, one.tokens, upto - given, None if number else answer)
        )
        given = upto
    return found


class Groups:
    """Those that are asked for now, by program, stream and position."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._groups: OrderedDict[Key, Group] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Groups: {len(self._groups)}>"

    def of(self, program: str, call: Call, most: int) -> Group | None:
        """With whom that is asked for; None if it is by itself. A part that has had its completion begins a new group.

        Args:
            program: whose call it is.
            call: its `part` counts on when all completions are asked for again.
            most: completions of one request.
        """
        again, part = divmod(call.part, call.completions)
        first = part - part % max(1, most)
        count = min(most, call.completions - first)
        if count <= 1:
            return None
        key = (program, call.stream, call.position, again, first)
        group = self._groups.get(key)
        if group is None or part in group.had:
            group = self._groups[key] = Group(self._context, first, count)
            self._groups.move_to_end(key)
            if len(self._groups) > GROUPS:  # of some, parts were never asked for
                self._groups.popitem(last=False)
        group.had.add(part)
        if len(group.had) == count:
            del self._groups[key]
        return group


class Group:
    """Parts `first` to `first + count - 1`. Who comes first asks for all; the request ends when nobody waits for it any more.

    Attributes:
        had: parts that have come.
    """

    def __init__(self, context: Context, first: int, count: int) -> None:
        self._context, self._first, self._count = context, first, count
        self.had: set[int] = set()
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[list[Share] | Exception] | None = None

    def __repr__(self) -> str:
        return f"<Group of {self._count} from {self._first}, {len(self.had)} have come>"

    async def part(self, number: int, ask: Callable[[int], Awaitable[Answered]]) -> Chunk:
        """The completion of one part, as its last chunk.

        Raises:
            SglActorsError: what became of the request, to each part.
        """
        asks = self._answer is None
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            self._task = self._context.task(self._ask(ask, self._answer), name="completions")
        self._waiting += 1
        try:
            found = await asyncio.shield(self._answer)
        finally:
            self._waiting -= 1
            if not self._waiting and self._task is not None:
                self._task.cancel()
        if isinstance(found, Exception):
            raise copy.copy(found)
        share = found[number - self._first]
        return share._replace(answer=found[0].answer if asks else None).rest("")

    async def _ask(
        self, ask: Callable[[int], Awaitable[Answered]], answer: asyncio.Future[list[Share] | Exception]
    ) -> None:
        """Ask for all; whatever comes of it is the answer."""
        try:
            found = shares(await ask(self._count))
        except Exception as error:  # noqa: BLE001 - it is that of those who wait
            answer.set_result(error)
        else:
            lost = BrokenAnswer(f"{len(found)} completions came of {self._count}")
            answer.set_result(found if len(found) == self._count else lost)
        finally:
            answer.cancel()
