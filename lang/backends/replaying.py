"""Who gets which recorded answer, and what is said when there is none. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sgl_actors.lang.backends.recorded_request import TOKENIZE, Asked
from sgl_actors.lang.backends.recording import Line, NotRecorded
from sgl_actors.lang.protocols import Call

AROUND: Final = 24
"""Characters that a message shows before the place where a prompt begins to differ, and as many behind it."""


class Place(NamedTuple):
    """Which primitive asks: its kind, its variable, its stream, and its node there."""

    kind: str
    variable: str = ""
    stream: str = ""
    node: int = 0

    @property
    def title(self) -> str:
        """For people."""
        if self.variable:
            return f"{self.kind} {self.variable!r} of stream {self.stream}"
        return f"{self.kind} of stream {self.stream}" if self.stream else self.kind


def place_of(call: Call | None) -> Place:
    """Where a request comes from."""
    if call is None:
        return Place("gen")
    return Place(call.kind, call.name, call.stream, call.position[-1])


def where(line: Line) -> Place:
    """Where a recorded request came from."""
    return Place(line.kind, line.variable, line.stream, line.node)


class Answers:
    """What was recorded, and what of it is left.

    Equal requests get the answers in the order in which they were asked for; but while one of the same primitive of the same stream is left, that one, so
    that branches which ask the same get theirs, whichever is first. Each answer is given once; those to `tokenize` are, as they are always the same, given again.

    Args:
        lines: what was recorded.
        repeat: of answers that are used up, the last one is given again.
    """

    def __init__(self, lines: Iterable[Line], *, repeat: bool = False) -> None:
        self._lines = sorted(lines, key=lambda line: line.number)
        self._repeat = repeat
        self._left: dict[str, list[Line]] = {}
        self._last: dict[str, Line] = {}
        for line in self._lines:
            self._left.setdefault(line.key, []).append(line)
            self._last[line.key] = line

    def __repr__(self) -> str:
        return f"<Answers: {sum(map(len, self._left.values()))} of {len(self._lines)} left>"

    def take(self, asked: Asked, place: Place) -> Line:
        """The answer.

        Raises:
            NotRecorded: there is none, or none any more.
        """
        key = asked.key
        left = self._left.get(key)
        if left is None:
            raise NotRecorded(self._never(asked, place), param=place.variable or None)
        if not left and not self._repeat:
            raise NotRecorded(self._used_up(key, place), param=place.variable or None)
        if not left or asked.what == TOKENIZE:
            return self._last[key]
        return left.pop(next((index for index, line in enumerate(left) if where(line) == place), 0))

    def _used_up(self, key: str, place: Place) -> str:
        times = sum(line.key == key for line in self._lines)
        return (
            f"{place.title} asks {_times(times + 1)} for what was recorded {_times(times)}, and each answer is given once;"
            " record anew, or have replay(…, repeat=True) give the last one again"
        )

    def _never(self, asked: Asked, place: Place) -> str:
        same = [line for line in self._lines if line.asked.what == asked.what]
        named = [line for line in same if (line.kind, line.variable) == (place.kind, place.variable)]
        count = (
            f"{place.title}: recorded {_times(len(named))}" if named else f"{place.title} was never recorded"
        )
        near = nearest(asked.shown, named or same)
        if near is None:
            return f"{count}; record anew"
        if near.asked.prompt == asked.prompt:
            return f"{count}, with this prompt, but asked with {options_apart(near.options, asked.options)}; record anew"
        return f"{count}, but not with this prompt; the nearest one differs {difference(near.asked.shown, asked.shown)}; record anew"


def nearest(shown: str, lines: Sequence[Line]) -> Line | None:
    """The line whose prompt has most in common with one: at its beginning and at its end."""

    def common(line: Line) -> float:
        other = line.asked.shown
        begin = prefix(shown, other)
        least = min(len(shown), len(other)) - begin
        end = min(least, prefix(shown[::-1], other[::-1]))
        return (begin + end + 1) / (max(len(shown), len(other)) + 1)

    return max(lines, key=common, default=None)


def prefix(one: str, two: str) -> int:
    """With how many equal characters two texts begin."""
    most = range(1, min(len(one), len(two)) + 1)
    return bisect_left(most, True, key=lambda length: one[:length] != two[:length])


def difference(recorded: str, asked: str) -> str:
    """From where on two prompts differ, for people."""
    at = prefix(recorded, asked)
    return f"from character {at} on: recorded {_excerpt(recorded, at)}, asked {_excerpt(asked, at)}"


def options_apart(recorded: dict[str, Any], asked: dict[str, Any]) -> str:
    """What of the options is another one, for people."""
    usual = "as by default"
    names = [name for name in {**recorded, **asked} if recorded.get(name) != asked.get(name)]
    return ", ".join(
        f"{name} {asked.get(name, usual)!r:.60} (recorded: {recorded.get(name, usual)!r:.60})"
        for name in names
    )


def _excerpt(text: str, at: int) -> str:
    begin, end = max(0, at - AROUND), at + AROUND
    return f"{'…' if begin else ''}{text[begin:end]!r}{'…' if end < len(text) else ''}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
