"""A JSON schema as one regular expression, where what it allows is regular.

The expression matches the very texts that llguidance allows for the schema in `JSON_FORM` (`schema_reader`, `schema_nodes`, `schema_strings` and
`schema_numbers` know its rules). Not regular are values of any form (an object without ``"additionalProperties": false``, a schema without a type) and recursion.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sgl_actors.lang.constraints.constraint import JSON_FORM
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regular import any_of, group, literal
from sgl_actors.lang.constraints.schema_nodes import (
    AnyOf,
    Anything,
    Array,
    Boolean,
    Node,
    Nothing,
    Null,
    Number,
    Object,
    Reference,
    Text,
    Unsatisfiable,
)
from sgl_actors.lang.constraints.schema_numbers import number
from sgl_actors.lang.constraints.schema_reader import Reader, decoded
from sgl_actors.lang.constraints.schema_strings import key_beside, key_of, matches, string

LONGEST: Final = 60_000
"""Characters of an expression."""
_TOO_LONG: Final = f"the schema as a regular expression has more than {LONGEST} characters"
_NESTED: Final = 40
"""Optional items of an array that differ from each other: each is a group inside of the one before."""
_COMMA: Final = literal(str(JSON_FORM["item_separator"]))
_COLON: Final = literal(str(JSON_FORM["key_separator"]))


def schema_regex(source: str) -> str:
    r"""The expression of a schema (JSON text), in a dialect that Python's `re` and Rust share; the whole output matches it.

    >>> schema_regex('{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}')
    '\\[(?:(?:true|false)(?:, (?:true|false)){0,1})?\\]'

    Raises:
        Declined: what it allows is not regular, too large, or not understood, naming the keyword. Nothing that can be wrong with a schema is an error
            here.
    """
    schema = decoded(source)
    reader = Reader(schema)
    writer = _Writer(reader.definitions)
    try:
        return writer.expression(reader.read(schema))
    except Unsatisfiable as error:
        raise Declined(f"nothing satisfies the schema: {error}") from None


class _Writer:
    """Expressions of nodes. Methods raise `Unsatisfiable` where a node has none."""

    def __init__(self, definitions: dict[str, Node]) -> None:
        self._definitions = definitions
        self._known: dict[str, str] = {}
        self._open: set[str] = set()

    def expression(self, node: Node) -> str:
        """The expression of a node, as one unit or with the choice within a group."""
        text = self._expression(node)
        if len(text) > LONGEST:
            raise Declined(_TOO_LONG)
        return text

    def _expression(self, node: Node) -> str:
        match node:
            case Null():
                return "null"
            case Boolean(value):
                return "(?:true|false)" if value is None else str(value).lower()
            case Number():
                return number(node)
            case Text():
                return string(node)
            case Array():
                return self._array(node)
            case Object():
                return self._object(node)
            case AnyOf(options):
                return self._any_of(options)
            case Reference(name):
                return self._reference(name)
            case Nothing(why):
                raise Unsatisfiable(why)
            case Anything():
                raise Declined("type: any JSON value would do")

    def _any_of(self, options: tuple[Node, ...]) -> str:
        found: list[str] = []
        why = "anyOf is empty"
        for option in options:
            try:
                found.append(self.expression(option))
            except Unsatisfiable as error:
                why = str(error)
        if not found:
            raise Unsatisfiable(why)
        return any_of(dict.fromkeys(found))

    def _reference(self, name: str) -> str:
        if name in self._open:
            raise Declined(f"$ref: {name[:64]} is recursive")
        if name not in self._known:
            self._open.add(name)
            try:
                self._known[name] = self.expression(self._definitions[name])
            except Unsatisfiable as error:
                raise Declined(f"$ref: nothing satisfies {name[:64]}: {error}") from None
            self._open.discard(name)
        return self._known[name]

    def _inner(self, node: Node | None, keyword: str) -> str:
        """The expression of a part that may be left open."""
        if node is None or isinstance(node, Anything):
            raise Declined(f"{keyword}: values of any form are allowed")
        return self.expression(node)

    def _array(self, found: Array) -> str:
        if found.most is not None and found.most < found.fewest:
            raise Unsatisfiable(f"minItems {found.fewest} is greater than maxItems {found.most}")
        prefix: list[str] = []
        most = found.most
        for node in found.prefix[:most]:
            try:
                prefix.append(self._inner(node, "prefixItems"))
            except Unsatisfiable:
                if len(prefix) < found.fewest:
                    raise
                most = len(prefix)
                break
        if len(prefix) - found.fewest > _NESTED:
            raise Declined(f"prefixItems: more than {_NESTED} that may be missing")
        rest = max(found.fewest - len(prefix), 0), None if most is None else most - len(prefix)
        item = self._items(found, needed=rest[0] > 0) if rest[1] != 0 else None
        return rf"\[{_listed(prefix, item, found.fewest, rest)}\]"

    def _items(self, found: Array, needed: bool) -> str | None:
        try:
            return self._inner(found.items, "items")
        except Unsatisfiable:
            if needed:
                raise
            return None

    def _object(self, found: Object) -> str:
        names: list[str] = []
        members: list[tuple[str, bool]] = []
        for name in dict.fromkeys((*found.properties, *found.required)):
            node = found.properties.get(name, found.others)
            required = name in found.required
            names.append(name)
            try:
                value = self._inner(node, "additionalProperties" if node is found.others else "properties")
            except Unsatisfiable:
                if required:
                    raise
                continue
            key = literal(msgspec.json.encode(name).decode())
            members.append((f"{key}{_COLON}{value}", required))
        others = self._others(found, names)
        needed = sum(required for _, required in members)
        fewest = max(found.fewest - needed, 0)
        most = None if found.most is None else max(found.most - needed, 0)
        if len(members) > needed and (fewest or most is not None):
            raise Declined("minProperties or maxProperties: with properties that may be missing")
        if others and most != 0:
            member = any_of(others)
            members.append((_row(member, max(fewest, 1), most), fewest > 0))
        elif fewest:
            raise Unsatisfiable(f"minProperties {found.fewest} is more than there are properties")
        return rf"\{{{_in_order(members)}\}}"

    def _others(self, found: Object, names: list[str]) -> list[str]:
        """Members with names that are not listed, by pattern and beyond."""
        members: list[str] = []
        if len(found.patterns) > 1:
            raise Declined("patternProperties: more than one pattern")
        for pattern, node in found.patterns.items():
            if any(matches(pattern, name) for name in names):
                raise Declined("patternProperties: a pattern that fits a listed property")
            try:
                members.append(f"{key_of(pattern)}{_COLON}{self._inner(node, 'patternProperties')}")
            except Unsatisfiable:
                continue
        try:
            value = self._inner(found.others, "additionalProperties")
        except Unsatisfiable:
            return members
        if found.patterns:
            raise Declined("additionalProperties: beside patternProperties")
        return [*members, f"{key_beside(names)}{_COLON}{value}"]


def _listed(prefix: list[str], item: str | None, fewest: int, rest: tuple[int, int | None]) -> str:
    """Items of `prefix`, at least `fewest` in all, and then as often as `rest` says `item`."""
    if not prefix:
        if item is None:
            return ""
        row = _row(item, max(rest[0], 1), rest[1])
        return row if fewest else f"(?:{row})?"
    tail = ""
    if item is not None:
        tail = f"(?:{_COMMA}{item}){{{rest[0]},{'' if rest[1] is None else rest[1]}}}"
    for number_, text in reversed(list(enumerate(prefix))[1:]):
        tail = f"{_COMMA}{text}{tail}" if number_ < fewest else f"(?:{_COMMA}{text}{tail})?"
    return f"{prefix[0]}{tail}" if fewest else f"(?:{prefix[0]}{tail})?"


def _row(item: str, fewest: int, most: int | None) -> str:
    """`item` at least `fewest` (not 0) times, with commas."""
    more = "" if most is None else most - 1
    return f"{item}(?:{_COMMA}{item}){{{fewest - 1},{more}}}" if most != 1 else item


def _in_order(members: list[tuple[str, bool]]) -> str:
    """Members, of which those that are not required may be missing, with commas."""
    first = next((number for number, (_, required) in enumerate(members) if required), None)
    if first is None:
        texts = [text for text, _ in members]
        return f"(?:{_some(texts)})?" if texts else ""
    before = "".join(f"(?:{text}{_COMMA})?" for text, _ in members[:first])
    behind = "".join(
        f"{_COMMA}{text}" if required else f"(?:{_COMMA}{text})?" for text, required in members[first + 1 :]
    )
    return f"{before}{members[first][0]}{behind}"


def _some(texts: list[str]) -> str:
    """At least one of `texts`, in their order, with commas. The halves are written 3 times, not each text once for every other."""
    if len(texts) == 1:
        return texts[0]
    middle = len(texts) // 2
    head, tail = _some(texts[:middle]), _some(texts[middle:])
    if len(head) + 2 * len(tail) > LONGEST:
        raise Declined(_TOO_LONG)
    return group(f"{head}(?:{_COMMA}{tail})?|{tail}")
