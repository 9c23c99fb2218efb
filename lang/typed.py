"""Values of types: the schema a type has, the constraint under which a model writes one, and how its text becomes the value.

msgspec does the work, and pydantic for its own models (it is used only where the caller's types are pydantic's).
"""

from __future__ import annotations

import enum
import hashlib
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar, get_args, overload

import msgspec
from msgspec import inspect

from sgl_actors.lang.constraints import bytewise, schema
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.constraints.regular import any_of, literal
from sgl_actors.lang.errors import InvalidPrimitive, ProgramError

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")

ADAPTERS: Final = 4096
"""Types that are remembered, the last used ones."""
SHOWN: Final = 160
"""Characters of a text that an error message shows."""


class InvalidValue(ProgramError):
    """What a model wrote is not a value of the type that was asked for. The message says where, and what was found.

    Under a constraint that happens when the tokens were used up before the value was complete (give more `max_tokens`), or when the type
    asks for what no grammar can say (a validator of its own, a date that does not exist): then run it again.

    Example:
        >>> @function
        ... async def count(s):
        ...     s += "How many? " + gen_int("number")
        ...     return await s["number"]
        >>> await count.run(backend=Mock(["many"]))
        Traceback (most recent call last):
        InvalidValue: program 'count', variable 'number', ...: no value of type int: ...
    """

    code = "invalid_value"


class Form(enum.Enum):
    """How a value stands in a text."""

    TEXT = "the text itself"
    CHOICE = "one of some strings, without quotes"
    JSON = "JSON"


class Library(NamedTuple):
    """How something reads a type: of its text, and of plain data. Both functions raise `Mismatch`."""

    schema: schema.Schema
    decode: Callable[[str], Any]
    convert: Callable[[object], Any]


class Mismatch(Exception):
    """A path like ``$.age`` ("" if it is not known) and why what stands there does not fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter(Generic[T]):
    """All that is to be known about a type.

    Attributes:
        key: names it in this process, readable and unique; `adapter_of` finds it again.
        name: the type as messages show it.
        type: it.
        schema: its JSON schema, strict: objects of known fields take no others, fields stand in order.
        form: how a value stands in a text of its own.
        constraint: under which a model writes such a text; None for `str`: free text.
        json_constraint: under which it writes the value as JSON, whatever its form.
    """

    key: str
    name: str
    type: object
    schema: dict[str, Any]
    form: Form
    constraint: Constraint | None
    json_constraint: Constraint
    _library: Library
    _choices: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Adapter of {self.key}>"

    def decode(self, text: str) -> T:
        """The value that a text in the type's own form stands for. White space around it is ignored, but for `str`.

        Raises:
            InvalidValue: it stands for none, or was cut off.
        """
        if self.form is Form.JSON:
            return self.decode_json(text)
        bare = text if self.form is Form.TEXT or text in self._choices else text.strip()
        return self._checked(text, self.form, lambda: self._library.convert(bare))

    def decode_json(self, text: str) -> T:
        """The value that a JSON text stands for; raises as `decode` does."""
        return self._checked(text, Form.JSON, lambda: self._library.decode(text))

    def _checked(self, text: str, form: Form, read: Callable[[], T]) -> T:
        try:
            return read()
        except Mismatch as mismatch:
            path, why = mismatch.args
        except RecursionError:
            path, why = "", "it is nested too deeply"
        if _is_cut_off(text, self.json_constraint if form is Form.JSON else self.constraint, form):
            raise InvalidValue(
                f"the output ended before the value of type {self.name} was complete: give it more max_tokens; it ends {text[-SHOWN:]!r}"
            )
        place = f" at {path}" if path else ""
        raise InvalidValue(f"no value of type {self.name}{place}: {why}; found {text[:SHOWN]!r}")


def _is_cut_off(text: str, constraint: Constraint | None, form: Form) -> bool:
    """Whether `text` is the beginning of what the constraint allows, or of JSON of structure, and not all of something else."""
    start = text.lstrip()
    known = constraint is not None and bytewise.is_beginning(constraint, start.encode(errors="replace"))
    if form is not Form.JSON:
        return known
    try:
        msgspec.json.decode(start.encode(errors="replace"), type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return known or (start.startswith(("{", "[", '"')) and "truncated" in str(error))
    except RecursionError:
        return False
    return False


_lock = threading.RLock()
_adapters: OrderedDict[str, Adapter[Any]] = OrderedDict()
_keys: dict[object, str] = {}


@overload
def adapter(type_: TypeForm[T]) -> Adapter[T]: ...
@overload
def adapter(type_: object) -> Adapter[Any]: ...
def adapter(type_: object) -> Adapter[Any]:
    """The adapter of a type; made once and remembered.

    Args:
        type_: a msgspec Struct, dataclass, TypedDict, NamedTuple, pydantic model, Enum, Literal, number, bool, str, date or time,
            a list, dict, set, tuple or union of such, also with bounds (`Annotated[int, msgspec.Meta(ge=0)]`).

    Raises:
        InvalidPrimitive: it has no schema: `object`, a function type, a class that says nothing of its fields.

    >>> adapter(list[int]).decode("[1, 2]")
    [1, 2]
    """
    return remembered(type_, lambda: _make(type_))


def remembered(type_: object, make: Callable[[], Adapter[Any]]) -> Adapter[Any]:
    """The adapter of what `type_` is or stands for; `make` makes it unless there is one."""
    with _lock:
        key = _keys.get(type_) if _hashable(type_) else None
        if key is not None:
            _adapters.move_to_end(key)
            return _adapters[key]
        made = make()
        _adapters[made.key] = made
        if _hashable(type_):
            _keys[type_] = made.key
        if len(_adapters) > ADAPTERS:
            _, old = _adapters.popitem(last=False)
            if _hashable(old.type):
                _keys.pop(old.type, None)
        return made


def adapter_of(key: str) -> Adapter[Any] | None:
    """The adapter of that key, if it was made in this process and is still remembered."""
    with _lock:
        if key in _adapters:
            _adapters.move_to_end(key)
        return _adapters.get(key)


def _hashable(type_: object) -> bool:
    """Whether it can be a key; a type annotated with a list, for one, cannot."""
    try:
        hash(type_)
    except TypeError:
        return False
    return True


def _make(type_: object) -> Adapter[Any]:
    name = _name(type_)
    try:
        info = inspect.type_info(type_)
        library = _pydantic(type_) if _is_pydantic(type_, info) else _msgspec(type_)
    except (TypeError, NameError, ValueError, RuntimeError, RecursionError) as error:
        why = str(error).replace("\n", " ") or type(error).__name__
        raise InvalidPrimitive(
            f"type {name} has no JSON schema, so no text can be a value of it: {_reason(why)}"
        ) from None
    constraint = json_constraint_of(library.schema)
    if refusal := bytewise.refusal(constraint):
        raise InvalidPrimitive(f"type {name}: its schema cannot be a constraint: {refusal}")
    form, listed = Form.JSON, schema.choices(library.schema)
    own: Constraint | None = constraint
    if listed:
        form, own = Form.CHOICE, Constraint(REGEX, any_of(map(literal, listed)))
    elif isinstance(_bare(info), inspect.StrType) and schema.is_any_text(library.schema):
        form, own = Form.TEXT, None
    shown = f"{type_.__module__}.{type_.__qualname__}" if isinstance(type_, type) else repr(type_)
    return Adapter(
        key_of(shown, library.schema), name, type_, library.schema, form, own, constraint, library, listed
    )


def json_constraint_of(found: schema.Schema) -> Constraint:
    """Under which a model writes, as JSON, a value that a strict schema allows."""
    pattern = schema.scalar(found, found)
    if pattern is not None:
        return Constraint(REGEX, pattern)
    return Constraint(JSON_SCHEMA, schema.source(schema.constrained(found)))


def _bare(info: Any) -> Any:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def key_of(shown: str, found: schema.Schema) -> str:
    """The same in every process for the same type; of two that cannot be told apart, the second gets a number."""
    digest = hashlib.blake2b(schema.source(found).encode(), digest_size=6).hexdigest()
    key, number = f"{shown.removeprefix('builtins.')[:SHOWN]}#{digest}", 2
    while key in _adapters:
        key, number = f"{key.partition('~')[0]}~{number}", number + 1
    return key


_QUALIFIERS: Final = re.compile(r"('[^']*')|(?:[A-Za-z_<][\w<>]*\.)+")


def _name(type_: object) -> str:
    shown = type_.__qualname__ if isinstance(type_, type) and not get_args(type_) else repr(type_)
    return _QUALIFIERS.sub(lambda found: found[1] or "", shown)[:SHOWN]


def _reason(why: str) -> str:
    """The reason that msgspec gives, without its advice, which is about hooks of its own."""
    _, found, what = why.partition("type ") if why.startswith("Generating JSON schema") else ("", "", why)
    return (
        f"nothing is known of the fields of {what.rpartition(' type ')[2].removesuffix(' is not supported')}"
        if found
        else what
    )


def _msgspec(type_: object) -> Library:
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type_)

    def decode(text: str) -> Any:
        return _msgspec_read(lambda: decoder.decode(text))

    def convert(value: object) -> Any:
        return _msgspec_read(lambda: msgspec.convert(value, type_))

    return Library(schema.schema_of(type_), decode, convert)


def _msgspec_read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (msgspec.MsgspecError, UnicodeError) as error:
        why, _, path = str(error).partition(" - at ")
        raise Mismatch(path.strip("`"), why) from None


def _is_pydantic(type_: object, info: inspect.Type) -> bool:
    """Whether pydantic has to read it: one of its models or dataclasses is part of it, or its annotations are pydantic's."""
    if "pydantic" not in sys.modules:
        return False
    models = any(
        hasattr(getattr(found, "cls", None), "__pydantic_validator__") for found in schema.walk(info)
    )
    return models or _is_annotated_for_pydantic(type_)


def _is_annotated_for_pydantic(type_: object) -> bool:
    origins = (type(item).__module__.partition(".")[0] for item in getattr(type_, "__metadata__", ()))
    return any(origin in {"pydantic", "annotated_types"} for origin in origins) or any(
        _is_annotated_for_pydantic(part) for part in get_args(type_)
    )


def _pydantic(type_: Any) -> Library:
    import pydantic

    known: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(type_)

    def read(how: Callable[[], Any]) -> Any:
        try:
            return how()
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise Mismatch(f"${path}", first["msg"]) from None

    return Library(
        schema.strict(known.json_schema()),
        lambda text: read(lambda: known.validate_json(text)),
        lambda value: read(lambda: known.validate_python(value)),
    )
