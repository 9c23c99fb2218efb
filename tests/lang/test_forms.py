"""A turn as a form: what the model is asked, and that its answer fills the blanks rightly or not at all."""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

import jsonschema
import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint
from sgl_actors.lang.constraints.regular import INTEGER, NUMBER, whole_numbers
from sgl_actors.lang.forms import Blank, Form, Mismatch
from sgl_actors.lang.typed import adapter

LINE = SamplingOptions(stop=("\n",))
NAMED = Form("Name: ", [Blank(0, "name", LINE), "\nAge: ", Blank(2, "age", LINE)])


class Pet(msgspec.Struct):
    """Something with structure."""

    name: str
    friends: list[Pet] = []
    weight: float | None = None


def held(kind: str, source: object, **more: Any) -> SamplingOptions:
    """Sampling under a constraint."""
    text = source if isinstance(source, str) else json.dumps(source)
    return SamplingOptions(constraint=Constraint(kind, text), **more)


def of_type(kind: object) -> SamplingOptions:
    """Sampling of `gen(type=…)`."""
    return SamplingOptions(constraint=adapter(kind).constraint)


# what the model is asked


def test_a_form_is_shown_with_its_blanks_in_braces_and_what_each_may_hold() -> None:
    """Both ways say how the turn reads, its beginning included, and where each blank ends."""
    form = Form("I am ", [Blank(0, "mood", choices=("glad", "sad")), ", it is ", Blank(2, "day", LINE)])
    assert form.sketch == "I am {mood}, it is {day}"
    for asked in (form.instruction(), form.request()):
        assert "I am {mood}, it is {day}" in asked
        assert '{mood}: one of "glad", "sad"' in asked
        assert r'{day}: text that ends before "\n"' in asked
    assert '"mood", "day"' in form.instruction()
    assert "JSON" not in form.request()


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (SamplingOptions(), "text"),
        (
            SamplingOptions(stop=(".", "!"), no_stop_trim=True, stop_regex=("x+",)),
            'text that ends with "." or "!" or a match of x+',
        ),
        (held(REGEX, "a|b"), 'one of "a", "b"'),
        (held(REGEX, "ab+"), "text that matches the regular expression ab+"),
        (held(REGEX, f"(?:{INTEGER})"), "a whole number"),
        (held(REGEX, NUMBER), "a number"),
        (held(LARK, 'start: "x"+'), 'text of the grammar (Lark) start: "x"+'),
        (held(JSON_SCHEMA, {"type": "null"}), 'JSON of the schema {"type": "null"}'),
    ],
)
def test_what_a_blank_may_hold_is_said_in_english(sampling: SamplingOptions, said: str) -> None:
    """Stops, choices, expressions, grammars and schemas have their own words."""
    assert f"{{x}}: {said}\n" in Form("", [Blank(0, "x", sampling)]).request()


def test_braces_in_the_text_are_not_taken_for_a_blank() -> None:
    """Where the template itself has a blank's mark, blanks have more braces; where it has a code fence, the frame is longer."""
    form = Form("```\nwrite {x}: ", [Blank(0, "x")])
    assert form.sketch == "```\nwrite {x}: {{x}}"
    assert "\n````\n```\nwrite {x}: {{x}}\n````\n" in form.request()


def test_feedback_says_what_was_wrong() -> None:
    """The reason of a mismatch goes into the next message."""
    with pytest.raises(Mismatch) as raised:
        NAMED.match("Sure! Name: Ada\nAge: 36")
    assert raised.value.why == 'expected the text "Name: ", and there is "Sure! Name: Ada\\nAge: 36"'
    assert raised.value.why in NAMED.feedback(raised.value.why)


def test_room_is_for_all_of_the_answer() -> None:
    """It is the sum of the blanks' limits and of what stands around them; a blank without a limit has none, choices have that of the longest."""
    ten = SamplingOptions(max_tokens=10)
    form = Form("Name: ", [Blank(0, "a", ten), "\nAge: ", Blank(2, "b", ten)])
    assert (form.max_tokens(json=False) or 0) >= 20 + 2 + 2
    assert (form.max_tokens(json=True) or 0) >= 20 + 10
    endless = SamplingOptions(max_tokens=None)
    assert Form("", [Blank(0, "a", ten), " ", Blank(2, "b", endless)]).max_tokens(json=True) is None
    assert Form("", [Blank(0, "a", endless, ("x", "y" * 20))]).max_tokens(json=False) == 12


# the schema


def test_the_schema_is_a_strict_object_in_the_order_of_the_blanks() -> None:
    """Everything is required, nothing else is allowed, and names are unique."""
    form = Form("", [Blank(0, "b"), Blank(1, "a"), Blank(2, ""), Blank(3, "b"), Blank(4, "größe $ref")])
    assert form.schema() == {
        "type": "object",
        "properties": {key: {"type": "string"} for key in ("b", "a", "blank3", "b_2", "gr__e__ref")},
        "required": ["b", "a", "blank3", "b_2", "gr__e__ref"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("sampling", "schema"),
    [
        (held(CHOICE, ["no", "yes", "no"]), {"type": "string", "enum": ["no", "yes"]}),
        (of_type(Literal["a.b", "(c|d)"]), {"type": "string", "enum": ["(c|d)", "a.b"]}),
        (of_type(bool), {"type": "string", "enum": ["true", "false"]}),
        (of_type(int), {"type": "integer"}),
        (of_type(float), {"type": "number"}),
        (held(REGEX, whole_numbers(-5, 120)), {"type": "integer"}),
        (held(REGEX, "[0-9]{3}"), {"type": "string"}),
        (held(REGEX, "[0-9]*"), {"type": "string"}),
        (held(REGEX, "[1-9]-[0-9]"), {"type": "string"}),
        (held(REGEX, r"[1-9]\.[0-9]{2}"), {"type": "string"}),
        (held(LARK, 'start: "x"+'), {"type": "string"}),
        (held(JSON_SCHEMA, {"type": "array", "items": {}}), {"type": "array", "items": {}}),
        (held(JSON_SCHEMA, "true"), {}),
    ],
)
def test_a_value_has_the_type_that_loses_nothing_of_its_text(
    sampling: SamplingOptions, schema: dict[str, Any]
) -> None:
    """Lists become an enum, whole numbers a number; digits that a number would lose stay text; schemas stay themselves."""
    assert Form("", [Blank(0, "x", sampling)]).schema()["properties"]["x"] == schema


def test_patterns_are_stated_only_where_they_are_wanted() -> None:
    """Then they hold for the whole text."""
    form = Form("", [Blank(0, "x", held(REGEX, "a|bc*"))])
    assert form.schema()["properties"]["x"] == {"type": "string"}
    assert form.schema(patterns=True)["properties"]["x"] == {"type": "string", "pattern": "^(?:a|bc*)$"}


def test_definitions_of_nested_schemas_move_to_the_root() -> None:
    """Two schemas may define one name differently, refer to themselves and to places within; each value is judged as before."""
    tree = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"$ref": {"enum": [{"$ref": "#/$defs/A"}, 1]}, "kids": {"type": "array", "items": {"$ref": "#"}}},
        "additionalProperties": {"$ref": "#/properties/kids"},
    }  # fmt: skip
    first = {
        "$ref": "#/$defs/A",
        "$defs": {"A": {"anyOf": [{"type": "null"}, {"$ref": "#/definitions/A~1b"}]}},
    }
    first["definitions"] = {"A/b": {"type": "integer"}}
    second = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "boolean"}}}
    sources = {"tree": tree, "one": first, "two": second}
    form = Form(
        "", [Blank(n, key, held(JSON_SCHEMA, schema)) for n, (key, schema) in enumerate(sources.items())]
    )
    whole = form.schema()
    assert list(whole) == ["type", "properties", "required", "additionalProperties", "$defs"]
    good = {"tree": {"$ref": 1, "kids": [{}], "x": []}, "one": 3, "two": True}
    bad = {"tree": {"kids": [{"kids": 3}]}, "one": True, "two": 3}
    check = jsonschema.Draft202012Validator(whole)
    check.check_schema(whole)
    assert bytewise.accepts(Constraint(JSON_SCHEMA, json.dumps(whole)), json.dumps(good).encode())
    assert check.is_valid(good)
    assert check.is_valid({**good, "one": None, "tree": {"$ref": {"$ref": "#/$defs/A"}}})
    for key, value in bad.items():
        assert not check.is_valid({**good, key: value})
        assert not jsonschema.Draft202012Validator(sources[key]).is_valid(value)


# answers in JSON


def test_values_are_cut_at_their_stops_and_written_as_constrained_json() -> None:
    """Spelling of numbers stays, white space is that of constrained decoding, keys stand in the schema's order."""
    form = Form("", [Blank(0, "line", LINE), Blank(1, "pet", of_type(Pet)), Blank(2, "n", of_type(float)),
                     Blank(3, "ok", of_type(bool)), Blank(4, "end", SamplingOptions(stop=(".",), no_stop_trim=True))])  # fmt: skip
    answer = (
        '```json\n{"line":"a \\"b\\" é\\nmore", "pet":{"weight":1.50,"friends":[{"name":"\\u00e9\\t","friends":[],"weight":null}],"name":"Bo"},'
        '"n":-0.10, "ok":true, "end":"so. on"}\n```\n'
    )
    assert form.read(answer) == {
        0: 'a "b" é',
        1: '{"name": "Bo", "friends": [{"name": "é\\t", "friends": [], "weight": null}], "weight": 1.50}',
        2: "-0.10",
        3: "true",
        4: "so.",
    }


def test_a_schema_that_wants_no_white_space_gets_none() -> None:
    """What its own form refuses is written in the other one."""
    source = {
        "type": "array",
        "items": {"type": "null"},
        "minItems": 2,
        "x-guidance": {"whitespace_flexible": False},
    }
    form = Form("", [Blank(0, "x", held(JSON_SCHEMA, source))])
    assert form.read('{"x": [null, null]}') == {0: "[null,null]"}
    assert "x-guidance" not in form.schema()["properties"]["x"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Name: Ada", 'expected a JSON object, and there is "Name: Ada" (Expecting'),
        ('{"name": "Ada", "age"', "expected a JSON object"),
        ('["Ada", "36"]', 'expected a JSON object, and there is ["Ada", "36"]'),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": "Ada"}', 'the value of "age" is missing: expected a whole number'),
        ('{"name": "Ada", "age": 3, "sex": "f"}', '"sex" is none of the keys "name", "age"'),
        ('{"name": "Ada", "name": "Bob", "age": 3}', "'name' stands there twice"),
        ('{"name": 7, "age": 3}', '"name": expected text that ends before "\\n", and there is 7'),
        ('{"name": null, "age": 3}', "there is null"),
        ('{"name": "\\ud800", "age": 3}', '"name": expected text'),
        ('{"name": "Ada", "age": 3.5}', '"age": expected a whole number, and there is 3.5'),
        ('{"name": "Ada", "age": "many"}', '"age": expected a whole number, and there is "many"'),
        ('{"name": "Ada", "age": NaN}', "NaN is no JSON"),
        ('{"name": "Ada", "age": [3]}', "there is [3]"),
    ],
)
def test_json_that_does_not_fill_the_form_is_refused(answer: str, why: str) -> None:
    """The reason names the blank, what was expected and what came."""
    form = Form("", [Blank(0, "name", LINE), Blank(1, "age", of_type(int))])
    with pytest.raises(Mismatch) as raised:
        form.read(answer)
    assert why in raised.value.why
    assert len(raised.value.why.encode()) < 700


# the turn's text


FENCED = "```text\nName: Ada\nAge: 36\n```"


@pytest.mark.parametrize(
    "answer", ["Name: Ada\nAge: 36", " \nName: Ada\nAge: 36\n", FENCED, f"\n{FENCED}\n", "Name: Ada\nAge: 36\nAnd so on."]
)  # fmt: skip
def test_a_turn_is_read_letter_by_letter(answer: str) -> None:
    """White space around it, a code fence, and what follows on the last stop are forgiven."""
    assert NAMED.match(answer) == {0: "Ada", 2: "36"}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", 'expected the text "Name: ", and there is the end of the answer'),
        ("Name:Ada\nAge: 36", 'expected the text "Name: "'),
        ("name: Ada\nAge: 36", 'expected the text "Name: "'),
        ("Name: Ada\n\nAge: 36", '{name}: expected text that ends before "\\n", followed by "\\nAge: ", and'),
        ("Name: Ada", '{name}: expected text that ends before "\\n", followed by "\\nAge: "'),
        ("Name: Ada\ud800\nAge: 36", "no valid Unicode"),
        ("x" * 5000, "…"),
    ],
)
def test_a_turn_that_leaves_the_template_is_refused(answer: str, why: str) -> None:
    """Nothing is filled in, and the reason says what was expected where."""
    with pytest.raises(Mismatch) as raised:
        NAMED.match(answer)
    assert why in raised.value.why
    assert len(raised.value.why.encode()) < 400


OPEN = Blank(0, "a")
KEPT = Blank(0, "a", SamplingOptions(stop=(".",), no_stop_trim=True))
ANY = Blank(9, "b")
YES = Blank(8, "c", choices=("yes", "no"))


@pytest.mark.parametrize(
    ("parts", "answer", "texts"),
    [
        ([OPEN, ", ", ANY], "x, y", ("x", "y")),
        ([OPEN, " years"], "three years", ("three",)),
        ([KEPT, " ", ANY], "Yes. No. ", ("Yes.", "No. ")),
        ([KEPT, ANY], "Yes. No.", ("Yes.", " No.")),
        ([OPEN, YES], "oh yes", ("oh ", "yes")),
        ([Blank(0, "a", choices=("y", "n")), ANY], "yes", ("y", "es")),
        ([Blank(0, "a", held(REGEX, "[0-9]+")), ANY], "12 apples", None),
        ([Blank(0, "a", held(REGEX, "[0-9]{2}")), ANY], "12 apples", ("12", " apples")),
        ([Blank(0, "a", held(REGEX, "[0-9]+")), " ", ANY], "12 3 4", ("12", "3 4")),
        ([Blank(0, "a", held(JSON_SCHEMA, {"type": "string"})), ", ", ANY], '"x, \\"y", z', ('"x, \\"y"', "z")),
        ([Blank(0, "a", SamplingOptions(stop_regex=("[,;]",))), "; ", ANY], "x; y; z", ("x", "y; z")),
        ([Blank(0, "a", SamplingOptions(stop_regex=("[,;]",))), "; ", ANY], "x, y; z", None),
        ([OPEN, ", ", YES, "."], "a, b, no.", ("a, b", "no")),
        ([OPEN, ", ", ANY], "x, y, z", None),
        ([OPEN, ANY], "xy", None),
        ([Blank(0, "a", LINE), ANY], "x\ny", None),
        ([Blank(0, "a", LINE), "\n", ANY], "```\nx\ny\n```", None),
        ([Blank(0, "a", LINE), "\n", ANY], "\nx\ny", None),
        ([OPEN], "```\nx\n```", ("```\nx\n```",)),
        ([YES], "```\nyes\n```", ("yes",)),
        ([Blank(0, "a", LINE)], "Sure, here it is:\nx", None),
        ([Blank(0, "a", LINE)], "x\n", ("x",)),
        ([OPEN, "."], "x. y.\n", ("x. y",)),
        ([YES, "."], "yes. I am sure.", None),
        (["\n", OPEN, "\n"], "x", ("x",)),
        ([OPEN, ",", YES, ",", ANY], "a,yes,b,no,c", None),
        (["- ", OPEN, "\n- ", Blank(1, "c"), "\n- ", ANY], "- a\n- b\n- c\n", ("a", "b", "c\n")),
    ],
)  # fmt: skip
def test_a_blank_ends_where_there_is_no_other_way(
    parts: list[str | Blank], answer: str, texts: tuple[str, ...] | None
) -> None:
    """Stops, choices, constraints and the text that follows decide; where two ways are left, none is taken."""
    form = Form("", parts)
    if texts is not None:
        assert tuple(form.match(answer).values()) == texts
        return
    with pytest.raises(Mismatch):
        form.match(answer)


def test_a_mismatch_says_which_end_is_unclear() -> None:
    """So that the model can write something else."""
    cases: list[tuple[list[str | Blank], str, str]] = [
        ([OPEN, ", ", ANY], "x, y, z", "it cannot be told where {a} ends"),
        ([OPEN, ANY], "xy", "nothing tells where {a} ends and {b} begins"),
        ([OPEN, " ", Blank(1, "c"), " ", ANY], " " * 1000, "too many ways"),
        ([Blank(0, "a", LINE), "\n", ANY], "```\nx\ny\n```", '{a} is "```" with what stands around'),
    ]
    for parts, answer, why in cases:
        with pytest.raises(Mismatch) as raised:
            Form("", parts).match(answer)
        assert why in raised.value.why


# any form


LETTERS = 'ab,. \n"{}`é\\'
texts = st.text(LETTERS, max_size=5)
FIXED: dict[str, tuple[SamplingOptions, list[str]]] = {
    "regex": (held(REGEX, "[ab,]+"), ["a", "ab,", ",b"]),
    "digits": (held(REGEX, INTEGER), ["0", "-12"]),
    "list": (held(REGEX, r"a|ab|\n"), ["a", "ab", "\n"]),
    "json": (held(JSON_SCHEMA, {"type": "array", "items": {"type": "string"}}), ["[]", '["a\\n", "b, "]']),
}


@st.composite
def blanks_and_texts(draw: st.DrawFn, number: int) -> tuple[Blank, str]:
    """A blank, and a text that its gen could have ended with."""
    kind = draw(st.sampled_from(["open", "open", "line", "kept", "expression", "choices", *FIXED]))
    name = draw(st.sampled_from(["", "type", "$ref", "required", 'a"b', "x"]))
    if kind in FIXED:
        sampling, known = FIXED[kind]
        return Blank(number, name, sampling), draw(st.sampled_from(known))
    if kind == "choices":
        choices = draw(st.lists(texts.filter(bool), min_size=1, max_size=3, unique=True))
        return Blank(number, name, LINE, tuple(choices)), draw(st.sampled_from(choices))
    stops = {"open": (), "line": ("\n",), "kept": (".", ",,")}.get(kind, ())
    expressions = ("[,.]",) if kind == "expression" else ()
    sampling = SamplingOptions(stop=stops, stop_regex=expressions, no_stop_trim=kind == "kept")
    text = draw(texts) + (draw(st.sampled_from(stops)) if kind == "kept" else "")
    blank = Blank(number, name, sampling)
    return blank, blank.cut(text)


@st.composite
def filled_forms(draw: st.DrawFn) -> tuple[Form, dict[int, str]]:
    """A form, and what its blanks hold."""
    parts: list[str | Blank] = []
    values: dict[int, str] = {}
    for number in range(draw(st.integers(1, 3))):
        blank, values[number] = draw(blanks_and_texts(number))
        parts += [draw(st.one_of(st.sampled_from(["\n", ", ", "\nA: "]), texts)), blank]
    parts.append(draw(texts))
    return Form(draw(texts), parts[draw(st.integers(0, 1)) :]), values


def rendered(form: Form, values: dict[int, str]) -> str:
    """The turn with its blanks filled in."""
    parts = (part if isinstance(part, str) else values[part.number] for part in form.parts)
    return form.written + "".join(parts)


@settings(max_examples=100)
@given(filled_forms())
def test_json_of_values_gives_those_values(case: tuple[Form, dict[int, str]]) -> None:
    """Whatever they hold, and it is what the schema allows."""
    form, values = case
    constraints = {part.number: part.constraint for part in form.parts if isinstance(part, Blank)}
    found: dict[str, Any] = {}
    for number, key in form.keys.items():
        held_by, text = constraints[number], values[number]
        plain = held_by is None or (held_by.kind == REGEX and held_by.source != INTEGER)
        found[key] = text if plain else json.loads(text)
    jsonschema.validate(found, form.schema())
    assert form.read(json.dumps(found)) == values
    assert form.read(f" {json.dumps(found, indent=2, ensure_ascii=False)}\n") == values


@settings(max_examples=200)
@given(filled_forms(), st.sampled_from(["{}", " {}\n", "```\n{}\n```"]))
def test_a_filled_in_turn_gives_its_values_or_nothing(case: tuple[Form, dict[int, str]], around: str) -> None:
    """Never others; with something around it, never others than those with white space at the turn's ends."""
    form, values = case
    try:
        found = form.match(around.replace("{}", rendered(form, values)))
    except Mismatch:
        return
    if around == "{}":
        assert found == values
    elif any(isinstance(part, str) and part.strip() for part in (form.written, *form.parts)):
        assert [text.strip() for text in found.values()] == [text.strip() for text in values.values()]


def ways(parts: list[str | Blank], answer: str) -> list[tuple[str, ...]]:
    """Every way to read an answer, the naive way: all splits."""
    if not parts:
        return [()] if not answer else []
    part, rest = parts[0], parts[1:]
    if isinstance(part, str):
        return ways(rest, answer[len(part) :]) if answer.startswith(part) else []
    found = []
    for end in range(len(answer) + 1):
        text = answer[:end]
        stop = next((at for at in range(end) if text.startswith(part.sampling.stop or "\0", at)), None)
        if stop is None and (not part.choices or text in part.choices):
            found += [(text, *others) for others in ways(rest, answer[end:])]
    return found


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(["a", "b,", ",", SamplingOptions(), SamplingOptions(stop=(",",)), ("a", "ab", "b,")]),
        min_size=1,
        max_size=6,
    ),
    st.text("ab,", max_size=9),
)
def test_a_turn_is_read_if_there_is_exactly_one_way(pieces: list[Any], answer: str) -> None:
    """The same is found as by trying all splits; what is behind the stop of a last blank is left to the other tests."""
    parts: list[str | Blank] = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, str):
            parts.append(piece)
        else:
            own = piece if isinstance(piece, SamplingOptions) else SamplingOptions()
            parts.append(Blank(number, "x", own, piece if isinstance(piece, tuple) else ()))
    assume(any(isinstance(part, Blank) for part in parts))
    last = parts[-1]
    assume(not isinstance(last, Blank) or not last.sampling.stop)
    known = set(ways(parts, answer))
    open_twice = any(
        isinstance(one, Blank) and isinstance(two, Blank) and one.is_open and two.is_open
        for one, two in itertools.pairwise(parts)
    )
    try:
        found = tuple(Form("", parts).match(answer).values())
    except Mismatch:
        assert len(known) != 1 or open_twice
    else:
        assert known == {found}


def test_white_space_that_the_template_begins_with_is_not_only_what_is_forgiven() -> None:
    """Around the answer there may be more of it; if it then reads in two ways, it is filled in in none."""
    form = Form("", ["\n", Blank(0, ""), "\n", Blank(1, ""), "\\"])
    with pytest.raises(Mismatch, match="it cannot be told"):
        form.match(" \n\n\\\n\\\n")
