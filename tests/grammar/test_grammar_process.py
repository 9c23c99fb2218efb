"""The compiling process: its limits, its ends, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from sgl_actors.actors.grammar.process import CompilerCrashed, CompilerProcess
from sgl_actors.actors.grammar.protocol import SetUp
from sgl_actors.errors import InvalidRequest, NotReady
from sgl_actors.lang.constraints.constraint import Constraint

HOSTILE = "tests.grammar.hostile_compiler"
SET_UP = SetUp("", (0,), 1, "fsm", 64 << 20, 5)


def regex(source: str) -> Constraint:
    return Constraint("regex", source)


@pytest.fixture
async def compiler() -> AsyncIterator[CompilerProcess]:
    process = await CompilerProcess.start(SET_UP, HOSTILE)
    yield process
    await process.close()
    assert not process.alive


async def test_it_compiles_one_after_the_other(compiler: CompilerProcess) -> None:
    """Results, errors and what is nested too deeply come back as such, and what a library prints disturbs nothing."""
    result = await compiler.compile(regex("abc"), 5)
    assert (result.engine, result.automaton, result.why) == ("fsm", b"abc", "")
    assert 0 <= result.seconds < 5
    with pytest.raises(InvalidRequest, match="unclosed group") as caught:
        await compiler.compile(regex("wrong"), 5)
    assert caught.value.param == "regex"
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        await compiler.compile(regex("deep"), 5)
    assert (await compiler.compile(regex("print"), 5)).automaton == b"print"
    assert os.getpriority(os.PRIO_PROCESS, compiler.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
    assert (compiler.jobs, compiler.alive) == (4, True)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("spin", r"takes more than 0\.1 s of CPU time"),
        ("hog 100", "takes more than 64 MiB of memory"),
        ("abort", "takes more than 64 MiB of memory"),  # as Rust says it
        ("segfault", r"crashed the compiler \(SIGSEGV\)"),
    ],
)
async def test_what_goes_over_a_limit_ends_it(compiler: CompilerProcess, source: str, why: str) -> None:
    """The process ends, and how it ended says which limit it was."""
    with pytest.raises(CompilerCrashed, match=why):
        await compiler.compile(regex(source), 0.1)
    assert not compiler.alive


async def test_each_job_has_its_own_time(compiler: CompilerProcess) -> None:
    """Time that jobs took before does not count, nor does what fits into the memory."""
    for _ in range(6):
        await compiler.compile(regex("burn 0.03"), 0.12)
    assert (await compiler.compile(regex("hog 20"), 5)).automaton == b"hog 20"


async def test_a_bug_in_the_compiler_is_told_with_its_traceback(compiler: CompilerProcess) -> None:
    """The asker hears that it failed, the log where."""
    with pytest.raises(CompilerCrashed, match="ended in an error of the compiler") as caught:
        await compiler.compile(regex("bug"), 5)
    assert "KeyError: 'missing'" in caught.value.details
    assert "hostile_compiler.py" in caught.value.details


async def test_one_that_was_killed_meanwhile(compiler: CompilerProcess) -> None:
    """A process that somebody kills is a crash of the job that runs, or that comes next."""
    os.kill(compiler.pid, signal.SIGKILL)
    with pytest.raises(CompilerCrashed, match="SIGKILL"):
        await compiler.compile(regex("abc"), 5)


async def test_it_says_when_it_cannot_start() -> None:
    """A process that does not come up is nobody's constraint's fault."""
    with pytest.raises(NotReady, match=r"did not come up \(exit code 1\)"):
        await CompilerProcess.start(msgspec.structs.replace(SET_UP, tokenizer="broken"), HOSTILE)


async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    """A process in the middle of a job is gone after `close`."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = await CompilerProcess.start(SET_UP, HOSTILE)
    job = asyncio.ensure_future(process.compile(regex(f"hold {fifo}"), 5))
    await asyncio.to_thread(os.close, await asyncio.to_thread(os.open, fifo, os.O_WRONLY))
    await process.close()
    await asyncio.gather(job, return_exceptions=True)
    assert not process.alive


PARENT = """
import asyncio, sys
from sgl_actors.actors.grammar.process import CompilerProcess
from sgl_actors.actors.grammar.protocol import SetUp
from sgl_actors.lang.constraints.constraint import Constraint

async def main():
    process = await CompilerProcess.start(SetUp("", (0,), 1, "fsm", 1 << 26, 0), "tests.grammar.hostile_compiler")
    print(process.pid, flush=True)
    await process.compile(Constraint("regex", sys.argv[1]), 60)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("source", ["idle", "spin"])
async def test_it_ends_with_its_parent(source: str) -> None:
    """Whoever started it is killed with SIGKILL: it ends too, idle or in the middle of a job."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, source, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    descriptor = os.pidfd_open(pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    parent.kill()
    async with asyncio.timeout(20):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
    await parent.wait()
