"""Reads the calls in an answer while it is being written: text in pieces becomes text, calls, and their arguments in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sgl_actors.actors.gateway.tools import NAME, OPEN

_HEAD = re.compile(rf'{OPEN}\s*\{{\s*"name"\s*:\s*"({NAME.pattern})"\s*,\s*"arguments"\s*:\s*')
_TAIL = re.compile(r"\}\s*</tool_call>")
_LONGEST_HEAD = 256
"""Characters by which the head of a call has to be complete; with more white space it is text, however the text was cut into pieces."""


@dataclass(frozen=True, slots=True)
class Said:
    """More text."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call begins: its number and the function."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of the last call."""

    index: int
    text: str


Event = Said | Call | Arguments


class CallReader:
    """Reads one answer. What looks like a call but is none stays text, and text that may still become the beginning of one is kept back.

    Attributes:
        calls: calls begun so far.
        is_complete: whether the last one has ended as it should.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.is_complete = True
        self._kept = ""
        self._reading = self._text
        self._behind_call = self._last = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def __repr__(self) -> str:
        return f"<CallReader calls={self.calls} kept={len(self._kept)}>"

    def feed(self, text: str, *, last: bool = False) -> list[Event]:
        """What `text` adds; with `last`, what was kept back is let go."""
        self._kept += text
        self._last = last
        events: list[Event] = []
        while True:
            before = len(self._kept), self._reading
            events += self._reading()
            if (len(self._kept), self._reading) == before:
                return events

    def _text(self) -> Iterator[Event]:
        """Up to where a call may begin; white space behind a call is none of the text."""
        if self._behind_call:
            self._kept = self._kept.lstrip()
            self._behind_call = not self._kept
        end = self._kept.find(OPEN)
        if end < 0:
            end = len(self._kept) if self._last else len(self._kept) - _overlap(self._kept, OPEN)
        else:
            self._reading = self._head
        yield from self._said(end)

    def _head(self) -> Iterator[Event]:
        """From the tag to the arguments."""
        found = _HEAD.match(self._kept)
        if found is not None and found.end() < len(self._kept) and found.end() <= _LONGEST_HEAD:
            yield Call(self.calls, found[1])
            self.calls += 1
            self.is_complete = False
            self._kept = self._kept[found.end() :]
            self._depth, self._in_string, self._escaped = 0, False, False
            self._reading = self._arguments
        elif self._last or len(self._kept) > _LONGEST_HEAD:
            self._reading = self._text
            yield from self._said(len(OPEN))

    def _arguments(self) -> Iterator[Event]:
        """To the brace that closes the call, or the end."""
        end = 0
        while end < len(self._kept) and self._goes_on_with(self._kept[end]):
            end += 1
        if end < len(self._kept):
            self._reading = self._tail
        if end:
            yield Arguments(self.calls - 1, self._kept[:end])
        self._kept = self._kept[end:]

    def _goes_on_with(self, character: str) -> bool:
        """Whether the character belongs to the arguments; false for the brace that closes the call."""
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == "}" and not self._depth:
            return False
        else:
            self._in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
        return True

    def _tail(self) -> Iterator[Event]:
        """The end of a call; behind it there may be white space and the next."""
        found = _TAIL.match(self._kept)
        if found is not None:
            self.is_complete = self._behind_call = True
            self._kept = self._kept[found.end() :]
            self._reading = self._text
        elif self._last:
            self._kept = ""
        yield from ()

    def _said(self, end: int) -> Iterator[Event]:
        if end:
            yield Said(self._kept[:end])
        self._kept = self._kept[end:]


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of `text` that `tag` may begin with."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
