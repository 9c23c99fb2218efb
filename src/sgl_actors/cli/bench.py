"""`sgl-actors bench`: how fast a server answers, as a table for people.

It measures any OpenAI-compatible server; without an address the running node, and if none runs, one that it starts for this.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx2

from sgl_actors.actors.node.record import NodeRecord, read_record
from sgl_actors.bench.client import LoadError, Server, connect
from sgl_actors.bench.load import Program, Prompts, each_once, random_prompts, run_programs, shared_prompts
from sgl_actors.bench.samples import summary
from sgl_actors.cli.node import find
from sgl_actors.cli.show import table, write_json
from sgl_actors.errors import ConfigError, NotReady

START_TIMEOUT = 600.0
STOP_TIMEOUT = 60.0
POLL = 0.05
LEAST, EACH = 4, 2
"""Requests per case: so many times the concurrency, and no fewer than the least."""
KEY = "SGL_ACTORS_API_KEY"
WORKLOADS = ("random", "shared")
COLUMNS = (
    "WORKLOAD", "AT\nONCE", "REQ/S", "OUT\nTOK/S", "TTFT\nP50", "TTFT\nP99", "ITL\nP50", "ITL\nP99", "PER\nTOKEN", "CACHED",
)  # fmt: skip
"""Of the table; a terminal of 80 columns holds it."""


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        workloads: of `WORKLOADS`: prompts that share nothing, or 512 tokens in front of each.
        concurrency: cases, by most requests at once.
        requests: per case; 0 for twice the concurrency.
        prompt_tokens, output_tokens: of a request; a prompt's own tokens, without what is shared.
        seed: of the prompts; another one per run, or a prefix cache answers.
    """

    workloads: Sequence[str]
    concurrency: Sequence[int]
    requests: int = 0
    prompt_tokens: int = 128
    output_tokens: int = 64
    seed: int = 0

    def prompts(self, workload: str, number: int, count: int) -> Prompts:
        """Of the `number`-th case."""
        make = random_prompts if workload == "random" else shared_prompts
        return make(count, self.seed + number, tokens=self.prompt_tokens)


def parse(workload: str, concurrency: str) -> tuple[list[str], list[int]]:
    """The two lists as they are typed; `ConfigError` for what cannot be."""
    workloads = [name.strip() for name in workload.split(",") if name.strip()]
    for name in workloads:
        if name not in WORKLOADS:
            raise ConfigError(f"--workload {name}: expected {' or '.join(WORKLOADS)}")
    try:
        counts = [int(text) for text in concurrency.split(",")]
    except ValueError:
        raise ConfigError(f"--concurrency {concurrency}: expected whole numbers such as 1,16") from None
    if not workloads or min(counts) < 1:
        raise ConfigError("--workload, --concurrency: at least one of each, and at least 1 at once")
    return workloads, counts


def measure(
    url: str | None, settings: Settings, *, node: str | None, config: Path | None, model: str | None
) -> list[dict[str, float | str]]:
    """A row per workload and concurrency, of the server at `url`, the running node, or one that is started for this.

    Raises:
        LoadError: the server fails a request, or cannot be reached.
        NotReady: a node was named and does not run, or one that was started ended.
    """
    if url is not None:
        return asyncio.run(_cases(url, settings))
    if model is None:
        try:
            return asyncio.run(_cases(_gateway(find(node, config)), settings))
        except NotReady:
            if node is not None:
                raise
    print("starting a node for this measurement …", file=sys.stderr)
    with own_node(config, model) as own:
        return asyncio.run(_cases(own, settings))


def _gateway(record: NodeRecord) -> str:
    if not record.url:
        raise LoadError(f"node {record.name!r} has no HTTP gateway: give --url")
    return record.url


async def _cases(url: str, settings: Settings) -> list[dict[str, float | str]]:
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else None
    rows: list[dict[str, float | str]] = []
    try:
        async with connect(url, connections=max(settings.concurrency), headers=headers) as server:
            await run_programs(server, each_once(random_prompts(1, settings.seed - 1), 4), concurrency=1)
            for workload in settings.workloads:
                for concurrency in settings.concurrency:
                    rows.append(await _case(server, settings, workload, concurrency, len(rows)))
    except* (LoadError, httpx2.HTTPError, httpx2.InvalidURL) as group:
        raise LoadError(f"{url}: {_first(group)}") from None
    return rows


async def _case(
    server: Server, settings: Settings, workload: str, concurrency: int, number: int
) -> dict[str, float | str]:
    count = settings.requests or max(LEAST, EACH * concurrency)
    programs: list[Program] = each_once(settings.prompts(workload, number, count), settings.output_tokens)
    found = summary(*await run_programs(server, programs, concurrency=concurrency))
    row: dict[str, float | str] = {"workload": workload, "concurrency": concurrency}
    row.update(found)
    return row


def _first(group: BaseExceptionGroup[Exception]) -> str:
    """The first error in words."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


@contextmanager
def own_node(config: Path | None, model: str | None) -> Iterator[str]:
    """A node on a free port for as long as the block runs; yields its URL once it is healthy."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder) / "run"
        command = [sys.executable, "-m", "sgl_actors.cli", "start", "--port", "0"]
        command += ["--config", str(config)] if config is not None else []
        command += ["--model", model] if model is not None else []
        command += ["--set", f"node.runtime_dir={runtime}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
        try:
            yield _healthy(process, runtime)
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT)


def _healthy(process: subprocess.Popen[bytes], runtime: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        record = read_record(runtime)
        try:
            if record and record.url and httpx2.get(f"{record.url}/health", timeout=5).status_code == 200:
                return record.url
        except httpx2.HTTPError:
            pass  # not listening yet
        time.sleep(POLL)
    raise NotReady(f"the node was not healthy within {START_TIMEOUT:g} s (exit code {process.poll()})")


def show(rows: Sequence[Mapping[str, float | str]], *, as_json: bool, stream: TextIO) -> None:
    """A table with times in milliseconds; JSON with everything that was measured, more than the table has room for."""
    if as_json:
        write_json(list(rows), stream)
        return
    table(COLUMNS, map(_cells, rows), stream, right=1)


def _cells(row: Mapping[str, float | str]) -> tuple[str, ...]:
    def number(key: str, digits: int) -> str:
        return f"{float(row[key]):,.{digits}f}"

    prompt, cached = float(row["prompt_tokens"]), row.get("cached_tokens")
    share = f"{float(cached) / prompt:.0%}" if cached is not None and prompt else "-"
    first = (number(key, 0) for key in ("ttft_ms_p50", "ttft_ms_p99"))
    times = (number(key, 1) for key in ("itl_ms_p50", "itl_ms_p99", "tpot_ms_p50"))
    rates = number("req_per_s", 2), number("output_tok_per_s", 0)
    return (str(row["workload"]), str(row["concurrency"]), *rates, *first, *times, share)
