"""An API model's desk: who may ask when, tries again where that helps, and keeps the books. What several actors in turn go on with."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from sgl_actors.actors.api.asking import Asking, Hopeless
from sgl_actors.actors.api.gate import Gate
from sgl_actors.actors.api.limits import Limits
from sgl_actors.actors.api.messages import Answered, AskModel, Options
from sgl_actors.actors.api.outlet import Outlet
from sgl_actors.actors.api.tries import Throttle, Tries, wish_of
from sgl_actors.errors import SglActorsError, Unauthorized
from sgl_actors.lang.backends.vendor import Ask, End, Tokens, Vendor
from sgl_actors.lang.budget import Books
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.results import Usage

T = TypeVar("T")

LEAST_ROOM: Final = 10.0
"""Retries of a burst that the throttle lets through however few requests may run at a time."""


class Desk:
    """See the module.

    Args:
        vendor: who is asked; open.
        options: limits, budget, prices.
        clock: monotonic seconds.
        keyed: it has a key.
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
        keyed: bool = True,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.vendor, self.options = vendor, options
        self.books = Books(options.budget, f"the budget of {vendor.title}")
        self.counters: Counter[str] = Counter()
        self.cost = 0.0
        self._clock, self._chance, self._sleep, self._keyed = clock, chance, sleep, keyed
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

    async def patiently(self, work: Callable[[], Awaitable[T]], deadline: float) -> T:
        """What is asked beside the requests, with as many tries as one of these."""
        tries = Tries(self.options.retries, deadline, self._throttle, self._chance)
        while True:
            try:
                return await work()
            except SglActorsError as error:
                try:
                    pause = tries.again(error, self._clock())
                except SglActorsError as final:
                    raise self._told(final, tries.retries) from None
                await self._sleep(pause)

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
        asking = Asking(self, msgspec.structs.replace(message, ask=ask), outlet, deadline)
        tries = Tries(self.options.retries, deadline, self._throttle, self._chance)
        try:
            while True:
                try:
                    end = await asking.once(again=tries.retries > 0)
                except Hopeless as final:
                    self.counters[f"failures_{final.failure.code}"] += 1
                    raise self._told(final.failure, tries.retries) from None
                except SglActorsError as error:
                    await self._before_next(error, tries, outlet)
                else:
                    self._throttle.succeeded()
                    self._check_whole(message, end, reserved)
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
        if isinstance(error, Unauthorized) and not self._keyed:
            more += '; no key was sent: key="env:NAME" names one'
        return type(error)(error.message + more, param=error.param) if more else error

    def _reserve(self, ask: Ask) -> tuple[Ask, int | None]:
        """The request within the budget, and the tokens that were reserved for it."""
        limit = ask.sampling.max_tokens
        wanted = None if limit is None else limit * ask.count
        try:
            allowed = self.books.begin(wanted)
        except BudgetExceeded as error:
            self.counters[f"failures_{error.code}"] += 1
            raise _by_all(error) from None
        if allowed != wanted and allowed is not None:
            sampling = msgspec.structs.replace(ask.sampling, max_tokens=max(1, allowed // ask.count))
            ask = msgspec.structs.replace(ask, sampling=sampling)
        return ask, allowed

    def check_cost(self) -> None:
        """Raise `BudgetExceeded` if nothing is left."""
        try:
            self.books.check_cost()
        except BudgetExceeded as error:
            raise _by_all(error) from None

    def _check_whole(self, message: AskModel, end: End, reserved: int | None) -> None:
        """Raise if what was left of the budget has ended a text that could have been longer.

        Who asks for several gens at once sees by himself which of them he has.
        """
        limit, count = message.ask.sampling.max_tokens, message.ask.count
        lessened = reserved != (None if limit is None else limit * count)
        enough = message.first is not None and end.used.output >= message.first
        cut = any(one.finish.reason == "length" for one in end.completions)
        if lessened and cut and not (message.follow or enough):
            self.counters[f"failures_{BudgetExceeded.code}"] += 1
            raise BudgetExceeded(
                f"the budget of {self.vendor.title}, of {self.options.budget.tokens} generated tokens by all programs together (options: budget), "
                f"ended this text after {end.used.output}"
            )

    def paid(self, used: Tokens) -> float:
        """Note what was used; its cost."""
        self.counters["prompt_tokens"] += used.prompt
        self.counters["cached_tokens"] += used.cached
        self.counters["output_tokens"] += used.output
        prices = self.options.prices
        cost = prices.of(Usage(used.prompt, used.cached, used.output)) if prices is not None else 0.0
        self.cost += cost
        return cost

    def wait(self, deadline: float) -> float:
        """Seconds that the provider does not want to be asked, if that is until the deadline; else 0."""
        wait = self.gate.limits.paused - self._clock()
        return wait if wait > 0 and self._clock() + wait >= deadline else 0.0

    def left(self, deadline: float) -> float:
        """Seconds that a try may take."""
        return max(0.001, min(self.options.timeout, deadline - self._clock()))


def _by_all(error: BudgetExceeded) -> BudgetExceeded:
    return BudgetExceeded(f"{error.message} by all programs together (options: budget)")


def capacity_of(options: Options) -> float:
    """Of the throttle: every request that may run can fail once."""
    return max(LEAST_ROOM, 2.0 * options.concurrency + 1)
