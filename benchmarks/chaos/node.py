"""A node started as a user starts one, and the means to hurt it from outside."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.messages import ActorRow, Actors, ListActors
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import NodeHandle, join
from sgl_actors.actors.node.record import NodeRecord, read_record

REPOSITORY = Path(__file__).parent.parent.parent
START_TIMEOUT = 120.0
"""Seconds a node gets on a busy machine: a bound against hanging, no measure."""
MARK = "SGL_ACTORS_CHAOS_MARK"
"""Environment variable by which all processes of one node are known, however they descend from each other."""

FAKE = """
[actors."worker/0"]
class = "sgl_actors.actors.worker.fake:FakeWorker"
[actors."worker/0".options]
delay = {delay}
"""
COMMON = """
[node]
drain = 0.0
[supervisor]
intensity = {intensity}
[scheduler]
max_batch = 128
"""


def toml(*parts: str, fake: bool = True, delay: float = 0.01, intensity: int = 100_000) -> str:
    """A node.toml: the fake worker or the default model, no limit of restarts that random kills would reach."""
    return "\n".join([COMMON.format(intensity=intensity), FAKE.format(delay=delay) if fake else "", *parts])


class ChaosNode:
    """A node in a folder of its own. Attributes: `process` (its root), `record`, `handle` and `context` of a client that has joined it."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "node.toml").write_text(config, "utf-8")
        self.mark = secrets.token_hex(8)
        self.process: subprocess.Popen[bytes]
        self.record: NodeRecord
        self.handle: NodeHandle
        self.context: Context
        self.client: NodeClient

    @property
    def runtime_dir(self) -> Path:
        """Of the node."""
        return self.folder / "run"

    @property
    def url(self) -> str:
        """Of its gateway."""
        return self.record.url

    def launch(self, *settings: str) -> None:
        """Start the process."""
        command = [sys.executable, "-m", "sgl_actors.cli", "start", "--config", "node.toml"]
        for setting in ("gateway.port=0", f"node.runtime_dir={self.runtime_dir}", *settings):
            command += ["--set", setting]
        environment = os.environ | {
            "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}",
            MARK: self.mark,
            "GOMP_SPINCOUNT": "3000",
        }
        with (self.folder / "out.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def output(self) -> str:
        """What it has printed."""
        return (self.folder / "out.txt").read_text("utf-8", "replace")

    async def until_record(self) -> NodeRecord:
        """Its record, once it is there; `RuntimeError` if it ends before."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            record = read_record(self.runtime_dir)
            if record is not None and record.pid == self.process.pid:
                return record
            await asyncio.sleep(0.01)
        raise RuntimeError(
            f"the node did not come up (exit code {self.process.poll()}): {self.output()[-2000:]}"
        )

    async def until_up(self) -> float:
        """Wait until every actor is up; returns when that was."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            if (await self.actors()).ready:
                return time.monotonic()
            await asyncio.sleep(0.02)
        raise RuntimeError(
            f"not every actor came up (exit code {self.process.poll()}): {self.output()[-2000:]}"
        )

    async def join(self) -> None:
        """Become a client of it."""
        self.record = await self.until_record()
        self.handle = await join(self.record.endpoint)
        self.context = self.handle.context("chaos")
        self.client = NodeClient(self.context)
        await self.until_up()

    async def leave(self) -> None:
        """Be its client no longer."""
        await self.handle.close()

    async def actors(self) -> Actors:
        """The root's list."""
        return await self.context.call("root", ListActors(), Actors, timeout=30.0)

    async def rows(self) -> dict[str, ActorRow]:
        """Its actors by name."""
        return {row.address: row for row in (await self.actors()).rows}

    async def kill(self, name: str, number: int = signal.SIGKILL) -> ActorRow:
        """Send a signal to the process of an actor; returns the row of the incarnation that was hit."""
        while True:
            row = (await self.rows())[name]
            if row.pid:
                try:
                    os.kill(row.pid, number)
                except ProcessLookupError:
                    pass
                else:
                    return row
            await asyncio.sleep(0.01)

    async def until_idle(self, timeout: float = 60.0) -> dict[str, float]:
        """Wait until nothing runs, waits or is leased; returns what is left then (all 0), or at the deadline."""
        deadline = time.monotonic() + timeout
        while True:
            left = await self.left()
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.1)

    async def left(self) -> dict[str, float]:
        """What requests hold now: leases and leased pages of the cache, requests of scheduler, tokenizer and gateway."""
        from sgl_actors.actors.cache.messages import Inspect, Pool

        pool = await self.client.ask("cache", Inspect(), Pool)
        rows = await self.rows()
        found = {"leases": float(pool.leases), "leased pages": float(pool.leased)}
        for name, counters in COUNTERS.items():
            statistics = rows[name].statistics if name in rows else {}
            found |= {counter: statistics.get(counter, 0.0) for counter in counters}
        if pool.free + pool.cached + pool.leased != pool.total:
            found["pages that do not add up"] = float(pool.total - pool.free - pool.cached - pool.leased)
        return found

    async def stop(self) -> int:
        """Leave and stop it in order; returns its exit code."""
        if hasattr(self, "handle"):
            await self.handle.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return await asyncio.to_thread(self.process.wait, 60)
        finally:
            self.process.kill()
            self.process.wait()


COUNTERS = {
    "scheduler": ("num_running_reqs", "num_queue_reqs"),
    "tokenizer": ("num_live_requests", "num_preparing_requests"),
    "gateway": ("http_requests",),
}


@asynccontextmanager
async def running(folder: Path, config: str, *settings: str) -> AsyncIterator[ChaosNode]:
    """A node, up and joined; stopped at the end."""
    node = ChaosNode(folder, config)
    node.launch(*settings)
    try:
        await node.join()
        yield node
    finally:
        await node.stop()


async def until_healthy(url: str, timeout: float = START_TIMEOUT) -> None:
    """Wait until `/health` answers 200."""
    async with httpx2.AsyncClient(base_url=url, timeout=5) as http:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if (await http.get("/health")).status_code == httpx2.codes.OK:
                    return
            except httpx2.HTTPError:
                pass  # not listening yet
            await asyncio.sleep(0.05)
    raise RuntimeError(f"{url}/health was not 200 within {timeout:g} s")


def marked(mark: str) -> list[int]:
    """Processes that live (zombies do not) and descend from what was started with that mark."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state not in "ZX":
            found.append(int(entry.name))
    return found
