"""Verbs that ask a node, against a root of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from sgl_actors.actors.microkernel import Message
from sgl_actors.actors.microkernel.messages import ActorRow, Actors, Done, ListActors, RestartActor, StopNode
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.cli import node as cli_node
from sgl_actors.cli.app import app
from sgl_actors.errors import ActorDown, DeadlineExceeded, InvalidRequest


class Root:
    """Answers as a node's root does, and remembers what it was asked."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.asked: list[Message] = []
        self.stops = True

    async def call(self, to: str, message: Message, expect: type[Message], **_: Any) -> Message:
        assert to == "root"
        self.asked.append(message)
        match message:
            case ListActors():
                return Actors([ActorRow("cache", "up", 1, 0, 0, 1, 1)], ready=True)
            case RestartActor(name="cache"):
                return Done()
            case RestartActor():
                raise InvalidRequest(f"no actor {message.name!r}")
            case StopNode():
                if self.stops:
                    self.process.terminate()
                    self.process.wait()
                    raise ActorDown("root has ended")
                return Done()
        raise AssertionError(message)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    """A node that is another process, with a root that answers."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    root = Root(process)
    record = NodeRecord("ipc://x", process.pid, name="n")

    @asynccontextmanager
    async def client(given: NodeRecord) -> AsyncIterator[Root]:
        assert given is record
        yield root

    monkeypatch.setattr(cli_node, "client", client)
    monkeypatch.setattr(cli_node, "find", lambda _node, _config: record)
    yield root
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_ps_lists_what_the_root_says(root: Root) -> None:
    """The rows of the root's answer, as JSON."""
    result = CliRunner().invoke(app, ["ps", "--json"])
    assert [row["address"] for row in json.loads(result.stdout)] == ["cache"]


def test_restart_waits_for_the_new_incarnation(root: Root) -> None:
    """It prints after the root's answer; an unknown actor is the root's error."""
    assert CliRunner().invoke(app, ["restart", "cache"]).stdout == "cache is up again\n"
    result = CliRunner().invoke(app, ["restart", "cash"])
    assert isinstance(result.exception, InvalidRequest)


def test_stop_waits_for_the_end_of_the_process(root: Root) -> None:
    """It returns when the root's process has ended, also if that was faster than its answer."""
    result = CliRunner().invoke(app, ["stop", "--drain", "3"])
    assert result.stdout == "stopped node 'n'\n"
    assert root.asked == [StopNode(3.0)]
    with pytest.raises(ProcessLookupError):
        os.kill(root.process.pid, 0)


def test_stop_leaves_the_drain_to_the_node(root: Root) -> None:
    """Without --drain the node's own configuration says how long running requests get."""
    assert CliRunner().invoke(app, ["stop"]).exit_code == 0
    assert root.asked == [StopNode(-1.0)]


def test_stop_gives_up_on_a_node_that_does_not_end(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """After drain and grace it says which process is still there."""
    root.stops = False
    monkeypatch.setattr(cli_node, "GRACE", 0.0)
    result = CliRunner().invoke(app, ["stop", "--drain", "0"])
    assert isinstance(result.exception, DeadlineExceeded)
    assert str(root.process.pid) in str(result.exception)
