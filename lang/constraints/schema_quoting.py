"""Characters and classes of characters as they stand inside of a JSON string."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from sgl_actors.lang.constraints.constraint import JSON_FORM
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regular import any_of, literal

Ranges = tuple[tuple[int, int], ...]
"""Code points from … to … (both included), ascending, neither overlapping nor adjacent."""

LAST: Final = 0x10FFFF
_SHORT: Final = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_ESCAPED: Final = (*range(32), 34, 92, 127)
_ALLOWED: Final = str(JSON_FORM.get("json_allowed_escapes", 'nrbtf\\"u'))


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The union of ranges in any order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def complement(ranges: Ranges) -> Ranges:
    """All other code points."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    return tuple(found) if start > LAST else (*found, (start, LAST))


def contains(ranges: Ranges, code: int) -> bool:
    """Whether a code point is among them."""
    return any(low <= code <= high for low, high in ranges)


def can_be_written(text: str) -> bool:
    """Whether every character of a text has a form in a JSON string of `JSON_FORM`."""
    return "u" in _ALLOWED or not any(
        code in _ESCAPED and _SHORT.get(code, "u") not in _ALLOWED for code in map(ord, text)
    )


@lru_cache(1024)
def quoted_class(ranges: Ranges) -> str:
    """The expression of one character of a class as it stands in a JSON string."""
    escaped = [code for code in _ESCAPED if contains(ranges, code)]
    specials = ranges_of((code, code) for code in _ESCAPED)
    plain = complement(ranges_of((*complement(ranges), *specials)))
    parts = [_class(plain)] if plain else []
    short = "".join(_SHORT[code] for code in escaped if code in _SHORT and _SHORT[code] in _ALLOWED)
    if short:
        parts.append(rf"\\[{''.join(map(literal, sorted(short)))}]")
    long = [code for code in escaped if code not in (34, 92)]
    if long and "u" in _ALLOWED:
        parts.append(rf"\\u00{_hex(long)}")
    if not parts:
        raise Declined("pattern or const: a control character that cannot be written")
    return any_of(parts)


def quoted_text(text: str) -> str:
    """The expression of a text as it stands in a JSON string."""
    return "".join(
        quoted_class(((code, code),)) if code in _ESCAPED else literal(character)
        for character, code in ((character, ord(character)) for character in text)
    )


def _hex(codes: list[int]) -> str:
    """Two digits of each code, in small letters or capital ones."""
    parts = []
    for first in sorted({code // 16 for code in codes}):
        digits = [f"{code % 16:x}" for code in codes if code // 16 == first]
        letters = "".join(digit + digit.upper() for digit in digits if digit.isalpha())
        plain = "".join(digit for digit in digits if digit.isdigit())
        parts.append(f"{first}[{plain + letters if len(digits) < 16 else '0-9a-fA-F'}]")
    return any_of(parts)


def _class(ranges: Ranges) -> str:
    negated = ranges[-1][1] == LAST
    return f"[{'^' if negated else ''}{_members(complement(ranges) if negated else ranges)}]"


def _members(ranges: Ranges) -> str:
    return "".join(_member(low) if low == high else f"{_member(low)}-{_member(high)}" for low, high in ranges)


def _member(code: int) -> str:
    if code < 32 or code == 127:
        return f"\\x{code:02X}"
    return literal(chr(code)) if code < 128 or chr(code).isprintable() else f"\\U{code:08X}"


CHARACTER: Final = quoted_class(((0, LAST),))
"""Any character."""
