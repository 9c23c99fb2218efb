"""Servers beside each other on one machine: whose turn it is, and what the others do meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: everybody is first in turn."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


@contextmanager
def alone(name: str, pids: Mapping[str, int]) -> Iterator[None]:
    """While the block runs, all servers of `pids` but this one are stopped, children included; they go on afterwards, whatever happens."""
    others = [process for other, pid in pids.items() if other != name for process in family(pid)]
    try:
        for process in others:
            _send(process, signal.SIGSTOP)
        yield
    finally:
        for process in reversed(others):
            _send(process, signal.SIGCONT)


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; nothing of one that has ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def idle_cpu(pid: int, seconds: float) -> float:
    """Share of one core that a server takes while nobody asks it anything."""
    before = _cpu(pid)
    time.sleep(seconds)
    return (_cpu(pid) - before) / seconds


def _cpu(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in family(pid))


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
