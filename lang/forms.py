"""An assistant turn as a form, for models that only ever write whole turns.

Such a model cannot go on with half a turn, so a turn of several gens and selects is asked for at once. Where it follows JSON schemas, its answer is an
object of the blanks' values (`schema`, `instruction`, `read`) and the template is put around them on our side. Where it does not, it writes the whole turn
(`request`), and the blanks are what stands between the template's text (`match`). Either way a text is the value of a blank only if it is what the gen could have ended
with, and only if there is no other way to read the answer; everything else is a `Mismatch`, whose reason tells the model what to mend (`feedback`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from sgl_actors.lang.constraints.constraint import JSON_SCHEMA
from sgl_actors.lang.form_blanks import Blank, Mismatch, quoted, shorten, shown
from sgl_actors.lang.form_matching import fill
from sgl_actors.lang.form_schema import nested, unique
from sgl_actors.lang.form_values import COMPACT, SPACED, Number, ordered, read_json, write_json

__all__ = ["Blank", "Form", "Mismatch"]

BYTES: Final = 2
"""Of text per token, taken low: there has to be room for it."""
_FENCED: Final = re.compile(r"\s*```[^\n`]*\n(.*)```\s*", re.DOTALL)


class Form:
    r"""See the module. It never changes.

    Args:
        written: what the turn holds already.
        parts: what it is to hold: text as it stands and blanks, at least one of them, each with a number of its own.

    Attributes:
        written, parts: those.
        keys: what each blank is called, to the model and in messages, by its number: its variable's name in letters that every API takes, made unique;
            "blank1", with its place among the blanks, for none.

    Example:
        >>> from sgl_actors.actors.tokenizer.messages import SamplingOptions
        >>> from sgl_actors.lang.form_blanks import Blank
        >>> form = Form("Name: ", [Blank(0, "name", SamplingOptions(stop=("\n",))), "\nAge: ", Blank(2, "age")])
        >>> form.read('{"name": "Ada", "age": "36"}')
        {0: 'Ada', 2: '36'}
        >>> form.match("Name: Ada\nAge: 36")
        {0: 'Ada', 2: '36'}
    """

    def __init__(self, written: str, parts: Sequence[str | Blank]) -> None:
        self.written, self.parts = written, tuple(parts)
        self._blanks = [part for part in parts if isinstance(part, Blank)]
        self.keys: dict[int, str] = {}
        for place, blank in enumerate(self._blanks, 1):
            self.keys[blank.number] = unique(blank.name or f"blank{place}", self.keys.values())
        text = "\0".join(part for part in self._whole if isinstance(part, str))
        self._braces = 1
        while any(f"{'{' * self._braces}{key}{'}' * self._braces}" in text for key in self.keys.values()):
            self._braces += 1
        assert self._blanks, "a form has a blank"
        assert len(self.keys) == len(self._blanks), "every blank has a number of its own"

    def __repr__(self) -> str:
        return f"<Form {self.sketch!r:.80}>"

    @property
    def sketch(self) -> str:
        """The turn, with the blanks as ``{name}`` (in more braces if that stands in its text)."""
        return "".join(part if isinstance(part, str) else self._marked(part) for part in self._whole)

    def schema(self, *, patterns: bool = False) -> dict[str, Any]:
        """A strict JSON schema of the blanks' values: an object that has them all, in their order, and nothing else.

        Args:
            patterns: state regular expressions as ``pattern``; not every API takes it, and they are checked by `read` anyway.
        """
        properties: dict[str, Any] = {}
        definitions: dict[str, Any] = {}
        for blank in self._blanks:
            key, source = self.keys[blank.number], _source(blank)
            properties[key] = (
                blank.schema(patterns=patterns) if source is None else nested(source, key, definitions)
            )
        found = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return found | ({"$defs": definitions} if definitions else {})

    def instruction(self) -> str:
        """What to tell the model besides `schema`."""
        keys = ", ".join(quoted(self.keys[blank.number]) for blank in self._blanks)
        return (
            f"Your next turn is written by filling in a form. It reads, with blanks in braces:\n\n{self._framed()}\n\n{self._meanings()}\n\n"
            f"Answer with a JSON object of the blanks' values, whose keys are {keys}, in this order, and with nothing else. A value is exactly what takes its "
            "blank's place: it repeats nothing of what stands around it."
        )

    def request(self) -> str:
        """What to tell a model that follows no schema."""
        return (
            f"Your next turn has to read as follows, letter by letter, with the blanks in braces filled in:\n\n{self._framed()}\n\n{self._meanings()}\n\n"
            "Answer with the whole turn, from its first letter to its last, with what takes the blanks' places instead of them, and with nothing else: no "
            "introduction, no remarks."
        )

    def feedback(self, why: str) -> str:
        """What to tell the model after a `Mismatch`, as the user's next message."""
        return f"That answer does not fit the form: {why}. Answer again in the form that was asked for, and with nothing else."

    def read(self, answer: str) -> dict[int, str]:
        """The text of each blank, by its number, of an answer to `instruction`: each up to its stop, values as constrained JSON is written.

        Raises:
            Mismatch: the answer is no JSON object of the blanks' values, or one is not what its blank may hold.
        """
        fenced = _FENCED.fullmatch(answer)
        try:
            return self._filled(read_json(fenced[1] if fenced else answer))
        except ValueError as error:
            raise Mismatch(f"expected a JSON object, and there is {shown(answer)} ({error})") from None
        except RecursionError:
            raise Mismatch("expected a JSON object, and there is one that is nested too deeply") from None

    def match(self, answer: str) -> dict[int, str]:
        """The text of each blank, by its number, of an answer to `request`.

        The template's text has to be there letter by letter; white space around the answer and a code fence are forgiven.

        Raises:
            Mismatch: it is not, a blank holds what it may not, or there is more than one way to tell where a blank ends.
        """
        texts = fill(self._whole, {number: f"{{{key}}}" for number, key in self.keys.items()}, answer)
        for blank in self._blanks:
            if blank.is_long(texts[blank.number]):
                raise self._too_long(blank, texts[blank.number])
        return texts

    def _too_long(self, blank: Blank, text: str) -> Mismatch:
        return Mismatch(
            f"{quoted(self.keys[blank.number])}: expected {blank.expected:.400} of at most {blank.sampling.max_tokens} tokens, and there is {shown(text)}"
        )

    def max_tokens(self, json: bool) -> int | None:
        """Room for an answer to `instruction` (json) or to `request`; None for any number, if a blank has no limit."""
        limits = [_limit(blank) for blank in self._blanks]
        known = [limit for limit in limits if limit is not None]
        if len(known) < len(limits):
            return None
        if json:
            return (
                8
                + sum(limit + limit // 4 for limit in known)
                + sum(_room(key) + 6 for key in self.keys.values())
            )
        return sum(known) + sum(_room(part) for part in self._whole if isinstance(part, str))

    @property
    def _whole(self) -> tuple[str | Blank, ...]:
        """The turn from its beginning on; texts in direct succession are one."""
        return tuple(_joined((self.written, *self.parts)))

    def _marked(self, blank: Blank) -> str:
        return f"{'{' * self._braces}{self.keys[blank.number]}{'}' * self._braces}"

    def _framed(self) -> str:
        """The sketch in a code fence."""
        sketch, fence = self.sketch, "```"
        while fence in sketch:
            fence += "`"
        return f"{fence}\n{sketch}\n{fence}"

    def _meanings(self) -> str:
        """A line for each blank."""
        return "\n".join(f"{self._marked(blank)}: {blank.expected}" for blank in self._blanks)

    def _filled(self, values: Any) -> dict[int, str]:
        if not isinstance(values, dict):
            raise Mismatch(f"expected a JSON object, and there is {shorten(write_json(values))}")
        if others := values.keys() - self.keys.values():
            raise Mismatch(
                f"{shown(min(others))} is none of the keys {', '.join(map(quoted, self.keys.values()))}"
            )
        return {blank.number: self._value(blank, values) for blank in self._blanks}

    def _value(self, blank: Blank, values: dict[str, Any]) -> str:
        key = self.keys[blank.number]
        if key not in values:
            raise Mismatch(f"the value of {quoted(key)} is missing: expected {blank.expected:.400}")
        texts = dict.fromkeys(blank.cut(text) for text in _texts(blank, values[key]))
        for text in texts:
            if blank.fits(text) and not blank.is_long(text):
                return text
            if blank.fits(text):
                raise self._too_long(blank, text)
        raise Mismatch(
            f"{quoted(key)}: expected {blank.expected:.400}, and there is {shorten(write_json(values[key]))}"
        )


def _source(blank: Blank) -> Any:
    """The schema of its value if it is a JSON value of one; else None."""
    constraint = blank.constraint
    if blank.choices or constraint is None or constraint.kind != JSON_SCHEMA:
        return None
    return msgspec.json.decode(constraint.source)


def _texts(blank: Blank, value: Any) -> Iterator[str]:
    """The ways to write a blank's value as text, best first."""
    source = _source(blank)
    if source is not None:
        for form in (SPACED, COMPACT):
            yield from (write_json(one, form) for one in (value, ordered(value, source)))
    elif isinstance(value, str) and not isinstance(value, Number):
        yield value
    elif not blank.is_open and not isinstance(value, dict | list):
        yield write_json(value)


def _joined(parts: Iterable[str | Blank]) -> Iterator[str | Blank]:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        yield part
        text = ""
    if text:
        yield text


def _limit(blank: Blank) -> int | None:
    return max(map(_room, blank.options)) if blank.options else blank.sampling.max_tokens


def _room(text: str) -> int:
    """Tokens that a text has at most."""
    return len(text.encode()) // BYTES + 2
