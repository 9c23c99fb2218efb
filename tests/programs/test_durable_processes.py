"""Durable programs over the end of their process: kill -9, a full disk, and `sgl-actors resume`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.programs.journal_writer import writer_of
from sgl_actors.actors.programs.resumption import find_function, listed, resume
from sgl_actors.cli.resume import forget, resume_programs, show_programs
from sgl_actors.errors import ConfigError, InvalidRequest

SCRIPT = """
import asyncio, os, resource, signal, sys
import sgl_actors as sgl

called = []

def answer(call):
    called.append(call.name)
    if len(called) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if len(called) == 2 and limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(file + "-wal"),) * 2)
    return f"{call.name} " + "and so on " * 20

@sgl.function
async def story(s, topic: str, parts: int = 3):
    s += "A story about " + topic
    for number in range(parts):
        s += sgl.gen(f"part{number}", max_tokens=30)
        await s.sync()
    group = s.fork(2)
    group += sgl.gen("end", max_tokens=30)
    s += "".join(await group.join("end"))
    return await s.text()

async def main():
    mock = sgl.Mock(answer)
    state = await story.run("bees", backend=mock, durable=file, id="story", seed=1)
    print(len(called), state.value, state.warnings)
    if limit:
        try:
            await story.run("wasps", backend=mock, durable=file, id="other")
        except sgl.SglActorsError as error:
            print(error.code, error.status)
        print((await story.run("wasps", backend=mock))["part0"])

if __name__ == "__main__":
    file, die_at, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    asyncio.run(main())
"""
GENS = 5


def start(folder: Path, die_at: int = 0, limit: int = 0) -> subprocess.CompletedProcess[str]:
    script = folder / "story.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder / "journal.db"), str(die_at), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    """Whichever call it dies at, and however its log is torn: with the same end, and nothing that was kept is asked again."""
    (tmp_path / "whole").mkdir()
    undisturbed = start(tmp_path / "whole").stdout.partition(" ")[2]
    assert "bees" in undisturbed
    for die_at, torn in ((3, False), (5, True)):
        folder = tmp_path / str(die_at)
        folder.mkdir()
        assert start(folder, die_at).returncode == -9
        log = folder / "journal.db-wal"
        if torn:
            os.truncate(log, random.Random(3).randrange(log.stat().st_size // 2, log.stat().st_size))
        asked, _, end = start(folder).stdout.partition(" ")
        assert end == undisturbed
        assert int(asked) == GENS - die_at + 1 or torn


def test_a_full_disk_stops_the_record_and_not_the_program(tmp_path: Path) -> None:
    """A new durable program is refused; the running one says that it is not recorded any more, others do not notice."""
    done = start(tmp_path, limit=1)
    assert "not all of it is recorded: journal" in done.stdout, done.stderr
    assert "journal_unavailable 503" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("part0 ")
    again = start(tmp_path)
    assert (
        again.stdout.rpartition("[")[0].partition(" ")[2] == done.stdout.partition(" ")[2].partition("[")[0]
    )
    assert 0 < int(again.stdout.partition(" ")[0]) < GENS


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "journal.db"
    writer_of(tmp_path / "journal.db").close()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[sgl.Function[...]]:
    """The program of the script, imported as a resume does it."""
    script = tmp_path / f"story_{tmp_path.name}.py"
    script.write_text(SCRIPT)
    path = list(sys.path)
    yield find_function(f"{script}:story")
    sys.path[:] = path


def shown(file: Path, *, as_json: bool = False) -> str:
    stream = io.StringIO()
    show_programs(file, None, as_json=as_json, stream=stream)
    return stream.getvalue()


async def test_a_program_is_resumed_from_its_journal_alone(story: sgl.Function[...], file: Path) -> None:
    """With its arguments, its options and its seed; what it had was kept."""
    script = {"part0": "one", "part1": "two", "part2": [OSError("off")]}
    with pytest.raises(sgl.PrimitiveFailed):
        await story.run("bees", backend=sgl.Mock(script), durable=file, id="s", priority=3, temperature=0.5)
    (row,) = listed(file)
    assert (row.state, row.function.rpartition("/")[2]) == ("failed", f"story_{file.parent.name}.py:story")
    assert "PrimitiveFailed" in shown(file)
    mock = sgl.Mock({"part2": "three", "end": ["four", "five"]})
    state = await resume(file, row, mock)
    assert state.value == "A story about beesonetwothreefourfive"
    assert [call.sampling.temperature for call in mock.calls] == [0.5] * 3
    assert state.seed == row.seed
    assert (await resume(file, listed(file, "s")[0], sgl.Mock([]))).value == state.value
    assert json.loads(shown(file, as_json=True))[0]["arguments"] == {"topic": "bees"}


async def test_the_command_says_what_became_of_each(story: sgl.Function[...], file: Path) -> None:
    """A program whose backend no other process can open is named; one that is unknown is an error; none is nothing to do."""
    with pytest.raises(sgl.PrimitiveFailed):
        await story.run("bees", backend=sgl.Mock({"part0": [OSError("off")]}), durable=file, id="s")
    stream = io.StringIO()
    where: dict[str, Any] = {"url": None, "node": None, "as_json": False}
    failed = await asyncio.to_thread(resume_programs, file, None, stream=stream, **where)
    assert failed == 1
    assert (
        "s  failed  ConfigError: program 's' ran on a backend that no other process can open"
        in stream.getvalue()
    )
    with pytest.raises(InvalidRequest, match="there is no program 'other'"):
        resume_programs(file, "other", stream=stream, **where)
    with pytest.raises(ConfigError, match="--url and --node"):
        resume_programs(file, None, stream=stream, **{**where, "url": "http://a", "node": "b"})
    await story.run("bees", backend=sgl.Mock(lambda call: "x"), durable=file, id="s")
    assert await asyncio.to_thread(resume_programs, file, None, stream=stream, **where) == 0
    assert (forget(file, 1.0), forget(file, 0.0), listed(file)) == (0, 1, [])
    assert listed(file.with_name("none.db")) == []


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("no_such_module:f", "No module named"),
        ("/no/such/file.py:f", "no such file"),
        ("json:f", "there is no such function"),
    ],
)
def test_a_function_that_is_not_there(reference: str, why: str) -> None:
    """The error says what was looked for."""
    with pytest.raises(ConfigError, match=why):
        find_function(reference)
