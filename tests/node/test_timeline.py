"""One time line over the log files of all actors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.stdlib import BoundLogger

from sgl_actors.actors.microkernel.logs import actor_logger, close_all, log_path
from sgl_actors.actors.node.timeline import Entry, actors_of, follow, merge

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A clock that moves one millisecond per look."""

    def __init__(self) -> None:
        self.ticks = 0

    def __call__(self) -> datetime:
        self.ticks += 1
        return START + timedelta(milliseconds=self.ticks)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., BoundLogger]]:
    """A function that gives the loggers of a node; all read one clock."""
    clock = Clock()
    yield lambda name, epoch=1, **kwargs: actor_logger(tmp_path, name, epoch, clock=clock, **kwargs)
    close_all()


def take(steps: Iterator[Callable[[], object]]) -> None:
    """Do the next step: something that happens between two looks at the files."""
    next(steps)()


def events(entries: Iterable[Entry]) -> list[str]:
    return [entry.line["event"] for entry in entries]


def test_lines_of_all_actors_are_in_the_order_of_time(
    node: Callable[..., BoundLogger], tmp_path: Path
) -> None:
    """Lines written in turn by several actors come out in that turn."""
    order = ["scheduler", "cache", "worker/0", "scheduler", "cache"]
    for number, name in enumerate(order):
        node(name).info(str(number))
    assert events(merge(tmp_path)) == ["0", "1", "2", "3", "4"]
    assert events(merge(tmp_path, actor="cache")) == ["1", "4"]


@given(st.lists(st.sampled_from(["a", "b/0", "c"]), max_size=30), st.integers(150, 2000))
def test_the_time_line_is_sorted_however_files_were_moved_aside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], size: int
) -> None:
    """Older files come before newer ones; what is still there is in order and ends with the last line."""
    path = tmp_path_factory.mktemp("logs")
    clock = Clock()
    for number, name in enumerate(names):
        actor_logger(path, name, 1, clock=clock, max_bytes=size).info("e", number=number)
    close_all()
    numbers = [entry.line["number"] for entry in merge(path)]
    assert numbers == sorted(numbers)
    assert numbers[-1:] == [len(names) - 1][: len(names)]


def test_a_request_s_time_line_has_its_own_lines_and_those_of_its_trace(
    node: Callable[..., BoundLogger], tmp_path: Path
) -> None:
    """Lines count that name the request, alone or among others, or that have its trace and name no request."""
    node("gateway").info("accepted", trace="t1")
    node("gateway").info("other", trace="t2")
    node("tokenizer").info("encoded", request="r1", trace="t1")
    node("tokenizer").info("sibling", request="r2", trace="t1")
    node("scheduler").info("step", requests=["r0", "r1"])
    node("scheduler").info("step of others", requests=["r0"])
    node("worker/0").info("no request")
    assert events(merge(tmp_path, request="r1")) == ["accepted", "encoded", "step"]
    assert events(merge(tmp_path, request="r1", actor="scheduler")) == ["step"]
    assert events(merge(tmp_path, request="t2")) == ["other"]
    assert events(merge(tmp_path, request="nobody")) == []


def test_the_id_of_an_answer_stands_for_its_choices(node: Callable[..., BoundLogger], tmp_path: Path) -> None:
    """An answer's id finds the lines of `<id>-<n>`, a choice the line of its answer, the trace all of them."""
    node("scheduler").info("submitted 0", request="cmpl-a-0", trace="t1")
    node("scheduler").info("submitted 1", request="cmpl-a-1", trace="t1")
    node("scheduler").info("of another", request="cmpl-b-0", trace="t2")
    node("scheduler").info("named alike", request="cmpl-a-0-x", trace="t3")
    node("worker/0").info("step", requests=["cmpl-b-0", "cmpl-a-1"])
    node("worker/0").info("step of another", requests=["cmpl-b-0"])
    node("gateway").info("answered", request="cmpl-a", trace="t1")
    everything = ["submitted 0", "submitted 1", "step", "answered"]
    assert events(merge(tmp_path, request="cmpl-a")) == everything
    assert events(merge(tmp_path, request="t1")) == everything
    assert events(merge(tmp_path, request="cmpl-a-1")) == ["submitted 1", "step", "answered"]


def test_the_last_run_can_be_had_alone(node: Callable[..., BoundLogger], tmp_path: Path) -> None:
    """A run begins where the root says again that an epoch is up, or that any is up after it was stopping."""
    node("root").info("up", name="cache#1")
    node("cache").info("first")
    node("root").info("up", name="cache#2")  # restarted within the run
    node("root").info("up", name="cache#1")  # killed, and started again
    node("cache").info("second")
    node("root").info("stopping")
    node("root").info("up", name="cache#3")
    node("cache").info("third")
    assert [entry.run for entry in merge(tmp_path, actor="cache")] == [0, 1, 2]
    assert events(merge(tmp_path, actor="cache", last=True)) == ["third"]
    lines = follow(tmp_path, lambda: node("cache").info("more"), actor="cache", last=True)
    assert events(islice(lines, 2)) == ["third", "more"]
    lines.close()


def test_actors_are_known_by_their_lines_and_from_the_root(
    node: Callable[..., BoundLogger], tmp_path: Path
) -> None:
    """An actor that has not written a line yet is known once it is up."""
    node("root").info("up", name="worker/0#3")
    node("cache").info("x")
    assert actors_of(tmp_path) == ["cache", "root", "worker/0"]


def test_damaged_lines_are_left_out(node: Callable[..., BoundLogger], tmp_path: Path) -> None:
    """A line that was cut off, is no object or has no time does not end the reading."""
    node("a").info("1")
    with log_path(tmp_path, "a").open("ab") as file:
        file.write(b'{"ts":"2026\n[1]\n{"event":"x"}\n\xff\n')
    node("a").info("2")
    assert events(merge(tmp_path)) == ["1", "2"]


def test_a_folder_without_logs_is_an_empty_time_line(tmp_path: Path) -> None:
    """Before anything was logged there is nothing to print."""
    assert list(merge(tmp_path / "none")) == []


def test_following_goes_on_with_new_lines_new_files_and_moved_ones(
    node: Callable[..., BoundLogger], tmp_path: Path
) -> None:
    """After what is there come added lines, lines of a new actor, and lines around a file being moved aside, each once."""
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: node("a").info("2"),
            lambda: (node("b").info("3"), node("a").info("4")),
            lambda: [node("c", max_bytes=300).info(f"c{number}", pad="x" * 100) for number in range(4)],
        ]
    )
    node("a").info("0")
    node("b").info("1")
    lines = follow(tmp_path, lambda: take(steps))
    assert events(list(islice(lines, 5))) == ["0", "1", "2", "3", "4"]
    # moved aside three times between two looks: what the newest file holds is seen
    assert events(list(islice(lines, 1))) == ["c3"]
    lines.close()


def test_following_reads_the_rest_of_a_file_that_was_moved_aside(
    node: Callable[..., BoundLogger], tmp_path: Path
) -> None:
    """Lines written before and after the move are all printed."""
    log = node("a", max_bytes=400)
    log.info("0")
    steps: Iterator[Callable[[], object]] = iter([lambda: [log.info(str(n), pad="x" * 100) for n in (1, 2)]])
    lines = follow(tmp_path, lambda: take(steps))
    assert events(list(islice(lines, 3))) == ["0", "1", "2"]
    assert (tmp_path / "a.jsonl.1").exists()
    lines.close()


def test_following_a_request_learns_its_trace_as_it_comes(
    node: Callable[..., BoundLogger], tmp_path: Path
) -> None:
    """A line of the trace counts once a line of the request has stated it."""
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: node("a").info("named", request="r", trace="t"),
            lambda: node("b").info("traced", trace="t"),
        ]
    )
    node("a").info("before")
    lines = follow(tmp_path, lambda: take(steps), request="r")
    assert events(list(islice(lines, 2))) == ["named", "traced"]
    lines.close()


def test_half_a_line_is_printed_when_it_is_whole(tmp_path: Path) -> None:
    """A reader that looks while a line is being written waits for its end."""
    path = log_path(tmp_path, "a")
    path.write_bytes(b'{"ts":"2026-01-01T00:00:00.000000Z",')

    def finish() -> None:
        with path.open("ab") as file:
            file.write(b'"event":"whole"}\n')

    lines = follow(tmp_path, finish)
    assert events(list(islice(lines, 1))) == ["whole"]
    lines.close()
