"""Which process runs a durable program: told apart from a later one of the same number by when it started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def this_process(pid: int | None = None) -> str:
    """The process, as ``pid start boot``; "" if it has ended. Another pid may be asked for."""
    number = os.getpid() if pid is None else pid
    try:
        fields = Path(f"/proc/{number}/stat").read_text("utf-8").rpartition(")")[2].split()
        boot = _BOOT.read_text("utf-8").strip()
    except OSError:
        return ""
    state, start = fields[0], fields[19]  # proc(5): fields 3 and 22, counted from 1
    return "" if state in "ZX" else f"{number} {start} {boot}"


def owner_lives(owner: str) -> bool:
    """Whether the process of that description runs."""
    return bool(owner) and this_process(pid_of(owner)) == owner


def pid_of(owner: str) -> int:
    """Its number; 0 for none."""
    return int(owner.partition(" ")[0] or 0)
