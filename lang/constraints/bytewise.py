"""llguidance over single bytes: what a constraint accepts, decided without a model's tokenizer.

It is the engine that nodes use, and sources are read as nodes read them, so what is refused or accepted here is refused or accepted there, in the same words. It is imported when the
first constraint is made (50 ms). Nothing here is changed after it was made, so threads may share it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.choice import texts
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.constraints.regular import any_of, literal

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

COMPILED: Final = 256
"""Constraints that are kept compiled."""
_PLACE: Final = re.compile(r"regex parse error:\n {4}.*\n {4}( *)\^.*\nerror: (.*)")
NOT_REGULAR: Final = re.compile(r"lookarounds not supported yet; (\w+)")
_POSITION: Final = re.compile(r"^at \d+\(\d+\): ")
LOOKS: Final = {
    "Start": "^",
    "End": "$",
    "StartLF": "^",
    "EndLF": "$",
    "WordUnicode": r"\b",
    "WordUnicodeNegate": r"\B",
}


class _Bytes:
    """A vocabulary of the 256 bytes and an end token, as `LLTokenizer` reads it."""

    eos_token_id: Final = 256
    bos_token_id: Final = None
    special_token_ids: Final = (256,)
    tokens: Sequence[bytes] = (*(bytes([value]) for value in range(256)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _vocabulary() -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


@functools.lru_cache(maxsize=COMPILED)
def _compiled(constraint: Constraint) -> LLMatcher:
    from llguidance import LLMatcher

    if constraint.kind == REGEX:
        grammar = LLMatcher.grammar_from_regex(constraint.source)
    elif constraint.kind == JSON_SCHEMA:
        grammar = LLMatcher.grammar_from_json_schema(constraint.source)
    elif constraint.kind == CHOICE:
        grammar = LLMatcher.grammar_from_regex(any_of(map(literal, texts(constraint.source))))
    else:
        grammar = LLMatcher.grammar_from_lark(constraint.source)
    return LLMatcher(_vocabulary(), grammar, log_level=0)


def refusal(constraint: Constraint) -> str:
    """Why the engine cannot take this constraint, with the place where it knows it; "" if it can."""
    if misread := _misread(constraint):
        return misread
    compiled = _compiled(constraint)
    if compiled.is_error():
        return _reason(compiled.get_error())
    return "" if first_bytes(constraint) or accepts(constraint, b"") else "there is no text that it allows"


def _misread(constraint: Constraint) -> str:
    """What is wrong with the source in itself, as a node says it before any engine sees it; "" if nothing is."""
    from sgl_actors.lang.constraints.grammar import Declined
    from sgl_actors.lang.constraints.regex_syntax import parse
    from sgl_actors.lang.constraints.schema_vetting import vet_schema

    try:
        if constraint.kind == REGEX:
            parse(constraint.source)
        elif constraint.kind == JSON_SCHEMA:
            vet_schema(constraint.source)
    except Declined:
        return ""
    except InvalidRequest as error:
        return error.message.removeprefix(f"{constraint.kind}: ")
    return ""


def _reason(error: str) -> str:
    if found := _PLACE.search(error):
        return f"{found[2]} at character {len(found[1]) + 1}"
    if found := NOT_REGULAR.search(error):
        return f"{LOOKS.get(found[1], found[1])} is not supported inside an expression"
    return _POSITION.sub("", error.partition("\n")[0])


def ends(constraint: Constraint, data: bytes, start: int = 0) -> list[int]:
    """Every end such that the constraint allows `data[start:end]`, the last one first."""
    matcher = _compiled(constraint).deep_copy()
    found = [start] if matcher.is_accepting() else []
    for at in range(start, len(data)):
        if not matcher.try_consume_tokens([data[at]]):
            break
        if matcher.is_accepting():
            found.append(at + 1)
    return found[::-1]


def accepts(constraint: Constraint, data: bytes) -> bool:
    """Whether the constraint allows all of `data`."""
    matcher = _compiled(constraint).deep_copy()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


def is_beginning(constraint: Constraint, data: bytes) -> bool:
    """Whether `data` was cut off: the constraint does not allow it, but something that begins with it."""
    matcher = _compiled(constraint).deep_copy()
    return matcher.try_consume_tokens(list(data)) == len(data) and not matcher.is_accepting()


def first_bytes(constraint: Constraint) -> frozenset[int]:
    """The bytes that what the constraint allows can begin with."""
    mask = _compiled(constraint).deep_copy().compute_bitmask()
    return frozenset(value for value in range(256) if mask[value // 8] >> value % 8 & 1)
