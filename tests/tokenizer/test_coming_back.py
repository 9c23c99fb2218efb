"""Askers that go and come back: the tokenizer actor in a real kernel, with a scheduler that does what the test says."""

from __future__ import annotations

import asyncio

import pytest

from sgl_actors.actors.scheduler.messages import Abort, Finish, Submit, Update
from sgl_actors.actors.tokenizer.messages import Cancel, Chunk
from sgl_actors.errors import Cancelled, InvalidRequest
from tests.tokenizer.house import A, Asker, B, House


async def part(house: House, tokens: int) -> Asker:
    """An asker who may come back and has had `tokens` tokens."""
    asker = house.ask(known=0, text="ab", max_tokens=9, seed=1)
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A] * tokens))
    assert (await asker.next()).text == "a" * tokens
    return asker


async def rest(asker: Asker) -> list[Chunk]:
    """All chunks up to the last."""
    chunks = [await asker.next()]
    while chunks[-1].finish is None:
        chunks.append(await asker.next())
    return chunks


def known(chunks: list[Chunk]) -> list[tuple[int, str, bool]]:
    return [(chunk.first_index, chunk.text, chunk.finish is not None) for chunk in chunks]


async def test_a_request_goes_on_without_its_asker(house: House) -> None:
    """Who comes back is told all of it, with a border where its client stands; the scheduler notices nothing."""
    asker = await part(house, 3)
    await asker.close()
    house.scheduler.progress(Update("r", 3, [B, B]))
    await house.settle()
    again = house.ask(known=2, text="ab", max_tokens=9, seed=1)
    assert known([await again.next(), await again.next()]) == [(0, "aa", False), (2, "abb", False)]
    house.scheduler.progress(Update("r", 5, [A], finish=Finish("length")))
    assert known(await rest(again)) == [(5, "a", True)]
    assert house.scheduler.told.empty()


async def test_an_end_that_nobody_heard_is_kept(house: House) -> None:
    """It is told to who comes back, as often as that is; the border is told before the end even where both are in the same place."""
    asker = await part(house, 1)
    await asker.close()
    house.scheduler.progress(Update("r", 1, [A], finish=Finish("length")))
    await house.settle()
    for border, expected in (
        (2, [(0, "aa", False), (2, "", True)]),
        (1, [(0, "a", False), (1, "a", True)]),
        (0, [(0, "aa", True)]),
        (5, [(0, "aa", True)]),
    ):
        again = house.ask(known=border, text="ab", max_tokens=9, seed=1)
        assert known(await rest(again)) == expected
    assert house.scheduler.told.empty()
    assert house.tokenizer.statistics()["num_live_requests"] == 0
    assert house.tokenizer.statistics()["num_kept_requests"] == 1


async def test_an_end_that_was_told_is_kept(house: House) -> None:
    """It may have been lost behind the asker."""
    asker = await part(house, 1)
    house.scheduler.progress(Update("r", 1, [B], finish=Finish("length")))
    await asker.end()
    again = house.ask(known=1, text="ab", max_tokens=9, seed=1)
    assert known(await rest(again)) == [(0, "a", False), (1, "b", True)]


@pytest.mark.parametrize("finish", [Finish("abort", code="cancelled"), Finish("error", code="overloaded")])
async def test_what_did_not_end_well_is_not_kept(house: House, finish: Finish) -> None:
    """Who comes back for it has it tried again."""
    asker = await part(house, 1)
    house.scheduler.progress(Update("r", 1, [], finish=finish))
    await asker.end()
    house.ask(known=1, text="ab", max_tokens=9, seed=1)
    assert [sequence.output for sequence in await house.scheduler.submitted()] == [[]]


@pytest.mark.parametrize("ended", [False, True])
async def test_nobody_comes_back(empty: House, ended: bool) -> None:
    """After the time for that, what still runs is aborted, and the end is forgotten."""
    await empty.begin({"options": {"keep": 0.02}})
    asker = await part(empty, 1)
    finish = Finish("length") if ended else None
    await asker.close()
    empty.scheduler.progress(Update("r", 1, [A], finish=finish))
    if not ended:
        assert await empty.scheduler.next() == Abort(["r"])
    async with asyncio.timeout(5):
        while empty.tokenizer.statistics()["num_kept_requests"]:
            await asyncio.sleep(0)
    assert empty.tokenizer.statistics()["num_live_requests"] == 0
    empty.ask(known=1, text="ab", max_tokens=9, seed=1)
    await empty.scheduler.submitted()


async def test_what_is_kept_is_bounded(empty: House) -> None:
    """The oldest makes room, and is aborted if it runs."""
    await empty.begin({"options": {"keep_count": 2}})
    for name in "abc":
        asker = empty.ask(name, known=0, text="ab")
        await empty.scheduler.submitted()
        await asker.close()
    assert await empty.scheduler.next() == Abort(["a"])
    assert empty.tokenizer.statistics()["num_kept_requests"] == 2


async def test_a_cancel_ends_what_nobody_listens_to(house: House) -> None:
    """It is the scheduler's to carry out, and nothing is kept of it."""
    asker = await part(house, 1)
    await asker.close()
    house.ctx.cast("tokenizer", Cancel(["r"]))
    assert await house.scheduler.next() == Abort(["r"])
    house.scheduler.progress(Update("r", 1, [], finish=Finish("abort", code="cancelled")))
    await house.settle()
    assert house.tokenizer.statistics()["num_live_requests"] == 0
    assert house.tokenizer.statistics()["num_kept_requests"] == 0


async def test_a_cancel_forgets_an_end(house: House) -> None:
    """Who asks then begins anew."""
    asker = await part(house, 1)
    house.scheduler.progress(Update("r", 1, [B], finish=Finish("length")))
    await asker.end()
    house.ctx.cast("tokenizer", Cancel(["r"]))
    await house.settle()
    assert house.tokenizer.statistics()["num_kept_requests"] == 0


async def test_a_cancel_by_stem_ends_all_choices(house: House) -> None:
    """Those that run and those that wait for somebody; no other one whose id only begins alike."""
    askers = [house.ask(name, known=0, text="ab") for name in ("s-0", "s-1", "s1-0")]
    await house.scheduler.submitted()
    await askers[1].close()
    house.ctx.cast("tokenizer", Cancel([], stems=["s", "t"]))
    assert await house.scheduler.next() == Abort(["s-0", "s-1"])
    for asker in askers:
        await asker.close()


@pytest.mark.parametrize("change", [{"text": "ba"}, {"tenant": "eve"}, {"max_tokens": 8}, {"salt": "s"}])
async def test_a_stranger_gets_nothing(house: House, change: dict[str, object]) -> None:
    """Another request under the id of one that runs is refused; the first goes on for who comes back. After its end the id is free, and only the end is gone."""
    asker = await part(house, 1)
    await asker.close()
    ask = {"known": 1, "text": "ab", "max_tokens": 9, "seed": 1}
    stranger = house.ask(**(ask | change))  # type: ignore[arg-type]
    assert isinstance(await stranger.error(), InvalidRequest)
    house.scheduler.progress(Update("r", 1, [B], finish=Finish("length")))
    assert known(await rest(house.ask(**ask))) == [(0, "a", False), (1, "b", True)]  # type: ignore[arg-type]
    house.ask(**(ask | change))  # type: ignore[arg-type]
    assert len(await house.scheduler.submitted()) == 1


async def test_one_takes_over_from_another(house: House) -> None:
    """The first asker hears of it and takes nothing away from the second, though it grants credit late."""
    first = house.ask(known=0, text="ab", max_tokens=9, seed=1, credit=1)
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A]))
    house.scheduler.progress(Update("r", 1, [A]))
    await house.settle()
    second = house.ask(known=0, text="ab", max_tokens=9, seed=1)
    assert known([await second.next()]) == [(0, "aa", False)]
    house.scheduler.progress(Update("r", 2, [B]))
    assert (await first.next()).text == "a"
    assert isinstance(await first.error(), Cancelled)
    assert known([await second.next()]) == [(2, "b", False)]


async def test_scores_that_are_not_here_are_computed_again(house: House) -> None:
    """A successor of this tokenizer knows the log probabilities only from where it began; who wants them all has the request computed anew."""
    asker = house.ask(known=0, text="ab", max_tokens=9, seed=1, logprobs=True, output=[A])
    assert [sequence.output for sequence in await house.scheduler.submitted()] == [[A]]
    await asker.close()
    house.ask(known=1, text="ab", max_tokens=9, seed=1, logprobs=True)
    assert await house.scheduler.next() == Abort(["r"])
    assert [sequence.output for sequence in await house.scheduler.submitted()] == [[]]


async def test_a_place_lost_in_a_restart_is_asked_for_until_it_is_there(house: House) -> None:
    """A scheduler that has just come up may have no room for all that wait: a request that had its place is not refused for that."""
    asker = house.ask()
    await house.scheduler.submitted()
    await house.stop("scheduler")
    house.scheduler = await house.start(type(house.scheduler), "scheduler")
    full = Finish("error", code="overloaded", message="full")
    for _ in range(3):
        assert [sequence.id for sequence in await house.scheduler.submitted()] == ["r"]
        house.scheduler.progress(Update("r", 0, [], finish=full))
    message = await house.scheduler.next()
    assert isinstance(message, Submit)
    house.scheduler.progress(Update("r", 0, [A], finish=Finish("length")))
    assert (await asker.end()).text == "a"


async def test_a_first_refusal_stands(house: House) -> None:
    """A request that never had a place hears at once that there is none."""
    asker = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [], finish=Finish("error", code="overloaded", message="full")))
    assert (await asker.end()).finish == Finish("error", code="overloaded", message="full")


async def test_another_body_is_refused_while_the_first_is_prepared(house: House) -> None:
    """Also before the scheduler knows it."""
    house.scheduler.model = None
    await house.stop("tokenizer")
    house.tokenizer = await house.start(type(house.tokenizer), "tokenizer")
    asker = house.ask(known=0, text="ab", seed=1)
    await house.settle()
    assert isinstance(await house.ask(known=0, text="b", seed=1).error(), InvalidRequest)
    again = house.ask(known=0, text="ab", seed=1)
    assert isinstance(await asker.error(), Cancelled)
    await again.close()
