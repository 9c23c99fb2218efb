"""The journal file and the thread that writes it: what is in it after which end, who owns a program, and what order answers are given out in."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.programs import journal_entry
from sgl_actors.actors.programs.journal import Journal, Spec, journal_file
from sgl_actors.actors.programs.journal_history import Turns
from sgl_actors.actors.programs.journal_owner import owner_lives, pid_of, this_process
from sgl_actors.actors.programs.journal_writer import Writer
from sgl_actors.errors import JournalUnavailable, ProgramRunning
from sgl_actors.lang.durable import Durable
from sgl_actors.lang.errors import ProgramChanged
from sgl_actors.lang.protocols import RunOptions

SPEC = Spec("a", "prog", "module:prog", b"{}", b"{}", b"[]")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def writer(file: Path) -> Iterator[Writer]:
    writer = Writer(file)
    yield writer
    writer.close()


def unlost(error: JournalUnavailable) -> None:
    raise AssertionError(error)


def texts(journal: Journal, number: int = 1) -> list[str]:
    return [record.key for record in journal._records(number)]


# -- the file -------------------------------------------------------------------------------------------------


def test_where_it_lies() -> None:
    """As given, as the environment says, in the user's state folder."""
    home = str(Path.home())
    assert journal_file("/a/b.db") == Path("/a/b.db")
    assert journal_file("", {"SGL_ACTORS_JOURNAL": "/c.db"}) == Path("/c.db")
    assert journal_file("", {"XDG_STATE_HOME": "/s"}) == Path("/s/sgl-actors/journal.db")
    assert journal_file("", {}) == Path(f"{home}/.local/state/sgl-actors/journal.db")


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """Prompts are in it: also in its log, and in one that was open to others before."""
    file = tmp_path / "folder" / "journal.db"
    with Journal(file) as journal, journal.transaction():
        journal.begin(SPEC, "", 0.0)
        modes = [stat.S_IMODE(one.stat().st_mode) for one in file.parent.iterdir()]
    assert set(modes) == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    Journal(file).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_later_layout_is_not_touched(file: Path) -> None:
    """Nor is a file that is none of ours."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalUnavailable, match="its layout is 99"):
        Journal(file)


def test_a_transaction_is_all_or_nothing(file: Path) -> None:
    """What was written before an error in it is not there."""
    with Journal(file) as journal:
        with journal.transaction():
            number = journal.begin(SPEC, "", 0.0).number
        transaction = journal.transaction()
        transaction.__enter__()
        journal.append(number, [("x", 0, b"")])
        assert texts(journal, number) == ["x"]
        transaction.__exit__(KeyError, KeyError(), None)
        assert texts(journal, number) == []


def test_what_has_to_outlive_the_machine_is_synced(writer: Writer) -> None:
    """With all that is committed beside it; the next commit needs that no more."""

    def level(journal: Journal) -> int:
        (found,) = journal._connection.execute("PRAGMA synchronous").fetchone()
        return int(found)

    assert [writer.ask(level, sync=sync).result() for sync in (False, True, False)] == [1, 2, 1]


def test_a_log_that_is_cut_anywhere_loses_its_end_and_nothing_else(tmp_path: Path) -> None:
    """Of each program there is a beginning: all that was committed before the cut."""
    file, log = tmp_path / "journal.db", tmp_path / "journal.db-wal"
    ends = []
    with Journal(file) as journal:
        with journal.transaction():
            for name in "ab":
                journal.begin(Spec(name, *SPEC.__reduce__()[1][1:]), "", 0.0)
        for index in range(40):
            with journal.transaction():
                journal.append(1 + index % 2, [(str(index), 1, os.urandom(50 * (index % 7)))])
            ends.append(log.stat().st_size)
        shutil.copytree(tmp_path, tmp_path / "killed", ignore=shutil.ignore_patterns("killed"))
    draw = random.Random(7)
    sizes = [draw.randrange(ends[0], ends[-1] + 1) for _ in range(30)] + [ends[-1]]
    for size in sizes:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(tmp_path / "killed", tmp_path / "cut")
        os.truncate(tmp_path / "cut" / "journal.db-wal", size)
        with Journal(tmp_path / "cut" / "journal.db") as journal:
            known = sum(end <= size for end in ends)
            found = [texts(journal, 1), texts(journal, 2)]
            assert found == [
                [str(index) for index in range(40) if index % 2 == side and index < known] for side in (0, 1)
            ]
            with journal.transaction():
                journal.append(1, [("next", 1, b"")])
            assert texts(journal)[-1] == "next"


def test_a_long_log_is_moved_into_the_file_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a part of it, which a torn log could hide again."""
    monkeypatch.setattr("sgl_actors.actors.programs.journal.WAL_LIMIT", 100_000)
    log = file.with_name("journal.db-wal")
    with Journal(file) as journal:
        with journal.transaction():
            journal.begin(SPEC, "", 0.0)
        for index in range(20):
            with journal.transaction():
                journal.append(1, [(str(index), 1, bytes(20_000))])
            journal.tidy()
            assert log.stat().st_size < 250_000
        log.write_bytes(b"")
    with Journal(file) as journal:
        assert texts(journal)


# -- programs -------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    """So another one of the same number is not taken for it, nor is one that has ended."""
    own = this_process()
    assert owner_lives(own)
    assert pid_of(own) == os.getpid()
    number, start, boot = own.split()
    assert not owner_lives(f"{number} {int(start) + 1} {boot}")
    assert not owner_lives(f"{number} {start} other-boot")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = this_process(child.pid)
        assert owner_lives(other)
        child.kill()
        child.wait()
    assert not owner_lives(other)
    assert not owner_lives("")


def test_a_program_is_taken_over_from_a_process_that_has_ended(file: Path) -> None:
    """While that lives, it is refused with its number."""
    with Journal(file) as journal, journal.transaction():
        first = journal.begin(SPEC, this_process(), 0.0)
        assert not first.failed
        with pytest.raises(ProgramRunning, match=f"in process {os.getpid()}"):
            journal.begin(SPEC, this_process(), 0.0)
        journal.append(first.number, [("k", 0, b"x")])
        journal.release(first.number, "failed", "why", 0.0)
        second = journal.begin(SPEC, "1 2 elsewhere", 0.0)
        third = journal.begin(SPEC, this_process(), 0.0)
    assert (second.number, second.token, second.seed) == (first.number, first.token, first.seed)
    assert [(record.key, record.data) for record in third.records] == [("k", b"x")]
    assert (first.failed, second.failed, third.failed) == (False, True, False)


async def test_a_program_whose_end_could_not_be_written_can_be_begun_again_here(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives on, and says so with the next program that it begins."""

    def full(*_args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    options = RunOptions(durable=Durable("bee", str(file), "bees:bee", b"{}"))
    entry = await journal_entry.begin("bee", options, "")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "release", full)
        await entry.close()
    for _ in range(2):
        again = await journal_entry.begin("bee", options, "")
        with pytest.raises(ProgramRunning):
            await journal_entry.begin("bee", options, "")
        await again.close()


def test_where_the_function_lies_may_change(file: Path) -> None:
    """A file may be moved; another function is another program."""
    with Journal(file) as journal, journal.transaction():
        journal.begin(SPEC, "", 0.0)
        journal.begin(Spec("a", "prog", "/new/place.py:prog", b"{}", b"{}", b"[]"), "", 0.0)
        with pytest.raises(ProgramChanged):
            journal.begin(Spec("a", "prog", "module:other", b"{}", b"{}", b"[]"), "", 0.0)


def test_old_results_are_forgotten(file: Path) -> None:
    """Those that finished before a moment; nothing that has not finished."""
    with Journal(file) as journal, journal.transaction():
        for name, moment in (("old", 10.0), ("new", 30.0)):
            number = journal.begin(Spec(name, *SPEC.__reduce__()[1][1:]), "", 0.0).number
            journal.append(number, [("k", 0, b"")])
            journal.finish(number, None, moment)
        journal.begin(SPEC, "", 0.0)
        assert journal.prune(20.0) == 1
        assert [(row.id, row.state, row.records) for row in journal.rows()] == [
            ("new", "finished", 1),
            ("a", "interrupted", 0),
        ]


# -- the writer -----------------------------------------------------------------------------------------------


def test_what_comes_together_is_committed_together(writer: Writer) -> None:
    """Records that nobody waits for go with the next one that somebody waits for, in their order."""
    number = writer.ask(lambda journal: journal.begin(SPEC, "", 0.0)).result().number
    before = writer.commits
    for index in range(100):
        writer.post(lambda journal, index=index: journal.append(number, [(str(index), 0, b"")]), unlost)  # type: ignore[misc]
    found = writer.ask(lambda journal: texts(journal, number)).result()
    assert found == [str(index) for index in range(100)]
    assert writer.commits - before <= 3


def test_records_that_nobody_waits_for_are_written_all_the_same(writer: Writer, file: Path) -> None:
    """Within some milliseconds, by themselves."""
    number = writer.ask(lambda journal: journal.begin(SPEC, "", 0.0)).result().number
    writer.post(lambda journal: journal.append(number, [("k", 0, b"")]), unlost)
    with Journal(file) as reader:
        while texts(reader, number) != ["k"]:
            pass


def test_closing_writes_what_is_left(file: Path) -> None:
    """The last records of a process that ends in order are there."""
    writer = Writer(file)
    number = writer.ask(lambda journal: journal.begin(SPEC, "", 0.0)).result().number
    writer.post(lambda journal: journal.append(number, [("k", 0, b"")]), unlost)
    writer.close()
    with Journal(file) as journal:
        assert texts(journal, number) == ["k"]
    assert not file.with_name("journal.db-wal").exists()


def test_who_is_refused_holds_up_nobody(writer: Writer) -> None:
    """Errors of one job are its own; errors of the file are everybody's."""
    first = writer.ask(lambda journal: journal.begin(SPEC, this_process(), 0.0))
    again = writer.ask(lambda journal: journal.begin(SPEC, this_process(), 0.0))
    other = writer.ask(lambda journal: journal.begin(Spec("b", *SPEC.__reduce__()[1][1:]), "", 0.0))
    assert first.result().number != other.result().number
    with pytest.raises(ProgramRunning):
        again.result()
    lost: list[JournalUnavailable] = []

    def broken(journal: Journal) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    writer.post(lambda journal: None, lost.append)
    with pytest.raises(JournalUnavailable, match="disk I/O error"):
        writer.ask(broken).result()
    assert len(lost) == 1
    assert writer.ask(lambda journal: len(journal.rows())).result() == 2


# -- the order of answers -------------------------------------------------------------------------------------


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_answers_are_given_out_in_their_order(asked: list[int], gone: set[int]) -> None:
    """In whatever order they are asked for; those that were given up are not waited for."""

    async def order() -> list[int]:
        turns, found = Turns(range(6)), list[int]()

        async def ask(rank: int) -> None:
            await turns.wait(rank)
            found.append(rank)

        async with asyncio.TaskGroup() as group:
            for rank in asked:
                if rank in gone:
                    turns.give_up(rank)
                else:
                    group.create_task(ask(rank))
        turns.close()
        return found

    assert asyncio.run(order()) == sorted(set(range(6)) - gone)


async def test_what_nobody_asks_for_is_waited_for_only_a_moment() -> None:
    """A branch that was cancelled earlier than it had been."""
    turns = Turns([1, 2, 3])
    await turns.wait(2)
    await turns.wait(1)
    await turns.wait(3)
    turns.close()
