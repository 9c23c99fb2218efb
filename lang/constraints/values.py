"""Constraints as values that compose: `regex(r"[A-Z][a-z]+").named("name") + ", " + json(Person).named("person")`.

A `Pattern` says what a text has to be. `+` puts patterns (and strings, which stand for themselves) in a row, `|` offers another one,
`repeat` and `optional` say how often, `named` makes a part a variable. What holds no JSON of structure becomes one regular expression, a
single `json(…)` a schema, and everything else one grammar.

Regular expressions are Rust's (https://docs.rs/regex/latest/regex/#syntax): no look-around, no back references. They match as a whole,
so anchors at their ends are dropped.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from sgl_actors.lang.arguments import check_name, whole
from sgl_actors.lang.constraints import bytewise, regular, schema
from sgl_actors.lang.constraints.composition import compose
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.constraints.reading import Reader
from sgl_actors.lang.constraints.tree import (
    Either,
    Json,
    Maybe,
    Named,
    Node,
    Regular,
    Repeat,
    Row,
    names_of,
    shown,
)
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import check_text
from sgl_actors.lang.typed import SHOWN, InvalidValue, adapter

MOST: Final = (1 << 16) - 1
"""Most turns of a `repeat` that can be stated."""
REMEMBERED: Final = 1024
"""Patterns whose constraint is remembered, the last used ones."""


@dataclass(frozen=True, slots=True, repr=False)
class Pattern:
    """What a text has to be. The functions of this module make it; it never changes, and can be kept, compared and used anywhere.

    >>> answer = text("The answer is ") + integer().named("answer") + "."
    >>> answer.captures("The answer is 42.")
    {'answer': 42}
    """

    node: Node

    def __repr__(self) -> str:
        return shown(self.node)

    def __add__(self, other: Pattern | str) -> Pattern:
        return _row(self, as_pattern("+", other))

    def __radd__(self, other: str) -> Pattern:
        return _row(as_pattern("+", other), self)

    def __or__(self, other: Pattern | str) -> Pattern:
        return either(self, other)

    def __ror__(self, other: str) -> Pattern:
        return either(other, self)

    def __str__(self) -> str:
        raise InvalidPrimitive(
            f"{self!r:.80} inside of an f-string or str(…) would be those letters; patterns and strings are put in a row with +"
        )

    def __format__(self, spec: str) -> str:
        return str(self)

    def named(self, name: str) -> Pattern:
        """The same, whose value becomes the variable `name`.

        That value is the text; of `json` what it decodes to, of `integer` and `number` a number, of alternatives that of the one taken, None
        of an optional part that is not there. Named parts inside a `repeat` have the list of the values of its turns.

        Raises:
            InvalidPrimitive: `name` is no text, or a part inside has it already.
        """
        check_name("named", name)
        if name in self.names:
            raise InvalidPrimitive(f"named({name!r}): a part inside has that name already", param="name")
        return Pattern(Named(self.node, name))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its parts, in order."""
        return names_of(self.node)

    @property
    def key(self) -> str:
        """Names it within this process: patterns of one key have the same constraint, names and types."""
        return "pattern#" + hashlib.blake2b(repr(self.node).encode(), digest_size=12).hexdigest()

    def constraint(self) -> Constraint:
        """The form in which it travels; remembered.

        Raises:
            InvalidPrimitive: it is too large, nothing can match it, or an expression in it can go on with what the JSON behind it
                begins with (`regex(".*") + json(Person)`): no model would come to that.
        """
        return _constraint(self.node)

    def captures(self, text: str) -> dict[str, Any]:
        """Values of the named parts of a text that matches.

        Where a text can be read in several ways, earlier parts take as much as they can.

        Raises:
            InvalidValue: it does not match, or was cut off.
        """
        check_text("captures", text)
        reader = Reader(text)
        values = reader.captures(self.node)
        if values is not None:
            return values
        if bytewise.is_beginning(self.constraint(), reader.data):
            raise InvalidValue(
                f"the output ended before all of {self!r:.{SHOWN}} was there: give it more max_tokens; it ends {text[-SHOWN:]!r}"
            )
        raise InvalidValue(f"the text does not match {self!r:.{SHOWN}}; found {text[:SHOWN]!r}")


@functools.lru_cache(maxsize=REMEMBERED)
def _constraint(node: Node) -> Constraint:
    return compose(node)


def regex(pattern: str) -> Pattern:
    r"""Text that a regular expression (Rust's syntax) matches as a whole.

    Raises:
        InvalidPrimitive: it is empty, does not compile, or nothing can match it; the message names the place.

    >>> regex(r"[a-z]+\.txt")
    regex('[a-z]+\\.txt')
    """
    if not isinstance(pattern, str) or not pattern:
        raise InvalidPrimitive(
            f"regex: a pattern is a string that is not empty, not {pattern!r:.80}", param="pattern"
        )
    check_text("regex", pattern, "pattern")
    bare = pattern.removeprefix("^")
    if bare.endswith("$") and (len(bare) - len(bare[:-1].rstrip("\\"))) % 2:
        bare = bare[:-1]
    for form in (bare, regular.group(bare)):
        if refusal := bytewise.refusal(Constraint(REGEX, form)):
            raise InvalidPrimitive(f"regex({pattern!r:.{SHOWN}}): {refusal}", param="pattern")
    return Pattern(Regular(regular.group(bare), f"regex({pattern!r})"))


def choice(*choices: str | Sequence[str]) -> Pattern:
    """One of some strings, given one by one or as a list.

    Raises:
        InvalidPrimitive: there is none, one is empty, or two are equal.

    >>> choice("yes", "no")
    choice('yes', 'no')
    """
    listed = choices[0] if len(choices) == 1 and not isinstance(choices[0], str) else choices
    if not isinstance(listed, Sequence) or not all(isinstance(item, str) for item in listed):
        raise InvalidPrimitive(f"choice: choices are strings, not {listed!r:.80}", param="choices")
    known = [str(item) for item in listed]
    if not known or not all(known):
        raise InvalidPrimitive("choice: there are no choices, or one is an empty string", param="choices")
    if len(set(known)) != len(known):
        raise InvalidPrimitive(f"choice: two of {known!r:.80} are equal", param="choices")
    for item in known:
        check_text("choice", item, "choices")
    return Pattern(
        Regular(regular.any_of(map(regular.literal, known)), f"choice({', '.join(map(repr, known))})")
    )


def text(literal: str) -> Pattern:
    """This text. In a row, strings can stand as they are.

    >>> text("1+1=") + integer()
    text('1+1=') + integer()
    """
    if not isinstance(literal, str):
        raise InvalidPrimitive(f"text: a text is a string, not {literal!r:.80}", param="literal")
    check_text("text", literal, "literal")
    return Pattern(Regular(regular.literal(literal), f"text({literal!r})"))


def integer(low: int | None = None, high: int | None = None) -> Pattern:
    """A whole number between bounds, both included; without them, one of at most 18 digits.

    Raises:
        InvalidPrimitive: a bound is no whole number of at most 18 digits, or low is above high.

    >>> integer(1, 12).constraint().source
    '(?:[1-9]|1[0-2])'
    """
    most = regular.LARGEST
    least, highest = (
        whole("integer", name, bound, -most, most)
        for name, bound in (("low", -most if low is None else low), ("high", most if high is None else high))
    )
    if least > highest:
        raise InvalidPrimitive(f"integer: there is no number from {least} to {highest}", param="low")
    if low is None and high is None:
        return Pattern(Regular(regular.INTEGER, "integer()", int))
    return Pattern(Regular(regular.whole_numbers(least, highest), f"integer({low}, {high})", int))


def number() -> Pattern:
    """A number as JSON writes it, of at most 18 digits before the point, 22 behind it and 2 in the exponent.

    >>> number().named("x").captures("-2.5e3")
    {'x': -2500.0}
    """
    return Pattern(Regular(regular.NUMBER, "number()", float))


def json(of: object) -> Pattern:
    """A JSON value of a type, or one that a JSON schema (a dictionary, or as JSON text) allows.

    Strings and arrays are as long as the model makes them unless the type or schema bounds them: a small one may go on until its
    tokens are used up.

    Raises:
        InvalidPrimitive: the type has no schema, the schema is none, or it asks for what the engine does not know (`not`, remote `$ref`s).

    >>> json(dict[str, int]).named("ages").captures('{"Ada": 36}')
    {'ages': {'Ada': 36}}
    """
    if not isinstance(of, str | Mapping):
        known = adapter(of)
        return Pattern(Json(known.json_constraint, known.name, known))
    try:
        found = msgspec.json.decode(of) if isinstance(of, str) else of
        source = schema.source({} if found is True else found)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidPrimitive(
            f"json: a schema is a dictionary or JSON text, and {of!r:.80} is none: {error}", param="schema"
        ) from None
    form = Constraint(JSON_SCHEMA, source)
    if refusal := bytewise.refusal(form):
        raise InvalidPrimitive(
            f"json: the schema {source:.{SHOWN}} cannot be a constraint: {refusal}", param="schema"
        )
    return Pattern(Json(form, source))


def optional(part: Pattern | str) -> Pattern:
    """A part, or nothing.

    >>> ("Dr. " | text("")) + "Who"
    (text('Dr. ') | text('')) + text('Who')
    >>> optional("Dr. ") + "Who"
    optional(text('Dr. ')) + text('Who')
    """
    return Pattern(Maybe(as_pattern("optional", part).node))


def repeat(
    part: Pattern | str,
    min: int = 0,  # noqa: A002 - the words that read best at the call
    max: int | None = None,  # noqa: A002
    separator: Pattern | str | None = None,
) -> Pattern:
    """A part `min` to `max` times (None: any number of times), with `separator` between the turns.

    Raises:
        InvalidPrimitive: min is negative, or max less than min or than 1.

    >>> repeat(integer().named("n"), min=1, separator=", ").captures("1, 2, 3")
    {'n': [1, 2, 3]}
    """
    low = whole("repeat", "min", min, 0, MOST)
    high = None if max is None else whole("repeat", "max", max, 1, MOST)
    if high is not None and high < low:
        raise InvalidPrimitive(f"repeat: max is {high}, less than min, which is {low}", param="max")
    between = None if separator is None else as_pattern("repeat: separator", separator)
    if between is not None and between.names:
        raise InvalidPrimitive(
            f"repeat: a separator has no named parts; this one has {', '.join(between.names)}",
            param="separator",
        )
    return Pattern(
        Repeat(as_pattern("repeat", part).node, low, high, between.node if between is not None else None)
    )


def either(*options: Pattern | str) -> Pattern:
    """One of some patterns; `a | b` is the same. Where several match, the first counts.

    >>> either("none", integer()).named("count").captures("7")
    {'count': 7}
    """
    if not options:
        raise InvalidPrimitive("either: there are no options", param="options")
    nodes: list[Node] = []
    for option in options:
        node = as_pattern("either", option).node
        nodes += node.options if isinstance(node, Either) else (node,)
    return Pattern(nodes[0] if len(nodes) == 1 else Either(tuple(nodes)))


def as_pattern(where: str, value: object) -> Pattern:
    """A pattern, also of a string, which stands for itself; `InvalidPrimitive` for anything else."""
    if isinstance(value, Pattern):
        return value
    if isinstance(value, str):
        return text(value)
    raise InvalidPrimitive(
        f"{where}: {type(value).__name__} {value!r:.80} is no pattern; regex(…), choice(…), json(…) and so on make one, and in a prompt a "
        "pattern stands in gen(constraint=…)"
    )


def _row(*patterns: Pattern) -> Pattern:
    nodes: list[Node] = []
    for pattern in patterns:
        node = pattern.node
        nodes += node.parts if isinstance(node, Row) else (node,)
    names = [name for node in nodes for name in names_of(node)]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidPrimitive(f"two parts of one pattern are named {twice!r}", param="name")
    return Pattern(Row(tuple(nodes)))
