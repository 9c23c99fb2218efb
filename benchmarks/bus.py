"""What a message costs: round trips per second and CPU per round trip for each transport, and a step's messages against a step.

    python benchmarks/bus.py [--seconds 2] [--no-model]

Prints one JSON line per case. The last one is the share of a decode step at batch 16 that its messages cost: the real messages (Step, StepDone,
Progress, one Chunk per stream) go between two processes over ZMQ, alternately with decode steps of the default model in this process; CPU of both
processes is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import structlog

from sgl_actors.actors.microkernel import Actor, Address, Context, MailboxSpec, Message, Request
from sgl_actors.actors.microkernel.process import run_loop
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.actors.scheduler.messages import Progress, Update
from sgl_actors.actors.tokenizer.messages import Chunk
from sgl_actors.actors.worker.messages import SequenceResult, Step, StepDone, Work

BATCH = 16
PAYLOAD = "x" * 1000


class Packet(Message):
    """A kilobyte that is sent back."""

    body: str
    number: int = 0


class CpuTime(Message):
    """Call, answered by itself: seconds of user and system time of the peer's process."""

    seconds: float = 0.0


class Peer(Actor):
    """Echoes packets and plays the worker and the tokenizer of a step."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=4096)

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Answer as the actor would whose part it plays."""
        match message:
            case Packet():
                return message
            case CpuTime():
                return CpuTime(time.process_time())
            case Step():
                results = [SequenceResult(work.seq, 17 + work.seq) for work in message.work]
                self.ctx.cast(request.sender, StepDone(message.epoch, message.number, results, 0.1))
            case Progress():
                for update in message.updates:
                    self.ctx.cast(
                        request.sender,
                        Chunk(update.first_index, update.token_ids, " word", prompt_tokens=128),
                    )
        return None


class Driver(Actor):
    """Plays the scheduler and sixteen askers: one step after the other."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=4096)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.peer: Address = context.config["peer"]
        self.goal = 0
        self.steps = 0
        self.chunks = 0
        self.reached = asyncio.Event()

    def run(self, steps: int) -> None:
        """Begin a series."""
        self.goal, self.steps, self.chunks = steps, 0, 0
        self.reached.clear()
        self._step()

    def _step(self) -> None:
        work = [Work(seq, 1, (seq + 100,)) for seq in range(BATCH)]
        self.ctx.cast(self.peer, Step(1, self.steps, [], [], work))

    async def receive(self, message: Message, request: Request) -> Message | None:  # noqa: ARG002 - the interface
        """Next leg of the step, or next step."""
        match message:
            case StepDone():
                updates = [Update(f"request-{r.seq:08d}", self.steps, [r.token_id]) for r in message.results]
                self.ctx.cast(self.peer, Progress(updates))
            case Chunk():
                self.chunks += 1
                if self.chunks == BATCH:
                    self.chunks = 0
                    self.steps += 1
                    if self.steps < self.goal:
                        self._step()
                    else:
                        self.reached.set()
        return None


async def round_trips(context: Context, peer: Address, window: int, seconds: float) -> dict[str, float]:
    """Echo for a while with `window` calls under way; CPU counts both sides."""
    count = 0
    end = time.monotonic() + seconds

    async def lane() -> None:
        nonlocal count
        while time.monotonic() < end:
            await context.call(peer, Packet(PAYLOAD, count), Packet, timeout=30)
            count += 1

    other = peer.endpoint != context.address.endpoint
    theirs = (await context.call(peer, CpuTime(), CpuTime)).seconds if other else 0.0
    ours, began = time.process_time(), time.monotonic()
    await asyncio.gather(*(lane() for _ in range(window)))
    elapsed, cpu = time.monotonic() - began, time.process_time() - ours
    if other:
        cpu += (await context.call(peer, CpuTime(), CpuTime)).seconds - theirs
    return {"round_trips_per_s": round(count / elapsed), "cpu_us": round(cpu / count * 1e6, 1)}


async def measure(seconds: float, *, model: bool) -> None:
    """All cases."""
    quiet = structlog.wrap_logger(structlog.PrintLogger(Path(os.devnull).open("w")))  # noqa: SIM115 - lives as long as we do

    with tempfile.TemporaryDirectory() as folder:
        hub = LocalHub()
        here = System("here", LocalTransport(hub, "local://here"), logger=lambda _: quiet)
        coded = System(
            "coded", LocalTransport(hub, "local://coded"), logger=lambda _: quiet, force_codec=True
        )
        bus = System("bus", ZmqTransport(f"ipc://{folder}/bus.ipc"), logger=lambda _: quiet)
        for system in (here, coded, bus):
            await system.open()
        endpoint = f"ipc://{folder}/peer.ipc"
        child = subprocess.Popen([sys.executable, __file__, "--peer", endpoint], stdin=subprocess.PIPE)
        far = Address("peer", 0, endpoint)
        cases = [
            ("by reference", here.spawn(Outside, "asker").context, here.spawn(Peer, "peer").address),
            ("local, encoded", coded.spawn(Outside, "asker").context, coded.spawn(Peer, "peer").address),
            ("zmq ipc", bus.spawn(Outside, "asker").context, far),
        ]
        await cases[2][1].call(far, CpuTime(), CpuTime, timeout=30)
        for window in (1, 32):
            for name, context, peer in cases:
                result = await round_trips(context, peer, window, seconds)
                print(
                    json.dumps(
                        {"case": "round trip", "transport": name, "window": window, "bytes": len(PAYLOAD)}
                        | result
                    )
                )
        await step_share(bus, far, model=model)
        for system in (here, coded, bus):
            await system.close()
        assert child.stdin is not None
        child.stdin.close()
        child.wait()


async def step_share(bus: System, far: Address, *, model: bool) -> None:
    """A step's messages, alternately with real decode steps at batch 16."""
    cell = bus.spawn(Driver, "driver", {"peer": far})
    await cell.ready.wait()
    driver = cell.actor
    assert isinstance(driver, Driver)
    decode = decoder() if model else None
    costs, steps = [], []
    for _ in range(7):
        theirs, ours = (await cell.context.call(far, CpuTime(), CpuTime)).seconds, time.process_time()
        driver.run(200)
        await driver.reached.wait()
        cpu = time.process_time() - ours + (await cell.context.call(far, CpuTime(), CpuTime)).seconds - theirs
        costs.append(cpu / 200)
        if decode is not None:
            steps.append(statistics.median(decode() for _ in range(5)))
    cost = statistics.median(costs)
    line = {"case": "messages of a step", "batch": BATCH, "cpu_us": round(cost * 1e6)}
    if steps:
        step = statistics.median(steps)
        line |= {
            "step_ms": round(step * 1e3, 1),
            "share_percent": round(100 * cost / step, 2),
            "target_percent": 5,
        }
    print(json.dumps(line))


def decoder() -> Callable[[], float]:
    """A function that runs one decode step of the default model at batch 16 (128 tokens each) and returns its seconds."""
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the worker does, before torch is imported
    from sgl_actors.actors.cache.messages import Options as CacheOptions
    from sgl_actors.actors.node.config import load
    from sgl_actors.actors.worker.device import load_runner
    from sgl_actors.actors.worker.messages import NewSequence, Options, Sampling

    path = load(None).to_builtins()["model"]["path"]
    runner, _ = load_runner(Options(path=path), CacheOptions(memory=256 << 20))
    runner.reset(1)
    room = 256
    new = [
        NewSequence(
            seq,
            [1000 + seq] * 128,
            128,
            0,
            list(range(seq * room, (seq + 1) * room)),
            Sampling(0, temperature=0.0),
        )
        for seq in range(BATCH)
    ]
    numbers = itertools.count()
    runner.execute(Step(1, next(numbers), [], new, [Work(seq, 128) for seq in range(BATCH)]))

    def decode() -> float:
        return runner.execute(Step(1, next(numbers), [], [], [Work(seq) for seq in range(BATCH)])).seconds

    return decode


async def serve_peer(endpoint: str) -> None:
    """The other process: echoes until its standard input closes."""
    quiet = structlog.wrap_logger(structlog.PrintLogger(Path(os.devnull).open("w")))  # noqa: SIM115
    system = System("peer", ZmqTransport(endpoint), logger=lambda _: quiet)
    await system.open()
    system.spawn(Peer, "peer")
    await asyncio.to_thread(sys.stdin.buffer.read)
    await system.close()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--no-model", action="store_true", help="leave the decode steps out")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run_loop(
        serve_peer(arguments.peer)
        if arguments.peer
        else measure(arguments.seconds, model=not arguments.no_model)
    )


if __name__ == "__main__":
    main()
