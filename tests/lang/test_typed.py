"""Types: their constraints accept their values, their adapters read them again, and errors say what is wrong where."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import random
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from sgl_actors.errors import ProgramError, error_class
from sgl_actors.lang import typed
from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, REGEX
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.typed import Form, InvalidValue, adapter, adapter_of

V = TypeVar("V")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"
    DARK = 'dark "blue"'
    DOT = "a.b|c"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 12


class Person(msgspec.Struct):
    """Somebody."""

    name: str
    age: int = 0
    friends: list[Person] = []
    colour: Colour | None = None


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: Annotated[int, Meta(ge=1, le=9)]


class Pair(msgspec.Struct, array_like=True):
    left: int
    when: dt.date
    right: int = 3


class Tagged(msgspec.Struct, tag="t", array_like=True):
    when: dt.time


class Box(msgspec.Struct, Generic[V]):
    value: V


class Renamed(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    first_name: Literal["x", "y"]


@dataclass
class Point:
    x: int
    y: int | None = None


class Film(TypedDict):
    title: str
    year: NotRequired[int]


class Span(NamedTuple):
    start: int
    end: int = 0


class Plain:
    """Says nothing of its fields."""


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=12)
wholes = st.integers(-(10**15) + 1, 10**15 - 1)
decimals = st.integers(-(10**14), 10**14).map(lambda n: n / 10_000)
colours = st.sampled_from(Colour)
people: st.SearchStrategy[Person] = st.recursive(
    st.builds(Person, texts, wholes, st.just([]), st.none() | colours),
    lambda inner: st.builds(Person, texts, wholes, st.lists(inner, max_size=3), st.none() | colours),
    max_leaves=4,
)
naive = st.datetimes()
aware = naive.map(lambda when: when.replace(tzinfo=dt.UTC))

FAMILY: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, wholes),
    (float, decimals | st.floats(1e-9, 1e15) | st.floats(-1e15, -1e-9)),
    (bool, st.booleans()),
    (str, texts),
    (None, st.none()),
    (int | None, wholes | st.none()),
    (int | float, wholes | decimals),
    (int | str | None, wholes | texts | st.none()),
    (UserId, wholes),
    (Annotated[int, Meta(ge=-7, lt=120)], st.integers(-7, 119)),
    (Annotated[int, Meta(multiple_of=3)], st.integers(-1000, 1000).map(lambda n: 3 * n)),
    (Annotated[float, Meta(gt=0, le=1)], st.integers(1, 1000).map(lambda n: n / 1000)),
    (Annotated[str, Meta(pattern="^[a-z]{2,5}$")], st.from_regex(r"[a-z]{2,5}", fullmatch=True)),
    (Annotated[str, Meta(min_length=1, max_length=3)], st.text("abcé", min_size=1, max_size=3)),
    (Annotated[list[int], Meta(max_length=2)], st.lists(wholes, max_size=2)),
    (Colour, colours),
    (Rank, st.sampled_from(Rank)),
    (Literal["yes", "no"], st.sampled_from(["yes", "no"])),
    (Literal["all", 1] | None, st.sampled_from(["all", 1, None])),
    (Literal["a", "b"] | None, st.sampled_from(["a", "b", None])),
    (Person, people),
    (Person | None, people | st.none()),
    (list[Person], st.lists(people, max_size=2)),
    (Circle | Square, st.builds(Circle, decimals) | st.builds(Square, st.integers(1, 9))),
    (list[Circle | Square | None], st.lists(st.none() | st.builds(Circle, decimals), max_size=3)),
    (Pair, st.builds(Pair, wholes, st.dates(), wholes)),
    (Tagged, st.builds(Tagged, st.times())),
    (Box[int], st.builds(Box, wholes)),
    (Box[list[str]], st.builds(Box, st.lists(texts, max_size=2))),
    (Renamed, st.builds(Renamed, st.sampled_from(["x", "y"]))),
    (Point, st.builds(Point, wholes, wholes | st.none())),
    (Film, st.builds(Film, title=texts, year=wholes) | st.builds(Film, title=texts)),
    (Span, st.builds(Span, wholes, wholes)),
    (list[int], st.lists(wholes, max_size=5)),
    (set[int], st.sets(wholes, max_size=5)),
    (frozenset[str], st.frozensets(texts, max_size=3)),
    (tuple[int, str], st.tuples(wholes, texts)),
    (tuple[bool, ...], st.lists(st.booleans(), max_size=4).map(tuple)),
    (dict[str, int], st.dictionaries(texts, wholes, max_size=3)),
    (dict[int, Point], st.dictionaries(wholes, st.builds(Point, wholes), max_size=3)),
    (dict[Literal["a", "b"], int], st.dictionaries(st.sampled_from(["a", "b"]), wholes)),
    (dict[Colour, int], st.dictionaries(colours, wholes)),
    (dict[str, dt.datetime | None], st.dictionaries(texts, aware | naive | st.none(), max_size=2)),
    (list[dict[str, Any]], st.lists(st.dictionaries(texts, wholes | texts, max_size=2), max_size=2)),
    (dt.date, st.dates()),
    (dt.datetime, naive | aware),
    (Annotated[dt.datetime, Meta(tz=True)], aware),
    (Annotated[dt.datetime, Meta(tz=False)], naive),
    (dt.time, st.times()),
    (Annotated[dt.time, Meta(tz=False)], st.times()),
    (dt.timedelta, st.timedeltas(dt.timedelta(-99999), dt.timedelta(99999))),
    (decimal.Decimal, st.integers(-(10**12), 10**12).map(lambda n: decimal.Decimal(n).scaleb(-3))),
    (uuid.UUID, st.uuids()),
    (bytes, st.binary(max_size=9)),
]
names = [str(type_).replace(__name__ + ".", "") for type_, _ in FAMILY]


@pytest.mark.parametrize(("type_", "values"), FAMILY, ids=names)
@settings(deadline=None)
@given(data=st.data())
def test_a_value_written_as_json_is_accepted_and_read_again(
    type_: Any, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """The JSON of every value of a type matches the type's constraint and decodes to an equal value."""
    value = data.draw(values)
    text = msgspec.json.encode(value).decode()
    known = adapter(type_)
    assert bytewise.accepts(known.json_constraint, text.encode())
    assert known.decode_json(text) == value
    if known.form is Form.JSON:
        assert known.decode(f" {text}\n") == value


@pytest.mark.parametrize(
    "type_",
    [
        int,
        float,
        bool,
        int | None,
        Rank,
        Literal["all", 1] | None,
        Annotated[int, Meta(ge=-7, lt=120)],
        list[int],
        tuple[bool, Rank],
        Box[float],
        Square | Circle,
        dict[int, bool],
        dt.timedelta,
        decimal.Decimal,
        Annotated[list[Box[Colour]], Meta(max_length=3)],
    ],
    ids=str,
)
@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_what_a_constraint_lets_be_written_is_a_value(type_: Any, seed: int) -> None:
    """Texts drawn at random under a type's constraint, byte by byte, decode to values of it."""
    known = adapter(type_)
    assert known.constraint is not None
    matcher = bytewise._compiled(known.constraint).deep_copy()
    written = bytearray()
    draw = random.Random(seed)
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [value for value in range(256) if mask[value // 8] >> value % 8 & 1]
        if not allowed or (matcher.is_accepting() and draw.random() < 0.3):
            break
        closing = [value for value in allowed if value in b']}",']
        value = draw.choice(closing if closing and len(written) > 60 else allowed)
        assert matcher.consume_token(value)
        written.append(value)
    known.decode(written.decode())


def test_numbers_cannot_run_away() -> None:
    """No number of a constraint is longer than its bound, alone or inside of a value, however long the model would go on."""
    for type_ in (
        int,
        float,
        list[int],
        Box[float],
        Annotated[float, Meta(ge=0)],
        Annotated[int, Meta(ge=0)],
    ):
        constraint = adapter(type_).json_constraint
        beginning = b"" if constraint.kind == REGEX or type_ not in (list[int], Box[float]) else b'{"value":'
        start = b"[" if type_ == list[int] else beginning
        for digits in (b"1" * 40, b"0." + b"3" * 40):
            assert (
                bytewise.is_beginning(constraint, start + digits[:9])
                or bytewise.accepts(constraint, digits[:9])
                or digits[1:2] == b"."
            )
            assert not bytewise.is_beginning(constraint, start + digits)
            assert not bytewise.accepts(constraint, start + digits)


@pytest.mark.parametrize(
    ("type_", "form", "kind"),
    [
        (str, Form.TEXT, None),
        (Annotated[str, Meta(description="a name")], Form.TEXT, None),
        (NewType("Name", str), Form.TEXT, None),
        (Literal["yes", "no"], Form.CHOICE, REGEX),
        (Colour, Form.CHOICE, REGEX),
        (Rank, Form.JSON, REGEX),
        (int, Form.JSON, REGEX),
        (float | None, Form.JSON, REGEX),
        (dt.datetime, Form.JSON, JSON_SCHEMA),
        (Annotated[str, Meta(max_length=3)], Form.JSON, JSON_SCHEMA),
        (Person, Form.JSON, JSON_SCHEMA),
        (Colour | None, Form.JSON, REGEX),
    ],
    ids=str,
)
def test_the_form_in_which_a_value_stands(type_: Any, form: Form, kind: str | None) -> None:
    """Strings stand free, choices without quotes, everything else as JSON."""
    known = adapter(type_)
    assert known.form is form
    assert (known.constraint and known.constraint.kind) == kind


def test_bare_forms_ignore_white_space_and_text_does_not() -> None:
    """Numbers and choices may have white space around them; free text is kept as it is."""
    assert adapter(int).decode(" 12\n") == 12
    assert adapter(Colour).decode(' dark "blue"\n') is Colour.DARK
    assert adapter(Literal[" a", "a"]).decode(" a") == " a"
    assert adapter(str).decode(" x\n") == " x\n"


def test_schemas_are_strict() -> None:
    """Objects of known fields take no others, fields stand in their order, dictionaries stay open; the description is kept."""
    schema = adapter(Person).schema["$defs"]["Person"]
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]) == ["name", "age", "friends", "colour"]
    assert schema["required"] == ["name"]
    assert schema["description"] == "Somebody."
    assert adapter(dict[str, int]).schema == {"type": "object", "additionalProperties": {"type": "integer"}}
    constraint = adapter(Person).constraint
    assert constraint is not None
    assert "Somebody" not in constraint.source


@pytest.mark.parametrize(
    ("type_", "text", "words"),
    [
        (Person, '{"name": "Ada", "age": "x"}', ["Person", "$.age", "Expected `int`", '"x"']),
        (list[Person], '[{"name": "a"}, {"name": 1}]', ["list[Person]", "$[1].name", "got `int`"]),
        (Person, '{"name": "Ada"} and more', ["Person", "trailing characters"]),
        (Colour, "green", ["Colour", "'green'"]),
        (int, "many", ["int", "'many'"]),
        (int, "1.5", ["int", "float"]),
        (dt.date, '"2023-02-29"', ["date", "2023-02-29"]),
        (list[Any], "[" * 100_000, ["list[Any]"]),
        (Person, "\ud83d", ["Person", "surrogate"]),
        (Literal["a", "b"], "\ud83d", ["Literal['a', 'b']"]),
    ],
)
def test_wrong_values_are_named(type_: Any, text: str, words: list[str]) -> None:
    """The error names the type, the place inside, and what was found."""
    with pytest.raises(InvalidValue) as caught:
        adapter(type_).decode(text)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (Person, ""),
        (Person, '{"name": "A'),
        (Person, '{"name": "A\\u00'),
        (Person, '{"age": 3, "name"'),
        (int, " -"),
        (float, "1."),
        (bool, "tru"),
        (Literal["abc", "b"], "ab"),
        (list[int], "[1, 2"),
        (dt.date, '"2024-0'),
    ],
)
def test_a_text_that_was_cut_off_asks_for_more_tokens(type_: Any, text: str) -> None:
    """The beginning of a value is told from a wrong one: the way out is max_tokens."""
    with pytest.raises(
        InvalidValue, match=r"ended before the value of type .* was complete: give it more max_tokens"
    ):
        adapter(type_).decode(text)


def test_invalid_value_travels_by_its_code() -> None:
    """A failure of a branch in another process is raised as the same class."""
    assert error_class("invalid_value") is InvalidValue
    assert issubclass(InvalidValue, ProgramError)


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        (object, ["object", "fields"]),
        (Callable, ["Callable"]),
        (Callable[[int], int], ["Callable"]),
        (Plain, ["Plain", "fields"]),
        (list[Plain], ["list[Plain]", "fields of", "Plain"]),
        (int | list[int] | set[int], ["more than one array-like"]),
        ("Person", ["'Person'"]),
        (3, ["3"]),
        (enum.Enum("Mixed", {"A": 1, "B": "b"}), ["Mixed", "str or all int"]),
        (Annotated[str, Meta(pattern="^(?=a)")], ["look-around"]),
        (Annotated[int, Meta(ge=5, le=3)], ["constraint"]),
    ],
    ids=str,
)
def test_types_without_a_schema_are_refused(type_: Any, words: list[str]) -> None:
    """What no text can be a value of is refused when it is named, with the reason."""
    with pytest.raises(InvalidPrimitive) as caught:
        adapter(type_)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_an_unresolved_name_is_refused() -> None:
    """A field whose annotation names nothing is the caller's mistake, and named."""
    broken = msgspec.defstruct("Broken", [("x", "Missing")])
    with pytest.raises(InvalidPrimitive, match=r"Broken.*Missing"):
        adapter(broken)


def test_adapters_are_found_again_by_their_key() -> None:
    """One type has one adapter, whose key is readable, and different types have different keys."""
    known = adapter(list[Person])
    assert adapter(list[Person]) is known
    assert adapter_of(known.key) is known
    assert "Person" in known.key
    assert adapter(Person).key.startswith(f"{__name__}.Person#")
    assert adapter_of("nothing") is None
    keys = {adapter(type_).key for type_, _ in FAMILY}
    assert len(keys) == len(FAMILY)


def test_classes_that_look_the_same_are_told_apart() -> None:
    """Two classes of one name and schema, as a notebook makes them, have keys of their own and give values of their own."""
    first, second = (msgspec.defstruct("Twin", [("x", int)], module=__name__) for _ in range(2))
    assert adapter(first).key != adapter(second).key
    assert type(adapter(first).decode('{"x": 1}')) is first
    assert type(adapter(second).decode('{"x": 1}')) is second


def test_a_type_that_cannot_be_hashed_works() -> None:
    """Annotations may hold anything; such a type is made anew each time."""
    known = adapter(Annotated[int, ["anything"]])
    assert known.decode("3") == 3
    assert adapter_of(known.key) is known


def test_few_adapters_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types made in a loop do not pile up: those used last are kept."""
    monkeypatch.setattr(typed, "_adapters", typed._adapters.copy())
    monkeypatch.setattr(typed, "_keys", dict(typed._keys))
    monkeypatch.setattr(typed, "ADAPTERS", len(typed._adapters) + 2)
    kinds = [msgspec.defstruct(f"Kind{number}", [("x", int)]) for number in range(4)]
    keys = [adapter(kinds[0]).key]
    for kind in kinds[1:]:
        keys.append(adapter(kind).key)
        assert adapter_of(keys[0]) is not None
    assert len(typed._adapters) == typed.ADAPTERS
    assert len(typed._keys) <= typed.ADAPTERS
    assert adapter(kinds[0]).type is kinds[0]


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(alias="Name", description="of somebody")
    age: int = pydantic.Field(gt=3)
    tags: set[str] = set()
    price: decimal.Decimal = decimal.Decimal(0)
    when: dt.datetime | None = None
    link: pydantic.AnyUrl | None = None
    next: Model | None = None

    @pydantic.field_validator("name")
    @classmethod
    def capital(cls, name: str) -> str:
        if not name[:1].isupper():
            raise ValueError("a name begins with a capital")
        return name


@pydantic.dataclasses.dataclass
class Checked:
    x: Annotated[int, pydantic.Field(ge=5)]


@dataclass
class Holder:
    model: Model


def test_pydantic_models_are_read_by_pydantic() -> None:
    """Models, lists and dataclasses of them decode with their aliases, bounds and validators."""
    text = '{"Name": "Ada", "age": 36, "tags": ["x"], "price": 1.5, "next": {"Name": "Bob", "age": 4}}'
    found = adapter(Model).decode(text)
    assert found == Model(
        Name="Ada", age=36, tags={"x"}, price=decimal.Decimal("1.5"), next=Model(Name="Bob", age=4)
    )
    known = adapter(list[Model])
    assert bytewise.accepts(known.json_constraint, f"[{text}]".encode())
    assert known.decode(f"[{text}]") == [found]
    assert adapter(Holder).decode(f'{{"model": {text}}}') == Holder(found)
    assert adapter(Checked).decode('{"x": 5}') == Checked(5)
    assert adapter(Annotated[int, pydantic.Field(gt=3)]).decode("4") == 4


@pytest.mark.parametrize(
    ("type_", "text", "words"),
    [
        (Model, '{"Name": "Ada", "age": 1}', ["Model", "$.age", "greater than 3"]),
        (list[Model], '[{"Name": "ada", "age": 9}]', ["$[0].Name", "begins with a capital"]),
        (Checked, '{"x": 4}', ["$.x", "greater than or equal to 5"]),
        (Annotated[int, pydantic.Field(gt=3)], "3", ["greater than 3"]),
        (Model, '{"Name": "Ada", "ag', ["give it more max_tokens"]),
    ],
)
def test_what_pydantic_refuses_is_named(type_: Any, text: str, words: list[str]) -> None:
    """Validators of a model raise the same error as any other mismatch."""
    with pytest.raises(InvalidValue) as caught:
        adapter(type_).decode(text)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_pydantic_is_not_imported_for_other_types() -> None:
    """Programs without pydantic models do not pay for it, nor for the engine before the first constraint."""
    code = (
        "import sys, sgl_actors.lang.typed as typed, sgl_actors.lang.constraints.values as values\n"
        "assert not {'llguidance', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "typed.adapter(list[int]).decode('[1]')\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
