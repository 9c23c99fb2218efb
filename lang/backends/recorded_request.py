"""What a recorded request asks, and its key: a hash of what an answer depends on, and of nothing that is another one in each run. No I/O.

No ids, no times and no tenants are part of it, and no seed, because runs draw one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Any, Final, TypeAlias

import msgspec

from sgl_actors.actors.tokenizer.messages import ChatMessage, Generate, SamplingOptions, Tokenize
from sgl_actors.lang.ir import Media
from sgl_actors.lang.protocols import Call

TOKENIZE: Final = "tokenize"
PIN: Final = "pin"

Prompt: TypeAlias = str | list[int | dict[str, Any]]
"""Text, token ids, or the messages of a chat."""


class Asked(msgspec.Struct, frozen=True):
    """What an answer depends on.

    Attributes:
        what: `TOKENIZE`, `PIN`, or "" for a request to the model.
        prompt: see `Prompt`. Of images and videos only a hash.
        options: all else, without what is as by default.
    """

    what: str
    prompt: Prompt
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """A hash of it."""
        text = json.dumps([self.what, self.prompt, self.options], sort_keys=True, separators=(",", ":"))
        return blake2b(text.encode(), digest_size=10).hexdigest()

    @property
    def shown(self) -> str:
        """The prompt for people."""
        if isinstance(self.prompt, str):
            return self.prompt
        turns = [turn for turn in self.prompt if isinstance(turn, dict)]
        if not turns:
            return json.dumps(self.prompt)
        return "\n".join(
            f"{turn.get('role')}: {turn.get('content')}"
            + "".join(f" {name}={turn[name]}" for name in turn if name not in {"role", "content"})
            for turn in turns
        )


def asked_of(request: Generate, call: Call | None) -> Asked:
    """What a request to the model asks."""
    call = call or Call("")
    sampling = msgspec.structs.replace(request.sampling, seed=None)
    options: dict[str, Any] = {"max_tokens": sampling.max_tokens} | _unusual(sampling, SamplingOptions())
    blank = Generate("")
    for name in ("continue_final", "logprobs", "top_logprobs", "prompt_logprobs_start", "output", "tools"):
        if (value := getattr(request, name)) != getattr(blank, name):
            options[name] = value
    if call.kind == "gen" and call.part:
        options["part"] = call.part
    if call.completions > 1:
        options["completions"] = call.completions
    if call.tools:
        options["call_tools"] = call.tools
    if call.follow:
        options["follow"] = call.follow
    if call.media and request.messages is None:
        options["media"] = [_digest(media) for media in call.media]
    return Asked("", _prompt(request.text, request.input_ids, request.messages), _plain(options))


def tokenizing(request: Tokenize) -> Asked:
    """What a text or chat is to be tokenized as."""
    options = _unusual(
        msgspec.structs.replace(request, text=None, messages=None, tenant="", salt=""), Tokenize()
    )
    return Asked(TOKENIZE, _prompt(request.text, None, request.messages), _plain(options))


def pinning(token_ids: Sequence[int], ttl: float) -> Asked:
    """What is to be kept in the cache."""
    return Asked(PIN, [*token_ids], {"ttl": ttl})


def _prompt(text: str | None, ids: Sequence[int] | None, messages: Sequence[ChatMessage] | None) -> Prompt:
    if messages is not None:
        return [_turn(one) for one in messages]
    return text if text is not None else list(ids or ())


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn = {"role": message.role, "content": message.content}
    unusual = _unusual(msgspec.structs.replace(message, media=()), ChatMessage(message.role, message.content))
    media = [[offset, _digest(item)] for offset, item in message.media]
    return turn | unusual | ({"media": media} if media else {})


def _digest(media: Media) -> str:
    frames = f", {media.frames} frames" if media.frames else ""
    return f"{media.kind} {media.media_type} sha256:{sha256(media.data).hexdigest()}{frames}"


def _unusual(one: msgspec.Struct, usual: msgspec.Struct) -> dict[str, Any]:
    """Fields that are not as by default."""
    pairs = ((name, getattr(one, name)) for name in one.__struct_fields__)
    return {name: value for name, value in pairs if value != getattr(usual, name)}


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(options)))
    return plain
