"""Patterns: what they become, what they read from a text, and what is refused."""

from __future__ import annotations

import json as std_json
import re
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sgl_actors.lang.constraints import bytewise, regular
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, LARK, REGEX, Constraint
from sgl_actors.lang.constraints.values import (
    Pattern,
    choice,
    either,
    integer,
    json,
    number,
    optional,
    regex,
    repeat,
    text,
)
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.typed import InvalidValue


class Person(msgspec.Struct):
    name: str
    age: int


ADA = '{"name": "Ada", "age": 36}'


def accepts(pattern: Pattern, written: str) -> bool:
    """Whether an output under the pattern's constraint can be `written`."""
    return bytewise.accepts(pattern.constraint(), written.encode())


def test_a_template_in_one_grammar() -> None:
    """A whole template with expressions, choices and JSON is one constraint, and its named parts become values."""
    sheet = (
        text("Name: ")
        + regex(r"[A-Z][a-z]+").named("name")
        + "\nHouse: "
        + choice("Gryffindor", "Hufflepuff").named("house")
        + "\nAge/years: "
        + integer(0, 150).named("age")
        + optional(" (about)").named("about")
        + "\nFriend: "
        + json(Person).named("friend")
        + "\n"
    )
    assert sheet.names == ("name", "house", "age", "about", "friend")
    assert sheet.constraint().kind == LARK
    written = f"Name: Harry\nHouse: Gryffindor\nAge/years: 15\nFriend: {ADA}\n"
    assert accepts(sheet, written)
    assert not accepts(sheet, written.replace("15", "151"))
    assert sheet.captures(written) == {
        "name": "Harry",
        "house": "Gryffindor",
        "age": 15,
        "about": None,
        "friend": Person("Ada", 36),
    }


@pytest.mark.parametrize(
    ("pattern", "kind", "source"),
    [
        (text("a.b"), REGEX, r"a\.b"),
        (regex("a|b") + "c", REGEX, "(?:a|b)c"),
        (choice("a", "b+"), REGEX, r"(?:a|b\+)"),
        (choice(["only"]), REGEX, "only"),
        (regex("a").named("x") | "b", REGEX, "(?:(?:a)|b)"),
        ("1" + number(), REGEX, "1" + regular.NUMBER),
        (optional("ab"), REGEX, "(?:ab)?"),
        (repeat("ab", 2), REGEX, "(?:ab){2,}"),
        (repeat("ab", max=3), REGEX, "(?:ab){0,3}"),
        (repeat("a", 1, 3, ", "), REGEX, "(?:a)(?:, a){0,2}"),
        (repeat("a", separator=","), REGEX, "(?:(?:a)(?:,a){0,})?"),
        (json(int) + "%", REGEX, regular.INTEGER + "%"),
        (json(Literal["a", "b"]), REGEX, '(?:"a"|"b")'),
        (json({"type": "string"}), JSON_SCHEMA, '{"type":"string"}'),
        (json('{"type": "string"}').named("x"), JSON_SCHEMA, '{"type":"string"}'),
        (json("true"), JSON_SCHEMA, "{}"),
    ],
    ids=repr,
)
def test_what_a_pattern_becomes(pattern: Pattern, kind: str, source: str) -> None:
    """What is regular is one expression, a single JSON value a schema."""
    assert pattern.constraint() == Constraint(kind, source)


def test_a_grammar_writes_each_schema_once() -> None:
    """A schema that stands in several places is one rule, with its white space stated."""
    constraint = ("[" + repeat(json(Person), 1, separator=", ") + "] " + json(Person)).constraint()
    assert constraint.kind == LARK
    assert constraint.source.startswith(
        r"start: (/\[/ (json_1 (/, / json_1){0,}) /\] / json_1)" + "\njson_1: %json {"
    )
    assert constraint.source.count("%json") == 1
    assert '"whitespace_flexible":false' in constraint.source


def test_a_schema_keeps_a_white_space_of_its_own() -> None:
    """`x-guidance` in a schema of the caller's is not overruled."""
    pattern = "x" + json(
        {"type": "array", "items": {"type": "integer"}, "x-guidance": {"whitespace_flexible": False}}
    )
    assert accepts(pattern, "x[1,2]")
    assert not accepts(pattern, "x[1, 2]")


@pytest.mark.parametrize(
    ("pattern", "written", "values"),
    [
        (regex("[a-z]+").named("a") + "b", "aab", {"a": "aa"}),
        (regex("[a-z]*").named("a") + regex("[a-z]*").named("b"), "xyz", {"a": "xyz", "b": ""}),
        (regex(".+").named("a") + " " + regex(".+").named("b"), "x y z", {"a": "x y", "b": "z"}),
        (either("none", integer()).named("n"), "none", {"n": "none"}),
        (either("none", integer()).named("n"), "12", {"n": 12}),
        (text("a").named("x") | text("b").named("y"), "b", {"x": None, "y": "b"}),
        (text("a").named("x") | text("b").named("x"), "b", {"x": "b"}),
        (optional(json(Person)).named("p"), "", {"p": None}),
        (optional(json(Person)).named("p"), ADA, {"p": Person("Ada", 36)}),
        (repeat(json(Person).named("p"), separator=" & "), f"{ADA} & {ADA}", {"p": [Person("Ada", 36)] * 2}),
        (repeat(text("x").named("x") | text("y").named("y")), "xy", {"x": ["x", None], "y": [None, "y"]}),
        (repeat("-" + repeat(integer().named("n"), 1, separator=" ")), "-1 2-3", {"n": [[1, 2], [3]]}),
        (repeat(regex("[a-z]").named("c"), 2, 3).named("all"), "abc", {"all": "abc", "c": ["a", "b", "c"]}),
        (repeat(regex("a*").named("a"), 2, 4), "aa", {"a": ["aa", ""]}),
        (repeat(integer().named("n"), separator=","), "", {"n": []}),
        (("é" + number().named("x")).named("all"), "é-1.5e3", {"all": "é-1.5e3", "x": -1500.0}),
        (json({"type": "array"}).named("a"), "[1, null]", {"a": [1, None]}),
        (
            json(list[int]).named("a") + regex("[^0-9]+").named("b"),
            "[1, 2] 日本",
            {"a": [1, 2], "b": " 日本"},
        ),
        (
            json(str).named("s") + ": " + json(dict[str, float]).named("d"),
            '"a\\n": {"b": 0.5}',
            {"s": "a\n", "d": {"b": 0.5}},
        ),
    ],
    ids=repr,
)
def test_captures(pattern: Pattern, written: str, values: dict[str, Any]) -> None:
    """Named parts have the values that they read; where there are several ways, the first part takes as much as it can."""
    assert accepts(pattern, written)
    assert pattern.captures(written) == values


def test_a_text_that_does_not_match() -> None:
    """A wrong text is told from one that was cut off, and a value that is none of its type is named."""
    pattern = text("A: ") + json(Person).named("p") + "."
    with pytest.raises(InvalidValue, match=r"does not match text\('A: '\) \+ json\(Person\).*found 'B'"):
        pattern.captures("B")
    with pytest.raises(InvalidValue, match=r"""give it more max_tokens; it ends 'A: \{"name": "A'"""):
        pattern.captures('A: {"name": "A')
    with pytest.raises(InvalidValue, match="does not match"):
        pattern.captures(f"A: {ADA}..")


def test_reading_an_ambiguous_text_takes_no_exponential_time() -> None:
    """Turns that can be cut in 2^59 ways are read, and a text that misses its end is refused, at once."""
    pattern = repeat(regex("a+").named("a"), 1) + "b"
    assert pattern.captures("a" * 60 + "b") == {"a": ["a" * 60]}
    with pytest.raises(InvalidValue):
        pattern.captures("a" * 60 + "c")


literals = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
Sample = tuple[Pattern, str]


def leaves() -> st.SearchStrategy[Sample]:
    """Patterns without parts, each with a text that it matches."""
    names = literals.map(lambda name: re.sub(r"[\x00-\x07\x0b\x0e-\x1f\x7f]", "", name))  # no short escape
    people = st.builds(Person, names, st.integers(-99, 99))
    return st.one_of(
        literals.map(lambda item: (text(item), item)),
        st.lists(literals, min_size=1, max_size=3, unique=True).flatmap(
            lambda items: st.sampled_from(items).map(lambda item: (choice(items), item))
        ),
        st.integers(-500, 500).map(lambda found: (integer(-500, 999), str(found))),
        st.sampled_from(["[a-c]+x?", "a|bc", "[^{\\[]*", "d{2,3}"]).flatmap(
            lambda form: st.from_regex(form, fullmatch=True).map(lambda item: (regex(form), item))
        ),
        people.map(
            lambda person: (json(Person), std_json.dumps(msgspec.to_builtins(person), ensure_ascii=False))
        ),
        st.lists(st.integers(0, 9), max_size=3).map(lambda items: (json(list[int]), std_json.dumps(items))),
    )


def larger(inner: st.SearchStrategy[Sample]) -> st.SearchStrategy[Sample]:
    """Patterns of parts."""
    rows = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        rows.map(
            lambda row: (sum((part for part, _ in row[1:]), row[0][0]), "".join(item for _, item in row))
        ),
        rows.map(lambda options: (either(*(part for part, _ in options)), options[-1][1])),
        inner.map(lambda part: (optional(part[0]), part[1])),
        inner.map(lambda part: (optional(part[0]), "")),
        st.tuples(inner, st.integers(0, 3), st.sampled_from([None, ", ", "|"])).map(
            lambda found: (
                repeat(found[0][0], 0, 4, found[2]),
                (found[2] or "").join([found[0][1]] * found[1]),
            )
        ),
    )


def has_seam(pattern: Pattern) -> bool:
    """Whether the pattern is refused since a part could never be left."""
    try:
        pattern.constraint()
    except InvalidPrimitive as error:
        if "can go on with" in error.message:
            return True
        raise
    return False


@settings(deadline=None)
@given(sample=st.recursive(leaves(), larger, max_leaves=6), cut=st.integers(0, 30))
def test_the_constraint_and_the_reader_agree(sample: Sample, cut: int) -> None:
    """What a pattern matches is allowed by its constraint and read by `captures`; what the constraint allows can be read."""
    pattern, written = sample
    pattern = pattern.named("all")
    assume(not has_seam(pattern))
    assert accepts(pattern, written)
    assert list(pattern.captures(written)) == ["all"]
    for changed in (written[:cut], written[:cut] + written[cut + 1 :], written + written):
        if accepts(pattern, changed):
            assert list(pattern.captures(changed)) == ["all"]
        elif bytewise.is_beginning(pattern.constraint(), changed.encode()):
            with pytest.raises(InvalidValue, match="max_tokens"):
                pattern.captures(changed)


@settings(deadline=None)
@given(low=st.integers(-2000, 2000), size=st.integers(0, 3000), asked=st.integers(-6000, 6000))
def test_whole_numbers_between_bounds(low: int, size: int, asked: int) -> None:
    """The expression of a range matches exactly the numbers in it, without leading zeros."""
    form = regular.whole_numbers(low, low + size)
    assert (re.fullmatch(form, str(asked)) is not None) == (low <= asked <= low + size)
    assert re.fullmatch(form, f"0{abs(asked)}") is None
    assert len(form) < 300


@settings(deadline=None)
@given(written=literals, other=literals)
def test_a_literal_matches_itself_alone(written: str, other: str) -> None:
    """Escaping is right for every text, inside a grammar as well."""
    alone, mixed = text(written), text(written) + json(list[int])
    assert accepts(alone, written)
    assert accepts(mixed, f"{written}[1]")
    assert accepts(alone, other) == (written == other)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: regex(""), ["empty"]),
        (lambda: regex(5), ["5"]),  # type: ignore[arg-type]
        (lambda: regex("a[b"), ["regex('a[b')", "class is not closed", "character 2 of 3"]),
        (lambda: regex("x(?=b)"), ["look-ahead", "character 2 of 6"]),
        (lambda: regex(r"(a)\1"), ["back reference", "character 4 of 5"]),
        (lambda: regex(r"a\b"), [r"\b is not supported"]),
        (lambda: regex(r"a^b"), ["^ is not supported"]),
        (lambda: regex(r"[^\x00-\x{10FFFF}]"), ["no text"]),
        (lambda: regex("a)(b"), ["not opened", "character 2 of 4"]),
        (lambda: regex("(?x)a # b"), ["unclosed group"]),
        (lambda: regex("\ud800"), ["surrogate"]),
        (lambda: text(5), ["5"]),  # type: ignore[arg-type]
        (choice, ["no choices"]),
        (lambda: choice([]), ["no choices"]),
        (lambda: choice("a", ""), ["empty"]),
        (lambda: choice("a", "b", "a"), ["equal"]),
        (lambda: choice(["a", 3]), ["strings"]),  # type: ignore[list-item]
        (lambda: integer(3, 2), ["from 3 to 2"]),
        (lambda: integer(0, 10**18), ["high", "whole number"]),
        (lambda: repeat("a", 3, 2), ["max is 2", "min, which is 3"]),
        (lambda: repeat("a", -1), ["min"]),
        (lambda: repeat("a", max=0), ["max"]),
        (lambda: repeat("a", separator=text("b").named("x")), ["separator", "x"]),
        (either, ["no options"]),
        (lambda: text("a") + 3, ["int 3"]),  # type: ignore[operator]
        (lambda: text("a").named("x") + text("b").named("x"), ["'x'"]),
        (lambda: text("a").named("x").named("x"), ["'x'"]),
        (lambda: text("a").named(3), ["3"]),  # type: ignore[arg-type]
        (lambda: json(object), ["object"]),
        (lambda: json("{"), ["truncated"]),
        (lambda: json("5"), ["has to be a JSON object"]),
        (lambda: json("false"), ["false"]),
        (lambda: json({"type": "strin"}), ["type at #", "'strin' is none of"]),
        (lambda: json({"type": "object", "required": "a"}), ["required"]),
        (lambda: json({"not": {"type": "string"}}), ["not at #"]),
        (
            lambda: json({"$ref": "https://example.org/schema"}),
            ["$ref at #", "example.org", "nothing is fetched"],
        ),
        (lambda: json({"enum": []}), ["enum at #", "something in it"]),
        (lambda: json({"enum": [object()]}), ["object"]),
        (
            lambda: json({"properties": {"a": {"type": "string", "format": "phone"}}}),
            ["format at #/properties/a", "ipv4"],
        ),
        (
            lambda: json({"$schema": "http://json-schema.org/draft-04/schema", "const": 1}),
            ["const at #", "draft"],
        ),
        (
            (regex(".*") + json(Person)).constraint,
            ["regex('.*') can go on with", "json(Person)", "({)"],
        ),
        (((regex("a*") | json(Person)) + "ab").constraint, ["regex('a*') can go on with"]),
        ((regex(r"\w+") + optional("!") + json(list[str])).constraint, []),
        ((json(Person) + regex("[^x]*") + repeat(json(Person))).constraint, ["can go on with"]),
        (lambda: repeat(json(Person) | regex("[a-z ]+")).constraint(), ["can go on with"]),
    ],
)
def test_bad_patterns_are_refused_at_once(make: Any, words: list[str]) -> None:
    """What has no meaning, what the engine does not know and what no model could get out of is refused where it is written."""
    if not words:
        make()
        return
    with pytest.raises(InvalidPrimitive) as caught:
        make()
    assert all(word in caught.value.message for word in words), caught.value.message
    assert len(caught.value.message) < 700


def test_anchors_at_the_ends_are_dropped() -> None:
    """An expression matches as a whole, so `^` and `$` around it change nothing, also within a row; an escaped one stays."""
    assert accepts("x" + regex("^a+$") + "y", "xaay")
    assert accepts(regex(r"\$"), "$")
    assert accepts(regex(r"a\\$"), "a\\")
    assert accepts(regex("^^a"), "a")


def test_patterns_are_values() -> None:
    """Equal patterns are equal, have one key and can be keys; they show how they were written."""
    one, two = (
        repeat(choice("a", "b").named("x"), 1, 2, ", ") + optional(json(Person)) + (regex("a") | "b")
        for _ in range(2)
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one.key == two.key
    assert one.constraint() is two.constraint()
    assert repr(one) == (
        "repeat(choice('a', 'b').named('x'), min=1, max=2, separator=text(', ')) + optional(json(Person)) + (regex('a') | text('b'))"
    )
    assert text("a").named("x").key != text("a").named("y").key
    assert repr((text("a") + "b").named("x") | "c") == "(text('a') + text('b')).named('x') | text('c')"


def test_types_of_one_schema_have_patterns_of_their_own() -> None:
    """Two classes that look the same make the same constraint but different values, so their keys differ."""
    first, second = (json(msgspec.defstruct("Twin", [("x", int)])) for _ in range(2))
    assert first.constraint() == second.constraint()
    assert first.key != second.key
