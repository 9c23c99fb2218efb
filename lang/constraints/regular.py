"""Regular expressions that constraints are made of, in Rust's syntax: escaped text, alternatives, numbers of bounded length.

The numbers are JSON numbers. A small model that gets no further often repeats a digit until its tokens are used up; so none
of these is longer than `DIGITS` digits (and a point and an exponent).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

DIGITS: Final = 18
"""Most digits of a whole number, and most after a point."""
LARGEST: Final = 10**DIGITS - 1
"""Largest whole number where none is stated."""
DECIMALS: Final = 22
"""Digits behind the point: as many as the shortest text of a float can have here."""
INTEGER: Final = rf"-?(?:0|[1-9][0-9]{{0,{DIGITS - 1}}})"
"""A whole number."""
NUMBER: Final = rf"{INTEGER}(?:\.[0-9]{{1,22}})?(?:[eE][+-]?[0-9]{{1,2}})?"
"""A number; its exponent has at most two digits."""
_META: Final = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


def literal(text: str) -> str:
    """The expression of this text alone.

    >>> literal("Why?") == "Why" + chr(92) + "?"
    True
    """
    return _META.sub(r"\\\g<0>", text)


def group(pattern: str) -> str:
    """`pattern` as one unit that a quantifier or a neighbour cannot tear apart."""
    return f"(?:{pattern})"


def any_of(patterns: Iterable[str]) -> str:
    """One of them."""
    listed = list(patterns)
    return listed[0] if len(listed) == 1 else group("|".join(listed))


def whole_numbers(low: int, high: int) -> str:
    """The whole numbers from `low` to `high` (both included, low <= high), without leading zeros.

    >>> whole_numbers(0, 120)
    '(?:[0-9]|1(?:[0-1][0-9]|20)|[1-9][0-9])'
    """
    parts: list[str] = []
    if low < 0:
        parts += [f"-{part}" for part in _naturals(max(1, -high), -low)]
    if high >= 0:
        parts += _naturals(max(0, low), high)
    return any_of(parts)


def _naturals(low: int, high: int) -> list[str]:
    """Expressions for each number of digits; those of which all numbers are wanted share one."""
    sizes = range(len(str(low)), len(str(high)) + 1)
    whole = [size for size in sizes if size > 1 and low <= 10 ** (size - 1) and high >= 10**size - 1]
    parts = [
        _between(str(max(low, 10 ** (size - 1) if size > 1 else 0)), str(min(high, 10**size - 1)))
        for size in sizes
        if size not in whole
    ]
    return parts + ([f"[1-9]{_digits(whole[0] - 1, whole[-1] - 1)}"] if whole else [])


def _between(low: str, high: str) -> str:
    """Numbers from `low` to `high`, which have equally many digits."""
    if not low or low == high:
        return low
    if low[0] == high[0]:
        return low[0] + _between(low[1:], high[1:])
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    parts: list[str] = []
    if low[1:] != "0" * rest:
        parts.append(low[0] + _between(low[1:], "9" * rest))
        first += 1
    top = ""
    if high[1:] != "9" * rest:
        top = high[0] + _between("0" * rest, high[1:])
        last -= 1
    if first <= last:
        parts.append((str(first) if first == last else f"[{first}-{last}]") + _digits(rest))
    return any_of([*parts, *([top] if top else [])])


def _digits(low: int, high: int | None = None) -> str:
    most = low if high is None else high
    if low == most:
        return "" if not low else "[0-9]" if low == 1 else f"[0-9]{{{low}}}"
    return f"[0-9]{{{low},{most}}}"
