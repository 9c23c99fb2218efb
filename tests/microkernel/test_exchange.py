"""What a call, a cast and a stream promise, over every transport."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.microkernel import Address
from sgl_actors.errors import (
    ActorDown,
    DeadlineExceeded,
    InvalidRequest,
    NodeGone,
    Overloaded,
    ProtocolError,
    RemoteError,
)
from tests.microkernel.kernel_actors import (
    Blocking,
    Broken,
    Count,
    Echo,
    Fail,
    Heard,
    Latest,
    Narrow,
    Say,
    Spawn,
    Wait,
    Words,
)


async def up(pair: Any, actor: type, name: str = "echo") -> Any:
    cell = pair.spawn(actor, name)
    await cell.ready.wait()
    return cell


async def until(ctx: Any, wanted: Any, to: str = "echo") -> list[str]:
    """Poll what an echo heard until `wanted` holds; bounded by the test's own timeout."""
    while True:
        words = (await ctx.call(to, Heard(), Words, timeout=5, control=True)).words
        if wanted(words):
            return list(words)
        await asyncio.sleep(0)


async def test_call_is_answered(pair: Any) -> None:
    """A call gets its receiver's answer."""
    await up(pair, Echo)
    assert await pair.ctx.call("echo", Say("hi", 1), Say, timeout=5) == Say("hi", 2)


async def test_casts_arrive_in_order(pair: Any) -> None:
    """Casts of one sender arrive in the order they were sent."""
    await up(pair, Echo)
    for number in range(500):
        pair.ctx.cast("echo", Say(str(number)))
    assert await until(pair.ctx, lambda words: len(words) == 500) == [str(n) for n in range(500)]


async def test_typed_error_crosses(pair: Any) -> None:
    """An error of our family arrives as the same class with its field; any other as `RemoteError`. The actor lives on."""
    await up(pair, Echo)
    with pytest.raises(InvalidRequest, match="wrong field") as caught:
        await pair.ctx.call("echo", Fail("typed"), Say, timeout=5)
    assert caught.value.param == "field"
    with pytest.raises(RemoteError, match="broken"):
        await pair.ctx.call("echo", Fail("other"), Say, timeout=5)
    assert (await pair.ctx.call("echo", Say("still"), Say, timeout=5)).text == "still"


async def test_wrong_answer_type(pair: Any) -> None:
    """An answer of another type than expected is a protocol error, not a silent surprise."""
    await up(pair, Echo)
    with pytest.raises(ProtocolError, match="expected"):
        await pair.ctx.call("echo", Say("x"), Words, timeout=5)


async def test_deadline_cancels_at_the_receiver(pair: Any) -> None:
    """A call that is not answered raises at its deadline, and its receiver learns that nobody waits."""
    await up(pair, Echo)
    with pytest.raises(DeadlineExceeded):
        await pair.ctx.call("echo", Wait(), Say, timeout=0.05)
    assert await until(pair.ctx, lambda words: words == ["cancelled"])


async def test_cancelling_the_asker_cancels_the_call(pair: Any) -> None:
    """A task that is cancelled while it calls takes its request back."""
    await up(pair, Echo)
    task = asyncio.create_task(pair.ctx.call("echo", Wait(), Say, timeout=60))
    await pair.ctx.call("echo", Say("after"), Say, timeout=5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(pair.ctx, lambda words: words == ["cancelled"])


async def test_unknown_name(pair: Any) -> None:
    """A name that nobody holds: a call raises at once, a cast is a counted dead letter."""
    with pytest.raises(ActorDown, match="nobody"):
        await pair.ctx.call("nobody", Say("x"), Say, timeout=5)
    pair.ctx.cast("nobody", Say("x"))
    assert pair.here.counters["dead_letters"] == 1


async def test_dead_epoch(pair: Any) -> None:
    """A message to an incarnation that is over never reaches its successor."""
    cell = await up(pair, Echo)
    old = cell.address
    cell.stop("test")
    await cell.ended.wait()
    await up(pair, Echo)
    with pytest.raises(ActorDown):
        await pair.ctx.call(old, Say("late"), Say, timeout=5)
    pair.ctx.cast(old, Say("late"))
    assert (await pair.ctx.call("echo", Heard(), Words, timeout=5)).words == []


async def test_message_from_a_dead_epoch(pair: Any) -> None:
    """What an incarnation sent before it was replaced is not delivered once its successor is known."""
    await up(pair, Echo)
    sender = pair.here.spawn(Echo, "sender")
    await sender.ready.wait()
    pair.there.name_up(Address("sender", sender.address.epoch + 1, "elsewhere"))
    sender.context.cast(Address("echo", 0, pair.there.endpoint), Say("from the grave"))
    assert await pair.ctx.call("echo", Heard(), Words, timeout=5) == Words([])
    assert pair.there.counters["dead_letters"] == 1


async def test_death_fails_waiting_calls(pair: Any) -> None:
    """A call in progress ends with `ActorDown` when its receiver does."""
    cell = await up(pair, Echo)
    task = asyncio.create_task(pair.ctx.call("echo", Wait(), Say, timeout=60))
    await pair.ctx.call("echo", Say("after"), Say, timeout=5)
    cell.stop("test")
    with pytest.raises(ActorDown, match="test"):
        await task


async def test_monitor_and_cast_crash(pair: Any) -> None:
    """An exception in a cast ends the incarnation; who monitors it gets `Down` with the reason."""
    cell = await up(pair, Echo)
    watcher = pair.here.spawn(Echo, "watcher")
    await watcher.ready.wait()
    watcher.context.monitor(cell.address)
    await pair.ctx.call("echo", Say("x"), Say, timeout=5)
    pair.ctx.cast("echo", Fail("other"))
    await until(pair.ctx, lambda words: words == ["down echo"], "watcher")
    assert cell.exit.reason == "RuntimeError: broken"


async def test_monitor_of_the_dead(pair: Any) -> None:
    """Monitoring an incarnation that is over tells so at once."""
    watcher = pair.here.spawn(Echo, "watcher")
    await watcher.ready.wait()
    watcher.context.monitor(Address("ghost", 7, pair.there.endpoint))
    await until(pair.ctx, lambda words: words == ["down ghost"], "watcher")


async def test_watch(pair: Any) -> None:
    """A watcher learns of every incarnation of a pattern, those that are up already included."""
    cell = await up(pair, Echo, "worker/0")
    watcher = pair.here.spawn(Echo, "watcher")
    await watcher.ready.wait()
    watcher.context.watch("worker/*")
    await until(pair.ctx, lambda words: words == ["up worker/0"], "watcher")
    pair.here.name_down(cell.address, "test")
    await until(pair.ctx, lambda words: words == ["up worker/0", "down worker/0"], "watcher")


async def test_start_failure(pair: Any) -> None:
    """An actor that cannot start ends with its reason."""
    cell = pair.there.spawn(Broken, "broken")
    await cell.ended.wait()
    assert cell.exit.reason == "RuntimeError: cannot start"
    assert not cell.exit.normal


async def test_children_end_with_their_parent(pair: Any) -> None:
    """A child lives no longer than its parent, and the parent learns of a child's end."""
    cell = await up(pair, Echo)
    pair.ctx.cast("echo", Spawn("echo/child"))
    await pair.ctx.call("echo", Say("x"), Say, timeout=5)
    child = pair.there.cells["echo/child"]
    await child.ready.wait()
    cell.stop("test")
    await cell.ended.wait()
    assert child.ended.is_set()
    assert "echo/child" not in pair.there.cells


async def test_stream_in_order_with_end(pair: Any) -> None:
    """A stream yields every item in order, then its last message, whatever the credit."""
    await up(pair, Echo)
    numbers = [item.number async for item in pair.ctx.stream("echo", Count(100), timeout=10, credit=4)]
    assert numbers == list(range(101))


async def test_stream_waits_for_its_consumer(pair: Any) -> None:
    """A producer never has more items under way than its consumer granted."""
    await up(pair, Echo)
    async with aclosing(pair.ctx.stream("echo", Count(50), timeout=10, credit=4)) as stream:
        first = await anext(stream)
        words = await until(pair.ctx, lambda words: "no credit" in words)
        assert first.number == 0
        assert words.count("no credit") == 1
        assert [item.number async for item in stream] == list(range(1, 51))


async def test_stream_error_after_items(pair: Any) -> None:
    """Items sent before an error are delivered before it is raised."""
    await up(pair, Echo)
    async with aclosing(pair.ctx.stream("echo", Count(10, fail_at=3), timeout=10)) as stream:
        assert [(await anext(stream)).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(InvalidRequest, match="no more"):
            await anext(stream)


async def test_closing_a_stream_cancels_it(pair: Any) -> None:
    """A consumer that leaves early stops the producer."""
    await up(pair, Echo)
    async with aclosing(pair.ctx.stream("echo", Count(1000), timeout=10, credit=2)) as stream:
        await anext(stream)
    assert await until(pair.ctx, lambda words: "stream cancelled" in words)


async def blocked(pair: Any, kind: type) -> Any:
    """An actor that is busy with its first message until `release` is called, so that its mailbox fills."""
    cell = await up(pair, kind)
    gate = asyncio.Event()
    receive = cell.actor.receive

    async def wait_first(message: Any, request: Any) -> Any:
        await gate.wait()
        return await receive(message, request)

    cell.actor.receive = wait_first
    cell.release = gate.set
    pair.ctx.cast("echo", Say("first"))
    while not cell.busy_since:
        await asyncio.sleep(0)
    return cell


async def test_full_mailbox_rejects(pair: Any) -> None:
    """A full mailbox refuses calls with `Overloaded`; control goes through all the same."""
    cell = await blocked(pair, Narrow)
    calls = [asyncio.create_task(pair.ctx.call("echo", Say(str(n)), Say, timeout=5)) for n in range(5)]
    control = asyncio.create_task(pair.ctx.call("echo", Heard(), Words, timeout=5, control=True))
    while cell.mailbox.dropped < 3:
        await asyncio.sleep(0)
    cell.release()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Say, Say, Overloaded, Overloaded, Overloaded]
    assert (await control).words == ["first"]


async def test_latest_keeps_the_newest(pair: Any) -> None:
    """With `latest`, a full mailbox keeps the newest messages of a kind."""
    cell = await blocked(pair, Latest)
    for number in range(50):
        pair.ctx.cast("echo", Say(str(number)))
    while cell.mailbox.dropped < 48:
        await asyncio.sleep(0)
    cell.release()
    assert await until(pair.ctx, lambda words: "49" in words) == ["first", "48", "49"]


async def test_send_waits_for_a_place(pair: Any) -> None:
    """With `block`, `send` returns only when its message has a place, and nothing is lost."""
    cell = await blocked(pair, Blocking)
    sent: list[int] = []

    async def send_all() -> None:
        for number in range(40):
            await pair.ctx.send("echo", Say(str(number)), timeout=10)
            sent.append(number)

    sending = asyncio.create_task(send_all())
    while len(cell.mailbox) < 9:
        await asyncio.sleep(0)
    assert len(sent) <= 8
    assert not sending.done()
    cell.release()
    await sending
    assert await until(pair.ctx, lambda words: len(words) == 41) == ["first", *(str(n) for n in range(40))]


async def test_send_to_a_full_mailbox_that_does_not_block(pair: Any) -> None:
    """`send` to a mailbox that rejects says so instead of waiting."""
    cell = await blocked(pair, Narrow)
    for number in range(2):
        await pair.ctx.send("echo", Say(str(number)), timeout=5)
    with pytest.raises(Overloaded):
        await pair.ctx.send("echo", Say("too many"), timeout=5)
    cell.release()


async def test_dead_epoch_before_its_successor(pair: Any) -> None:
    """What an incarnation sent is not delivered once it is known to be over, also while it has no successor."""
    await up(pair, Echo)
    sender = pair.here.spawn(Echo, "sender")
    await sender.ready.wait()
    pair.there.name_down(sender.address, "killed")
    sender.context.cast(Address("echo", 0, pair.there.endpoint), Say("from the grave"))
    assert await pair.ctx.call("echo", Heard(), Words, timeout=5) == Words([])
    assert pair.there.counters["dead_letters"] == 1


async def test_process_known_to_be_gone(pair: Any) -> None:
    """Asking or monitoring an actor of a process that is gone ends at once and opens no connection."""
    watcher = pair.here.spawn(Echo, "watcher")
    await watcher.ready.wait()
    gone = Address("ghost", 3, "ipc:///nowhere/ghost.ipc")
    pair.here.peer_down(gone.endpoint)
    with pytest.raises(ActorDown):
        await pair.ctx.call(gone, Say("x"), Say, timeout=60)
    watcher.context.monitor(gone)
    await until(pair.ctx, lambda words: words == ["down ghost"], "watcher")


async def test_node_gone(pair: Any) -> None:
    """Once the node has ended, what waits and what is asked later ends with `NodeGone`."""
    if pair.here is pair.there:
        return
    await up(pair, Echo)
    waiting = asyncio.create_task(pair.ctx.call("echo", Wait(), Say, timeout=60))
    await pair.ctx.call("echo", Say("after"), Say, timeout=5)
    pair.here.node_down()
    with pytest.raises(NodeGone):
        await waiting
    with pytest.raises(NodeGone):
        await pair.ctx.call("echo", Say("x"), Say, timeout=60)


async def test_garbage_is_counted(pair: Any) -> None:
    """Frames that are no messages are counted and dropped; the kernel goes on."""
    await up(pair, Echo)
    pair.there.deliver([b"\xff\x00", b"", msgspec.msgpack.encode([1, 2, 3]), b"x", b""])
    assert pair.there.counters["protocol_errors"] == 2
    assert (await pair.ctx.call("echo", Say("fine"), Say, timeout=5)).text == "fine"


async def test_a_cast_that_is_refused_ends_nobody(pair: Any) -> None:
    """What the receiver refuses with a typed error is counted; any other exception ends it."""
    cell = await up(pair, Echo)
    pair.ctx.cast("echo", Fail("typed"))
    assert (await pair.ctx.call("echo", Say("on"), Say)).text == "on"
    assert pair.there.counters["refused_casts"] == 1
    pair.ctx.cast("echo", Fail("broken"))
    await cell.ended.wait()
