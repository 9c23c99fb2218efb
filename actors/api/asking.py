"""One request to a vendor: waits for its place, reads the answer, and leaves it where the rest is of no use."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from sgl_actors.actors.api.messages import AskModel
from sgl_actors.actors.api.outlet import Outlet
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.errors import BrokenAnswer, DeadlineExceeded, Overloaded, SglActorsError
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Tokens, Vendor
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.speculation import OPEN, Follower

if TYPE_CHECKING:
    from sgl_actors.actors.api.desk import Desk

CHARACTERS: Final = 4
"""Per token, for estimates."""
UNLIMITED: Final = 512
"""Tokens that a request without a limit is taken for before it is answered."""
MOST_TEXT: Final = 1 << 24
"""Characters of one answer that comes in pieces, more than which no model writes."""


class Hopeless(Exception):
    """Asking again would not mend it; `failure` is to be raised."""

    def __init__(self, failure: SglActorsError) -> None:
        super().__init__(failure.code)
        self.failure = failure


class Asking:
    """One request, however often it is asked.

    Attributes:
        spent, cost: what all tries used, as far as the provider told.
    """

    def __init__(self, desk: Desk, message: AskModel, outlet: Outlet, deadline: float) -> None:
        self._desk, self._message, self._outlet, self._deadline = desk, message, outlet, deadline
        self._vendor = desk.vendor
        self.spent, self.cost = Tokens(), 0.0

    async def once(self, *, again: bool) -> End:
        """Wait for a place and ask.

        Raises:
            Hopeless: the line is full, the budget is used up by now, the provider does not want to be asked in time, or an answer differs from what was handed out.
            SglActorsError: what the try came to.
        """
        desk, message = self._desk, self._message
        wait = desk.wait(self._deadline)
        if wait:
            title = self._vendor.title
            raise Hopeless(
                Overloaded(
                    f"{title} does not want to be asked in the next {wait:.0f} s (Retry-After); wait, or use another key or model"
                )
            )
        try:
            place = await desk.gate.enter(message.program, estimate(message.ask), again=again)
        except Overloaded as full:
            raise Hopeless(full) from None
        try:
            desk.check_cost()  # others may have spent the rest while it waited
        except BudgetExceeded as error:
            desk.gate.leave(place, 0)
            raise Hopeless(error) from None
        reading = _Reading(self._vendor, message, self._outlet)
        limit = desk.left(self._deadline)
        try:
            async with asyncio.timeout(limit):
                return await reading.run(limit)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._vendor.title}: no whole answer within {limit:.3g} s (options: timeout)"
            ) from None
        finally:
            used = reading.used
            desk.gate.leave(place, None if used is None else used.prompt + used.output)
            if used is not None:
                self.cost += desk.paid(used)
                self.spent = Tokens(
                    self.spent.prompt + used.prompt,
                    self.spent.cached + used.cached,
                    self.spent.output + used.output,
                )


class _Reading:
    """One try. `used`: what it has used so far, if the provider has told."""

    def __init__(self, vendor: Vendor, message: AskModel, outlet: Outlet) -> None:
        self._vendor, self._outlet = vendor, outlet
        ask = message.ask
        follows = message.follow and vendor.capabilities.counting and ask.count == 1 and not ask.logprobs
        self._follower = Follower(message.follow) if follows else None
        self._ask = msgspec.structs.replace(ask, stream=True) if follows else ask
        self._first = message.first
        self._text = ""
        self.used: Tokens | None = None

    async def run(self, limit: float) -> End:
        """Read the answer as far as it is of use."""
        async with aclosing(self._vendor.ask(self._ask, timeout=limit)) as events:
            async for event in events:
                if isinstance(event, End):
                    return self._end(event)
                self.used = event.used or self.used
                self._check(event.text)
                self._text += event.text
                if len(self._text) > MOST_TEXT:
                    title = self._vendor.title
                    raise Hopeless(
                        BrokenAnswer(f"{title}: the answer does not end, after {MOST_TEXT} characters")
                    )
                if not self._outlet.write(event.text):
                    raise Hopeless(self._outlet.failure or self._changed())
                if self._is_through(event.text):
                    assert self.used is not None
                    return End((Completion(self._text, Finish("length")),), self.used)
        raise BrokenAnswer(f"{self._vendor.title}: the answer has no end")

    def _end(self, end: End) -> End:
        self.used = end.used
        for one in end.completions:
            self._check(one.text)
        if not end.completions or not end.completions[0].text.startswith(self._outlet.handed):
            raise Hopeless(self._outlet.failure or self._changed())
        return end

    def _check(self, text: str) -> None:
        """Raise for half of a surrogate pair, which JSON can hold: no prompt that goes on behind it could be sent."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BrokenAnswer(f"{self._vendor.title}: the answer is no Unicode text; ask again") from None

    def _is_through(self, piece: str) -> bool:
        """Whether it is left here, because the rest is of no use and what it has used is known.

        It is not the model that ended it, so for whoever reads on it is cut off.
        """
        if self._follower is None:
            return False
        if self._follower.feed(piece) != OPEN and self.used is not None:
            return True
        too_long = self._first is not None and self.used is not None and self.used.output >= self._first
        return too_long and self._follower.begins

    def _changed(self) -> BrokenAnswer:
        return BrokenAnswer(f"{self._vendor.title}: the answer's end is not what came in pieces")


def estimate(ask: Ask) -> int:
    """About how many tokens a request takes, before it is asked."""
    texts = [ask.text or "", *(message.content for message in ask.messages or ())]
    limit = ask.sampling.max_tokens
    output = UNLIMITED if limit is None else limit
    return sum(map(len, texts)) // CHARACTERS + 1 + ask.count * output
