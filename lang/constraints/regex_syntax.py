"""Regular expressions in Rust's syntax (https://docs.rs/regex-syntax) as trees.

Only the language counts, so groups do not capture, lazy quantifiers are as any other, and anchors at the very ends, where they are redundant, leave no trace.
What is wrong in itself, or not regular, is an `InvalidRequest` that says where; what is right but rare is `Declined`, and llguidance, which knows all of the
syntax, has the word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints import characters
from sgl_actors.lang.constraints.characters import ANY, ASCII, Characters
from sgl_actors.lang.constraints.constraint import REGEX
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regex_tree import (
    Anchor,
    Node,
    OneOf,
    Text,
    either,
    repeat,
    sequence,
    trimmed,
)

NESTING: Final = 100
"""Groups, or brackets of a class, inside each other."""
SIZE: Final = 50_000
"""Characters of an expression whose bounded repeats are written out."""
RANGES: Final = 1_000_000
"""Ranges of characters that all classes in brackets are computed from (``\\w`` has some 770)."""


_SPECIAL: Final = r"\\.+*?()|\[{^$"
_PLAIN: Final = re.compile(rf"[^{_SPECIAL}]+")
_COUNT: Final = re.compile(r"\{\s*([0-9]+)\s*(?:(,)\s*([0-9]+)?\s*)?\}")
_NAME: Final = re.compile(r"\?P?<([^\W\d][\w.\[\]]*)>")
_FLAGS: Final = re.compile(r"\?([a-zA-Z]*)(-?)([a-zA-Z]*)([:)])")
_LOOK: Final = re.compile(r"\?(?:<?[=!])")
_HEX: Final = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|[xuU]\{([0-9a-fA-F]+)\}")
_ASCII_CLASS: Final = re.compile(r"\[:(\^?)([a-z]+):\]")
_OPENING: Final = re.compile(r"\[(\^?)(-*)(\]?)")
_CONTROLS: Final = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_LONGEST_COUNT: Final = 9


def parse(source: str) -> Node:
    """The tree of an expression, without anchors.

    Args:
        source: the expression; the whole text is to match.

    Raises:
        InvalidRequest: no regular expression, or not regular; names the position (1 is the first character).
        Declined: it has what is left to llguidance, or is larger than `SIZE`.
    """
    return trimmed(_Parser(source).parse(), first=True, last=True)


@dataclass(slots=True)
class _Group:
    """A group that is open: where it began, what it has so far, and the flags outside of it."""

    start: int
    flags: frozenset[str]
    options: list[Node]
    parts: list[Node]


class _Parser:
    """Reads from left to right; `at` is the next character."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._flags: frozenset[str] = frozenset()
        self._names: set[str] = set()
        self._ranges = 0
        self._behind_flags = -1  # where a quantifier would have nothing to repeat
        self._groups = [_Group(0, self._flags, [], [])]

    def parse(self) -> Node:
        while self._at < len(self._source):
            self._item()
        if len(self._groups) > 1:
            raise self._refusal("a group is not closed", self._groups[-1].start)
        return self._closed()

    def _refusal(self, problem: str, at: int | None = None) -> InvalidRequest:
        place = (self._at if at is None else at) + 1
        return InvalidRequest(f"{REGEX}: {problem} at character {place} of {len(self._source)}", param=REGEX)

    def _declined(self, what: str) -> Declined:
        return Declined(f"{what} at character {self._at + 1}")

    def _closed(self) -> Node:
        """The innermost group as a node; it is over."""
        group = self._groups.pop()
        self._flags = group.flags
        node = either([*group.options, sequence(group.parts)])
        if node.size > SIZE:
            raise Declined(f"more than {SIZE} characters with its repeats written out")
        return node

    def _item(self) -> None:
        source, parts = self._source, self._groups[-1].parts
        if (plain := _PLAIN.match(source, self._at)) is not None:
            self._plain(plain[0])
            return
        match source[self._at]:
            case "|":
                self._groups[-1].options.append(sequence(parts))
                self._groups[-1].parts = []
            case ")":
                if len(self._groups) == 1:
                    raise self._refusal("a group is closed that was not opened")
                node = self._closed()
                self._groups[-1].parts.append(node)
            case "(":
                self._open()
                return
            case "*" | "+" | "?" | "{":
                self._quantifier()
                return
            case "[":
                parts.append(OneOf(self._class(0)))
                return
            case "\\":
                parts.append(self._escape())
                return
            case ".":
                parts.append(OneOf(ANY if "s" in self._flags else characters.negation(((10, 10),))))
            case anchor:
                parts.append(Anchor(anchor == "$"))
        self._at += 1

    def _plain(self, text: str) -> None:
        """Literal text; a quantifier behind it is for its last character alone."""
        parts = self._groups[-1].parts
        self._at += len(text)
        if "i" in self._flags:
            parts.extend(OneOf(characters.folded(((ord(one), ord(one)),))) for one in text)
            return
        if len(text) > 1 and self._source[self._at : self._at + 1] in ("*", "+", "?", "{"):
            parts.append(Text(text[:-1], len(text) - 1))
            text = text[-1]
        parts.append(Text(text, len(text)))

    def _open(self) -> None:
        """A group, or flags from here on."""
        start = self._at
        if len(self._groups) > NESTING:
            raise self._refusal(f"more than {NESTING} groups inside each other")
        if _LOOK.match(self._source, start + 1):
            raise self._refusal("a look-ahead or look-behind, which is not supported,")
        if self._source.startswith("?P=", start + 1):
            raise self._refusal("a back reference, which is not supported,")
        group = _Group(start, self._flags, [], [])
        if (name := _NAME.match(self._source, start + 1)) is not None:
            if name[1] in self._names:
                raise self._refusal(f"a second group of the name {name[1][:32]!r}")
            self._names.add(name[1])
            self._at = name.end()
        elif self._source.startswith("?", start + 1):
            opens = self._set_flags()
            if not opens:
                return
        else:
            self._at += 1
        self._groups.append(group)

    def _set_flags(self) -> bool:
        """Whether the flags belong to a group that opens here."""
        found = _FLAGS.match(self._source, self._at + 1)
        if found is None:
            raise self._refusal("'(?' without valid flags, ':' or '<name>' behind it")
        on, minus, off, closes = found.groups()
        if len({*on, *off}) < len(on + off) or (minus and not off) or not (on + off or closes == ":"):
            raise self._refusal("wrong flags of a group")
        if rare := {*on, *off} - set("isuU") or ({*off} & {"u"}):
            raise self._declined(f"the flag {min(rare)!r}")
        self._flags = (self._flags | {*on}) - {*off}
        self._at = found.end()
        if closes == ")":
            self._behind_flags = self._at
        return closes == ":"

    def _quantifier(self) -> None:
        parts, start = self._groups[-1].parts, self._at
        low, high = self._counts()
        if not parts or start == self._behind_flags:
            raise self._refusal("there is nothing to repeat", start)
        if high is not None and high < low:
            raise self._refusal(f"a repeat of at least {low} and at most {high}", start)
        if self._source.startswith("?", self._at):
            self._at += 1
        body = parts.pop()
        if isinstance(body, Anchor):
            raise self._declined("a repeated anchor")
        node = repeat(body, low, high)
        if node.size > SIZE:
            self._at = start
            raise self._declined(f"a repeat that is more than {SIZE} characters when written out")
        parts.append(node)

    def _counts(self) -> tuple[int, int | None]:
        sign = self._source[self._at]
        if sign != "{":
            self._at += 1
            return int(sign == "+"), 1 if sign == "?" else None
        found = _COUNT.match(self._source, self._at)
        if found is None:
            raise self._refusal("no valid repeat (which is {n}, {n,} or {n,m}; a brace by itself is \\{)")
        if max(len(count.lstrip("0")) for count in (found[1], found[3] or "")) > _LONGEST_COUNT:
            raise self._refusal(f"a repeat of more than {_LONGEST_COUNT} digits")
        low = int(found[1])
        high = int(found[3]) if found[3] else None if found[2] else low
        self._at = found.end()
        return low, high

    def _escape(self) -> Node:
        """What a backslash begins, outside of a class."""
        sign = self._source[self._at + 1 : self._at + 2]
        if sign in ("A", "z"):
            self._at += 2
            return Anchor(sign == "z")
        if sign in ("b", "B", "<", ">"):
            raise self._declined("a word boundary")
        if sign.isdecimal() and sign.isascii():
            raise self._refusal("a back reference, which is not supported,")
        found = self._set_or_code()
        if isinstance(found, int):
            if "i" not in self._flags:
                return Text(chr(found), 1)
            found = characters.folded(((found, found),))
        return OneOf(found)

    def _set_or_code(self) -> Characters | int:
        r"""The set of ``\d`` and its like, or the code point of an escaped character."""
        sign = self._source[self._at + 1 : self._at + 2]
        if not sign:
            raise self._refusal("the expression ends inside of an escape")
        if sign in "dDsSwW":
            self._at += 2
            return characters.perl(sign)
        if sign in "pP":
            return self._property(negated=sign == "P")
        if sign in "xuU":
            return self._code()
        if sign in _CONTROLS or (sign.isascii() and not sign.isalnum() and sign not in "<>"):
            self._at += 2
            return _CONTROLS.get(sign, ord(sign))
        raise self._refusal(f"an unknown escape \\{sign}")

    def _code(self) -> int:
        found = _HEX.match(self._source, self._at + 1)
        if found is None:
            raise self._refusal("an escape that is no code in hexadecimal")
        digits = next(one for one in found.groups() if one).lstrip("0")
        code = int(digits or "0", 16) if len(digits) <= 6 else characters.LAST + 1
        if code > characters.LAST or 0xD800 <= code <= 0xDFFF:
            raise self._refusal("an escape that is no character's code")
        self._at = found.end()
        return code

    def _property(self, *, negated: bool) -> Characters:
        rest = self._at + 2
        end = self._source.find("}", rest) if self._source.startswith("{", rest) else rest
        name = self._source[rest : end + 1].strip("{}")
        found = characters.named(name) if end >= 0 and name and "^" not in name else None
        if found is None:
            raise self._declined("a property of Unicode that is no general category")
        self._at = end + 1
        if "i" in self._flags:
            found = characters.folded(found)
        return characters.negation(found) if negated else found

    def _class(self, depth: int) -> Characters:
        """What is between brackets. Operators have one precedence, below that of standing side by side."""
        start = self._at
        if depth > NESTING:
            raise self._refusal(f"more than {NESTING} brackets inside each other")
        opening = _OPENING.match(self._source, start)
        assert opening is not None
        bracket = bool(opening[3]) and not opening[2]
        self._at = opening.end() if bracket or not opening[3] else opening.end() - 1
        items: list[Characters] = [((45, 45),)] if opening[2] else []
        if bracket:
            items.append(((93, 93),))
        left: Characters | None = None
        operator = ""
        while not self._source.startswith("]", self._at):
            if self._at >= len(self._source):
                raise self._refusal("a class is not closed", start)
            sign = self._source[self._at : self._at + 2]
            if sign in ("&&", "--", "~~"):
                left, items, operator = self._combined(left, operator, items), [], sign
                self._at += 2
            else:
                items.append(self._class_item(depth))
        self._at += 1
        found = self._combined(left, operator, items)
        return characters.negation(found) if opening[1] else found

    def _combined(self, left: Characters | None, operator: str, items: list[Characters]) -> Characters:
        right = characters.union(*items)
        self._ranges += len(right) + len(left or ())
        if self._ranges > RANGES:
            raise self._declined(f"classes of more than {RANGES} ranges in all")
        if "i" in self._flags:
            right = characters.folded(right)
        if left is None:
            return right
        without = characters.intersection(left, characters.negation(right))
        if operator == "&&":
            return characters.intersection(left, right)
        if operator == "--":
            return without
        return characters.union(without, characters.intersection(right, characters.negation(left)))

    def _class_item(self, depth: int) -> Characters:
        """A nested class, a set, a character or a range of them."""
        if (found := _ASCII_CLASS.match(self._source, self._at)) is not None and found[2] in ASCII:
            self._at = found.end()
            base = characters.folded(ASCII[found[2]]) if "i" in self._flags else ASCII[found[2]]
            return characters.negation(base) if found[1] else base
        if self._source.startswith("[", self._at):
            return self._class(depth + 1)
        start = self._at
        low = self._class_character()
        ahead = self._source[self._at : self._at + 2]
        if ahead[:1] != "-" or ahead in ("-]", "--"):
            return low if isinstance(low, tuple) else ((low, low),)
        self._at += 1
        if self._at >= len(self._source):
            raise self._refusal("a range has no end", start)
        high = self._class_character()
        if isinstance(low, tuple) or isinstance(high, tuple):
            raise self._refusal("a range that does not go from one character to another", start)
        if high < low:
            raise self._refusal("a range that ends before it begins", start)
        return ((low, high),)

    def _class_character(self) -> Characters | int:
        if self._source[self._at] == "\\":
            return self._set_or_code()
        self._at += 1
        return ord(self._source[self._at - 1])
