r"""The regular expression of a schema's ``pattern``, rewritten for the inside of a JSON string.

A pattern may occur anywhere in a string unless ``^`` and ``$`` say otherwise. ``\d`` and ``\w`` are those of ECMA-262 (ASCII), ``\s`` is Unicode's white space.
What differs between dialects is declined: inline flags, nested classes, look-around, possessive quantifiers.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regular import any_of, group
from sgl_actors.lang.constraints.schema_quoting import (
    CHARACTER,
    Ranges,
    complement,
    contains,
    quoted_class,
    ranges_of,
)

_DIGIT: Final[Ranges] = ((48, 57),)
_WORD: Final[Ranges] = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Final[Ranges] = (
    *((9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
)
_DOT: Final = complement(((10, 10),))
_SETS: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS: Final = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7}
_QUANTIFIER: Final = re.compile(r"[*+?]|\{([0-9]{1,6})(?:(,)([0-9]{0,6}))?\}")
_NAMED: Final = re.compile(r"\?P?<([A-Za-z_]\w*)>")
_DEPTH: Final = 40
"""Groups inside of each other, at most."""


class Misread(Declined):
    """llguidance takes the pattern for another one than JSON Schema does, so it must not be used at all."""


class Repeated(NamedTuple):
    """An expression for the inside of a JSON string.

    Attributes:
        text: the expression.
        fewest, most: characters (before escaping) that it matches; None for any number.
        unit: if it is one character repeated that often, the expression of that character.
    """

    text: str
    fewest: int
    most: int | None
    unit: str | None = None


class _Part(NamedTuple):
    text: str
    fewest: int
    most: int | None
    ranges: Ranges | None = None  # it is one character of these
    unit: str | None = None


def read_pattern(source: str) -> Repeated:
    """Rewrite a pattern; raises Declined if it is of a kind that is not read here, or of none."""
    return _Parser(source).whole()


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0

    def whole(self) -> Repeated:
        rows = [self._row()]
        while self._take("|"):
            rows.append(self._row())
        if self._at < len(self._source):
            raise self._declined("an unbalanced parenthesis")
        if len(rows) == 1 and all(rows[0][1:]):
            part = rows[0][0]
            return Repeated(part.text, part.fewest, part.most, part.unit)
        texts, most = [], 0
        for part, starts, ends in rows:
            texts.append(f"{'' if starts else CHARACTER + '*'}{part.text}{'' if ends else CHARACTER + '*'}")
            most = -1 if not (starts and ends) or part.most is None or most < 0 else max(most, part.most)
        return Repeated(any_of(texts), min(part.fewest for part, *_ in rows), None if most < 0 else most)

    def _row(self) -> tuple[_Part, bool, bool]:
        starts = self._take("^")
        part = self._sequence()
        return part, starts, self._take("$")

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._source) and self._source[self._at] not in "|)$":
            parts.append(self._quantified(self._item()))
        if len(parts) == 1:
            return parts[0]
        mosts = [part.most for part in parts]
        return _Part(
            "".join(part.text for part in parts),
            sum(part.fewest for part in parts),
            None if None in mosts else sum(most for most in mosts if most is not None),
        )

    def _item(self) -> _Part:
        character = self._source[self._at]
        self._at += 1
        match character:
            case "(":
                return self._group()
            case "[":
                return self._one(self._class())
            case ".":
                return self._one(_DOT)
            case "\\":
                return self._one(self._escape())
        if character in "*+?{^$":
            raise self._declined(f"{character} at an odd place")
        return self._one(((ord(character), ord(character)),))

    def _one(self, ranges: Ranges) -> _Part:
        if not ranges:
            raise self._declined("an empty class")
        if _lets_quotes_through(ranges):
            raise Misread(
                'pattern: a class of all control characters without " or \\ lets these through; '
                r'exclude control characters too, as in [^"\x00-\x1F]'
            )
        text = quoted_class(ranges)
        return _Part(text, 1, 1, ranges, text)

    def _quantified(self, part: _Part) -> _Part:
        found = _QUANTIFIER.match(self._source, self._at)
        if found is None:
            return part
        self._at = found.end()
        self._take("?")
        if _QUANTIFIER.match(self._source, self._at):
            raise self._declined("a quantifier of a quantifier")
        low, high = _counts(found)
        if high is not None and high < low:
            raise self._declined("a quantifier from more to less")
        most = 0 if part.most == 0 or high == 0 else None
        if part.most is not None and high is not None:
            most = part.most * high
        return _Part(
            group(part.text) + found[0],
            part.fewest * low,
            most,
            None,
            group(part.text) if part.ranges is not None else None,
        )

    def _group(self) -> _Part:
        self._depth += 1
        if self._depth > _DEPTH:
            raise self._declined(f"more than {_DEPTH} groups inside of each other")
        named = _NAMED.match(self._source, self._at)
        if named is not None:
            if named[1] == "stop":
                raise Misread('pattern: a group must not have the name "stop"')
            self._at = named.end()
        elif self._source.startswith("?:", self._at):
            self._at += 2
        elif self._source.startswith("?", self._at):
            raise self._declined("(? of a kind that is not read here")
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        if not self._take(")"):
            raise self._declined("a parenthesis or an anchor at an odd place")
        self._depth -= 1
        return self._alternatives(parts)

    def _alternatives(self, parts: list[_Part]) -> _Part:
        if len(parts) == 1:
            return parts[0]._replace(text=group(parts[0].text))
        ranges = [part.ranges for part in parts]
        if None not in ranges:
            return self._one(ranges_of(pair for one in ranges if one is not None for pair in one))
        mosts = [part.most for part in parts]
        return _Part(
            any_of(part.text for part in parts),
            min(part.fewest for part in parts),
            None if None in mosts else max(most for most in mosts if most is not None),
        )

    def _class(self) -> Ranges:
        negated = self._take("^")
        found: list[tuple[int, int]] = []
        first = True
        while first or not self._take("]"):
            first = False
            found += self._member()
        ranges = ranges_of(found)
        return complement(ranges) if negated else ranges

    def _member(self) -> Ranges:
        low = self._class_item()
        next_two = self._source[self._at : self._at + 2]
        single = len(low) == 1 and low[0][0] == low[0][1]
        if not single or next_two[:1] != "-" or next_two == "-]":
            return low
        self._at += 1
        high = self._class_item()
        if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
            raise self._declined("a range from what is no single character, or from more to less")
        return ((low[0][0], high[0][0]),)

    def _class_item(self) -> Ranges:
        if self._at >= len(self._source):
            raise self._declined("an unclosed class")
        if self._source[self._at] == "[" or self._source[self._at : self._at + 2] in ("&&", "--", "~~"):
            raise Misread("pattern: [, &&, -- and ~~ within a class have to be escaped")
        character = self._source[self._at]
        self._at += 1
        return self._escape() if character == "\\" else ((ord(character), ord(character)),)

    def _escape(self) -> Ranges:
        if self._at >= len(self._source):
            raise self._declined("a backslash at its end")
        character = self._source[self._at]
        self._at += 1
        if character.lower() in _SETS:
            ranges = _SETS[character.lower()]
            return complement(ranges) if character.isupper() else ranges
        if character in _CONTROLS:
            code = _CONTROLS[character]
        elif character in "xu":
            digits = self._source[self._at : self._at + (2 if character == "x" else 4)]
            if (
                not re.fullmatch("[0-9a-fA-F]{2}|[0-9a-fA-F]{4}", digits)
                or 0xD800 <= int(digits, 16) < 0xE000
            ):
                raise self._declined(f"\\{character} without digits of a character")
            self._at += len(digits)
            code = int(digits, 16)
        elif character.isascii() and not character.isalnum() and character not in "<>" and character > " ":
            code = ord(character)
        else:
            raise self._declined(f"\\{character}")
        return ((code, code),)

    def _take(self, character: str) -> bool:
        taken = self._source.startswith(character, self._at)
        self._at += taken
        return taken

    def _declined(self, what: str) -> Declined:
        return Declined(f"pattern: {what} (character {self._at} of {len(self._source)})")


@lru_cache(1024)
def _lets_quotes_through(ranges: Ranges) -> bool:
    """Whether llguidance takes a class of all control characters (or all but the line feed) for one with quotes and backslashes."""
    controls = all(contains(ranges, code) for code in range(32) if code != 10)
    return controls and not (contains(ranges, 34) and contains(ranges, 92))


def _counts(found: re.Match[str]) -> tuple[int, int | None]:
    if found[1] is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
    low = int(found[1])
    return low, low if found[2] is None else int(found[3]) if found[3] else None
