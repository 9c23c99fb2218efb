"""How much memory there is to be had: of the machine, and of the control group (a container) that this process is in."""

from __future__ import annotations

from pathlib import Path

import psutil

GROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own group (cgroup v2)."""


def available_memory(group: Path = GROUP) -> int:
    """Bytes that can be taken without anything being driven out."""
    return min(int(psutil.virtual_memory().available), _of_group(group))


def _of_group(group: Path) -> int:
    """What the group's limit leaves; file pages that can be dropped count as free. Very much without a limit."""
    try:
        most = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - used + int(facts.get("inactive_file", 0)) if most != "max" else 1 << 62
    except (OSError, ValueError):
        return 1 << 62
