"""The process of a node's root: in the foreground for `sgl-actors start`, or embedded for a program that brings its own node."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

import msgspec

from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.process import run_loop
from sgl_actors.actors.node.banner import Progress, describe_model, describe_ready, describe_start
from sgl_actors.actors.node.config import NodeConfig, load
from sgl_actors.actors.node.embedded import EmbeddedRequest, Ready
from sgl_actors.actors.node.node_root import NodeRoot
from sgl_actors.actors.node.root import RunningNode
from sgl_actors.actors.scheduler.messages import DescribeModel
from sgl_actors.actors.worker.messages import ModelInfo
from sgl_actors.errors import RemoteError, SglActorsError

INTERRUPTED = 130
PROGRESS_INTERVAL = 0.1
"""Seconds between two looks at how far the node has come up."""


def main(config: NodeConfig) -> int:
    """Run a node in the foreground until it is told to stop.

    Returns the exit code: 0 after an orderly stop, 1 if supervision gave up, 130 if a second signal cut it short.

    Raises:
        SglActorsError: it could not even begin (configuration, port, model).
    """
    code: int = run_loop(_serve(config))
    return code


async def _serve(config: NodeConfig) -> int:
    began = time.monotonic()
    node = RunningNode(config)
    _print(describe_start(config.node.name, config.file, str(config.log_dir)))
    cell = await node.start()
    node.stop_on_signals(
        cell,
        lambda drain: _print(["", f"stopping; running requests get {drain:g} s, Ctrl-C again stops at once"]),
    )
    try:
        info = await _come_up(node, cell)
        if info is not None:
            _print(
                [
                    *describe_model(info),
                    *describe_ready(
                        node.url or node.endpoint,
                        info.served_name,
                        time.monotonic() - began,
                        keyed=bool(config.tenants),
                    ),
                ]
            )
        await node.done.wait()
    finally:
        failed = await node.close()
    if failed:
        print(f"sgl-actors: the node gave up: {failed}", file=sys.stderr, flush=True)  # noqa: T201 - the terminal is its door
    return 1 if failed else INTERRUPTED if node.hurried else 0


async def _come_up(node: RunningNode, cell: Cell) -> ModelInfo | None:
    """Wait until every actor is up, showing the weights being read; None if the node ends before."""
    assert isinstance(cell.actor, NodeRoot)
    progress = Progress(sys.stderr)
    began = time.monotonic()
    while not node.supervisor.ready and not node.done.is_set():
        counters = cell.actor.statistics_of("worker/0")
        if counters.get("load_bytes_total"):
            progress.update(
                int(counters.get("load_bytes_done", 0)),
                int(counters["load_bytes_total"]),
                time.monotonic() - began,
            )
        await asyncio.sleep(PROGRESS_INTERVAL)
    progress.clear()
    while not node.done.is_set():
        try:
            return await cell.context.call("scheduler", DescribeModel(), ModelInfo, timeout=5.0)
        except SglActorsError:  # whatever the scheduler says, it is its supervisor who ends the node
            await asyncio.sleep(PROGRESS_INTERVAL)
    return None


def _print(lines: list[str]) -> None:
    """Whoever read the output may be gone; that is no reason to end, or not to."""
    with suppress(OSError):
        print("\n".join(lines), flush=True)  # noqa: T201 - the terminal is its door


async def _embedded(request: EmbeddedRequest) -> int:
    try:
        node = RunningNode(load(request.config, flags=request.flags))
        cell = await node.start()
    except SglActorsError as error:
        _answer(Ready(error=f"{error.code}:{error.message}"))
        return 1
    node.stop_on_signals(cell)
    try:
        info = await _come_up(node, cell)
        if info is not None:
            _answer(Ready(node.endpoint))
        await node.done.wait()
    finally:
        failed = await node.close()
    if info is None:
        _answer(Ready(error=f"{RemoteError.code}:{failed or 'the node was stopped while it came up'}"))
    return 1 if failed else 0


def _answer(ready: Ready) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(ready) + b"\n")
    sys.stdout.buffer.flush()


def embedded() -> int:
    """Entry of an embedded node's process; its `EmbeddedRequest` is on its standard input."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=EmbeddedRequest)
    sys.stdin.close()
    code: int = run_loop(_embedded(request))
    return code
