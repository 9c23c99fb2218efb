"""What an API model's actor does by the clock: pauses, budgets, limits by the minute, and text that waits for its reader."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from sgl_actors.actors.api.desk import Desk
from sgl_actors.actors.api.messages import Answered, AskModel, Options
from sgl_actors.actors.api.outlet import Outlet
from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.errors import BrokenAnswer, Overloaded
from sgl_actors.lang.backends.vendor import Ask, Text, Tokens
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.trace import Prices
from tests.api.fake_vendor import FakeVendor, end, replaced

PRICES = Prices(input=2.0, cached=1.0, output=10.0)


class FakeTime:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class NoRequest:
    """A stream's request that takes as many items as it has credit for."""

    def __init__(self, credit: int = 0) -> None:
        self.credit, self.items = credit, list[str]()
        self.granted: Any = None

    def item(self, message: Any) -> bool:
        if not self.credit:
            return False
        self.credit -= 1
        self.items.append(message.text)
        return True

    def on_credit(self, callback: Any) -> None:
        self.granted = callback


def desk_of(vendor: FakeVendor, time: FakeTime, **options: Any) -> Desk:
    made = Options("openai", "m", **options)
    return Desk(vendor, made, time.clock, chance=lambda: 1.0, sleep=time.sleep)


async def answer(desk: Desk, deadline: float = 1e9, **fields: Any) -> Answered:
    ask = Ask(text="Hi", sampling=SamplingOptions(max_tokens=8))
    outlet = Outlet(cast("Any", NoRequest()), live=False)
    return await desk.answer(AskModel("r1", ask, **fields), outlet, deadline)


async def test_a_provider_s_wish_holds_for_all() -> None:
    """Who is told to wait waits that long, and so does everybody else; who has less time than that is refused at once."""
    time = FakeTime()
    vendor = FakeVendor([replaced(Overloaded("slow down"), 7.0), end("a"), end("b")])
    desk = desk_of(vendor, time)
    assert (await answer(desk)).retries == 1
    assert time.slept == [7.0]
    vendor.answers = [replaced(Overloaded("later"), 50.0), end("c")]
    with pytest.raises(Overloaded, match="later"):
        await answer(desk, deadline=time.now + 20)
    with pytest.raises(Overloaded, match="does not want to be asked in the next 50 s"):
        await answer(desk, deadline=time.now + 20)
    assert len(vendor.asked) == 3
    assert desk.statistics()["api_paused_seconds"] == 50
    time.now += 50
    desk.gate.admit()
    assert (await answer(desk)).end.completions[0].text == "c"


async def test_failed_tries_are_paid_too() -> None:
    """What the provider has counted of an answer that broke off is in the cost and in the books."""
    cut = [Text("a", Tokens(100, 0, 20)), BrokenAnswer("cut")]
    desk = desk_of(FakeVendor([cut, end("a", prompt=100, output=30)]), FakeTime(), prices=PRICES)
    answered = await answer(desk)
    assert answered.end.used == Tokens(100, 0, 30)
    assert answered.cost == desk.cost == pytest.approx((200 * 2 + 50 * 10) / 1e6)
    assert desk.books.tokens == 50


async def test_the_budget_is_for_all_programs() -> None:
    """It cuts what a request may generate to what is left, then refuses; the message says whose budget it is."""
    vendor = FakeVendor(lambda ask: end("a", output=ask.sampling.max_tokens or 0))
    desk = desk_of(vendor, FakeTime(), budget=Budget(tokens=13))
    await answer(desk, program="one")
    await answer(desk, program="two")
    assert [ask.sampling.max_tokens for ask in vendor.asked] == [8, 5]
    with pytest.raises(
        BudgetExceeded, match="the budget of fake model of 13 generated tokens is used up by all"
    ):
        await answer(desk, program="three")
    spent = desk_of(FakeVendor([end("a", output=1000)]), FakeTime(), budget=Budget(cost=0.001), prices=PRICES)
    await answer(spent)
    with pytest.raises(BudgetExceeded, match=r"0\.001 is used up"):
        await answer(spent)


async def test_tokens_per_minute_are_counted_as_they_were() -> None:
    """A request is let in by an estimate, and takes from the minute what it really used."""
    time = FakeTime()
    desk = desk_of(FakeVendor(lambda ask: end("a", prompt=90, output=5)), time, tokens_per_minute=100.0)
    await answer(desk)
    assert desk.gate.limits.tokens.used == 95
    assert desk.gate.limits.tokens.opens(9, time.now) == 60.0


def test_text_waits_for_credit() -> None:
    """A reader that is slow gets what has come meanwhile in one piece; what was not handed out may still change."""
    request = NoRequest(credit=1)
    outlet = Outlet(cast("Any", request), live=True)
    assert all([outlet.write("a"), outlet.write("b"), outlet.write("c")])
    assert request.items == ["a"]
    request.credit = 1
    request.granted()
    assert request.items == ["a", "bc"]
    assert outlet.write("d")
    outlet.begin(BrokenAnswer("cut"))
    assert outlet.write("ab")
    assert outlet.write("cX")
    request.credit = 1
    request.granted()
    assert request.items == ["a", "bc", "X"]
    outlet.begin(BrokenAnswer("cut"))
    request.credit = 1
    assert not outlet.write("aXcXdef")
    assert request.items == ["a", "bc", "X"]


async def test_who_waits_is_not_let_in_when_the_budget_has_been_spent() -> None:
    """Requests that stood in line before the first one had a cost are refused once there is nothing left."""
    go = asyncio.Event()
    vendor = FakeVendor(lambda _ask: [go, end("x", prompt=0, output=1_000_000)])
    desk = desk_of(vendor, FakeTime(), prices=PRICES, budget=Budget(cost=15.0), concurrency=1)
    waiting = [asyncio.ensure_future(answer(desk)) for _ in range(5)]
    while desk.gate.limits.waiting < 4:
        await asyncio.sleep(0)
    go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one).__name__ for one in found] == ["Answered"] * 2 + ["BudgetExceeded"] * 3
    assert all("all programs" in str(one) for one in found[2:])
    assert (len(vendor.asked), desk.gate.limits.running) == (2, 0)


async def test_a_text_that_the_shared_budget_has_cut_is_an_error() -> None:
    """It is not handed out as if the gen's own limit had ended it; a limit that was not lessened is the gen's own."""
    vendor = FakeVendor(lambda ask: end("x", output=ask.sampling.max_tokens or 0, reason="length"))
    desk = desk_of(vendor, FakeTime(), budget=Budget(tokens=12))
    assert (await answer(desk)).end.completions[0].finish.reason == "length"
    with pytest.raises(BudgetExceeded, match=r"by all programs.*after 4"):
        await answer(desk)
    assert desk.books.tokens == 12
