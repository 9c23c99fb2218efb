"""Sets of characters, as Rust's regular expressions name them, over the Unicode that Python knows.

A set is a tuple of ranges (first and last code point, both included), ascending and with gaps between them. Surrogates are no characters: no set has them.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import groupby
from typing import Final

Characters = tuple[tuple[int, int], ...]
"""See the module."""

LAST: Final = 0x10FFFF
"""The last code point."""
KEPT: Final = 256
"""Sets whose negation or folding is kept."""
ANY: Final[Characters] = ((0, 0xD7FF), (0xE000, LAST))
"""Every character."""
ASCII: Final[dict[str, Characters]] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": ((48, 57),),
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
"""The classes that are written ``[:name:]``."""

_SPACE: Final[Characters] = (
    (9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_JOIN_CONTROL: Final = ((0x200C, 0x200D),)
_ENCLOSED: Final = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))
_ASSIGNED: Final = (
    range(0x40000),
    range(0xE0000, 0xE1000),
)  # elsewhere there are private characters and none
_PRIVATE: Final = ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))
_CASED: Final = 0x20000  # no character from here on has a case
_CATEGORIES: Final = {
    "other": "C", "control": "Cc", "cntrl": "Cc", "format": "Cf", "unassigned": "Cn", "privateuse": "Co",
    "letter": "L", "lowercaseletter": "Ll", "modifierletter": "Lm", "otherletter": "Lo",
    "titlecaseletter": "Lt", "uppercaseletter": "Lu", "mark": "M", "combiningmark": "M", "spacingmark": "Mc",
    "enclosingmark": "Me", "nonspacingmark": "Mn", "number": "N", "decimalnumber": "Nd", "digit": "Nd",
    "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "punct": "P", "connectorpunctuation": "Pc",
    "dashpunctuation": "Pd", "closepunctuation": "Pe", "finalpunctuation": "Pf", "initialpunctuation": "Pi",
    "otherpunctuation": "Po", "openpunctuation": "Ps", "symbol": "S", "currencysymbol": "Sc",
    "modifiersymbol": "Sk", "mathsymbol": "Sm", "othersymbol": "So", "separator": "Z", "lineseparator": "Zl",
    "paragraphseparator": "Zp", "spaceseparator": "Zs",
}  # fmt: skip


def union(*sets: Iterable[tuple[int, int]]) -> Characters:
    """Characters of any of these ranges, which may come in any order and overlap.

    >>> union([(98, 99)], [(97, 97)])
    ((97, 99),)
    """
    merged: list[tuple[int, int]] = []
    for low, high in sorted(one for ranges in sets for one in ranges):
        if merged and low <= merged[-1][1] + 1:
            if high > merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return _without_surrogates(merged)


def _without_surrogates(ranges: list[tuple[int, int]]) -> Characters:
    if all(high < 0xD800 or low > 0xDFFF for low, high in ranges):
        return tuple(ranges)
    halves = (
        ((low, min(high, 0xD7FF)) for low, high in ranges),
        ((max(low, 0xE000), high) for low, high in ranges),
    )
    return tuple((low, high) for half in halves for low, high in half if low <= high)


@lru_cache(KEPT)
def negation(characters: Characters) -> Characters:
    """All other characters."""
    firsts = [0, *(high + 1 for _, high in characters)]
    lasts = [*(low - 1 for low, _ in characters), LAST]
    return union([(low, high) for low, high in zip(firsts, lasts, strict=True) if low <= high])


def intersection(one: Characters, other: Characters) -> Characters:
    """Characters of both."""
    return negation(union(negation(one), negation(other)))


@cache
def perl(letter: str) -> Characters:
    r"""``\d``, ``\s``, ``\w`` and, by the capital letter, all other characters.

    Digits are decimal digits of any script, spaces Unicode's White_Space, words alphabetic characters, marks, decimal digits, connectors and the two
    join controls. So ``\w`` has combining marks, but neither ``²`` nor ``½``; Python's ``re`` sees both the other way round.

    >>> perl("d")[:2]
    ((48, 57), (1632, 1641))
    """
    if letter.isupper():
        return negation(perl(letter.lower()))
    if letter == "s":
        return _SPACE
    kinds = ("Nd",) if letter == "d" else ("L", "M", "Nl", "Nd", "Pc")
    return union(*(_category(kind) for kind in kinds), *((_JOIN_CONTROL, _ENCLOSED) if letter == "w" else ()))


def named(name: str) -> Characters | None:
    """The characters of a general category or of Any, ASCII, Assigned; None for any other property.

    >>> named("Lu") == named("uppercase letter") == named("gc=Lu")
    True
    """
    loose = name.lower()
    for prefix in ("gc=", "gc:", "general_category=", "generalcategory="):
        loose = loose.removeprefix(prefix)
    loose = loose.replace("_", "").replace("-", "").replace(" ", "")
    short = _CATEGORIES.get(loose, loose.capitalize())
    if short in _CATEGORIES.values():
        return _category(short)
    match loose:
        case "any":
            return ANY
        case "ascii":
            return ASCII["ascii"]
        case "assigned":
            return negation(_category("Cn"))
        case "lc" | "casedletter":
            return union(_category("Lu"), _category("Ll"), _category("Lt"))
    return None


@cache
def _category(name: str) -> Characters:
    return union(*(ranges for kind, ranges in _categories().items() if kind.startswith(name)))


@cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    """Ranges of each general category; takes some 30 ms once."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    known = 0
    for part in _ASSIGNED:
        found["Cn"].append((known, part.start - 1))
        known = part.start
        for kind, members in groupby(map(unicodedata.category, map(chr, part))):
            count = sum(1 for _ in members)
            found[kind].append((known, known + count - 1))
            known += count
    found["Co"] += _PRIVATE
    found["Cn"] += [(known, 0xEFFFF), (0xFFFFE, 0xFFFFF), (0x10FFFE, LAST)]
    found["Cn"].remove((0, -1))
    return found


@lru_cache(KEPT)
def folded(characters: Characters) -> Characters:
    """Those and all that differ from one of them by case alone (Unicode's simple case folding).

    >>> [hex(low) for low, _ in folded(((0x6B, 0x6B),))]  # k, K and the sign of the kelvin
    ['0x4b', '0x6b', '0x212a']
    """
    cased, orbits = _orbits()
    more: list[tuple[int, int]] = []
    for low, high in characters:
        for at in range(bisect_left(cased, low), bisect_left(cased, high + 1)):
            more += [(code, code) for code in orbits[cased[at]]]
    return union(characters, more) if more else characters


@cache
def _orbits() -> tuple[list[int], dict[int, list[int]]]:
    """The characters that have a case, ascending, and for each all those that fold to the same one."""
    same: dict[str, list[int]] = defaultdict(list)
    for code in range(_CASED):
        same[chr(code).casefold()].append(code)
    orbits = {code: codes for codes in same.values() if len(codes) > 1 for code in codes}
    return sorted(orbits), orbits
