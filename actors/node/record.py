"""How a running node is found: the file `node.json` in its runtime folder.

The node's root writes it when it is up and removes it when it ends; the CLI reads it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from sgl_actors.actors.microkernel.process import runs
from sgl_actors.actors.node.config import runtime_base
from sgl_actors.errors import NotReady

FILE = "node.json"


class NodeRecord(msgspec.Struct, frozen=True):
    """A running node.

    Attributes:
        endpoint: where to reach its root over ZMQ.
        url: of its gateway, "" without one.
        pid: of its root process.
        name: `[node] name`.
        log_dir: folder of its log files.
        tenants: names of those that `[tenants]` has keys of.
    """

    endpoint: str
    pid: int
    url: str = ""
    name: str = "node"
    log_dir: str = ""
    tenants: list[str] = []

    @property
    def alive(self) -> bool:
        """Whether its root process runs. A record outlives a root that was killed, and a zombie runs no more."""
        return runs(self.pid)


def read_record(runtime_dir: Path) -> NodeRecord | None:
    """The record in that folder, None if there is none or it is damaged."""
    try:
        return msgspec.json.decode((runtime_dir / FILE).read_bytes(), type=NodeRecord)
    except (OSError, msgspec.DecodeError):
        return None


def find_node(runtime_dir: Path | None = None, base: Path | None = None) -> NodeRecord:
    """The running node of that folder; without a folder, the only one that this user runs.

    Raises:
        NotReady: none runs there, or several do and one has to be named.
    """
    if runtime_dir is not None:
        record = read_record(runtime_dir)
        if record is None:
            raise NotReady(f"no node runs in {runtime_dir}; start one with: sgl-actors start")
        if not record.alive:
            raise NotReady(
                f"the node in {runtime_dir} (process {record.pid}) has ended without stopping in order"
            )
        return record
    running = running_nodes(base)
    if not running:
        raise NotReady("no node is running; start one with: sgl-actors start")
    if len(running) > 1:
        names = ", ".join(sorted(record.name for record in running))
        raise NotReady(f"several nodes are running ({names}); choose one with --node NAME")
    return running[0]


def running_nodes(base: Path | None = None) -> list[NodeRecord]:
    """All of this user's nodes in the default place."""
    folders = sorted((runtime_base() if base is None else base).glob("*/"))
    return [record for folder in folders if (record := read_record(folder)) is not None and record.alive]
