"""Finding a running node by its record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sgl_actors.actors.node.record import FILE, NodeRecord, find_node, read_record, running_nodes
from sgl_actors.errors import NotReady


def put(folder: Path, name: str, pid: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(msgspec.json.encode(NodeRecord("ipc://x", pid, name=name)))


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_only_running_node_needs_no_name(tmp_path: Path, gone: int) -> None:
    """A record whose process has ended does not count."""
    put(tmp_path / "a", "a", os.getpid())
    put(tmp_path / "b", "b", gone)
    assert [record.name for record in running_nodes(tmp_path)] == ["a"]
    assert find_node(base=tmp_path).name == "a"


def test_of_several_nodes_one_has_to_be_named(tmp_path: Path) -> None:
    """The message lists them."""
    put(tmp_path / "a", "a", os.getpid())
    put(tmp_path / "b", "b", os.getpid())
    with pytest.raises(NotReady, match=r"several nodes are running \(a, b\)"):
        find_node(base=tmp_path)
    assert find_node(tmp_path / "b").name == "b"


def test_no_node_is_said_with_what_to_do(tmp_path: Path, gone: int) -> None:
    """No record, a damaged one, and one whose process has ended are told apart."""
    with pytest.raises(NotReady, match="no node is running; start one with: sgl-actors start"):
        find_node(base=tmp_path)
    with pytest.raises(NotReady, match="no node runs in"):
        find_node(tmp_path)
    put(tmp_path, "a", gone)
    with pytest.raises(NotReady, match="has ended without stopping in order"):
        find_node(tmp_path)
    (tmp_path / FILE).write_text("{")
    assert read_record(tmp_path) is None
