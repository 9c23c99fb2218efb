"""What an actor's log file holds, and that writing it never hurts the actor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.microkernel.logs import (
    LogFile,
    actor_logger,
    close_all,
    log_path,
    statistics,
    timestamp,
)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def lines(path: Path) -> list[dict[str, Any]]:
    """The decoded lines of a log file."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_when_who_and_what(tmp_path: Path) -> None:
    """Time, level, event, actor and epoch come first, then what was bound and what was given."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    log = actor_logger(tmp_path, "worker/0", 3, clock=lambda: moment)
    log.bind(trace="t", request="r").info("step", batch=16)
    raw = (tmp_path / "worker.0.jsonl").read_text()
    assert raw == (
        '{"ts":"2026-01-02T03:04:05.000000Z","level":"info","event":"step","actor":"worker/0","epoch":3,'
        '"trace":"t","request":"r","batch":16}\n'
    )


def test_lines_below_the_level_are_not_written(tmp_path: Path) -> None:
    """The least level is written, those below it are not; `exception` counts as an error."""
    log = actor_logger(tmp_path, "a", 1, level="warning")
    log.debug("1")
    log.info("2")
    log.warning("3")
    try:
        int("boom")
    except ValueError:
        log.exception("4")
    first, second = lines(log_path(tmp_path, "a"))
    assert (first["event"], first["level"]) == ("3", "warning")
    assert (second["event"], second["level"]) == ("4", "error")
    assert "ValueError: invalid literal" in second["exception"]


def test_texts_of_users_are_written_as_length_and_hash(tmp_path: Path) -> None:
    """Prompts, outputs and keys cannot be read in a log, yet equal ones can be told from different ones."""
    log = actor_logger(tmp_path, "a", 1)
    log.info("asked", prompt="my secret", api_key="sk-1", text="my secret", messages=["x", "y"], output=7)
    raw = log_path(tmp_path, "a").read_text()
    assert "secret" not in raw
    assert "sk-1" not in raw
    (line,) = lines(log_path(tmp_path, "a"))
    assert line["prompt"] == line["text"]
    assert line["prompt"]["length"] == 9
    assert line["messages"]["length"] == 2
    assert line["api_key"] != line["prompt"]
    assert line["output"] == 7


def test_a_traceback_does_not_quote_at_length(tmp_path: Path) -> None:
    """The message of an exception keeps its words and loses what it quotes at length, in causes and groups, too; frames stay."""
    log = actor_logger(tmp_path, "a", 1)
    prompt = "a prompt that nobody else may read"
    try:
        try:
            dict[str, str]()[prompt]
        except KeyError as error:
            raise ExceptionGroup("several", [ValueError(f"no number: {prompt!r}, 'short'")]) from error
    except ExceptionGroup as group:
        log.exception("by hand", exc_info=group)
        log.warning("here", exc_info=True)
    for line in lines(log_path(tmp_path, "a")):
        assert prompt not in line["exception"]
        assert "KeyError: '… 34 characters'" in line["exception"]
        assert "ValueError: no number: '… 34 characters', 'short'" in line["exception"]
        assert __file__ in line["exception"]


def test_a_file_is_bounded_and_one_older_one_is_kept(tmp_path: Path) -> None:
    """A full file is moved aside; together they never hold more than twice the bound, and the newest line is there."""
    log = actor_logger(tmp_path, "a", 1, max_bytes=1000)
    for number in range(100):
        log.info("line", number=number)
    new, old = log_path(tmp_path, "a"), tmp_path / "a.jsonl.1"
    assert 0 < new.stat().st_size <= 1000
    assert 0 < old.stat().st_size <= 1000
    numbers = [line["number"] for line in lines(old) + lines(new)]
    assert numbers == list(range(numbers[0], 100))


def test_a_file_that_another_process_has_moved_aside_is_left_alone(tmp_path: Path) -> None:
    """When two writers share a file, the one that finds it moved aside opens the new one and loses nothing of it."""
    one, two = (LogFile(tmp_path / "a.jsonl", max_bytes=100) for _ in range(2))
    one.write(b"1" * 60)
    two.write(b"2" * 30)
    one.write(b"3" * 60)  # moves the file aside
    two.write(b"4" * 30)  # has no room in the old one: goes to the new one
    assert (tmp_path / "a.jsonl").read_bytes() == b"3" * 60 + b"\n" + b"4" * 30 + b"\n"
    one.close()
    two.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_volume_that_takes_nothing_drops_lines_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The actor goes on; lines are counted as dropped, and once there is room again one line says how many and why."""
    log = actor_logger(tmp_path, "a", 1)
    log.info("before")
    write = os.write

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", full)
    log.info("lost")
    log.info("lost too")
    monkeypatch.setattr(os, "write", write)
    log.info("after")
    log.info("later")
    _, notice, *rest = lines(log_path(tmp_path, "a"))
    assert (notice["event"], notice["level"]) == ("log lines are missing", "warning")
    assert (notice["actor"], notice["epoch"], notice["missing"], notice["why"]) == (
        "a",
        1,
        2,
        os.strerror(code),
    )
    assert [line["event"] for line in rest] == ["after", "later"]
    assert statistics() == {"log_lines": 4.0, "log_dropped": 2.0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_that_is_full_ends_nobody() -> None:
    """The system's own full device refuses every line."""
    file = LogFile(Path("/dev/full"))
    for _ in range(3):
        file.write(b"x")
    file.close()
    assert (file.lines, file.dropped) == (0, 3)


def test_a_line_that_was_cut_off_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only part of a line fits, the next one begins on a line of its own."""
    log = actor_logger(tmp_path, "a", 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    log.info("cut")
    monkeypatch.setattr(os, "write", write)
    log.info("whole")
    last = log_path(tmp_path, "a").read_bytes().splitlines()[-1]
    assert msgspec.json.decode(last)["event"] == "whole"
    assert statistics()["log_dropped"] == 1.0


def test_a_log_folder_that_cannot_be_made_ends_nobody(tmp_path: Path) -> None:
    """A file where the folder should be makes every line a dropped one."""
    (tmp_path / "file").write_text("")
    log = actor_logger(tmp_path / "file" / "logs", "a", 1)
    log.info("x")
    assert statistics() == {"log_lines": 0.0, "log_dropped": 1.0}


def test_incarnations_of_an_actor_share_its_file(tmp_path: Path) -> None:
    """The next incarnation writes on in the same file, under its own epoch."""
    actor_logger(tmp_path, "a", 1).info("x")
    actor_logger(tmp_path, "a", 2).info("y")
    assert [(line["epoch"], line["event"]) for line in lines(log_path(tmp_path, "a"))] == [(1, "x"), (2, "y")]


@given(
    st.dictionaries(
        st.text(max_size=3).filter(lambda k: k not in {"event", "self", "prompt"}),
        st.recursive(
            st.one_of(
                st.none(),
                st.integers(),
                st.floats(),
                st.text(st.characters(), max_size=3),
                st.binary(max_size=3),
                st.builds(object),
            ),
            lambda inner: st.lists(inner, max_size=2),
            max_leaves=4,
        ),
        max_size=4,
    )
)
def test_any_value_makes_one_decodable_line(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    """Huge integers, lone surrogates, bytes and objects are written somehow; numbers beside them stay numbers."""
    path = tmp_path_factory.mktemp("logs")
    log = actor_logger(path, "a", 1)
    log.info("event", **values)
    close_all()
    (line,) = lines(log_path(path, "a"))
    assert line["epoch"] == 1
    assert set(values) <= set(line)


@given(st.datetimes(timezones=st.just(UTC)), st.timedeltas(timedelta(0), timedelta(days=1)))
def test_times_sort_as_text(moment: datetime, later: timedelta) -> None:
    """The text of a later time is never smaller."""
    if moment.year < 9999 and moment.year >= 1000:
        assert timestamp(moment) <= timestamp(moment + later)
