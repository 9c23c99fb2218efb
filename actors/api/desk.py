"""Asks a vendor: waits for its turn, asks again where that helps, follows a template, and keeps the books. What several actors in turn go on with."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

import msgspec

from sgl_actors.actors.api.gate import Gate
from sgl_actors.actors.api.limits import Limits
from sgl_actors.actors.api.messages import Answered, AskModel, Options
from sgl_actors.actors.api.outlet import Outlet
from sgl_actors.actors.api.tries import Throttle, Tries, wish_of
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.errors import BrokenAnswer, DeadlineExceeded, Overloaded, SglActorsError, Unauthorized
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Tokens, Vendor
from sgl_actors.lang.budget import Books
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.results import Usage
from sgl_actors.lang.speculation import OPEN, Follower

CHARACTERS: Final = 4
"""Per token, for estimates."""
UNLIMITED: Final = 512
"""Tokens that a request without a limit is taken for before it is answered."""
LEAST_ROOM: Final = 10.0
"""Retries of a burst that the throttle lets through however few requests may run at a time."""


class Desk:
    """See the module.

    Args:
        vendor: who is asked; open.
        options: limits, budget, prices.
        clock: monotonic seconds.
        chance: numbers from 0 to 1.
        sleep: waits so many seconds.

    Attributes:
        counters: what became of the requests, for statistics.
        cost: of all.
    """

    def __init__(
        self,
        vendor: Vendor,
        options: Options,
        clock: Callable[[], float],
        *,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.vendor, self.options = vendor, options
        self.books = Books(options.budget)
        self.counters: Counter[str] = Counter()
        self.cost = 0.0
        self._clock, self._chance, self._sleep = clock, chance, sleep
        limits = Limits(
            options.concurrency, options.queue, options.requests_per_minute, options.tokens_per_minute
        )
        self.gate = Gate(limits, clock)
        self._throttle = Throttle(capacity_of(options))
        self._opening = asyncio.Lock()
        self._open = False

    def __repr__(self) -> str:
        return f"<Desk of {self.vendor.title} {self.gate!r}>"

    async def open(self) -> None:
        """Have the vendor open; whoever comes first opens it."""
        async with self._opening:
            if not self._open:
                await self.vendor.open()
                self._open = True

    async def close(self) -> None:
        """Close the vendor."""
        self.gate.close()
        await self.vendor.close()

    def adopt(self, options: Options) -> None:
        """Go on with other limits, budget and prices; what was used so far stays used."""
        if options is self.options:
            return
        limits = self.gate.limits
        self.options, self.books.budget = options, options.budget
        limits.concurrency, limits.queue = options.concurrency, options.queue
        limits.requests.limit, limits.tokens.limit = options.requests_per_minute, options.tokens_per_minute
        self._throttle.capacity = capacity_of(options)
        self.gate.admit()

    def statistics(self) -> dict[str, float]:
        """See `Actor.statistics`."""
        limits = self.gate.limits
        return {
            "api_waiting": limits.waiting,
            "api_running": limits.running,
            "api_paused_seconds": max(0.0, limits.paused - self._clock()),
            "api_cost_total": self.cost,
            **{f"api_{name}_total": count for name, count in self.counters.items()},
        }

    async def answer(self, message: AskModel, outlet: Outlet, deadline: float) -> Answered:
        """Ask until there is an answer, or none is to be hoped for any more.

        Raises:
            SglActorsError: what the last try failed with.
            BudgetExceeded: of all programs together.
        """
        self.counters["requests"] += 1
        ask, reserved = self._reserve(message.ask)
        asking = _Asking(self, msgspec.structs.replace(message, ask=ask), outlet, deadline)
        tries = Tries(self.options.retries, deadline, self._throttle, self._chance)
        try:
            while True:
                try:
                    end = await asking.once(again=tries.retries > 0)
                except _Diverged as diverged:
                    raise self._told(diverged.failure, tries.retries) from None
                except SglActorsError as error:
                    await self._before_next(error, tries, outlet)
                else:
                    self._throttle.succeeded()
                    return Answered(end, tries.retries, asking.cost)
        finally:
            self.books.end(reserved, asking.spent.output, asking.cost)

    async def _before_next(self, error: SglActorsError, tries: Tries, outlet: Outlet) -> None:
        """Wait for the next try; raise if there is none."""
        self.counters[f"failures_{error.code}"] += 1
        if wish_of(error):
            self.gate.pause(wish_of(error))
        try:
            pause = tries.again(error, self._clock())
        except SglActorsError:
            raise self._told(error, tries.retries) from None
        self.counters["retries"] += 1
        outlet.begin(error)
        await self._sleep(pause)

    def _told(self, error: SglActorsError, retries: int) -> SglActorsError:
        """The error with what its asker may want to know."""
        more = f" (asked {retries + 1} times)" if retries else ""
        if isinstance(error, Unauthorized) and not self.options.key and self.options.base_url:
            more += '; no key was sent to this base_url: key="env:NAME" names one'
        return type(error)(error.message + more, param=error.param) if more else error

    def _reserve(self, ask: Ask) -> tuple[Ask, int | None]:
        """The request within the budget, and the tokens that were reserved for it."""
        limit = ask.sampling.max_tokens
        wanted = None if limit is None else limit * ask.count
        try:
            allowed = self.books.begin(wanted)
        except BudgetExceeded as error:
            whose = error.message.replace("the program's budget", f"the budget of {self.vendor.title}")
            raise BudgetExceeded(f"{whose} by all programs together (options: budget)") from None
        if allowed != wanted and allowed is not None:
            sampling = msgspec.structs.replace(ask.sampling, max_tokens=max(1, allowed // ask.count))
            ask = msgspec.structs.replace(ask, sampling=sampling)
        return ask, allowed

    def paid(self, used: Tokens) -> float:
        """Note what was used; its cost."""
        self.counters["prompt_tokens"] += used.prompt
        self.counters["cached_tokens"] += used.cached
        self.counters["output_tokens"] += used.output
        prices = self.options.prices
        cost = prices.of(Usage(used.prompt, used.cached, used.output)) if prices is not None else 0.0
        self.cost += cost
        return cost

    def pace(self, deadline: float) -> None:
        """Raise `Overloaded` if the provider does not want to be asked before the deadline."""
        wait = self.gate.limits.paused - self._clock()
        if wait > 0 and self._clock() + wait >= deadline:
            error = Overloaded(f"{self.vendor.title} does not want to be asked in the next {wait:.0f} s")
            error.retry_after = wait
            raise error

    def left(self, deadline: float) -> float:
        """Seconds that a try may take."""
        return max(0.001, min(self.options.timeout, deadline - self._clock()))


class _Diverged(Exception):
    """What was handed out is not what the answer begins with; asking again would not mend that. `failure` is to be raised."""

    def __init__(self, failure: SglActorsError) -> None:
        super().__init__(failure.code)
        self.failure = failure


class _Asking:
    """One request, however often it is asked.

    Attributes:
        spent, cost: what all tries used, as far as the provider told.
    """

    def __init__(self, desk: Desk, message: AskModel, outlet: Outlet, deadline: float) -> None:
        self._desk, self._message, self._outlet, self._deadline = desk, message, outlet, deadline
        self._vendor = desk.vendor
        self.spent, self.cost = Tokens(), 0.0

    async def once(self, *, again: bool) -> End:
        """Wait for a place and ask."""
        desk, message = self._desk, self._message
        desk.pace(self._deadline)
        place = await desk.gate.enter(message.program, estimate(message.ask), again=again)
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
                self._text += event.text
                if not self._outlet.write(event.text):
                    raise _Diverged(self._outlet.failure or self._changed())
                if reason := self._is_through(event.text):
                    assert self.used is not None
                    return End((Completion(self._text, Finish(reason)),), self.used)
        raise BrokenAnswer(f"{self._vendor.title}: the answer has no end")

    def _end(self, end: End) -> End:
        self.used = end.used
        if not end.completions or not end.completions[0].text.startswith(self._outlet.handed):
            raise _Diverged(self._outlet.failure or self._changed())
        return end

    def _is_through(self, piece: str) -> str:
        """Why it ends here, because the rest is of no use and what it has used is known; "" if it does not."""
        if self._follower is None:
            return ""
        if self._follower.feed(piece) != OPEN and self.used is not None:
            return "stop"
        too_long = self._first is not None and self.used is not None and self.used.output >= self._first
        return "length" if too_long and self._follower.begins else ""

    def _changed(self) -> BrokenAnswer:
        return BrokenAnswer(f"{self._vendor.title}: the answer's end is not what came in pieces")


def capacity_of(options: Options) -> float:
    """Of the throttle: every request that may run can fail once."""
    return max(LEAST_ROOM, 2.0 * options.concurrency)


def estimate(ask: Ask) -> int:
    """About how many tokens a request takes, before it is asked."""
    texts = [ask.text or "", *(message.content for message in ask.messages or ())]
    limit = ask.sampling.max_tokens
    output = UNLIMITED if limit is None else limit
    return sum(map(len, texts)) // CHARACTERS + 1 + ask.count * output
