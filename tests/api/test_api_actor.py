"""The actor of an API model on a vendor in this process: answers, retries, pieces, templates, limits, books, faults and swaps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sgl_actors.actors.api import asking
from sgl_actors.actors.api.actor import ApiActor
from sgl_actors.actors.api.messages import (
    Answered,
    ApiInfo,
    ApiTokens,
    AskModel,
    DescribeApi,
    Piece,
    TokenizeText,
)
from sgl_actors.actors.microkernel import Message
from sgl_actors.actors.programs.local_kernel import LocalKernel, open_kernel
from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.errors import (
    BrokenAnswer,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    RemoteError,
    SglActorsError,
    SwapFailed,
    Unauthorized,
)
from sgl_actors.lang.backends.capabilities import PREFILL
from sgl_actors.lang.backends.vendor import Ask, Text, Tokens
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.errors import BudgetExceeded
from sgl_actors.lang.trace import Prices
from tests.api.fake_vendor import FakeApiActor, FakeVendor, end

NAME = "api/test"
PRICES = Prices(input=2.0, cached=1.0, output=10.0)


class House:
    """A kernel with the actor in it, and a client."""

    def __init__(self, kernel: LocalKernel) -> None:
        self.kernel, self.context = kernel, kernel.context("asker")

    async def host(self, vendor: FakeVendor, *, key: str | None = "sk-secret", **options: Any) -> FakeVendor:
        FakeApiActor.chosen = vendor
        await self.kernel.host(FakeApiActor, NAME, config(key=key, **options))
        return vendor

    @property
    def cell(self) -> Any:
        return self.kernel._system.cells[NAME]

    @property
    def counts(self) -> dict[str, float]:
        found: dict[str, float] = self.cell.actor.statistics()
        return found

    def stream(self, timeout: float = 30.0, **fields: Any) -> Any:
        ask = fields.pop("ask", None) or Ask(text="Hi", sampling=SamplingOptions(max_tokens=8))
        return self.context.stream(NAME, AskModel("r1", ask, **fields), timeout=timeout)

    async def ask(self, **fields: Any) -> list[Message]:
        return [item async for item in self.stream(**fields)]

    async def answer(self, **fields: Any) -> Answered:
        *_, last = await self.ask(**fields)
        return cast("Answered", last)


def config(*, key: str | None = "sk-secret", **options: Any) -> dict[str, Any]:
    return {"api": {"options": {"provider": "openai", "model": "m", **options}, "key": key}}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House(await open_kernel(force_codec=True))
    yield house
    await house.kernel.close()


def texts(items: list[Message]) -> list[str]:
    """Pieces, and the whole text at the end."""
    return [
        item.text if isinstance(item, Piece) else cast("Answered", item).end.completions[0].text
        for item in items
    ]


# -- answers ------------------------------------------------------------------------------------------------


async def test_an_answer_has_its_usage_and_its_cost(house: House) -> None:
    """What the vendor says comes whole, with what it cost by the price table; the books have it."""
    vendor = await house.host(FakeVendor([end("Paris", prompt=1000, cached=400, output=10)]), prices=PRICES)
    answered = await house.answer()
    assert answered.end.completions[0].text == "Paris"
    assert answered.end.used == Tokens(1000, 400, 10)
    assert answered.cost == pytest.approx((600 * 2 + 400 + 100) / 1e6)
    assert vendor.asked == [Ask(text="Hi", sampling=SamplingOptions(max_tokens=8))]
    counts = house.counts
    assert counts["api_requests_total"] == 1
    assert [counts[f"api_{name}_tokens_total"] for name in ("prompt", "cached", "output")] == [1000, 400, 10]
    assert counts["api_cost_total"] == answered.cost
    assert counts["api_running"] == counts["api_waiting"] == 0


async def test_pieces_come_as_they_are_written_if_somebody_reads(house: House) -> None:
    """Live text comes piece by piece; without a reader nothing comes before the end."""
    more = asyncio.Event()
    steps = [Text("Par"), more, Text("is"), end("Paris")]
    await house.host(FakeVendor([steps, steps]))
    async with aclosing(house.stream(live=True)) as stream:
        assert cast("Piece", await anext(stream)).text == "Par"
        more.set()
        assert texts([item async for item in stream]) == ["is", "Paris"]
    assert texts(await house.ask()) == ["Paris"]


async def test_it_says_what_it_is(house: House) -> None:
    """Capabilities, prices and the chat template, whose source the options may say; token ids where there are any."""
    vendor = FakeVendor(tokenizer=True)
    vendor.chat = ("{{ theirs }}", {"bos_token": "<s>"})
    await house.host(vendor, prices=PRICES, chat_template="{{ ours }}")
    info = await house.context.call(NAME, DescribeApi(), ApiInfo)
    assert info == ApiInfo("fake model", vendor.capabilities, "{{ ours }}", {"bos_token": "<s>"}, PRICES)
    assert (await house.context.call(NAME, TokenizeText("ab"), ApiTokens)).token_ids == [97, 98]
    with pytest.raises(InvalidRequest, match="does not take"):
        await house.context.call(NAME, Piece("?"), ApiInfo)


# -- retries ------------------------------------------------------------------------------------------------


async def test_a_request_is_asked_again_where_that_helps(house: House) -> None:
    """Errors that may pass are followed by another try, and the answer says how many there were."""
    errors = [NotReady("down"), Overloaded("full"), DeadlineExceeded("late"), BrokenAnswer("cut")]
    vendor = await house.host(FakeVendor([*errors, end("Paris")]))
    answered = await house.answer()
    assert (answered.retries, len(vendor.asked)) == (4, 5)
    assert house.counts["api_retries_total"] == 4
    assert house.counts["api_failures_not_ready_total"] == 1


@pytest.mark.parametrize("live", [True, False])
async def test_half_of_a_surrogate_pair_is_no_answer(house: House, live: bool) -> None:
    """JSON can hold one. Nobody gets it, for no prompt with it could be sent."""
    vendor = await house.host(FakeVendor([[Text("\ud83d"), end("\ud83d")], [end("\ud83d")], end("Paris")]))
    assert texts(await house.ask(live=live))[-1] == "Paris"
    assert len(vendor.asked) == 3


async def test_a_request_is_not_asked_again_where_it_does_not_help(house: House) -> None:
    """The error comes as the vendor raised it, after one try."""
    vendor = await house.host(FakeVendor([InvalidRequest("too hot", param="temperature"), end("never")]))
    with pytest.raises(InvalidRequest, match="too hot") as raised:
        await house.ask()
    assert raised.value.param == "temperature"
    assert len(vendor.asked) == 1


async def test_tries_are_bounded(house: House) -> None:
    """After that many the last error comes, with how often it was asked."""
    vendor = await house.host(FakeVendor(lambda ask: [NotReady("down")]), retries=2)
    with pytest.raises(NotReady, match=r"down \(asked 3 times\)"):
        await house.ask()
    assert len(vendor.asked) == 3


async def test_all_retries_together_are_bounded(house: House) -> None:
    """In an outage requests fail after one try, once enough of them have failed."""
    vendor = await house.host(FakeVendor(lambda ask: [NotReady("down")]), concurrency=5)
    for _ in range(50):
        with pytest.raises(NotReady):
            await house.ask()
    assert len(vendor.asked) <= 50 + 5


async def test_successes_make_room_for_retries(house: House) -> None:
    """A quarter of the tries may fail for ever."""
    answers = [end("x") if number % 4 else NotReady("down") for number in range(200)]
    await house.host(FakeVendor(answers), concurrency=1)
    for _ in range(150):
        await house.ask()
    assert house.counts["api_retries_total"] == 50


async def test_a_retry_goes_on_where_the_text_was(house: House) -> None:
    """What was handed out is not handed out again if the new answer begins with it."""
    broken = [Text("The c"), Text("at"), BrokenAnswer("cut")]
    whole = [Text("The"), Text(" cat sits"), end("The cat sits")]
    await house.host(FakeVendor([broken, whole]))
    items = await house.ask(live=True)
    assert "".join(texts(items)[:-1]) == "The cat sits" == texts(items)[-1]
    assert cast("Answered", items[-1]).retries == 1


@pytest.mark.parametrize("again", [[Text("The d"), end("The dog")], end("The dog"), [Text("Th"), end("Th")]])
async def test_text_that_was_handed_out_stands(house: House, again: Any) -> None:
    """If the next answer begins otherwise, the first error is the request's, and it is not asked a third time."""
    vendor = await house.host(FakeVendor([[Text("The c"), BrokenAnswer("cut")], again, end("The cat")]))
    with pytest.raises(BrokenAnswer, match="cut"):
        await house.ask(live=True)
    assert len(vendor.asked) == 2


async def test_text_that_nobody_has_may_change(house: House) -> None:
    """Without a reader another answer is as good."""
    await house.host(FakeVendor([[Text("The c"), BrokenAnswer("cut")], [Text("The d"), end("The dog")]]))
    assert texts(await house.ask()) == ["The dog"]


async def test_an_answer_without_an_end_is_broken(house: House) -> None:
    """A vendor that stops before the end is asked again."""
    await house.host(FakeVendor([[Text("The c")], end("The dog")]))
    assert (await house.answer()).retries == 1


async def test_one_try_has_its_time(house: House) -> None:
    """A vendor that does not come to an end is given up after `timeout`, and asked again."""
    never = asyncio.Event()
    vendor = await house.host(FakeVendor([never, end("Paris")]), timeout=0.02)
    assert (await house.answer()).retries == 1
    assert vendor.timeouts == [0.02, 0.02]
    assert vendor.left == 1


async def test_the_asker_s_deadline_ends_all(house: House) -> None:
    """A request whose asker's time is over is not asked any more, and leaves its place."""
    vendor = await house.host(FakeVendor([asyncio.Event(), end("Paris")]), concurrency=1)
    with pytest.raises(DeadlineExceeded):
        await house.ask(timeout=0.02)
    assert texts(await house.ask()) == ["Paris"]
    assert vendor.timeouts[0] <= 0.02


async def test_an_answer_that_does_not_end_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill the memory of all who share the model; it is not asked for again."""
    monkeypatch.setattr(asking, "MOST_TEXT", 10)
    vendor = await house.host(FakeVendor([[Text("a" * 10), Text("b"), Text("c")], end("x")]))
    with pytest.raises(BrokenAnswer, match="does not end"):
        await house.ask(live=True)
    assert (len(vendor.asked), vendor.left) == (1, 1)


async def test_who_leaves_gives_back_the_place(house: House) -> None:
    """Closing the stream ends the vendor's answer, and the next request gets in."""
    vendor = await house.host(FakeVendor([[Text("a"), asyncio.Event()], end("Paris")]), concurrency=1)
    async with aclosing(house.stream(live=True)) as stream:
        await anext(stream)
    assert texts(await house.ask()) == ["Paris"]
    assert (vendor.left, vendor.most) == (1, 1)


async def test_who_gives_up_waiting_leaves_the_line(house: House) -> None:
    """Its turn does not come, and nobody waits for it."""
    go, begun = asyncio.Event(), asyncio.Event()
    await house.host(FakeVendor(lambda ask: [begun.set, go, end("x")]), concurrency=1)
    running = asyncio.create_task(house.ask())
    await begun.wait()
    with pytest.raises(DeadlineExceeded):
        await house.ask(timeout=0.02)
    waiting = asyncio.create_task(house.ask())
    go.set()
    assert [texts(await task) for task in (running, waiting)] == [["x"], ["x"]]
    assert house.counts["api_waiting"] == house.counts["api_running"] == 0


async def test_places_are_bounded(house: House) -> None:
    """No more requests run than may, no more wait than may, and the others are refused."""
    go, begun = asyncio.Event(), asyncio.Event()
    vendor = FakeVendor(lambda ask: [begun.set, go, end("x")])
    await house.host(vendor, concurrency=2, queue=3)
    tasks = [asyncio.create_task(house.ask()) for _ in range(6)]
    await begun.wait()
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [Overloaded]
    go.set()
    await asyncio.wait(tasks)
    assert vendor.most == 2
    assert len(vendor.asked) == 5
    assert "api_retries_total" not in house.counts
    assert house.counts["api_failures_overloaded_total"] == 1


async def test_thousands_of_requests_may_come_at_once(house: House) -> None:
    """They wait in the line, of which the options tell the length, and not for a mailbox."""
    vendor = await house.host(FakeVendor(lambda ask: end("x")), concurrency=100)
    answers = await asyncio.gather(*(house.answer() for _ in range(3000)))
    assert len(answers) == len(vendor.asked) == 3000
    assert vendor.most <= 100


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
async def test_each_provider_has_its_vendor(house: House, provider: str) -> None:
    """Which one is asked, `provider` says; none is imported before it is needed."""
    actor = ApiActor(
        cast("Any", SimpleNamespace(config=config(provider=provider), log=None, now=lambda: 0.0))
    )
    vendor = actor._desk.vendor
    assert type(vendor).__module__ == f"sgl_actors.lang.backends.{provider}"
    assert provider in vendor.title.lower()


# -- templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "text", "read"),
    [
        (["Ann.", " Role:", " cook.", " More"], "Ann. Role: cook.", 3),
        (["Ann.", " Job", ": cook"], "Ann. Job", 2),
    ],
)
async def test_an_answer_that_is_through_is_left(
    house: House, pieces: list[str], text: str, read: int
) -> None:
    """What has kept to its template to the end, or has left it, is not read any further; what it used so far is counted."""
    steps = [Text(piece, Tokens(9, 0, number)) for number, piece in enumerate(pieces, 1)]
    vendor = await house.host(FakeVendor([[*steps, end("never")]], counting=True))
    answered = await house.answer(follow=((".",), ". Role:", (".",)))
    assert answered.end.completions[0].text == text
    assert answered.end.completions[0].finish.reason == "length"
    assert answered.end.used == Tokens(9, 0, read)
    assert vendor.left == 1
    assert vendor.asked[0].stream


async def test_an_answer_whose_first_slot_is_too_long_is_left(house: House) -> None:
    """What has written as much as the first gen may have, and is still at it, ends for want of length."""
    steps = [Text(" Ann", Tokens(9, 0, number)) for number in range(1, 9)]
    vendor = await house.host(FakeVendor([[*steps, end("never")]], counting=True))
    answered = await house.answer(follow=((".",), ". Role:", ()), first=3)
    assert answered.end.completions[0].text == " Ann" * 3
    assert answered.end.completions[0].finish.reason == "length"
    assert vendor.left == 1


@pytest.mark.parametrize(("counting", "used"), [(False, Tokens(9, 0, 1)), (True, None)])
async def test_an_answer_whose_tokens_are_not_counted_is_read_to_its_end(
    house: House, counting: bool, used: Tokens | None
) -> None:
    """Without a count nobody knows what leaving early would cost, so it is not done."""
    vendor = await house.host(FakeVendor([[Text("Ann. No", used), end("Ann. No.")]], counting=counting))
    assert (await house.answer(follow=((".",), ". Role:", ()))).end.completions[0].text == "Ann. No."
    assert vendor.left == 0
    assert vendor.asked[0].stream is counting


# -- faults -------------------------------------------------------------------------------------------------


async def test_a_vendor_that_breaks_does_not_end_the_actor(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises is the request's; neither prompt nor key is in the log."""
    caplog.set_level(logging.DEBUG)
    await house.host(FakeVendor([ZeroDivisionError("secret prompt"), end("Paris")]))
    ask = Ask(messages=(ChatMessage("user", "secret prompt"),))
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        await house.ask(ask=ask)
    assert texts(await house.ask(ask=ask)) == ["Paris"]
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_vendor_that_is_away_is_opened_when_it_is_needed(house: House) -> None:
    """An API that does not answer at the start does not keep the actor from starting; it is tried again as a request is."""
    vendor = FakeVendor([end("Paris")])
    vendor.refuses = [NotReady("down"), *[NotReady("still down")] * 3]
    await house.host(vendor, retries=1)
    with pytest.raises(NotReady, match="still down"):
        await house.ask()
    assert vendor.opened == 3
    assert texts(await house.ask()) == ["Paris"]
    assert vendor.opened == 5


async def test_what_cannot_be_is_said_at_the_start(house: House) -> None:
    """A `ConfigError` of the vendor is that of whoever starts the actor."""
    vendor = FakeVendor()
    vendor.refuses = [ConfigError("pip install sgl-actors[openai]")]
    with pytest.raises(ConfigError, match="pip install"):
        await house.host(vendor)
    assert vendor.closed == 1


async def test_a_wrong_key_tells_that_there_was_none(house: House) -> None:
    """An address of the user's own gets no key of the environment; if it wants one, the message says how to name it."""
    await house.host(FakeVendor([Unauthorized("who are you?")]), key=None, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(Unauthorized, match=r'who are you\?; no key was sent: key="env:NAME"'):
        await house.ask()


# -- swap ---------------------------------------------------------------------------------------------------


class Successor(FakeApiActor):
    """Somebody else's class."""


class Refuses(FakeApiActor):
    async def restore(self, snapshot: Any) -> None:
        await super().restore(snapshot)
        raise ValueError("not today")


async def test_requests_go_on_while_the_class_changes(house: House) -> None:
    """One under way ends as if nothing had been; books and counters go on, under the new limits."""
    go, begun = asyncio.Event(), asyncio.Event()
    vendor = await house.host(
        FakeVendor([[Text("Pa"), begun.set, go, end("Paris")], end("b")]), budget=Budget(calls=1)
    )
    task = asyncio.create_task(house.ask(live=True))
    await begun.wait()
    await house.cell.swap(Successor, config(budget=Budget(calls=2), concurrency=1), 5.0)
    assert isinstance(house.cell.actor, Successor)
    go.set()
    assert "".join(texts(await task)[:-1]) == "Pa"
    assert texts(await house.ask()) == ["b"]
    with pytest.raises(BudgetExceeded, match="2 calls"):
        await house.ask()
    assert (vendor.opened, vendor.closed) == (1, 0)
    assert house.cell.actor.statistics()["api_requests_total"] == 3


@pytest.mark.parametrize(("successor", "model"), [(Refuses, "m"), (Successor, "other")])
async def test_a_swap_that_comes_to_nothing_changes_nothing(
    house: House, successor: type[FakeApiActor], model: str
) -> None:
    """The old one goes on with its limits if the new one refuses, as it does for another model."""
    await house.host(FakeVendor([end("a")]), budget=Budget(calls=1))
    with pytest.raises(SwapFailed, match=r"not today|another model"):
        await house.cell.swap(successor, config(model=model, budget=Budget(calls=9)), 5.0)
    assert texts(await house.ask()) == ["a"]
    with pytest.raises(BudgetExceeded, match="1 calls"):
        await house.ask()


async def test_only_text_models_are_asked_for_a_template(house: House) -> None:
    """A chat model's server is not asked; one that does not tell is no fault where the options have a template."""

    class Silent(FakeVendor):
        async def template(self) -> Any:
            raise NotReady("no such route")

    await house.host(Silent(continuation=PREFILL))
    assert (await house.context.call(NAME, DescribeApi(), ApiInfo)).template == ""
    errors: tuple[type[SglActorsError], ...] = (NotReady,)
    other = House(await open_kernel())
    await other.host(Silent())
    with pytest.raises(errors, match="no such route"):
        await other.context.call(NAME, DescribeApi(), ApiInfo)
    await other.kernel.close()
