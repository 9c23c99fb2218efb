"""Frames that nobody should send, against a kernel and a bridge that live: nothing may crash, hang or grow.

    python benchmarks/chaos/frame_fuzz.py [--frames 1000000] [--seed 1]

`run` starts a process of its own, whose memory is measured, and returns what it saw. In it a kernel takes frames in three ways: straight
from its transport (most of them), over a unix socket, and through a bridge as the messages of a client with a key. Frames are random bytes, messages of every
type there is with absurd values in range and out of it, and bit flips, cuts, repetitions, deep nestings and huge lengths of those; their envelopes have
unknown kinds, tags and versions, forged senders, dead epochs, endless credit and timeouts that are none. Between them an honest client asks,
and has to be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog
import zmq

from sgl_actors.actors.microkernel import Actor, Address, Message, Request
from sgl_actors.actors.microkernel.bridge import Bridge
from sgl_actors.actors.microkernel.link import Knock, encode_notice
from sgl_actors.actors.microkernel.messages import Done, ListActors
from sgl_actors.actors.microkernel.process import resident_bytes
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import pack
from sgl_actors.actors.microkernel.wire import VERSION, Kind
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport, read_batch
from sgl_actors.actors.node.bridge import Rules

ROOMS = ("cache", "gateway", "grammar", "node", "programs", "scheduler", "tokenizer", "worker")
INTEGERS = (0, 1, 2, 7, -1, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1)
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-300, 1e308, -1e308, math.inf, -math.inf, math.nan)
TEXTS = ("", "x", "default", "\0", "../../etc/passwd", "{{7*7}}", "é" * 40, "(a+)+$", "x" * 3000)
DEEPEST = 3
CHECK = 2000
"""Frames between two questions of the honest client."""
WARM = 0.2
"""Share of the frames after which memory counts."""
PATIENCE = 5.0
"""Seconds in which the honest client has to be answered."""


class Sink(Actor):
    """Takes whatever there is, and answers what asks."""

    async def receive(self, message: Message, request: Request) -> Message | None:  # noqa: ARG002
        """Answer a call with `Done`, a stream with one item and its end."""
        if request.kind == "stream":
            request.item(Done())
            request.end()
        return Done() if request.kind == "call" else None


class Forge:
    """Makes frames."""

    def __init__(self, seed: int, endpoint: str) -> None:
        self.random = random.Random(seed)
        self.endpoint = endpoint
        found = [(tag, msgspec.inspect.type_info(cls)) for tag, cls in sorted(Message.TYPES.items())]
        self.types = [(tag, kind) for tag, kind in found if isinstance(kind, msgspec.inspect.StructType)]
        self._last = (b"", b"")

    def value(self, kind: msgspec.inspect.Type, depth: int = 0) -> Any:
        """Some value of that type, as plain data; ranges are not kept."""
        draw = self.random
        match kind:
            case msgspec.inspect.IntType():
                return draw.choice(INTEGERS)
            case msgspec.inspect.FloatType():
                return draw.choice(FLOATS)
            case msgspec.inspect.BoolType():
                return draw.random() < 0.5
            case msgspec.inspect.StrType():
                return draw.choice(TEXTS)
            case msgspec.inspect.BytesType() | msgspec.inspect.MemoryViewType():
                return draw.randbytes(draw.choice((0, 1, 8, 16, 64)))
            case msgspec.inspect.LiteralType():
                return draw.choice(kind.values)
            case msgspec.inspect.UnionType():
                return self.value(draw.choice(kind.types), depth)
            case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType() | msgspec.inspect.SetType():
                count = 0 if depth > DEEPEST else draw.choice((0, 1, 3))
                return [self.value(kind.item_type, depth + 1) for _ in range(count)]
            case msgspec.inspect.TupleType():
                return [self.value(item, depth + 1) for item in kind.item_types]
            case msgspec.inspect.DictType():
                count = 0 if depth > DEEPEST else draw.choice((0, 1))
                return {str(i): self.value(kind.value_type, depth + 1) for i in range(count)}
            case msgspec.inspect.StructType():
                return self.struct(kind, depth)
        return None

    def struct(self, kind: msgspec.inspect.StructType, depth: int) -> Any:
        """Plain data of a Struct."""
        if depth > DEEPEST:
            return []
        values = [(field.encode_name, self.value(field.type, depth + 1)) for field in kind.fields]
        tag = [] if kind.tag is None else [(kind.tag_field, kind.tag)]
        return [value for _, value in tag + values] if kind.array_like else dict(tag + values)

    def message(self) -> tuple[str, bytes]:
        """Tag and payload of a message of any type."""
        tag, kind = self.random.choice(self.types)
        return tag, msgspec.msgpack.encode(self.struct(kind, 0))

    def address(self) -> list[Any]:
        """Somebody, somewhere."""
        draw = self.random
        endpoint = draw.choice(
            (
                self.endpoint,
                self.endpoint,
                "",
                "tcp://127.0.0.1:9",
                "ipc:///nowhere/at.ipc",
                self.endpoint + "|laptop/1",
                self.endpoint.replace("target", f"gone{draw.randrange(10**9)}"),
                "x" * 300,
            )
        )
        return [
            draw.choice(("sink", "sink", "sink", "honest", "nobody", "root")),
            draw.choice((0, 1, 1, 2, -1, 1 << 63)),
            endpoint,
        ]

    def envelope(self, tag: str) -> list[Any]:
        """Plain data of an envelope; mostly one that is let in."""
        draw = self.random
        absurd = draw.random() < 0.2
        return [
            VERSION if draw.random() < 0.95 else draw.choice(INTEGERS),
            draw.randrange(len(Kind)) if draw.random() < 0.95 else draw.choice(INTEGERS),
            draw.choice(INTEGERS) if absurd else draw.getrandbits(40),
            self.address(),
            self.address(),
            tag if draw.random() < 0.9 else draw.choice((*TEXTS, "scheduler.Nothing")),
            draw.random() < 0.3,
            draw.choice(FLOATS) if absurd else draw.random() * 10,
            draw.choice(TEXTS),
            draw.choice(INTEGERS) if absurd else draw.randrange(100),
        ]

    def pair(self) -> tuple[bytes, bytes]:
        """The two frames of something."""
        draw = self.random
        kind = draw.randrange(10)
        if kind == 0:
            made = (draw.randbytes(draw.randrange(200)), draw.randbytes(draw.randrange(200)))
        elif kind == 1:
            made = self._last
        else:
            tag, payload = self.message()
            made = (msgspec.msgpack.encode(self.envelope(tag)), payload)
            if kind in (2, 3, 4):
                made = (self.damage(made[0]), made[1]) if kind == 2 else (made[0], self.damage(made[1]))
        self._last = made
        return made

    def damage(self, frame: bytes) -> bytes:
        """Flip bits, cut, nest or lie about lengths."""
        draw = self.random
        way = draw.randrange(5)
        if way == 0 or not frame:
            return frame[: draw.randrange(len(frame) + 1)]
        if way == 1:
            return b"\x91" * draw.choice((50, 1000, 20000)) + frame
        if way == 2:
            return draw.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb")) + b"\xff\xff\xff\xff" + frame
        changed = bytearray(frame)
        for _ in range(draw.choice((1, 1, 2, 8))):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    def torn(self, batch: bytes) -> bytes:
        """Mostly as it is; else with other bits, or cut short."""
        if self.random.random() < 0.9:
            return batch
        return self.damage(batch)[: self.random.randrange(len(batch) + 1)]


class Target:
    """What the frames are thrown at, in this process."""

    def __init__(self, folder: Path) -> None:
        quiet = structlog.wrap_logger(None, processors=[_drop])
        self.system = System(
            "target", ZmqTransport(f"ipc://{folder}/target.ipc"), logger=lambda _: quiet, force_codec=True
        )
        self.asker = System(
            "asker", ZmqTransport(f"ipc://{folder}/asker.ipc"), logger=lambda _: quiet, force_codec=True
        )
        inner = ZmqTransport(f"ipc://{folder}/clients.1.ipc")
        self.bridge = Bridge(
            "tcp://127.0.0.1:*",
            inner,
            Address("root", 0, self.system.endpoint),
            pair=None,
            peers={},
            admit=Rules(frozenset()),
            clock=time.monotonic,
            log=quiet,
        )
        self.context = zmq.Context()
        self.socket = self._connected()

    def _connected(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 1)
        socket.setsockopt(zmq.SNDTIMEO, 2000)
        socket.connect(self.system.endpoint)
        return socket

    async def open(self) -> None:
        """Start both kernels."""
        for system in (self.system, self.asker):
            await system.open()
        for name in ("sink", "honest", "root"):
            cell = self.system.spawn(Sink, name)
            await cell.ready.wait()
        self.asker.name_up(self.system.cells["honest"].address)
        self.context_of_asker = self.asker.spawn(Outside, "asker").context

    async def throw(self, forge: Forge) -> None:
        """One pair, by one of the ways."""
        pair = list(forge.pair())
        if forge.random.random() < 0.01:
            pair.pop()
        way = forge.random.random()
        if way < 0.6:
            self.system.deliver(pair)
        elif way < 0.9:
            spoken = self.spoken(forge, pair)
            frames, _ = read_batch([forge.torn(pack(spoken))])
            self.bridge.inward(b"\0abcd", "laptop" if way < 0.89 else "other", frames)
        else:
            try:
                self.socket.send(forge.torn(pack(pair)), zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(0)

    def spoken(self, forge: Forge, pair: list[bytes]) -> list[bytes]:
        """Now and then as the client that the bridge has let in would have sent it."""
        session = next(iter(self.bridge.sessions.values()), None)
        if session is None:
            return list(encode_notice(Knock()))
        if forge.random.random() < 0.5 and len(pair) == 2:
            tag, payload = forge.message()
            envelope = forge.envelope(tag)
            envelope[4] = ["client", 1, session.endpoint]
            return [msgspec.msgpack.encode(envelope), payload]
        return pair

    async def ask(self) -> None:
        """The honest client's question."""
        await self.context_of_asker.call("honest", ListActors(), Done, timeout=PATIENCE)

    async def close(self) -> None:
        """End both kernels."""
        self.socket.close(0)
        self.context.term()
        self.bridge.close()
        await self.asker.close()
        await self.system.close()

    def tables(self) -> dict[str, int]:
        """How large what could grow is."""
        system: Any = self.system
        transport: Any = system.transport
        names = ("_pending", "_incoming", "_monitors", "_tombstones")
        return {
            **{name: len(getattr(system, name)) for name in names},
            "watchers": sum(map(len, system._monitors.values())),  # noqa: SLF001
            "names": len(system.registry.names),
            "peers": len(transport._peers),  # noqa: SLF001
            "suspects": len(transport._suspects),  # noqa: SLF001
            "mail": sum(len(cell.mailbox) for cell in system.cells.values()),
            "clients": len(self.bridge.sessions),
        }


def _drop(*_: object) -> dict[str, Any]:
    raise structlog.DropEvent


async def fuzz(frames: int, seed: int) -> dict[str, Any]:
    """Throw so many pairs of frames; in the process that is measured."""
    for room in ROOMS:
        importlib.import_module(f"sgl_actors.actors.{room}.messages")
    unhandled: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, what: unhandled.append(repr(what.get("exception") or what["message"])[:200])
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        forge = Forge(seed, target.system.endpoint)
        await target.open()
        warm, began, slowest = 0, time.monotonic(), 0.0
        for number in range(frames):
            await target.throw(forge)
            if number % 20 == 0:
                await asyncio.sleep(0)
            if number % CHECK == 0:
                asked = time.monotonic()
                await target.ask()
                slowest = max(slowest, time.monotonic() - asked)
            if number == int(frames * WARM):
                gc.collect()
                warm = resident_bytes(os.getpid())
        gc.collect()
        grown = resident_bytes(os.getpid()) - warm
        alive = [name for name in ("sink", "honest", "root") if target.system.cells[name].state == "running"]
        found = {
            "frames": frames,
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            "crashes": 3 - len(alive) + len(unhandled),
            "why": "; ".join(sorted(set(unhandled))[:5]),
            "rss_growth": grown,
            "slowest_answer": round(slowest, 3),
            "kernel": dict(target.system.counters),
            "bridge": target.bridge.statistics(),
            "cut": target.system.transport.cuts,  # type: ignore[attr-defined]
            "unreachable": target.system.transport.unreachable,  # type: ignore[attr-defined]
            "tables": target.tables(),
        }
        await target.close()
    return found


def run(frames: int, seed: int) -> dict[str, Any]:
    """Throw `frames` pairs of frames at a process of its own and return what it saw; a crash of that process is one, too.

    Returns:
        `crashes`, `rss_growth` (bytes after the first fifth), `slowest_answer` (seconds), counters, sizes of all tables.
    """
    command = [sys.executable, __file__, "--inside", "--frames", str(frames), "--seed", str(seed)]
    ended = subprocess.run(command, capture_output=True, check=False)
    if ended.returncode:
        return {"frames": frames, "seed": seed, "crashes": 1, "why": ended.stderr.decode()[-2000:]}
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Throw frames at a kernel.")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    found = (
        asyncio.run(fuzz(chosen.frames, chosen.seed)) if chosen.inside else run(chosen.frames, chosen.seed)
    )
    sys.stdout.write(json.dumps(found, default=str) + "\n")
    return 1 if found["crashes"] and not chosen.inside else 0


if __name__ == "__main__":
    sys.exit(main())
