"""Tables and lines for people, JSON for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sgl_actors.actors.microkernel.messages import ActorRow, Actors
from sgl_actors.actors.node.timeline import Entry
from sgl_actors.cli.show import format_line, show_actors, show_lines, time_line
from sgl_actors.errors import InvalidRequest

ROWS = Actors(
    [
        ActorRow("cache", "up", 1, 0, 2, 41, 3 << 20, "cache", {"x": 1.0}),
        ActorRow("w/0", "starting", 2, 1, 0, 42, 0),
    ],
    ready=False,
)
LINE = {
    "ts": "2026-01-01T10:20:30.000001Z",
    "level": "info",
    "event": "step",
    "actor": "cache",
    "epoch": 3,
    "request": "r 1",
    "n": 1,
}


def test_ps_json_is_a_list_with_the_stated_keys() -> None:
    """Programs read a list of {address, state, epoch, restarts, mailbox, pid, rss}."""
    out = io.StringIO()
    show_actors(ROWS, as_json=True, stream=out)
    rows = json.loads(out.getvalue())
    assert rows[0] == {
        "address": "cache",
        "state": "up",
        "epoch": 1,
        "restarts": 0,
        "mailbox": 2,
        "pid": 41,
        "rss": 3 << 20,
    }
    assert [row["address"] for row in rows] == ["cache", "w/0"]


def test_ps_for_people_is_a_table() -> None:
    """One row per actor, memory in units."""
    out = io.StringIO()
    show_actors(ROWS, as_json=False, stream=out)
    head, first, second = out.getvalue().splitlines()
    assert head.split() == ["ACTOR", "STATE", "EPOCH", "RESTARTS", "MAILBOX", "PID", "RSS"]
    assert first.split() == ["cache", "up", "1", "0", "2", "41", "3.0", "MiB"]
    assert second.split() == ["w/0", "starting", "2", "1", "0", "42", "0", "B"]


def test_a_log_line_is_readable() -> None:
    """Time, actor with epoch, level, event, then pairs; values with spaces are quoted."""
    assert format_line(LINE) == '10:20:30.000001 cache#3        info    step request="r 1" n=1'
    assert format_line(LINE | {"exception": "Traceback"}).endswith("n=1\nTraceback")
    assert format_line({"ts": "soon"}).startswith("soon None#None")


def test_a_request_s_lines_have_the_time_since_the_first() -> None:
    """`logs --request` answers where the time went."""
    out = io.StringIO()
    later = LINE | {"ts": "2026-01-01T10:20:30.250001Z"}
    entries = [Entry(0, LINE), Entry(0, later)]
    assert show_lines(entries, as_json=False, relative=True, stream=out) == 2
    _, first, second = out.getvalue().splitlines()
    assert first.startswith("+      0.0 ms 10:20:30")
    assert second.startswith("+    250.0 ms 10:20:30")


def test_days_and_runs_have_a_line_of_their_own() -> None:
    """The date stands once above the lines of a day, and again where the node was started again; JSON has none."""
    out = io.StringIO()
    next_day = LINE | {"ts": "2026-01-02T00:00:00.000001Z"}
    entries = [Entry(0, LINE), Entry(0, LINE), Entry(0, next_day), Entry(1, next_day)]
    show_lines(entries, as_json=False, relative=False, stream=out)
    heads = [(n, line) for n, line in enumerate(out.getvalue().splitlines()) if line.startswith("--")]
    assert heads == [
        (0, "-- 2026-01-01 UTC"),
        (3, "-- 2026-01-02 UTC"),
        (5, "-- 2026-01-02 UTC, the node was started again"),
    ]
    out = io.StringIO()
    show_lines(entries, as_json=True, relative=False, stream=out)
    assert len([json.loads(line) for line in out.getvalue().splitlines()]) == 4


def test_a_question_that_nothing_answers_is_said_to_be_one(tmp_path: Path) -> None:
    """An actor that the node does not have, and a request that no line names, are errors that help on."""
    (tmp_path / "cache.jsonl").write_text(json.dumps(LINE) + "\n")
    with pytest.raises(InvalidRequest, match=r"^no actor 'cash'; there are cache$"):
        time_line(tmp_path, actor="cash", request=None, follow=False, last=True)
    with pytest.raises(InvalidRequest, match=r"^no line names request 'r2'$"):
        time_line(tmp_path, actor=None, request="r2", follow=False, last=False)
    found = time_line(tmp_path, actor="cache", request="r 1", follow=False, last=False)
    assert [entry.line["n"] for entry in found] == [1]


@pytest.mark.parametrize("no_colour", ["1", None])
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, no_colour: str | None
) -> None:
    """A warning is coloured on a terminal unless NO_COLOR is set."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", no_colour)
    out = Terminal()
    show_lines([Entry(0, LINE | {"level": "warning"})], as_json=False, relative=False, stream=out)
    assert ("\x1b[33m" in out.getvalue()) == (no_colour is None)
