"""A node of small actors in real processes: what a restart, a crash, a hung loop and the root's death do."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sgl_actors.actors.microkernel import Context, root
from sgl_actors.actors.microkernel.messages import (
    Actors,
    Done,
    ListActors,
    RestartActor,
    StopNode,
    SwapActor,
    Swapped,
)
from sgl_actors.actors.microkernel.supervisor import ChildSpec
from sgl_actors.actors.node.config import load
from sgl_actors.actors.node.embedded import NodeHandle, join, open_node
from sgl_actors.actors.node.messages import Reload, Reloaded
from sgl_actors.actors.node.node_root import NodeRoot
from sgl_actors.actors.node.record import read_record
from sgl_actors.actors.node.root import RunningNode
from sgl_actors.errors import ActorDown, ConfigError, InvalidRequest, NodeGone, RemoteError, SwapFailed
from tests.microkernel.kernel_actors import Block, Heard, Say, Wait, Who, Words
from tests.microkernel.swap_actors import Add, Sum

REPOSITORY = str(Path(__file__).parent.parent.parent)

TOML = """
[node]
runtime_dir = "{folder}"
drain = 0.0
[model]
path = "{model}"
[supervisor]
strategy = "{strategy}"
{defaults}
{actors}
"""


def write_config(folder: Path, actors: dict[str, str], strategy: str = "one_for_one") -> Path:
    """A node.toml whose actors are `name: settings`, and none of the usual ones."""
    model = folder / "model.gguf"
    model.write_bytes(b"GGUF")
    usual = ["cache", "worker/0", "scheduler", "grammar", "tokenizer", "programs", "gateway"]
    text = TOML.format(
        folder=folder / "run",
        model=model,
        strategy=strategy,
        defaults="\n".join(f'[actors."{name}"]\nenabled = false' for name in usual),
        actors="\n".join(f'[actors."{name}"]\n{settings}' for name, settings in actors.items()),
    )
    file = folder / "node.toml"
    file.write_text(text)
    return file


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[tuple[RunningNode, NodeHandle, Context]]:
    """The node, ready, and a client of it."""
    node = RunningNode(load(file))
    try:
        await node.start()
        handle = await join(node.endpoint)
        context = handle.context("test")
        await until_ready(context)
        yield node, handle, context
        await handle.close()
    finally:
        await node.close()


async def until(check: Callable[[], object]) -> None:
    """Poll; bounded by the test's own timeout."""
    while not check():
        await asyncio.sleep(0.01)


async def until_ready(context: Context) -> Actors:
    while True:
        actors = await context.call("root", ListActors(), Actors, timeout=10)
        if actors.ready:
            return actors
        await asyncio.sleep(0.02)


async def who(context: Context, name: str) -> tuple[int, int]:
    """(pid, epoch) of an echo; waits while it is being restarted."""
    while True:
        try:
            pid, epoch = (await context.call(name, Who(), Words, timeout=10)).words
        except ActorDown:
            await asyncio.sleep(0.02)
        else:
            return int(pid), int(epoch)


@pytest.fixture(autouse=True)
def child_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", REPOSITORY)


ECHO = 'class = "tests.microkernel.kernel_actors:Echo"'


async def test_own_processes_by_default(tmp_path: Path) -> None:
    """Each actor runs in a process of its own, and a joined client reaches both by name."""
    async with running(write_config(tmp_path, {"one": ECHO, "two": ECHO})) as (_, _, context):
        pids = {(await who(context, name))[0] for name in ("one", "two")}
        assert len(pids) == 2
        assert os.getpid() not in pids
        actors = await context.call("root", ListActors(), Actors, timeout=10)
        assert [(row.address, row.state) for row in actors.rows] == [("one", "running"), ("two", "running")]
        assert {row.pid for row in actors.rows} == pids
        assert all(row.rss > 1 << 20 for row in actors.rows)


async def test_merged_processes(tmp_path: Path) -> None:
    """`process` puts actors into one process; restarting one leaves the other's incarnation alone."""
    merged = ECHO + '\nprocess = "both"'
    async with running(write_config(tmp_path, {"one": merged, "two": merged})) as (_, _, context):
        (pid, first), (other_pid, other) = await who(context, "one"), await who(context, "two")
        assert pid == other_pid
        assert isinstance(await context.call("root", RestartActor("one"), Done, timeout=10), Done)
        again_pid, again = await who(context, "one")
        assert (again_pid, again > first) == (pid, True)
        assert await who(context, "two") == (pid, other)


async def test_kill_is_noticed_and_mended(tmp_path: Path) -> None:
    """A killed process comes back as a new incarnation; a call under way ends with `ActorDown`."""
    async with running(write_config(tmp_path, {"one": ECHO})) as (_, _, context):
        pid, epoch = await who(context, "one")
        waiting = asyncio.create_task(context.call("one", Block(30.0), Say, timeout=60))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorDown):
            await waiting
        new_pid, new_epoch = await who(context, "one")
        assert new_pid != pid
        assert new_epoch > epoch
        rows = (await context.call("root", ListActors(), Actors, timeout=10)).rows
        assert rows[0].restarts == 1


async def test_killed_process_of_many_counts_once(tmp_path: Path) -> None:
    """A process that held seven actors is one failure: all come back."""
    merged = ECHO + '\nprocess = "all"'
    names = [f"echo/{number}" for number in range(7)]
    async with running(write_config(tmp_path, dict.fromkeys(names, merged))) as (node, _, context):
        pid, _ = await who(context, names[0])
        os.kill(pid, signal.SIGKILL)
        pids = {(await who(context, name))[0] for name in names}
        assert len(pids) == 1
        assert pid not in pids
        assert not node.supervisor.failed


@pytest.mark.parametrize("kind", ["Echo", "SlowStart"])
@pytest.mark.parametrize("process", ["all", ""])
async def test_stop_while_starting(tmp_path: Path, kind: str, process: str) -> None:
    """A node that is told to stop while its actors start ends, merged or not."""
    actor = f'class = "tests.microkernel.kernel_actors:{kind}"\nprocess = "{process}"'
    node = RunningNode(load(write_config(tmp_path, {"one": actor, "two": actor})))
    cell = await node.start()
    assert isinstance(cell.actor, NodeRoot)
    await cell.actor.shutdown(0.0)
    await node.done.wait()
    assert await node.close() == ""


async def test_blocked_start_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that blocks its loop while it starts is killed after its start deadline."""
    monkeypatch.setattr(root, "START_SLACK", 1.0)
    blocked = (
        'class = "tests.microkernel.kernel_actors:BlockedStart"\nstart_timeout = 0.1\nrestart = "temporary"'
    )
    node = RunningNode(load(write_config(tmp_path, {"one": ECHO, "bad": blocked})))
    cell = await node.start()
    assert isinstance(cell.actor, NodeRoot)
    await until(lambda: node.supervisor.children["bad"].state == "idle")
    assert node.supervisor.children["one"].state == "running"
    await node.close()


async def test_crash_of_the_root_ends_the_node(tmp_path: Path) -> None:
    """A root that fails takes the node down with its cause; nothing goes on unsupervised."""
    node = RunningNode(load(write_config(tmp_path, {"one": ECHO})))
    cell = await node.start()

    async def crash() -> None:
        raise RuntimeError("root fault")

    cell.context.task(crash())
    await node.done.wait()
    assert "root fault" in await node.close()


async def test_client_learns_that_the_node_is_gone(tmp_path: Path) -> None:
    """When the root is killed, a client's waiting call ends at once, and later ones say that the node has ended."""
    file = write_config(tmp_path, {"one": ECHO})
    script = (
        "import asyncio\n"
        "from sgl_actors.actors.node.config import load\n"
        "from sgl_actors.actors.node.root import RunningNode\n"
        "async def main():\n"
        f"    node = RunningNode(load({str(file)!r}))\n"
        "    await node.start()\n"
        "    while not node.supervisor.ready:\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(node.endpoint, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    root = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert root.stdout is not None
    endpoint = (await asyncio.to_thread(root.stdout.readline)).decode().strip()
    root.stdout.close()
    handle = await join(endpoint)
    context = handle.context("test")
    waiting = asyncio.create_task(context.call("one", Wait(), Say, timeout=600))
    await context.call("one", Say("sync"), Say, timeout=10)
    root.kill()
    root.wait()
    with pytest.raises(NodeGone):
        await waiting
    with pytest.raises(NodeGone):
        await context.call("one", Say("late"), Say, timeout=600)
    await handle.close()


async def test_cancelling_an_embedded_start_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`open_node` that is cancelled leaves no process behind."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def record(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    file = write_config(tmp_path, {"one": 'class = "tests.microkernel.kernel_actors:SlowStart"'})
    opening = asyncio.create_task(open_node(str(file)))
    await until(lambda: started)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert started[0].poll() is not None


async def test_hung_loop_is_replaced(tmp_path: Path) -> None:
    """A process whose event loop is blocked is found by its missing answers and replaced."""
    async with running(write_config(tmp_path, {"one": ECHO})) as (_, _, context):
        pid, _ = await who(context, "one")
        context.cast("one", Block(60.0))
        await until(lambda: not Path(f"/proc/{pid}").exists())
        assert (await who(context, "one"))[0] != pid


async def test_crash_loop_gives_up(tmp_path: Path) -> None:
    """An actor that cannot start ends the node after the permitted restarts; the first cause is kept."""
    node = RunningNode(
        load(write_config(tmp_path, {"one": ECHO, "bad": 'class = "tests.microkernel.kernel_actors:Broken"'}))
    )
    await node.start()
    await node.done.wait()
    assert (await node.close()).startswith("bad: RuntimeError: cannot start")
    assert node.supervisor.children["bad"].restarts == node.config.supervisor.intensity


async def test_unknown_class_is_fatal(tmp_path: Path) -> None:
    """A class that cannot be imported is not tried again."""
    node = RunningNode(
        load(write_config(tmp_path, {"bad": 'class = "tests.microkernel.kernel_actors:Nothing"'}))
    )
    await node.start()
    await node.done.wait()
    assert "tests.microkernel.kernel_actors:Nothing" in await node.close()


async def test_stop_in_order(tmp_path: Path) -> None:
    """StopNode ends every process and takes the record away."""
    async with running(write_config(tmp_path, {"one": ECHO, "two": ECHO})) as (node, _, context):
        pids = [(await who(context, name))[0] for name in ("one", "two")]
        record = read_record(node.config.runtime_dir)
        assert record is not None
        assert record.endpoint == node.endpoint
        await context.call("root", StopNode(0.0), Done, timeout=10)
        await node.done.wait()
        assert [Path(f"/proc/{pid}").exists() for pid in pids] == [False, False]
    assert read_record(node.config.runtime_dir) is None
    assert list((tmp_path / "run").glob("*.ipc")) == []


async def test_second_node_is_refused(tmp_path: Path) -> None:
    """A second node of the same name says so."""
    file = write_config(tmp_path, {"one": ECHO})
    async with running(file):
        with pytest.raises(ConfigError, match="running already"):
            RunningNode(load(file))


async def test_restart_of_unknown_actor(tmp_path: Path) -> None:
    """An operator's typing mistake is answered with the names there are."""
    async with running(write_config(tmp_path, {"one": ECHO})) as (_, _, context):
        with pytest.raises(InvalidRequest, match="there are one"):
            await context.call("root", RestartActor("won"), Done, timeout=10)


async def test_client_gone_cancels_its_requests(tmp_path: Path) -> None:
    """What a client asked for is cancelled when its process dies."""
    async with running(write_config(tmp_path, {"one": ECHO})) as (node, _, context):
        script = (
            "import asyncio, sys\n"
            "from tests.microkernel.kernel_actors import Wait, Say\n"
            "from sgl_actors.actors.node.embedded import join\n"
            "async def main():\n"
            f"    handle = await join({node.endpoint!r})\n"
            "    context = handle.context('doomed')\n"
            "    task = asyncio.create_task(context.call('one', Wait(), Say, timeout=60))\n"
            "    await context.call('one', Say('sync'), Say, timeout=10)\n"
            "    print('waiting', flush=True)\n"
            "    await task\n"
            "asyncio.run(main())\n"
        )
        client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == b"waiting\n"
        client.kill()
        client.stdout.close()
        await asyncio.to_thread(client.wait)
        while (await context.call("one", Heard(), Words, timeout=10)).words != ["cancelled"]:
            await asyncio.sleep(0.01)


def test_no_survivors(tmp_path: Path) -> None:
    """When the root is killed, the operating system ends its children."""
    file = write_config(tmp_path, {"one": ECHO, "two": ECHO})
    script = (
        "import asyncio\n"
        "from sgl_actors.actors.node.config import load\n"
        "from sgl_actors.actors.node.root import RunningNode\n"
        "async def main():\n"
        f"    node = RunningNode(load({str(file)!r}))\n"
        "    cell = await node.start()\n"
        "    while not node.supervisor.ready:\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(*[row.pid for row in cell.actor._list().rows], flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    root = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert root.stdout is not None
    pids = [int(pid) for pid in root.stdout.readline().split()]
    assert len(pids) == 2
    root.kill()
    root.wait()
    root.stdout.close()
    for pid in pids:
        descriptor = None
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([descriptor], [], [], 10.0)[0], f"process {pid} outlived the root"
        os.close(descriptor)


COUNTER = 'class = "tests.microkernel.swap_actors:Counter"\nprocess = "counting"'


async def swap(ctx: Context, path: str, settings: str = "", *, restart: bool = False) -> Swapped:
    """Ask the root to swap the counter's class."""
    return await ctx.call(
        "root", SwapActor("counter", f"tests.microkernel.swap_actors:{path}", settings, restart), Swapped
    )


async def test_swaps_through_the_root(tmp_path: Path) -> None:
    """In place where both classes know how, by a restart else; a class that fails leaves the actor as it was; a death soon after a swap takes it back."""
    async with running(write_config(tmp_path, {"counter": COUNTER})) as (node, _, ctx):
        await ctx.call("counter", Add(3), Sum)
        answer = await swap(ctx, "Better", '{"options": {"bonus": 10}}')
        assert answer.in_place
        assert await ctx.call("counter", Add(0), Sum) == Sum(13, 2)
        for path, why in (("Broken", "restore is broken"), ("Nobody", "is no Actor")):
            with pytest.raises((SwapFailed, ConfigError), match=why):
                await swap(ctx, path)
        assert (await ctx.call("counter", Add(0), Sum)).version == 2
        rows = await ctx.call("root", ListActors(), Actors)
        os.kill(rows.rows[0].pid, signal.SIGKILL)
        assert (await once_up(ctx, Add(0), rows.rows[0].epoch)).version == 1
        assert not (await swap(ctx, "Counter", restart=True)).in_place
        assert (await once_up(ctx, Add(0))).version == 1
        assert not (await swap(ctx, "Plain")).in_place
        with pytest.raises(SwapFailed, match="cannot start"):
            await swap(ctx, "Unborn")
        assert (await once_up(ctx, Add(0))).version == 0
        with pytest.raises(InvalidRequest, match="no actor"):
            await ctx.call("root", SwapActor("nobody", "x:Y"), Swapped)
        assert not node.supervisor.failed


async def once_up(ctx: Context, message: Add, epoch: int = 0, name: str = "counter") -> Sum:
    """Ask until an incarnation after `epoch` answers."""
    while True:
        try:
            rows = (await ctx.call("root", ListActors(), Actors)).rows
            if any(row.address == name and row.epoch > epoch for row in rows):
                return await ctx.call(name, message, Sum)
        except ActorDown:
            pass
        await asyncio.sleep(0.02)


async def test_a_stopped_process_is_replaced(tmp_path: Path) -> None:
    """After SIGSTOP the actor is started anew, and the stopped process is gone though nobody continued it."""
    async with running(write_config(tmp_path, {"counter": COUNTER})) as (_, _, ctx):
        row = (await ctx.call("root", ListActors(), Actors)).rows[0]
        os.kill(row.pid, signal.SIGSTOP)
        await once_up(ctx, Add(0), row.epoch)
        with pytest.raises(ProcessLookupError):
            os.kill(row.pid, 0)


async def test_children_that_come_and_go(tmp_path: Path) -> None:
    """An actor can be added to a running node and taken away; one that does not start is not there."""
    async with running(write_config(tmp_path, {"counter": COUNTER})) as (node, _, ctx):
        root = node.system.cells["root"].actor
        assert isinstance(root, NodeRoot)
        more = ChildSpec(
            "counter@b",
            "tests.microkernel.swap_actors:Counter",
            "second",
            settings='{"options": {"start": 7}}',
        )
        await root.add(more)
        assert await once_up(ctx, Add(0), name="counter@b") == Sum(7, 1)
        await root.remove("counter@b")
        assert "counter@b" not in node.supervisor.children
        with pytest.raises(ActorDown):
            await ctx.call("counter@b", Add(0), Sum)
        with pytest.raises(SwapFailed, match="cannot start"):
            await root.add(ChildSpec("counter@c", "tests.microkernel.swap_actors:Unborn", "third"))
        assert list(node.supervisor.children) == ["counter"]
        assert node.supervisor.ready


COUNTER = 'class = "tests.microkernel.swap_actors:Counter"'


@pytest.mark.parametrize("settings", ["{", "[1]", "7"])
async def test_settings_that_are_none_are_refused(tmp_path: Path, settings: str) -> None:
    """A wrong change is its asker's error, and not the root's end."""
    async with running(write_config(tmp_path, {"one": COUNTER})) as (_, _, context):
        with pytest.raises(InvalidRequest, match="settings"):
            await context.call("root", SwapActor("one", "", settings), Swapped, timeout=10)
        assert (await context.call("root", ListActors(), Actors, timeout=10)).ready


async def test_a_change_that_raises_anything_leaves_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in a change is told to who asked for it."""

    async def broken(self: NodeRoot) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(NodeRoot, "_reload", broken)
    async with running(write_config(tmp_path, {"one": COUNTER})) as (_, _, context):
        with pytest.raises(RemoteError, match="a fault of ours"):
            await context.call("root", Reload(), Reloaded, timeout=10)
        assert (await context.call("root", ListActors(), Actors, timeout=10)).ready


async def test_failed_swaps_do_not_use_up_the_patience(tmp_path: Path) -> None:
    """A class that does not start is no failure of the actor that runs again after it."""
    async with running(write_config(tmp_path, {"one": COUNTER})) as (node, _, context):
        node.supervisor.intensity = 0
        swap = SwapActor("one", "tests.microkernel.swap_actors:Unborn", restart=True)
        for _ in range(2):
            with pytest.raises(SwapFailed, match="cannot start"):
                await context.call("root", swap, Swapped, timeout=10)
            await until_ready(context)
        assert not node.supervisor.failed


async def test_who_waits_for_an_actor_that_is_removed_hears_of_it(tmp_path: Path) -> None:
    """A replacement and a restart under way end when their actor is ended for good."""
    node = RunningNode(load(write_config(tmp_path, {"one": ECHO, "two": ECHO})))
    cell = await node.start()
    root = cell.actor
    assert isinstance(root, NodeRoot)
    handle = await join(node.endpoint)
    context = handle.context("test")
    await until_ready(context)
    swap = SwapActor("one", "tests.microkernel.kernel_actors:SlowStart", restart=True)
    swapping = asyncio.create_task(context.call("root", swap, Swapped, timeout=60))
    await until(lambda: node.supervisor.children["one"].state == "starting")
    restarting = asyncio.create_task(context.call("root", RestartActor("one"), Done, timeout=60))
    await until(lambda: node.supervisor.children["one"].restarts == 2)
    await root.remove("one")
    with pytest.raises(SwapFailed, match="one is removed"):
        await swapping
    with pytest.raises(ActorDown, match="one is removed"):
        await restarting
    await handle.close()
    await node.close()
