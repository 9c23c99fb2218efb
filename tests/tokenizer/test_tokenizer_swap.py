"""A tokenizer that is swapped in place while streams run: nobody notices, and no token is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from sgl_actors.actors.grammar.messages import Compiled
from sgl_actors.actors.microkernel.swap import Snapshot
from sgl_actors.actors.scheduler.messages import Abort, Finish, Logprobs, Submit, Update
from sgl_actors.actors.tokenizer.actor import INLINE, TokenizerActor
from sgl_actors.actors.tokenizer.handover import LAYOUT, TokenizerState
from sgl_actors.actors.tokenizer.messages import Chunk, TokenIds, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import SwapFailed
from sgl_actors.lang.constraints.constraint import Constraint
from tests.tokenizer.house import A, Asker, B, House


class Successor(TokenizerActor):
    """Another class of the same protocol."""


class Broken(TokenizerActor):
    """Reads all of it, and then cannot."""

    async def restore(self, snapshot: Snapshot) -> None:
        await super().restore(snapshot)
        raise RuntimeError("no")


async def swap(house: House, kind: type[TokenizerActor] = Successor) -> None:
    cell = house.system.cells["tokenizer"]
    await cell.swap(kind, cell.config, 5.0)
    actor = cell.actor
    assert isinstance(actor, kind)
    house.tokenizer = actor


async def fail_to_swap(house: House) -> None:
    cell = house.system.cells["tokenizer"]
    with pytest.raises(SwapFailed, match="goes on as it was"):
        await cell.swap(Broken, cell.config, 5.0)
    assert cell.actor is house.tokenizer


async def read(asker: Asker, chance: random.Random) -> list[Chunk]:
    """A stream to its end, sometimes slowly."""
    chunks = [await asker.next()]
    while chunks[-1].finish is None:
        for _ in range(chance.choice((0, 0, 3, 9))):
            await asyncio.sleep(0)
        chunks.append(await asker.next())
    with pytest.raises(StopAsyncIteration):
        await asker.next()
    return chunks


@pytest.mark.parametrize("seed", range(2))
async def test_streams_run_through_swaps(house: House, seed: int) -> None:
    """Twelve streams, slow and fast ones, are swapped under twelve times, some of these in vain: each gets what it would have got."""
    chance = random.Random(seed)
    outputs = {
        f"r{number}": [chance.choice((A, B)) for _ in range(chance.randint(20, 60))] for number in range(12)
    }
    askers = [
        house.ask(name, credit=chance.choice((1, 2, 64)), logprobs=True, text="ab", known=chance.choice((-1, 0, 7)), stop=("bbbbbbbbbb",))
        for name in outputs
    ]  # fmt: skip
    assert len(await house.scheduler.submitted()) == 12

    async def feed() -> None:
        told = dict.fromkeys(outputs, 0)
        while told:
            updates = []
            for name in chance.sample(sorted(told), k=chance.randint(1, len(told))):
                ids, since = outputs[name], told[name]
                told[name] = end = min(len(ids), since + chance.choice((1, 1, 2, 5)))
                scores = [TokenLogprob(token, -float(index)) for index, token in enumerate(ids)]
                finish = Finish("length") if end == len(ids) else None
                updates.append(Update(name, since, ids[since:end], scores[since:end], finish=finish))
                if finish is not None:
                    del told[name]
            house.scheduler.progress(*updates)
            for _ in range(chance.choice((0, 1, 4))):
                await asyncio.sleep(0)

    async def disturb() -> None:
        for _ in range(12):
            await (fail_to_swap(house) if chance.random() < 0.3 else swap(house))
            for _ in range(chance.randint(0, 8)):
                await asyncio.sleep(0)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(feed())
        group.create_task(disturb())
        reading = [group.create_task(read(asker, chance)) for asker in askers]
    for (name, ids), task in zip(outputs.items(), reading, strict=True):
        chunks = task.result()
        assert [token for chunk in chunks for token in chunk.token_ids] == ids, name
        assert "".join(chunk.text for chunk in chunks) == "".join("ab"[token == B] for token in ids)
        scores = [entry.logprob for chunk in chunks for entry in chunk.logprobs]
        assert scores == [-float(index) for index in range(len(ids))]
        assert [chunk.prompt_ids for chunk in chunks if chunk.prompt_ids] == [[256]]
    assert house.scheduler.told.empty()
    await house.settle()
    statistics = house.tokenizer.statistics()
    assert statistics["num_live_requests"] == 0
    assert statistics["requests_total"] == 12


async def test_what_waits_is_begun_anew(house: House) -> None:
    """A constraint that is being compiled and a long text in a thread: their askers get their answers from the successor."""
    house.grammar.answer = None
    asker = house.ask(constraint=Constraint("regex", "a+"))
    (first) = await house.grammar.next()
    long = Tokenize(text="ab " * INLINE)
    tokenising = asyncio.ensure_future(house.ctx.call("tokenizer", long, TokenIds))
    await asyncio.sleep(0)
    await swap(house)
    second = await house.grammar.next()
    assert first.cancelled
    second.reply(Compiled("fsm"))
    assert [sequence.id for sequence in await house.scheduler.submitted()] == ["r"]
    house.scheduler.progress(Update("r", 0, [A], finish=Finish("length")))
    assert (await asker.end()).text == "a"
    assert (await tokenising).text == "ab " * INLINE


async def test_an_asker_that_goes_meanwhile_is_noticed(house: House) -> None:
    """Also when its leaving falls between the snapshot and the successor's first message."""

    class Slow(TokenizerActor):
        async def restore(self, snapshot: Snapshot) -> None:
            await asker.close()
            await super().restore(snapshot)

    asker = house.ask()
    await house.scheduler.submitted()
    await swap(house, Slow)
    assert await house.scheduler.next() == Abort(["r"])

    class Vain(Broken):
        async def restore(self, snapshot: Snapshot) -> None:
            await other.close()
            await super().restore(snapshot)

    other = house.ask("s")
    await house.scheduler.submitted()
    cell = house.system.cells["tokenizer"]
    with pytest.raises(SwapFailed):
        await cell.swap(Vain, cell.config, 5.0)
    assert await house.scheduler.next() == Abort(["s"])


async def test_what_is_kept_is_handed_over(house: House) -> None:
    """A request without an asker and an end that may be asked for again are there after a swap, and go when their time is up."""
    cell = house.system.cells["tokenizer"]
    for name, finish in (("live", None), ("over", Finish("length"))):
        asker = house.ask(name, known=0, text="ab", seed=1)
        await house.scheduler.submitted()
        house.scheduler.progress(Update(name, 0, [A, B], finish=finish))
        await asker.next()
        await asker.close()
    await swap(house)
    assert house.tokenizer.statistics()["num_kept_requests"] == 2
    again = house.ask("over", known=1, text="ab", seed=1)
    assert [(await again.next()).text, (await again.end()).text] == ["a", "b"]
    live = house.ask("live", known=1, text="ab", seed=1)
    assert [(await live.next()).text, (await live.next()).text] == ["a", "b"]
    assert house.scheduler.told.empty()
    await live.close()
    cell.config = {**cell.config, "options": {"keep": 0.0}}
    await swap(house)
    async with asyncio.timeout(15):
        state = house.tokenizer.snapshot().read(LAYOUT, TokenizerState)
        assert [stream.request for stream in state.streams] == [-1, -1]
        assert all(0 < (stream.kept or 0) <= 10 for stream in state.streams)


async def test_a_scheduler_that_came_meanwhile_is_told(house: House) -> None:
    """A scheduler that is replaced after a swap gets all live requests from the successor."""
    asker = house.ask(logprobs=True, text="ab")
    (sequence,) = await house.scheduler.submitted()
    assert sequence.logprobs == Logprobs(output=True)
    house.scheduler.progress(Update("r", 0, [A], [TokenLogprob(A, -1.0)]))
    await asker.next()
    await swap(house)
    await house.stop("scheduler")
    house.scheduler = await house.start(type(house.scheduler), "scheduler")
    message = await house.scheduler.next()
    assert isinstance(message, Submit)
    assert [one.output for one in message.sequences] == [[A]]


async def test_a_snapshot_of_another_layout_is_refused(house: House) -> None:
    """The old one goes on."""

    class Other(TokenizerActor):
        async def restore(self, snapshot: Snapshot) -> None:
            state: Any = snapshot.read("tokenizer/2", TokenizerState)
            raise AssertionError(state)

    cell = house.system.cells["tokenizer"]
    with pytest.raises(SwapFailed, match="tokenizer/1"):
        await cell.swap(Other, cell.config, 5.0)
    asker = house.ask()
    await house.scheduler.submitted()
    house.scheduler.progress(Update("r", 0, [A], finish=Finish("length")))
    assert (await asker.end()).text == "a"
