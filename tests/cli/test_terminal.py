"""Reading lines within the event loop, and what Ctrl-C does at a prompt."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_actors.cli.terminal import LOCAL_FLAGS, LineReader, Terminal


@pytest.fixture
def keyboard() -> Iterator[tuple[int, Terminal]]:
    """A pseudo-terminal: the end that types, and the terminal that reads."""
    typing, reading = pty.openpty()
    yield typing, Terminal(reading)
    os.close(typing)
    os.close(reading)


async def test_lines_of_a_file_and_of_a_pipe_are_read_to_the_end(tmp_path: Path) -> None:
    """Lines arrive without newline, also the last one that has none, then None for ever."""
    (tmp_path / "in.txt").write_bytes("one\n\nzwei ü\xff".encode("latin-1"))
    reading, writing = os.pipe()
    os.write(writing, b"one\n\nzwei \xfc\xff")
    os.close(writing)
    for fd in (os.open(tmp_path / "in.txt", os.O_RDONLY), reading):
        reader = LineReader(fd)
        assert [await reader.line() for _ in range(5)] == ["one", "", "zwei \ufffd\ufffd", None, None]
        os.close(fd)


async def test_ctrl_c_at_the_prompt_ends_the_wait(
    keyboard: tuple[int, Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait for a line is cancelled at once, the cursor moves on, and the task can go on."""
    _, terminal = keyboard
    with terminal.interruptible():
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        with pytest.raises(asyncio.CancelledError):
            await terminal.ask("> ")
        assert terminal.interrupted()
        assert not terminal.interrupted()
    await asyncio.sleep(0)
    assert capsys.readouterr().err == "> \n"


async def test_the_end_of_the_input_moves_the_cursor_on(
    keyboard: tuple[int, Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-D prints a newline, so that the shell's prompt stands on a line of its own."""
    typing, terminal = keyboard
    asyncio.get_running_loop().call_soon(os.write, typing, b"\x04")
    assert await terminal.ask("> ") is None
    assert capsys.readouterr().err == "> \n"


async def test_what_is_typed_during_an_answer_shows_at_the_next_prompt(
    keyboard: tuple[int, Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no echo while an answer is written, and it is back afterwards; the line is not lost."""
    typing, terminal = keyboard
    with terminal.quiet():
        assert not termios.tcgetattr(typing)[LOCAL_FLAGS] & termios.ECHO
        os.write(typing, b"ahead\n")
    assert termios.tcgetattr(typing)[LOCAL_FLAGS] & termios.ECHO
    assert await terminal.ask("> ") == "ahead"
    assert capsys.readouterr().err == "> ahead\n"
