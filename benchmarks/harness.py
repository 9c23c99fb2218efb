"""What the benchmarks of the cache and the scheduler share: a node of their own with its switches and counters, and how results are shown."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from sgl_actors.actors.node.record import NodeRecord, read_record
from sgl_actors.bench.client import LoadError
from sgl_actors.errors import SglActorsError

START_TIMEOUT = 120.0
IDLE_TIMEOUT = 30.0
"""Seconds until a node that is to be flushed must have nothing left to do."""
PREFIX = "sgl_actors_"


@dataclass
class LiveNode:
    """A running node as a benchmark sees it: its switches and its counters.

    Attributes:
        record: where it is.
        initial: `Configuration` of its scheduler when first asked.
    """

    record: NodeRecord
    headers: dict[str, str] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of its gateway."""
        return self.record.url

    def configure(self, **changes: Any) -> dict[str, Any]:
        """Put the scheduler back to how the node was started, but for `changes`; answers what is in force."""
        if not self.initial:
            self.initial = self._post("/scheduler", {})
        return self._post("/scheduler", self.initial | changes)

    def flush(self) -> None:
        """Empty the prefix cache once nothing runs or waits."""
        deadline = time.monotonic() + IDLE_TIMEOUT
        while time.monotonic() < deadline:
            answer = httpx2.post(f"{self.url}/flush_cache", headers=self.headers, timeout=IDLE_TIMEOUT)
            if answer.status_code == httpx2.codes.OK:
                return
            time.sleep(0.1)
        raise SystemExit(f"/flush_cache: {answer.status_code} {answer.text}")

    def counters(self) -> dict[str, float]:
        """Every metric by its name without prefix, summed over labels (each of ours comes from one actor)."""
        text = httpx2.get(f"{self.url}/metrics", headers=self.headers, timeout=30).raise_for_status().text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix(PREFIX)
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx2.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=30)
        if answer.status_code != httpx2.codes.OK:
            raise SystemExit(f"{path}: {answer.status_code} {answer.text}")
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def running(*settings: str, toml: str = "", headers: dict[str, str] | None = None) -> Iterator[LiveNode]:
    """A node of our own on a free port; `settings` are `KEY=VALUE` as for `--set`, `toml` is its node.toml.

    A request that fails within ends the benchmark with one line.
    """
    reason = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "node.toml").write_text(toml, "utf-8")
        command = [sys.executable, "-m", "sgl_actors.cli", "start", "--config", "node.toml", "--port", "0"]
        for setting in (f"node.runtime_dir={folder / 'run'}", *settings):
            command += ["--set", setting]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            yield LiveNode(_ready(process, folder / "run"), headers or {})
        except* (LoadError, SglActorsError, httpx2.HTTPError) as group:
            reason = str(group.exceptions[0])
        finally:
            process.terminate()
            process.wait(60)
    if reason:
        sys.exit(reason)


def _ready(process: subprocess.Popen[bytes], runtime_dir: Path) -> NodeRecord:
    """The node's record, once `/health` is 200."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        record = read_record(runtime_dir)
        try:
            if record is not None and httpx2.get(f"{record.url}/health", timeout=5).status_code == 200:
                return record
        except httpx2.HTTPError:
            pass  # not listening yet
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"the node was not healthy within {START_TIMEOUT:g} s (exit code {process.wait()})")


def show(**line: Any) -> None:
    """One JSON line; floats with four significant digits, and the machine's load beside it."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
    print(json.dumps(rounded | {"machine_load": round(os.getloadavg()[0], 1)}), flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing, which misses every target."""
    return statistics.median(values) if values else float("nan")


def verdict(targets: Sequence[tuple[str, float, str, float]], *, check: bool) -> None:
    """Print one line per target (what, value, "<=" or ">=", limit); with `check` exit 1 if one is missed."""
    missed = 0
    for what, value, sign, limit in targets:
        met = value <= limit if sign == "<=" else value >= limit
        missed += not met
        print(f"{'met   ' if met else 'MISSED'}  {what}: {value:.4g} (target {sign} {limit:g})")
    if check and missed:
        sys.exit(1)
