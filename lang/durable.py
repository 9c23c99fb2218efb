"""What a durable program is known by, and what of it can be recorded: its function, its arguments, what it returned."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

import msgspec

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.results import Outcome, Usage, restorable

PROGRAM_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""What the id of a durable program matches as a whole: it stands in the ids of its requests."""
RESUMED: Final = "sgl_actors_resumed_"
"""Before the name of a script that a resume has imported."""
_FAULTS: Final = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class Durable(msgspec.Struct, frozen=True):
    """Under which id a run is recorded, and what is needed to run it again.

    Attributes:
        id: of the program.
        journal: the file; "" is the user's own (see `actors.programs.journal.journal_file`).
        function: where the body is, as ``module:name`` or ``/path/file.py:name``.
        arguments: JSON of the arguments by name.
    """

    id: str
    journal: str
    function: str
    arguments: bytes


class Past(msgspec.Struct, frozen=True):
    """What a finished durable program has left.

    Attributes:
        outcome: of its root stream.
        value: msgpack of what the body returned.
        seed: what it ran with.
        usage: of all its streams.
    """

    outcome: Outcome
    value: bytes
    seed: int
    usage: Usage

    @property
    def adapters(self) -> set[str]:
        """What makes values of its texts (`results.restore`)."""
        return {adapter for outcome in self.outcome.walk() for adapter in outcome.adapters.values()}

    @property
    def known(self) -> bool:
        """Whether this process has all adapters: they are made where the body states a type."""
        return all(restorable(adapter) for adapter in self.adapters)


def durable_of(
    where: str, body: Callable[..., Any], arguments: Mapping[str, Any], durable: object, program_id: object
) -> Durable | None:
    """What `run(durable=…, id=…)` says; None if the run is not to be recorded.

    Raises:
        InvalidPrimitive: one is given without the other, the id is none, or an argument cannot be recorded.
    """
    if durable is False and program_id is None:
        return None
    if durable is False:
        raise InvalidPrimitive(f"{where}: id={program_id!r:.80} is for durable=True", param="id")
    if durable is not True and not isinstance(durable, str | Path):
        raise InvalidPrimitive(
            f"{where}: durable is True, or the journal's file, not {durable!r:.80}", param="durable"
        )
    return Durable(
        check_id(where, program_id),
        "" if durable is True else str(durable),
        reference(body),
        pack_arguments(where, body, arguments),
    )


def check_id(where: str, program_id: object) -> str:
    """The id; `InvalidPrimitive` for what is none."""
    if isinstance(program_id, str) and PROGRAM_ID.fullmatch(program_id):
        return program_id
    raise InvalidPrimitive(
        f"{where}: a durable program has an id of 1 to 100 letters, digits, dots, dashes and underscores, the first no dot or dash, "
        f"not {program_id!r:.80}",
        param="id",
    )


def reference(body: Callable[..., Any]) -> str:
    """Where a body can be imported from: ``module:name``; of a script, ``/path/file.py:name``."""
    module = sys.modules.get(body.__module__)
    home = body.__module__
    if module is not None and (home == "__main__" or home.startswith(RESUMED)):
        spec = getattr(module, "__spec__", None)
        file = getattr(module, "__file__", None)
        if spec is not None and home == "__main__":  # python -m
            home = spec.name
        elif file:
            home = str(Path(file).absolute())
    return f"{home}:{body.__qualname__}"


def pack_arguments(where: str, body: Callable[..., Any], arguments: Mapping[str, Any]) -> bytes:
    """JSON of the arguments.

    Raises:
        InvalidPrimitive: one has no JSON, or its JSON gives another value back; `param` names it.
    """
    types = hints(body)
    for name, value in arguments.items():
        try:
            again = msgspec.json.decode(msgspec.json.encode(value), type=types.get(name, Any))
        except _FAULTS as error:
            raise InvalidPrimitive(
                f"{where}: argument {name!r} of a durable program cannot be recorded: {error}; give what it is made from",
                param=name,
            ) from None
        if again != value:
            raise InvalidPrimitive(
                f"{where}: argument {name!r} of a durable program is recorded as JSON and would come back as {again!r:.80}, not {value!r:.80}; "
                "annotate the parameter with its type",
                param=name,
            )
    return msgspec.json.encode(arguments, order="sorted")


def unpack_arguments(body: Callable[..., Any], data: bytes) -> dict[str, Any]:
    """The arguments again, as the body's annotations say."""
    types = hints(body)
    raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return {name: msgspec.json.decode(value, type=types.get(name, Any)) for name, value in raw.items()}


def pack_value(body: Callable[..., Any], value: Any) -> bytes | None:
    """What the body returned, as msgpack; None if that would not give the same back."""
    try:
        data = msgspec.msgpack.encode(value)
        again = unpack_value(body, data)
        return data if type(again) is type(value) and again == value else None
    except _FAULTS:
        return None


def unpack_value(body: Callable[..., Any], data: bytes) -> Any:
    """What the body returned: plain data, or what its annotation says."""
    return msgspec.msgpack.decode(data, type=hints(body).get("return", Any))


def plain(where: str, value: Any) -> bytes:
    """Plain data as msgpack; `InvalidPrimitive` for what would come back as something else."""
    try:
        data = msgspec.msgpack.encode(value)
        again = msgspec.msgpack.decode(data)
    except _FAULTS as error:
        raise InvalidPrimitive(f"{where}: {type(value).__name__} is no plain data: {error}") from None
    if again != value:
        raise InvalidPrimitive(
            f"{where}: returned {value!r:.80}, which is recorded as {again!r:.80}; return plain data (None, bool, int, float, str, bytes, list, dict)"
        )
    return data


def hints(body: Callable[..., Any]) -> dict[str, Any]:
    """The body's annotations; without those that cannot be looked up."""
    try:
        found = get_type_hints(body, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
    known = {}
    for name, hint in found.items():
        try:
            msgspec.json.Decoder(hint)
        except TypeError:
            continue
        known[name] = hint
    return known
