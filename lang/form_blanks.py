"""The blanks of a form (`lang.forms`): what each may hold, in words, as a JSON schema, and as a check."""

from __future__ import annotations

import functools
import json
from typing import Any, Final, NamedTuple

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.constraints.automaton import DEAD, Automaton
from sgl_actors.lang.constraints.choice import texts
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regex_automaton import compile_regex
from sgl_actors.lang.constraints.regex_syntax import parse
from sgl_actors.lang.constraints.regex_tree import Either, Node, Sequence, Text
from sgl_actors.lang.constraints.regular import INTEGER, NUMBER
from sgl_actors.lang.stops import find_stop

SHOWN: Final = 120
"""Characters of a text that a mismatch shows."""
MOST: Final = 500
"""Texts that an expression may list to be told by them."""
_WHOLE: Final = "-?(?:0|[1-9][0-9]*)"
_NAMED: Final = {"a whole number": INTEGER, "a number": NUMBER}
_DIGITS: Final = frozenset(b"-0123456789")


class Mismatch(Exception):
    """An answer does not fill the form. Asking again, with `Form.feedback`, may help.

    Attributes:
        why: which blank or text it is about, what was expected there and what came.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Blank(NamedTuple):
    """What a gen or select leaves open.

    Attributes:
        number: of its node in its stream.
        name: its variable; "" for none.
        sampling: of a gen: stops, max_tokens, constraint.
        choices: of a select.
    """

    number: int
    name: str
    sampling: SamplingOptions = SamplingOptions()
    choices: tuple[str, ...] = ()

    @property
    def constraint(self) -> Constraint | None:
        """What its text has to be as a whole, beyond its choices."""
        return self.sampling.constraint

    @property
    def options(self) -> tuple[str, ...]:
        """The texts of which it holds one; none if it is not told by such."""
        if self.choices:
            return tuple(dict.fromkeys(self.choices))
        return _options(self.constraint) if self.constraint is not None else ()

    @property
    def is_open(self) -> bool:
        """Whether it may hold any text that its stops allow."""
        return not self.choices and self.constraint is None

    def cut(self, text: str) -> str:
        """A text up to the first stop, as a gen ends; a choice has none."""
        stop = None if self.choices else find_stop(text, self.sampling)
        return text if stop is None else text[: stop.keep]

    def fits(self, text: str) -> bool:
        """Whether it may hold this text, as far as choices and constraint say; never one that is no Unicode."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return False
        if self.choices:
            return text in self.choices
        return self.constraint is None or bytewise.accepts(self.constraint, data)

    def is_long(self, text: str) -> bool:
        """Whether it has more than `max_tokens` for sure: a word has one token at least. A choice has no limit."""
        limit = None if self.options else self.sampling.max_tokens
        return limit is not None and len(text.split()) > limit

    @property
    def expected(self) -> str:
        """What it may hold, in English."""
        sampling, end = self.sampling, ""
        ends = [*map(shown, sampling.stop), *(f"a match of {pattern}" for pattern in sampling.stop_regex)]
        if ends and not self.choices:
            end = f" that ends {'with' if sampling.no_stop_trim else 'before'} {' or '.join(ends)}"
        return self._kind + end

    @property
    def _kind(self) -> str:
        if self.options:
            return ("one of " if len(self.options) > 1 else "") + ", ".join(map(quoted, self.options))
        if self.constraint is None:
            return "text"
        kind, source = self.constraint.kind, self.constraint.source
        if kind == JSON_SCHEMA:
            return f"JSON of the schema {source}"
        if kind != REGEX:
            return f"text of the grammar (Lark) {source}"
        named = [name for name, known in _NAMED.items() if _tree(self.constraint) == parse(known)]
        return named[0] if named else f"text that matches the regular expression {source}"

    def schema(self, *, patterns: bool) -> dict[str, Any]:
        """JSON schema of its value, but for a constraint that is one itself."""
        if self.options:
            return {"type": "string", "enum": list(self.options)}
        if self.constraint is None or self.constraint.kind != REGEX:
            return {"type": "string"}
        if kind := number_type(self.constraint):
            return {"type": kind}
        return {"type": "string"} | ({"pattern": f"^(?:{self.constraint.source})$"} if patterns else {})


def quoted(text: str) -> str:
    """A text in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def shorten(text: str) -> str:
    """A text, or its beginning if it is long; what is no Unicode is escaped."""
    known = text[: SHOWN + 1].encode(errors="backslashreplace").decode()
    return known if len(text) <= SHOWN else known[:SHOWN] + "…"


def shown(text: str) -> str:
    """The same in double quotes."""
    return quoted(shorten(text))


@functools.lru_cache(256)
def _options(constraint: Constraint) -> tuple[str, ...]:
    """The texts of a choice, or of an expression that only lists some (a `Literal`, an enum, a boolean has such)."""
    if constraint.kind == CHOICE:
        return tuple(dict.fromkeys(texts(constraint.source)))
    tree = _tree(constraint)
    return () if tree is None else tuple(dict.fromkeys(_words(tree)))


@functools.lru_cache(256)
def number_type(constraint: Constraint) -> str:
    """The JSON type, "integer" or "number", if all that an expression allows is written as JSON writes such; "" otherwise.

    A text of decimals ("12.50") is no number here: whoever reads and writes a number on its way may drop the last digit.
    """
    tree = _tree(constraint)
    if tree is None or not bytewise.first_bytes(constraint) <= _DIGITS:
        return ""
    if tree == parse(NUMBER):
        return "number"
    try:
        return "integer" if _is_within(compile_regex(constraint.source), compile_regex(_WHOLE)) else ""
    except (InvalidRequest, Declined):
        return ""


def _tree(constraint: Constraint) -> Node | None:
    """The tree of an expression; None for another kind, and for syntax that only llguidance reads."""
    try:
        return parse(constraint.source) if constraint.kind == REGEX else None
    except (InvalidRequest, Declined):
        return None


def _words(tree: Node) -> list[str]:
    """The texts that it lists, at most `MOST`; none if it is no list."""
    if isinstance(tree, Text):
        return [tree.text]
    if isinstance(tree, Either):
        lists = [_words(option) for option in tree.options]
        found = [word for words in lists for word in words] if all(lists) else []
    elif isinstance(tree, Sequence):
        found = [""]
        for part in tree.parts:
            words = _words(part)
            found = [before + word for before in found for word in words] if len(found) <= MOST else []
    else:
        return []
    return found if len(found) <= MOST else []


def _is_within(inner: Automaton, outer: Automaton) -> bool:
    """Whether all that one automaton allows is allowed by another."""
    kinds = {pair: bytes([byte]) for byte, pair in enumerate(zip(inner.classes, outer.classes, strict=True))}
    reached, waiting = {(0, 0)}, [(0, 0)]
    while waiting:
        state, other = waiting.pop()
        if inner.accepting[state] and (other == DEAD or not outer.accepting[other]):
            return False
        for byte in kinds.values():
            pair = inner.step(state, byte), outer.step(other, byte)
            if pair[0] != DEAD and pair not in reached:
                reached.add(pair)
                waiting.append(pair)
    return True
