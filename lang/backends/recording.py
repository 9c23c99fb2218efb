"""The form of a recording, without I/O: a file of JSON lines. The first is a `Header`, each further one a `Line`: one request and its answer.

How requests are told apart is `lang.backends.recorded_request`'s part, who gets which answer `lang.backends.replaying`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from sgl_actors.actors.cache.messages import Pinned
from sgl_actors.actors.scheduler.messages import Decoding, Finish
from sgl_actors.actors.tokenizer.messages import (
    Chunk,
    TokenIds,
)
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import ConfigError, SglActorsError, error_class
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.backends.recorded_request import PIN, TOKENIZE, Asked, Prompt
from sgl_actors.lang.errors import ProgramError
from sgl_actors.lang.protocols import ApiModel

VERSION: Final = 1
LISTS: Final = ("token_ids", "tokens", "logprobs", "prompt_logprobs")
"""Fields of a `Chunk` that add up, and stand in a `Line` under the same names."""

T = TypeVar("T")


class NotRecorded(ProgramError):
    """A replay was asked for something that its file has no answer for, or not as often. The message says what comes nearest; record anew.

    Example:
        >>> NotRecorded("gen 'name' of stream 0 was never recorded; record anew").code
        'not_recorded'
    """

    code = "not_recorded"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line.

    Attributes:
        recording: version of the form of the file.
        of: what was recorded, for people.
        takes: kinds of media that the model understands.
        api: what is known of it if it is an API model; see `lang.protocols.Client`.
    """

    recording: int
    of: str
    takes: list[str] = []
    api: ApiModel | None = None


class Used(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an answer took; see `Chunk` and `Decoding`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    sampled: int = 0
    forced: int = 0
    held_back: int = 0
    drafted: int = 0
    accepted: int = 0
    retries: int = 0
    cost: float = 0.0
    shared: bool = False


class End(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Why an answer ended; see `Finish`."""

    reason: str
    matched: int | str | None = None
    code: str = ""
    message: str = ""


class Fault(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An error that reached the program."""

    code: str
    message: str
    param: str | None = None

    def error(self) -> SglActorsError:
        """The exception to raise."""
        return error_class(self.code)(self.message, param=self.param)


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request and its answer.

    Attributes:
        number: how many requests were begun before it; equal ones are answered in that order, whichever was done first.
        kind: "gen", "select" or "prefix" (see `Call`), "tokenize" or "pin".
        variable, stream, node: which primitive of which stream asked. A replay only looks at them to choose among equal requests.
        prompt, options: what was asked.
        text: of the answer; a list of the pieces in which it came, if these were to be kept.
        finish, usage: of the answer; an error may come without.
        token_ids, tokens, logprobs, prompt_logprobs: as in `Chunk`; `token_ids` also of a text that was tokenized.
        pinned: what was pinned.
        error: what was raised, after the text if there is one.
        capabilities: of an API model, where they are no longer those of the header.
        key: of the request, to find it by.
    """

    number: int
    kind: str
    variable: str = ""
    stream: str = ""
    node: int = 0
    prompt: Prompt
    options: dict[str, Any] = {}
    text: str | list[str] = ""
    finish: End | None = None
    usage: Used | None = None
    token_ids: list[int] = []
    tokens: list[str] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    pinned: Pinned | None = None
    error: Fault | None = None
    capabilities: Capabilities | None = None
    key: str = ""

    @property
    def asked(self) -> Asked:
        """What was asked."""
        return Asked(self.kind if self.kind in {TOKENIZE, PIN} else "", self.prompt, self.options)

    def chunks(self, first_index: int = 0) -> Iterator[Chunk]:
        """The answer in its pieces, as far as it came; all but text is in the last one."""
        if self.usage is None:
            return
        pieces = self.text if isinstance(self.text, list) else [self.text]
        for piece in pieces[:-1]:
            yield Chunk(first_index, [], piece, prompt_tokens=self.usage.prompt_tokens)
        used = self.usage
        how = Decoding(used.steps, used.sampled, used.forced, used.held_back, used.drafted, used.accepted)
        yield Chunk(
            first_index, self.token_ids, pieces[-1] if pieces else "", self.logprobs, used.prompt_tokens, used.cached_tokens,
            self.prompt_logprobs, None if self.finish is None else Finish(*msgspec.structs.astuple(self.finish)),
            used.completion_tokens, decoding=how, tokens=self.tokens, retries=used.retries, cost=used.cost, shared=used.shared,
        )  # fmt: skip


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """All chunks of one answer as one."""
    return msgspec.structs.replace(
        chunks[-1],
        first_index=chunks[0].first_index,
        text="".join(chunk.text for chunk in chunks),
        prompt_tokens=max(chunk.prompt_tokens for chunk in chunks),
        cached_tokens=max(chunk.cached_tokens for chunk in chunks),
        **{name: [one for chunk in chunks for one in getattr(chunk, name)] for name in LISTS},
    )


def answered(chunks: Sequence[Chunk], *, pieces: bool) -> dict[str, Any]:
    """Fields of a `Line` for an answer as far as it came; `pieces`: with its text as a list."""
    if not chunks:
        return {}
    whole = joined(chunks)
    counts = (
        (name, getattr(whole if hasattr(whole, name) else whole.decoding, name))
        for name in Used.__struct_fields__
    )
    used = Used(**{name: count for name, count in counts if count})
    finish = None if whole.finish is None else End(*msgspec.structs.astuple(whole.finish))
    texts = [chunk.text for chunk in chunks if chunk.text]
    text = texts if pieces and len(texts) > 1 else whole.text
    fields: dict[str, Any] = {name: getattr(whole, name) for name in LISTS}
    return fields | {"text": text, "usage": used, "finish": finish}


def failed(error: SglActorsError) -> Fault:
    """An error as it is written down."""
    return Fault(error.code, error.message, error.param)


def tokenized(line: Line) -> TokenIds:
    """The answer to a `Tokenize`. A text stands there once."""
    return TokenIds(line.token_ids, str(line.text or line.prompt))


def encode(line: Header | Line) -> bytes:
    """As it stands in the file, its end included."""
    value = msgspec.to_builtins(line)
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value).encode() + b"\n"


def decode(data: bytes, path: str) -> tuple[Header, list[Line]]:
    """A whole file.

    Raises:
        ConfigError: it is none, or one of its lines is damaged; FILE:LINE and what is wrong.
    """
    rows = data.split(b"\n")
    if rows[-1] == b"":
        rows.pop()
    if not rows:
        raise ConfigError(f"{path}: an empty file is no recording; sgl.record(…) writes one")
    header = _decode(rows[0], f"{path}:1", Header)
    if header.recording != VERSION:
        raise ConfigError(
            f"{path}:1: this is a recording of version {header.recording}, here are those of {VERSION}; record anew"
        )
    return header, [
        _checked(_decode(row, f"{path}:{n}", Line), f"{path}:{n}") for n, row in enumerate(rows[1:], 2)
    ]


def _decode(row: bytes, place: str, kind: type[T]) -> T:
    try:
        return msgspec.convert(json.loads(row), kind)
    except (ValueError, RecursionError) as error:  # json's, Unicode's and msgspec's
        what = "no recording begins like this" if kind is Header else "this is no recorded answer"
        raise ConfigError(f"{place}: {what}: {error}; record anew, or put the file back as it was") from None


def _checked(line: Line, place: str) -> Line:
    own = line.asked.key
    if line.key not in {"", own}:
        raise ConfigError(
            f"{place}: its key is not that of what it says was asked, {own}; record anew, or leave the key out"
        )
    if line.error is None and not _whole(line):
        raise ConfigError(f"{place}: this {line.kind} has neither a whole answer nor an error; record anew")
    return line if line.key else msgspec.structs.replace(line, key=own)


def _whole(line: Line) -> bool:
    if line.kind == TOKENIZE:
        return isinstance(line.text, str)
    return line.pinned is not None if line.kind == PIN else None not in (line.finish, line.usage)
