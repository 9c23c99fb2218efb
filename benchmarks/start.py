"""How long a node takes to be ready, and what it costs when it has nothing to do.

    python benchmarks/start.py [--rounds 3] [--idle 30]

Prints one JSON line per case: seconds from the command to `/health` 200 (files in the page cache: the first round warms them and is reported apart),
and the CPU of all the node's processes together over `--idle` seconds, in percent of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import psutil

from sgl_actors.actors.node.record import read_record

REPOSITORY = Path(__file__).parent.parent


def start(folder: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start a node and return it with the seconds until it was ready."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "sgl_actors.cli",
        "start",
        "--config",
        str(REPOSITORY / "node.toml"),
        "--port",
        "0",
    ]
    process = subprocess.Popen([*command, "--set", f"node.runtime_dir={folder}"], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        record = read_record(folder)
        try:
            if record is not None and httpx2.get(f"{record.url}/health", timeout=5).status_code == 200:
                return process, time.monotonic() - began
        except httpx2.HTTPError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"the node ended with {process.returncode}")


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """User and system time of the node's processes."""
    root = psutil.Process(process.pid)
    return sum(sum(p.cpu_times()[:2]) for p in (root, *root.children(recursive=True)))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=30.0)
    arguments = parser.parse_args()
    seconds = []
    for round_ in range(arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            process, ready = start(Path(folder) / "run")
            if round_:
                seconds.append(ready)
            else:
                print(json.dumps({"case": "first start", "seconds": round(ready, 2)}))
            if round_ == arguments.rounds:
                time.sleep(3)
                before, began = cpu_seconds(process), time.monotonic()
                time.sleep(arguments.idle)
                share = (cpu_seconds(process) - before) / (time.monotonic() - began)
            process.terminate()
            process.wait()
    print(
        json.dumps(
            {
                "case": "ready",
                "seconds": round(statistics.median(seconds), 2),
                "all": [round(s, 2) for s in seconds],
                "target": 10,
            }
        )
    )
    print(json.dumps({"case": "idle", "percent_of_a_core": round(share * 100, 2), "target": 2}))


if __name__ == "__main__":
    main()
