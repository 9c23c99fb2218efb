"""The volumes of the journal and of the logs are full: new durable programs are refused, running ones finish and say so, everything else serves on."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

import sgl_actors as sgl
from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.history import History
from benchmarks.chaos.load import Load, now
from benchmarks.chaos.node import ChaosNode, running, toml
from sgl_actors.actors.programs.runtime import Connection
from sgl_actors.errors import JournalUnavailable, SglActorsError

LOGS = "1m"
JOURNAL = "24m"
"""More than the journal's log takes before it is written into its file."""
STARTED = threading.Event()
"""The program has begun to write."""


@sgl.function
async def report(s: sgl.ProgramState, tokens: int) -> None:
    """Four parts; says when the journal has its beginning."""
    s += "A report in parts.\n"
    s += sgl.gen("head", max_tokens=8, ignore_eos=True)
    await s["head"]
    await s.once("started", STARTED.set)
    forks = s.fork(4)
    forks += lambda number: f"{number}: " + sgl.gen("part", max_tokens=tokens, ignore_eos=True)
    s += "; ".join(await forks.join("part")) + " In the end " + sgl.gen("end", max_tokens=8, ignore_eos=True)


class CannotMount(Exception):
    """This process may not mount a tmpfs."""


@contextmanager
def volume(path: Path, size: str) -> Iterator[Path]:
    """A small file system of its own; `CannotMount` if that is not allowed here."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        made = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise CannotMount(str(error)) from None
    if made.returncode:
        raise CannotMount(made.stderr.decode().strip())
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> Path:
    """Leave no byte of the volume that `path` is on."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler


async def full_disk_round(plan: Plan) -> Outcome:
    """One node whose logs and one user whose journal have nowhere to go."""
    outcome = Outcome()
    try:
        with volume(plan.folder / "logs", LOGS) as logs, volume(plan.folder / "journal", JOURNAL) as journal:
            async with running(
                plan.folder / "node", toml(), f"node.log_dir={logs}", "node.log_level=debug"
            ) as node:
                await _run(node, logs, journal, outcome)
    except CannotMount as error:
        outcome.skipped = f"no tmpfs can be mounted here: {error}"
    return outcome


async def _run(node: ChaosNode, logs: Path, journal: Path, outcome: Outcome) -> None:
    history = History(now)
    load = Load(node, history, fake=True, tokens=40, programs=2, streams=2)
    await load.open()
    backend = Connection(node.record.endpoint)
    file = str(journal / "journal.db")
    try:
        _, calm = await asyncio.gather(load.calm(), _durable(backend, file, "calm"))
        load.begin()
        STARTED.clear()
        under_way = asyncio.create_task(_durable(backend, file, "running"))
        await asyncio.to_thread(STARTED.wait, 60)
        fillers = [fill(journal), fill(logs)]
        await _refused(backend, file, outcome)
        state = await under_way
        if state.text() != calm.text():
            outcome.fail("the durable program that ran when the disk filled up has another outcome")
        if not state.warnings:
            outcome.fail("it does not say that its journal took no more")
        await _healthy(node, outcome)
        for filler in fillers:
            filler.unlink()
        again = await _durable(backend, file, "afterwards")
        if again.text() != calm.text():
            outcome.fail("a durable program after there was room again has another outcome")
        outcome.count("durable programs", 3)
        await load.end()
    finally:
        await load.close()
        await backend.close()
    outcome.take(history.check())


async def _durable(backend: Connection, journal: str, name: str) -> sgl.FinishedState:
    return await report.bind(tokens=80).run(durable=journal, id=name, seed=1, backend=backend, timeout=120)


async def _refused(backend: Connection, journal: str, outcome: Outcome) -> None:
    """A new one is refused, with 503."""
    try:
        await _durable(backend, journal, "refused")
    except JournalUnavailable as error:
        outcome.count("refused with 503", error.status == httpx2.codes.SERVICE_UNAVAILABLE)
    except SglActorsError as error:
        outcome.fail(f"a new durable program on a full disk: {error!r}"[:300])
    else:
        outcome.fail("a new durable program began though its journal's disk was full")


async def _healthy(node: ChaosNode, outcome: Outcome) -> None:
    """Requests without a journal are served; no actor has ended."""
    async with httpx2.AsyncClient(timeout=30) as http:
        body = {"text": "Still there?", "sampling_params": {"max_new_tokens": 3}}
        answer = await http.post(f"{node.url}/generate", json=body)
    if answer.status_code != httpx2.codes.OK:
        outcome.fail(f"/generate on a full disk: {answer.status_code} {answer.text[:200]}")
    for name, row in (await node.rows()).items():
        if row.restarts:
            outcome.fail(f"{name} ended {row.restarts} times")


FULL_DISK = Case(
    "full-disk",
    "journal and log volume full: new durable programs get 503, running ones finish and say so, the rest serves on",
    full_disk_round,
    Form(3, 1),
    Form(1, 1),
)
