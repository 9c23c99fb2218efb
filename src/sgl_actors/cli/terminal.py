"""The terminal of a conversation: lines as they are typed, without a thread that could not be interrupted."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 65536
LOCAL_FLAGS = 3
"""Where `tcgetattr` has the flags that hold ECHO."""


class LineReader:
    """Reads a file descriptor line by line within the event loop; a wait for a line can be cancelled."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._ended = False

    async def line(self) -> str | None:
        """The next line without its newline, None at the end. What is no UTF-8 is replaced."""
        while b"\n" not in self._rest and not self._ended:
            await self._readable()
            data = os.read(self._fd, CHUNK)
            self._ended = not data
            self._rest += data
        if not self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")

    def waiting(self) -> bool:
        """Whether something to read is there already."""
        return b"\n" in self._rest or bool(select.select([self._fd], [], [], 0)[0])

    async def _readable(self) -> None:
        """Wait until a read does not block; a regular file never does, and cannot be watched."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except PermissionError:
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)


class Terminal:
    """Standard input as a conversation uses it: a prompt, answers that typing does not disturb, Ctrl-C.

    If it is no terminal, there is no prompt and Ctrl-C is left alone.
    """

    def __init__(self, fd: int) -> None:
        self.interactive = os.isatty(fd)
        self._fd = fd
        self._lines = LineReader(fd)
        self._interrupted = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Have Ctrl-C cancel what the current task waits for; whoever catches that asks `interrupted`."""
        if not self.interactive:
            yield
            return
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            self._interrupted = True
            task.cancel()

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def interrupted(self) -> bool:
        """Whether a cancellation was a Ctrl-C, which is done with by this."""
        task = asyncio.current_task()
        assert task is not None
        was, self._interrupted = self._interrupted, False
        if was:
            task.uncancel()
        return was

    async def ask(self, prompt: str) -> str | None:
        """The next line, None at the end of the input; the cursor then stands on a new line."""
        if not self.interactive:
            return await self._lines.line()
        _show(prompt)
        unseen = self._lines.waiting()
        try:
            line = await self._lines.line()
        except asyncio.CancelledError:
            _show("\n")
            raise
        if line is None:
            _show("\n")
        elif unseen:
            _show(f"{line}\n")
        return line

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is typed meanwhile does not show; it is kept for the next prompt."""
        if not self.interactive:
            yield
            return
        before, silent = termios.tcgetattr(self._fd), termios.tcgetattr(self._fd)
        silent[LOCAL_FLAGS] &= ~termios.ECHO
        termios.tcsetattr(self._fd, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
