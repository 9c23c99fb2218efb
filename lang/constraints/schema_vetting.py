"""What is wrong with a JSON schema before any engine sees it, by keyword and place.

Engines say what they decline, but not always where; and a few things llguidance would pass over in silence, or write what the schema forbids. All of that
is refused here: keywords without effect, references that leave the schema, values that are none of their keyword, numbers that a float cannot hold,
schemas that only an infinite value satisfies. Definitions are looked at where something refers to them by their place, all of them where by another name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec
from llguidance import LLMatcher

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.schema_pattern import Misread, read_pattern
from sgl_actors.lang.constraints.schema_places import SCHEMAS, definitions, parts, place
from sgl_actors.lang.constraints.schema_quoting import can_be_written
from sgl_actors.lang.constraints.schema_reader import DRAFTS, NEWEST, NOTES, TYPES, draft_of
from sgl_actors.lang.constraints.schema_strings import FORMATS

LARGEST: Final = 200_000
"""Characters of a schema."""
DEEPEST: Final = 64
"""Schemas inside of each other."""
UNSUPPORTED: Final = frozenset(
    {"not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas", "uniqueItems"}
    | {"contains", "minContains", "maxContains", "propertyNames", "unevaluatedProperties"}
    | {"unevaluatedItems", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"}
    | {"divisibleBy", "disallow", "extends"}
)
"""Keywords that say something about values and that no engine enforces."""
_FIRST_DRAFT: Final = {"const": 6, "prefixItems": 2020}
_EXACT: Final = 2**53
_LARGEST_BOUND: Final = 2**63 - 1
_ORDERED: Final = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
)


def vet_schema(source: str) -> None:
    """Refuse a schema (JSON text) that no engine is to see.

    Raises:
        InvalidRequest: naming the keyword, its place as a JSON pointer, and what is wrong; `param` is ``json_schema``.
    """
    if len(source) > LARGEST:
        _refuse("", "#", f"{len(source)} characters are more than {LARGEST}")
    try:
        schema = msgspec.json.decode(source)
    except RecursionError:
        _refuse("", "#", "brackets are too deep inside of each other")
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{JSON_SCHEMA}: no valid JSON: {error}", param=JSON_SCHEMA) from None
    if schema is False:
        _refuse("", "#", "nothing satisfies false")
    if schema is not True:
        _Vetting(schema).run()


class _Vetting:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._draft = NEWEST
        self._seen: dict[int, tuple[str, dict[str, Any]]] = {}
        self._all_defined = False
        self._waiting: deque[tuple[Any, str, int, bool]] = deque()

    def run(self) -> None:
        if not isinstance(self._root, dict):
            _refuse("", "#", "a schema has to be a JSON object")
        try:
            self._draft = draft_of(self._root)
        except Declined:
            _refuse("$schema", "#", f"none of {', '.join(DRAFTS)}")
        self._check_form()
        self._waiting.append((self._root, "#", 0, False))
        while self._waiting:
            self._vet(*self._waiting.popleft())
        self._check_finite()

    def _check_form(self) -> None:
        form = self._root.get("x-guidance", {})
        if not isinstance(form, dict):
            _refuse("x-guidance", "#", "not an object")
        for key in ("lenient", "coerce_one_of"):
            if form.get(key):
                _refuse("x-guidance", "#", f"{key} would let keywords have no effect")
        escapes = form.get("json_allowed_escapes")
        if form.get("json_allow_general_unicode_escapes") or (isinstance(escapes, str) and "u" in escapes):
            _refuse("x-guidance", "#", "\\u would let a key be spelled so that it slips past its schema")

    def _vet(self, schema: Any, at: str, depth: int, rebased: bool) -> None:
        """`rebased`: references are relative to an ``$id`` inside of the schema."""
        if isinstance(schema, bool) or id(schema) in self._seen:
            return
        if not isinstance(schema, dict):
            _refuse("", at, "a schema has to be an object or a boolean")
        if depth > DEEPEST:
            _refuse("", at, f"more than {DEEPEST} schemas are inside of each other")
        self._seen[id(schema)] = at, schema
        for key, value in schema.items():
            self._vet_keyword(schema, key, value, at)
        _vet_together(schema, at)
        rebased = rebased or bool(depth and isinstance(schema.get("$id", schema.get("id")), str))
        for place_, part in parts(schema, at):
            self._waiting.append((part, place_, depth + 1, rebased))
        if "$ref" in schema:
            self._vet_reference(schema["$ref"], at, depth, rebased=rebased)

    def _vet_keyword(self, schema: dict[str, Any], key: str, value: Any, at: str) -> None:
        if key in UNSUPPORTED and not (key == "uniqueItems" and value is False):
            _refuse(key, at, "not supported")
        first = _FIRST_DRAFT.get(key, 4)
        if first > self._draft and not (key == "const" and self._constrains(schema)):
            _refuse(key, at, "not a keyword of the schema's draft, so it would have no effect")
        check = _CHECKS.get(key)
        problem = None if check is None else check(value)
        if problem:
            _refuse(key, at, problem)
        if key == "format" and value not in FORMATS and _may_be(schema, "string"):
            _refuse(key, at, f"{value[:32]!r} is none of {', '.join(sorted(FORMATS - {'unknown'}))}")

    def _constrains(self, schema: dict[str, Any]) -> bool:
        """Whether there is a keyword, other than ``const``, for which the schema is looked at."""
        return any(key in _CHECKS and key != "const" and key not in NOTES for key in schema)

    def _vet_reference(self, name: str, at: str, depth: int, *, rebased: bool) -> None:
        if not name.startswith("#"):
            _refuse("$ref", at, f"{name[:64]!r} is not in this schema (#/…), and nothing is fetched")
        if rebased or (name != "#" and not name.startswith("#/")):
            if name.startswith("#/") and not name.startswith(("#/$defs/", "#/definitions/")):
                _refuse(
                    "$ref", at, f"{name[:64]!r} is below an $id, where only definitions can be referred to"
                )
            self._vet_definitions()
            return
        try:
            target = place(self._root, name)
        except Declined:
            _refuse("$ref", at, f"nothing stands at {name[:64]!r}")
        self._waiting.append((target, name, depth + 1, False))

    def _vet_definitions(self) -> None:
        """Have all of them looked at, as it takes more than a place to tell which one is meant."""
        waiting: list[tuple[str, Any]] = [("#", self._root)]
        while waiting and not self._all_defined:
            at, schema = waiting.pop()
            if isinstance(schema, dict):
                found = list(definitions(schema, at))
                self._waiting += [(part, place_, 1, True) for place_, part in found]
                waiting += [*parts(schema, at), *found]
        self._all_defined = True

    def _check_finite(self) -> None:
        """Refuse what requires itself: only values without end satisfy it, and a model would write on until it is cut off."""
        finite: set[int] = set()
        waiting = list(reversed(self._seen.values()))
        while waiting:
            left = [(at, schema) for at, schema in waiting if not self._ends(schema, finite)]
            if len(left) == len(waiting):
                _refuse("", left[-1][0], "no finite value satisfies it, as it requires itself")
            waiting = left

    def _ends(self, schema: dict[str, Any], finite: set[int]) -> bool:
        def known(part: Any) -> bool:
            return isinstance(part, bool) or id(part) in finite or id(part) not in self._seen

        needed = [*schema.get("allOf", ())]
        if str(schema.get("$ref", "")).startswith("#/") or schema.get("$ref") == "#":
            needed.append(self._target(schema["$ref"]))
        if schema.get("type") == "object":
            members = schema.get("properties", {})
            needed += [
                members.get(name, schema.get("additionalProperties", True))
                for name in schema.get("required", ())
            ]
        if schema.get("type") == "array":
            needed += _needed_items(schema)
        ends = all(map(known, needed)) and all(
            any(map(known, schema[key])) for key in ("anyOf", "oneOf") if key in schema
        )
        if ends:
            finite.add(id(schema))
        return ends

    def _target(self, name: str) -> Any:
        try:
            return place(self._root, name)
        except Declined:
            return True


def _needed_items(schema: dict[str, Any]) -> list[Any]:
    fewest = schema.get("minItems", 0)
    items = schema.get("items", True)
    prefix = items if isinstance(items, list) else schema.get("prefixItems", [])
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    return [*prefix[:fewest], *([rest] if fewest > len(prefix) else [])]


def _vet_together(schema: dict[str, Any], at: str) -> None:
    """What is wrong with keywords beside each other."""
    for low, high in _ORDERED:
        if low in schema and high in schema and schema[low] > schema[high]:
            _refuse(low, at, f"{schema[low]} is greater than {high} {schema[high]}")
    if "prefixItems" in schema and "additionalItems" in schema:
        _refuse("additionalItems", at, "beside prefixItems, which would have no effect; use items")
    if not isinstance(schema.get("items"), list) and "additionalItems" in schema and "items" not in schema:
        _refuse("additionalItems", at, "without a list of items it has no effect")
    others = schema.get("additionalProperties", True) is not False or schema.get("patternProperties")
    if others and schema.get("minProperties", 0) > len(set(schema.get("required", ()))) + 1:
        _refuse(
            "minProperties", at, "more than 1 beyond required: properties that are not listed might repeat"
        )
    if _may_be(schema, "number"):
        _vet_bounds(schema, at)


def _vet_bounds(schema: dict[str, Any], at: str) -> None:
    """Between a whole number that is excluded and one less than 1 away, llguidance lets the excluded one be written."""
    low, high = (
        _tightest(schema, "minimum", "exclusiveMinimum", max),
        _tightest(schema, "maximum", "exclusiveMaximum", min),
    )
    if low is None or high is None:
        return
    (lowest, low_key), (highest, high_key) = low, high
    if lowest > highest or (lowest == highest and (low_key, high_key) != ("minimum", "maximum")):
        _refuse(low_key, at, f"nothing is between {lowest} and {highest}")
    for bound, key, other in ((lowest, low_key, highest), (highest, high_key, lowest)):
        if key.startswith("exclusive") and bound == int(bound) and 0 < abs(other - bound) < 1:
            _refuse(key, at, f"an excluded whole number less than 1 from {other} is not supported")


def _tightest(
    schema: dict[str, Any], included: str, excluded: str, pick: Callable[..., Any]
) -> tuple[float, str] | None:
    bounds = {key: schema[key] for key in (excluded, included) if not isinstance(schema.get(key, True), bool)}
    if not bounds:
        return None
    key = pick(bounds, key=lambda name: bounds[name])
    if schema.get(excluded) is True and key == included:
        key = excluded
        return bounds[included], key
    return bounds[key], key


def _may_be(schema: dict[str, Any], name: str) -> bool:
    types = schema.get("type", list(TYPES))
    return name in (types if isinstance(types, list) else [types])


def _check_type(value: Any) -> str | None:
    names = value if isinstance(value, list) else [value]
    allowed = (*TYPES, "integer")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        return f"{str(unknown[0])[:32]!r} is none of {', '.join(allowed)}"
    return None if names else "an empty list"


def _check_count(value: Any) -> str | None:
    right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32
    return None if right else "not a whole number from 0 to 2^32 - 1"


def _check_number(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not a number"
    if abs(value) > _LARGEST_BOUND or (value != _LARGEST_BOUND and float(value) != value):
        return "too large, or not a number that a float can hold"
    return None


def _check_exclusive(value: Any) -> str | None:
    return None if isinstance(value, bool) else _check_number(value)


def _check_multiple(value: Any) -> str | None:
    return _check_number(value) or (None if value > 0 else "not greater than 0")


def _check_string(value: Any) -> str | None:
    return None if isinstance(value, str) else "not a string"


def _check_pattern(value: Any) -> str | None:
    if not isinstance(value, str):
        return "not a string"
    try:
        read_pattern(value)
    except Misread as error:
        return str(error).removeprefix("pattern: ")
    except Declined:
        schema = msgspec.json.encode({"type": "string", "pattern": value}).decode()
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
        lines = [line.strip() for line in problem.splitlines() if line.strip()]
        reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (reasons or lines[:1] or [""])[0][:200] or None
    return None


def _check_names(value: Any) -> str | None:
    right = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return None if right else "not a list of strings"


def _check_map(value: Any) -> str | None:
    return None if isinstance(value, dict) else "not an object"


def _check_patterns(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "not an object"
    return next((f"{name[:64]}: {why}" for name in value if (why := _check_pattern(name))), None)


def _check_list(value: Any) -> str | None:
    return None if isinstance(value, list) and value else "not a list with something in it"


def _check_values(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return "not a list with something in it"
    return next(filter(None, map(_check_value, value)), None)


def _check_value(value: Any) -> str | None:
    """A constant: its numbers have to be exact, as they are compared as floats and written in full."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, int | float) and abs(one) > _EXACT:
            return "a number beyond 2^53 might be written as another one"
        if isinstance(one, str) and not can_be_written(one):
            return "a control character that cannot be written"
        if isinstance(one, list | dict):
            waiting += one.values() if isinstance(one, dict) else one
    return None


_CHECKS: Final[dict[str, Callable[[Any], str | None]]] = {
    "type": _check_type,
    "enum": _check_values,
    "const": _check_value,
    "$ref": _check_string,
    "format": _check_string,
    "pattern": _check_pattern,
    "required": _check_names,
    "properties": _check_map,
    "patternProperties": _check_patterns,
    "$defs": _check_map,
    "definitions": _check_map,
    "multipleOf": _check_multiple,
    "minimum": _check_number,
    "maximum": _check_number,
    "exclusiveMinimum": _check_exclusive,
    "exclusiveMaximum": _check_exclusive,
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _check_count
    ),
    **dict.fromkeys(("anyOf", "allOf", "oneOf"), _check_list),
    "prefixItems": lambda value: None if isinstance(value, list) else "not a list",
    **dict.fromkeys(SCHEMAS, lambda _: None),
}


def _refuse(keyword: str, at: str, why: str) -> NoReturn:
    what = f"{keyword} at {at}" if keyword else f"the schema at {at}"
    raise InvalidRequest(f"{JSON_SCHEMA}: {what[:200]}: {why}", param=JSON_SCHEMA)
