"""A node's native HTTP endpoints (`/generate`, `/tokenize`, `/detokenize`, `/cache/pin`) as messages, without I/O.

Requests become JSON bodies, answers become the same `Chunk`s and `TokenIds` that a node's actors send, so that a program cannot
tell over which way it talks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from sgl_actors.actors.scheduler.messages import Decoding, Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import ProtocolError, RemoteError, SglActorsError, error_class
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX

CONSTRAINT_FIELDS = {REGEX: "regex", JSON_SCHEMA: "json_schema", LARK: "lark", CHOICE: "choice"}
"""How `/generate` calls a constraint of each kind."""
RENAMED = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "seed": "sampling_seed"}
DEFAULTS = msgspec.structs.asdict(SamplingOptions())


class Reason(msgspec.Struct, frozen=True):
    """`finish_reason` of an answer."""

    type: str
    matched: int | str | None = None
    message: str = ""
    err_type: str = ""


class Meta(msgspec.Struct, frozen=True):
    """`meta_info` of an answer; log probabilities are (value, token id, text)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    decode_steps: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    held_back_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    finish_reason: Reason | None = None
    input_token_logprobs: list[tuple[float | None, int, str | None]] = []
    output_token_logprobs: list[tuple[float | None, int, str | None]] = []
    output_top_logprobs: list[list[tuple[float | None, int, str | None]] | None] = []


class Answer(msgspec.Struct, frozen=True):
    """One answer of `/generate`; in a stream, all there is so far."""

    text: str = ""
    output_ids: list[int] = []
    meta_info: Meta = Meta()
    error: dict[str, Any] | None = None


class Tokens(msgspec.Struct, frozen=True):
    """Answer of `/tokenize`."""

    tokens: list[int]


class Plain(msgspec.Struct, frozen=True):
    """Answer of `/detokenize`."""

    prompt: str


class Pin(msgspec.Struct, frozen=True):
    """Answer of `/cache/pin`."""

    name: str
    tokens: int
    held: int
    expires_in: float


_answers = msgspec.json.Decoder(Answer)


def generate_body(request: Generate) -> dict[str, Any]:
    """Body of `POST /generate`, as a stream of events. Chats are rendered beforehand (`tokenize_body`)."""
    assert request.messages is None
    params: dict[str, Any] = {}
    constraint = request.sampling.constraint
    if constraint is not None:
        source = constraint.source
        params[CONSTRAINT_FIELDS[constraint.kind]] = (
            msgspec.json.decode(source) if constraint.kind == CHOICE else source
        )
    for name, value in msgspec.structs.asdict(request.sampling).items():
        if value != DEFAULTS[name] and name != "constraint":
            params[RENAMED.get(name, name)] = list(value) if isinstance(value, tuple) else value
    if "logit_bias" in params:
        params["logit_bias"] = {str(token): bias for token, bias in request.sampling.logit_bias}
    prompt: dict[str, Any] = (
        {"text": request.text} if request.text is not None else {"input_ids": request.input_ids}
    )
    if request.salt:
        prompt["cache_salt"] = request.salt
    if request.priority:
        prompt["priority"] = request.priority
    wanted = request.logprobs or request.prompt_logprobs_start >= 0
    body: dict[str, Any] = {**prompt, "sampling_params": params, "rid": request.id, "stream": True}
    if wanted:
        body |= {
            "return_logprob": True,
            "logprob_start_len": request.prompt_logprobs_start,
            "top_logprobs_num": request.top_logprobs,
        }
    return body


def tokenize_body(request: Tokenize) -> dict[str, Any]:
    """Body of `POST /tokenize`."""
    if request.messages is None:
        return {"prompt": request.text, "add_special_tokens": request.add_special_tokens}
    return {
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "add_generation_prompt": request.add_generation_prompt,
        "continue_final_message": request.continue_final,
    }


def pin_body(token_ids: Sequence[int], ttl: float, name: str, salt: str) -> dict[str, Any]:
    """Body of `POST /cache/pin`."""
    named = {"name": name, "cache_salt": salt}
    return {"input_ids": list(token_ids), "ttl": ttl, **{key: value for key, value in named.items() if value}}


class Events:
    """Turns the lines of one `/generate` stream into chunks."""

    def __init__(self) -> None:
        self._text = 0
        self._ids = 0
        self._first = True
        self.done = False

    def line(self, line: str) -> Iterator[Chunk]:
        """Chunks that this line completes: none or one; none for what is known. Raises what the node reports in the stream."""
        if not line.startswith("data:"):
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.done = True
            return
        try:
            answer = _answers.decode(data)
        except (msgspec.DecodeError, ValueError) as error:
            raise ProtocolError(f"/generate: {error}") from None
        if answer.error is not None:
            raise failure(200, data.encode())
        if len(answer.output_ids) >= self._ids and len(answer.text) >= self._text:
            yield self._chunk(answer)

    def _chunk(self, answer: Answer) -> Chunk:
        meta, reason = answer.meta_info, answer.meta_info.finish_reason
        tops = meta.output_top_logprobs[self._ids :]
        logprobs = [
            TokenLogprob(
                token,
                value,
                tuple((t, v) for v, t, _ in (tops[i] or ()) if v is not None) if i < len(tops) else (),
            )
            for i, (value, token, _) in enumerate(meta.output_token_logprobs[self._ids :])
        ]
        chunk = Chunk(
            self._ids,
            answer.output_ids[self._ids :],
            answer.text[self._text :],
            logprobs,
            meta.prompt_tokens,
            meta.cached_tokens,
            [TokenLogprob(token, value) for value, token, _ in meta.input_token_logprobs]
            if self._first
            else [],
            None if reason is None else Finish(reason.type, reason.matched, reason.err_type, reason.message),
            meta.completion_tokens,
            decoding=Decoding(
                meta.decode_steps,
                meta.sampled_tokens,
                meta.forced_tokens,
                meta.held_back_tokens,
                meta.drafted_tokens,
                meta.accepted_tokens,
            ),
        )
        self._first = self._first and not meta.input_token_logprobs
        self._text, self._ids = len(answer.text), len(answer.output_ids)
        return chunk


def failure(status: int, body: bytes) -> SglActorsError:
    """The error that an answer other than 200 stands for; the same class as inside the node."""
    try:
        error = msgspec.json.decode(body)["error"]
        code, message, param = str(error.get("code")), str(error["message"]), error.get("param")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return RemoteError(f"HTTP status {status}: {body[:200].decode(errors='replace')}")
    cls = error_class(code)
    if cls is RemoteError and code != RemoteError.code:
        message = f"HTTP status {status}, {code}: {message}"
    return cls(message, param=param)
