"""`Grammar` over llguidance (https://github.com/guidance-ai/llguidance): Earley's algorithm over lexemes that are derivatives of regexes.

It compiles within milliseconds and makes masks on the fly; where text is forced, it allows only the token that the tokenizer itself would choose
there, so that forced text is canonical. A matcher never raises but falls into an error state; here that becomes `InvalidRequest`. Compiling and filling masks
let go of the interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Final, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints import choice
from sgl_actors.lang.constraints.bytewise import LOOKS, NOT_REGULAR
from sgl_actors.lang.constraints.constraint import (
    CHOICE,
    JSON_FORM,
    JSON_SCHEMA,
    KINDS,
    LARK,
    REGEX,
    Constraint,
)
from sgl_actors.lang.constraints.grammar import Forced, Mask
from sgl_actors.lang.constraints.lark_schemas import strict_lark
from sgl_actors.lang.constraints.regular import any_of, literal
from sgl_actors.lang.constraints.schema_formats import strict_source
from sgl_actors.lang.constraints.tokens import Tokens

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_JSON_OPTIONS = cast("JsonCompileOptions", JSON_FORM)
_SPECIAL = b"\xff"
"""What llguidance puts before a special token in forced text: no text has that byte."""
WEIGHT = 1 << 20
"""Bytes that a compiled source is taken for."""
LONGEST_PROBLEM = 300
"""Characters of llguidance's own words in an error message."""


class LlguidanceCompiler:
    """Makes grammars for one vocabulary. Any number of threads may use it."""

    def __init__(
        self, tokenizer: str, eos_ids: Sequence[int], size: int, tokens: Tokens | None = None
    ) -> None:
        """Set up the vocabulary, which takes some 0.2 s.

        Args:
            tokenizer: the tokenizers library's JSON.
            eos_ids: end tokens.
            size: ids of the model; at least those of the tokenizer.
            tokens: the same vocabulary, where it was set up before.

        Raises:
            InvalidRequest: see `Tokens`; or llguidance does not read this kind of tokenizer.
        """
        self._tokens = tokens or Tokens(tokenizer, eos_ids, size)
        try:
            self._tokenizer = LLTokenizer(self._tokens.tokenizer, n_vocab=size, eos_token=list(eos_ids))
        except Exception as error:  # noqa: BLE001 - a foreign edge: llguidance promises no class
            raise InvalidRequest(f"constraint: this model's tokenizer cannot be used: {error}") from None

    def __repr__(self) -> str:
        return f"<LlguidanceCompiler for {self.size} tokens>"

    @property
    def size(self) -> int:
        """Token ids of a mask."""
        return self._tokens.size

    def compile(self, constraint: Constraint) -> LlguidanceGrammar:
        r"""A grammar at its beginning. Schemas get `JSON_FORM`; ``\d`` in a regex is any Unicode digit.

        Raises:
            InvalidRequest: the source is not what its kind says, or asks for what is not supported; the message says what and, where that is known, at
                which place. `param` is the constraint's kind.
        """
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, _grammar(constraint), log_level=0, limits=limits)
        if matcher.is_error():
            problem = _problem(constraint, matcher.get_error())
            raise InvalidRequest(f"{constraint.kind}: {problem}", param=constraint.kind)
        return LlguidanceGrammar(self._tokens, self._tokenizer, constraint.kind, matcher)


class LlguidanceGrammar:
    """See `grammar.Grammar`. `beginning` is a matcher that nobody moves."""

    def __init__(self, tokens: Tokens, tokenizer: LLTokenizer, kind: str, beginning: LLMatcher) -> None:
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._kind = kind
        self._beginning = beginning
        self._matcher = beginning.deep_copy()
        self._taken = list[int]()  # what the matcher took
        self._ends = 0  # end tokens that came: a matcher takes them without a trace

    def __repr__(self) -> str:
        return f"<LlguidanceGrammar {self._kind} accepting={self.is_accepting} over={self.is_over}>"

    def mask_into(self, row: Mask) -> None:
        """See `Grammar`."""
        assert row.flags.c_contiguous
        if self._ends:
            row[:] = self._tokens.end_mask
            return
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error() or not row.any():
            raise self._failure("no token can come next")

    def advance(self, token: int) -> None:
        """See `Grammar`."""
        if token in self._tokens.eos_ids and (self._ends or self._matcher.is_accepting()):
            self._ends += 1
            return
        if not self._ends:
            self._matcher.consume_token(token)
        if self._ends or self._matcher.is_error():
            raise self._failure(f"token {token} is not allowed here")
        self._taken.append(token)

    def rollback(self, count: int) -> None:
        """See `Grammar`."""
        ends = min(count, self._ends)
        self._ends -= ends
        left = len(self._taken) - (count - ends)
        if left < 0:
            raise self._failure(f"{count} tokens cannot be taken back")
        if count > ends:
            del self._taken[left:]
            self._matcher.rollback(count - ends)
            if self._matcher.is_error():  # it cannot with lexemes that have a `stop` or `max_tokens`
                self._replay()

    def copy(self) -> LlguidanceGrammar:
        """See `Grammar`; takes microseconds."""
        other = LlguidanceGrammar(self._tokens, self._tokenizer, self._kind, self._beginning)
        other._matcher = self._matcher.deep_copy()
        other._taken = self._taken.copy()
        other._ends = self._ends
        return other

    def matches(self, text: str) -> bool:
        """See `Grammar`; false as well for a text that the vocabulary cannot write."""
        try:
            tokens = self._tokenizer.greedy_tokenize(text)
        except UnicodeEncodeError:
            return False
        if self._tokenizer.decode_bytes(tokens) != text.encode():
            return False
        matcher = self._beginning.deep_copy()
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    def forced_text(self) -> str:
        """See `Grammar`."""
        return self._forced().decode("utf-8", "ignore")

    def forced(self) -> Forced:
        """See `Grammar`."""
        data = self._forced()
        if not data:
            return Forced(b"", self.is_over)
        behind = self._behind(data)
        return Forced(data, behind is not None and behind.is_stopped())

    def crossings(self, head: bytes, forced: bytes) -> list[int]:
        """See `Grammar`; one too many only where a byte has no token of its own."""
        data = head + forced
        places = () if self.is_over else self._tokens.beginnings(data)
        behind = self._behind(forced) if places else None
        if behind is None or behind.is_stopped():
            return []
        single = self._tokens.single

        def follow(rest: bytes) -> int:
            known = [single[byte] for byte in takewhile(single.__contains__, rest)]
            taken = behind.validate_tokens(known)
            return len(rest) if taken == len(known) else taken

        return [place for place in places if self._tokens.is_continued(data[place:], follow)]

    @property
    def is_accepting(self) -> bool:
        """See `Grammar`."""
        return self._matcher.is_accepting()

    @property
    def is_over(self) -> bool:
        """See `Grammar`."""
        return self._ends > 0 or (self._matcher.is_stopped() and not self._matcher.is_error())

    def _forced(self) -> bytes:
        """The text that has to come, up to a special token."""
        return b"" if self._ends else self._matcher.compute_ff_bytes().partition(_SPECIAL)[0]

    def _replay(self) -> None:
        """Come anew to where the tokens that are left lead."""
        self._matcher = self._beginning.deep_copy()
        if self._matcher.try_consume_tokens(self._taken) != len(self._taken) or self._matcher.is_error():
            raise self._failure("the output cannot be followed")

    def _behind(self, data: bytes) -> LLMatcher | None:
        """A matcher that wrote `data`; None if it cannot be written."""
        single = self._tokens.single
        try:
            tokens = [single[byte] for byte in data]
        except KeyError:
            tokens = self._tokenizer.tokenize_bytes(data)
        matcher = self._matcher.deep_copy()
        done = matcher.try_consume_tokens(tokens) == len(tokens) and not matcher.is_error()
        return matcher if done and self._tokenizer.decode_bytes(tokens) == data else None

    @property
    def weight(self) -> int:
        """See `Grammar`; llguidance does not say."""
        return WEIGHT

    def _failure(self, what: str) -> InvalidRequest:
        """The matcher's own words quote the output, so only those about limits are passed on."""
        why = self._matcher.get_error().partition("\n")[0]
        limit = f" ({why[:LONGEST_PROBLEM]})" if why.startswith("lexer error") or "limit" in why else ""
        return InvalidRequest(f"{self._kind}: {what}{limit}", param=self._kind)


def _grammar(constraint: Constraint) -> str:
    """The source as llguidance takes it. Only JSON is looked at here; the rest is when it is compiled."""
    if constraint.kind == REGEX:
        return LLMatcher.grammar_from_regex(constraint.source)
    if constraint.kind == CHOICE:
        return LLMatcher.grammar_from_regex(any_of(map(literal, choice.texts(constraint.source))))
    if constraint.kind == LARK:
        return LLMatcher.grammar_from_lark(strict_lark(constraint.source))
    if constraint.kind != JSON_SCHEMA:
        raise InvalidRequest(
            f"constraint: {constraint.kind[:32]!r} is none of {', '.join(KINDS)}", param="constraint"
        )
    try:
        return LLMatcher.grammar_from_json_schema(strict_source(constraint.source), defaults=_JSON_OPTIONS)
    except ValueError as error:
        problem = (
            "a schema has to be a JSON object"
            if "Expecting object" in str(error)
            else f"no valid JSON: {error}"
        )
        raise InvalidRequest(f"{JSON_SCHEMA}: {problem}", param=JSON_SCHEMA) from None


def _problem(constraint: Constraint, words: str) -> str:
    """What llguidance says, without its drawing; for a regex and a Lark grammar with the place in the source."""
    if constraint.kind == REGEX and (look := NOT_REGULAR.search(words)):
        return f"{LOOKS.get(look[1], look[1])} is not supported inside an expression"
    reason = re.search(r"^error: (.+)$", words, re.MULTILINE)
    if constraint.kind == REGEX and reason is not None:
        caret = re.search(r"regex parse error:\n {4}(.*)\n {4}( *)\^", words)
        shown = caret is not None and caret[1] == constraint.source
        place = f" at character {len(caret[2]) + 1} of {len(caret[1])}" if caret and shown else ""
        return f"{reason[1]}{place}"
    line = words.partition("\n")[0]
    if reason is not None:
        line = line.replace("regex parse error:", reason[1])
    if constraint.kind == LARK and (found := re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", line)):
        return f"{_in_own_words(found[3])} at line {found[1]}, column {found[2]}"
    return _in_own_words(line)


_WORDS: Final = {
    "oneOf constraints are not supported": (
        "oneOf: it does not show that no value satisfies two of its options; give them different types, or require a property "
        "with a const of its own in each"
    ),
    "min/maxProperties only supported": (
        "minProperties or maxProperties: not supported beside properties that are not required"
    ),
    "Unsatisfiable schema: Regex is empty": (
        "nothing satisfies the schema: no string is as its pattern, format, minLength and maxLength want it"
    ),
}


def _in_own_words(line: str) -> str:
    """A line of llguidance's; what it says of keywords without their names, or with advice that is refused here, is put in other words."""
    said = line.removeprefix("failed to compile JSON schema: ")
    known = (words for start, words in _WORDS.items() if said.startswith(start))
    return next(known, line[:LONGEST_PROBLEM])
