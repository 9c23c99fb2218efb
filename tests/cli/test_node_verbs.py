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
from sgl_actors.actors.microkernel.messages import (
    ActorRow,
    Actors,
    Done,
    ListActors,
    RestartActor,
    StopNode,
    SwapActor,
    Swapped,
)
from sgl_actors.actors.node.messages import Reload, Reloaded
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.cli import node as cli_node
from sgl_actors.cli.app import app
from sgl_actors.errors import ActorDown, ConfigError, DeadlineExceeded, InvalidRequest, SwapFailed


class Root:
    """Answers as a node's root does, and remembers what it was asked."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.asked: list[Message] = []
        self.stops = True
        self.reloaded = Reloaded()

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
            case SwapActor(name="cache", restart=False):
                raise SwapFailed("cache goes on as it was: ValueError: no")
            case SwapActor():
                return Swapped(not message.restart, 1.25 if message.restart else 0.0042, message.path)
            case Reload():
                return self.reloaded
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


def test_swap_says_what_took_over_and_how(root: Root) -> None:
    """In place with the time it stood still, or in a new incarnation with the time until that was up; also as JSON."""
    command = ["swap", "scheduler", "--class", "shortest_first"]
    assert CliRunner().invoke(app, command).stdout == (
        "scheduler is now shortest_first: swapped in place, held for 4 ms\n"
    )
    assert CliRunner().invoke(app, [*command, "--restart"]).stdout == (
        "scheduler is now shortest_first: restarted, up again after 1.2 s\n"
    )
    result = CliRunner().invoke(app, [*command, "--option", "age = 2", "--json"])
    assert json.loads(result.stdout) == {
        "actor": "scheduler",
        "class": "shortest_first",
        "in_place": True,
        "held": 0.0042,
    }
    assert [message.settings for message in root.asked if isinstance(message, SwapActor)] == [
        "",
        "",
        '{"options":{"age":"2"}}',
    ]


def test_a_swap_that_fails_names_the_way_out(root: Root) -> None:
    """The root's reason, and that a new incarnation can do without the handover; an option without a value is refused before."""
    result = CliRunner().invoke(app, ["swap", "cache", "--class", "a:B"])
    assert isinstance(result.exception, SwapFailed)
    assert "goes on as it was: ValueError: no (--restart" in str(result.exception)
    result = CliRunner().invoke(app, ["swap", "cache", "--class", "a:B", "--option", "age"])
    assert isinstance(result.exception, ConfigError)
    assert "--option age: expected KEY=VALUE" in str(result.exception)


def test_reload_prints_a_line_for_each_change(root: Root) -> None:
    """What is in force, what waits for the next start, and what failed, which is the exit code, too."""
    assert CliRunner().invoke(app, ["reload"]).stdout == "nothing has changed\n"
    root.reloaded = Reloaded(["scheduler (scheduler.chunk): in place"], ["model.path changes"], ["cache: no"])
    result = CliRunner().invoke(app, ["reload"])
    assert (result.exit_code, result.stdout) == (
        1,
        "scheduler (scheduler.chunk): in place\nnot yet: model.path changes\nfailed: cache: no\n",
    )
    assert json.loads(CliRunner().invoke(app, ["reload", "--json"]).stdout)["failed"] == ["cache: no"]
