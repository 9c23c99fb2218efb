"""What speaks the OpenAI API, and what its models can do: by the protocol, the server and the model's name."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec

from sgl_actors.lang.backends.capabilities import NONE, PREFILL, TEXT, Capabilities
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX

OPENAI: Final = "openai"
OWN: Final = "sgl-actors"
VLLM: Final = "vllm"
SGLANG: Final = "sglang"
LLAMA_CPP: Final = "llama.cpp"
OTHER: Final = "other"
DIALECTS: Final = (OPENAI, OWN, VLLM, SGLANG, LLAMA_CPP, OTHER)
OWNERS: Final = {OWN: OWN, VLLM: VLLM, SGLANG: SGLANG, "llamacpp": LLAMA_CPP}
"""Servers by what their `/v1/models` say of who owns a model."""
OFFICIAL: Final = re.compile(
    r"https://([\w.-]+\.)?(openai\.com|openai\.azure\.com|services\.ai\.azure\.com)(:\d+)?(/|$)"
)
"""Addresses of the vendor itself."""

_PENALTIES: Final = ("frequency_penalty", "presence_penalty")
_BASIC: Final = ("temperature", "top_p")
_OPEN: Final = (*_BASIC, *_PENALTIES, "top_k", "min_p", "repetition_penalty", "ignore_eos")
_SERVED: Final = (*_OPEN, "min_tokens", "stop_token_ids", "skip_special_tokens", "no_stop_trim", "stop_regex")
_PLAIN: Final = {
    **{name: name for name in (*_SERVED, "jump_forward")},
    "no_stop_trim": "include_stop_str_in_output",
}
_FIELDS: Final = {
    SGLANG: _PLAIN | {"no_stop_trim": "no_stop_trim"},
    LLAMA_CPP: _PLAIN | {"repetition_penalty": "repeat_penalty"},
}
_EXPLICIT: Final = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})

_REASONING: Final = re.compile(r"(ft:)?(o\d|gpt-([5-9]|\d\d))(?!.*-chat)")
_UNSCHEMED: Final = re.compile(r"(ft:)?(gpt-3|gpt-4(-|$)|gpt-4o-2024-05-13|o1-(mini|preview))")
_BLIND: Final = re.compile(r"(ft:)?(gpt-3|gpt-4($|-\d{4}|-32k)|o1-(mini|preview)|o3-mini)")
_UNTOOLED: Final = re.compile(r"o1-(mini|preview)")


class Found(NamedTuple):
    """What `/v1/models` told of a model.

    Attributes:
        dialect: whose server it is.
        context: tokens that prompt and answer may have together; 0 if unknown.
    """

    dialect: str
    context: int = 0


def found_in(listed: Any, model: str) -> Found:
    """Read an answer of `/v1/models`, whatever it is; a model that is not in it is taken to be like the first one."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    row = next((row for row in rows if row.get("id") == model), rows[0] if rows else {})
    context = row.get("max_model_len")
    return Found(OWNERS.get(str(row.get("owned_by")), OTHER), context if isinstance(context, int) else 0)


def sampling_fields(dialect: str) -> dict[str, str]:
    """How a server calls the sampling arguments that it takes beyond those that all have."""
    return _FIELDS.get(dialect, _PLAIN)


def explicit(dialect: str) -> frozenset[str]:
    """Sampling arguments that are sent always: some servers have defaults of their own, which come with the model."""
    return frozenset({"temperature"}) if dialect in {OPENAI, OTHER} else _EXPLICIT


def reasons(dialect: str, model: str) -> bool:
    """Whether it is one of the vendor's models that think first, and take no sampling arguments."""
    return dialect == OPENAI and bool(_REASONING.match(model))


def capabilities_of(api: str, dialect: str, model: str) -> Capabilities:
    """What a model can do, as far as anyone can tell from outside."""
    found = _OFFICIAL[api](model) if dialect == OPENAI else _SERVERS[dialect]
    if dialect == OPENAI or api == "chat":
        return found
    without = {
        "images": False,
        "videos": False,
        "tools": False,
        "logprobs": -1 if dialect == LLAMA_CPP else found.logprobs,
    }
    scores = dialect in {OWN, VLLM, SGLANG}
    constraints = (JSON_SCHEMA,) if dialect == LLAMA_CPP else found.constraints
    return msgspec.structs.replace(
        found, continuation=TEXT, scoring=scores, constraints=constraints, **without
    )


def _chat(model: str) -> Capabilities:
    schema = not _UNSCHEMED.match(model)
    found = Capabilities(
        continuation=NONE,
        stops=4,
        schema=schema,
        constraints=(REGEX, CHOICE) if schema else (),
        logprobs=20,
        logit_bias=True,
        images=not _BLIND.match(model),
        tools=not _UNTOOLED.match(model),
        seed=True,
        count=128,
        sampling=(*_BASIC, *_PENALTIES),
    )
    if not reasons(OPENAI, model):
        return found
    return msgspec.structs.replace(found, stops=0, logprobs=-1, logit_bias=False, seed=False, sampling=())


def _completions(_: str) -> Capabilities:
    return Capabilities(
        continuation=TEXT,
        stops=4,
        logprobs=5,
        logit_bias=True,
        seed=True,
        count=128,
        sampling=(*_BASIC, *_PENALTIES),
    )


_OFFICIAL: Final = {"chat": _chat, "completions": _completions}
_SERVER: Final = Capabilities(
    continuation=PREFILL,
    stops=None,
    schema=True,
    constraints=(REGEX, JSON_SCHEMA, CHOICE),
    logprobs=20,
    logit_bias=True,
    tokenizer=True,
    tools=True,
    seed=True,
    count=128,
    sampling=tuple(name for name in _SERVED if name != "stop_regex"),
    counting=True,
)
_SERVERS: Final = {
    OWN: msgspec.structs.replace(
        _SERVER, stops=64, constraints=(*_SERVER.constraints, LARK), sampling=(*_SERVED, "jump_forward")
    ),
    VLLM: msgspec.structs.replace(_SERVER, images=True, videos=True),
    SGLANG: msgspec.structs.replace(
        _SERVER, constraints=(REGEX, JSON_SCHEMA), images=True, videos=True, sampling=_SERVED
    ),
    LLAMA_CPP: msgspec.structs.replace(
        _SERVER, constraints=(), images=True, count=1, sampling=_OPEN, counting=False
    ),
    OTHER: Capabilities(),
}
"""What a server's chats can do; of its completions see `capabilities_of`."""
