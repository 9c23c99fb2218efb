"""The body of a request to the OpenAI API and to the servers that speak it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from sgl_actors.actors.tokenizer.messages import ChatMessage, SamplingOptions
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.backends.capabilities import Capabilities
from sgl_actors.lang.backends.openai_models import (
    LLAMA_CPP,
    OPENAI,
    OWN,
    VLLM,
    explicit,
    sampling_fields,
)
from sgl_actors.lang.backends.strict_schema import strict
from sgl_actors.lang.backends.vendor import Ask, Settings
from sgl_actors.lang.backends.vendor_help import data_url, functions, pieces, schema_of
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, Constraint
from sgl_actors.lang.ir import IMAGE, Media

SCHEMA_NAME: Final = "answer"
DEFAULTS: Final = SamplingOptions()


def request_body(ask: Ask, settings: Settings, dialect: str, capabilities: Capabilities) -> dict[str, Any]:
    """What is sent for `ask`, `model` and the settings' `extra` included.

    Raises:
        InvalidRequest: tools, calls or a constraint that cannot be read.
    """
    body: dict[str, Any] = {"model": settings.model}
    body |= _text(ask, dialect) if settings.api == "completions" else _chat(ask, dialect)
    body |= _sampling(ask, settings, dialect, capabilities)
    if ask.sampling.constraint is not None:
        body |= _constraint(ask.sampling.constraint, settings.api, dialect)
    if ask.count > 1:
        body["n"] = ask.count
    if ask.stream:
        counting = {"continuous_usage_stats": True} if capabilities.counting else {}
        body |= {"stream": True, "stream_options": {"include_usage": True} | counting}
    return body | settings.extra


def wrapped(ask: Ask, dialect: str) -> str:
    """How a constraint has to be asked for where only JSON objects can be had: "text" or "json" within ``{"value": …}``; "" if not so."""
    constraint = ask.sampling.constraint
    if constraint is None or dialect != OPENAI:
        return ""
    if constraint.kind != JSON_SCHEMA:
        return "text"
    return "json" if strict(schema_of(constraint)).wrapped else ""


def _text(ask: Ask, dialect: str) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": ask.text}
    if ask.score:
        body["echo"] = True
    if ask.score or ask.logprobs:
        body["logprobs"] = ask.top_logprobs
    if dialect == VLLM:
        body["add_special_tokens"] = False
    return body | ({"cache_prompt": True} if dialect == LLAMA_CPP else {})


def _chat(ask: Ask, dialect: str) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [_turn(message) for message in ask.messages or ()]}
    if ask.continue_final and dialect != LLAMA_CPP:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if ask.logprobs:
        body |= {"logprobs": True} | ({"top_logprobs": ask.top_logprobs} if ask.top_logprobs else {})
    if functions(ask.tools):
        body |= {"tools": json.loads(ask.tools), "tool_choice": "required"}
    return body | ({"cache_prompt": True} if dialect == LLAMA_CPP else {})


def _turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.media:
        turn["content"] = [_part(piece) for piece in pieces(message)]
    if message.tool_calls:
        turn |= {"content": message.content or None, "tool_calls": _calls(message)}
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _part(piece: str | Media) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    kind = "image_url" if piece.kind == IMAGE else "video_url"
    return {"type": kind, kind: {"url": data_url(piece)}}


def _calls(message: ChatMessage) -> Any:
    try:
        return json.loads(message.tool_calls)
    except ValueError as error:
        raise InvalidRequest(f"tool_calls are no list of calls: {error}", param="messages") from None


def _sampling(ask: Ask, settings: Settings, dialect: str, capabilities: Capabilities) -> dict[str, Any]:
    options = ask.sampling
    body: dict[str, Any] = {}
    if options.max_tokens is not None:
        chat = settings.api == "chat" and dialect == OPENAI
        body["max_completion_tokens" if chat else "max_tokens"] = options.max_tokens
    if stops := _stops(ask, dialect, capabilities):
        body["stop"] = stops
    if options.seed is not None and capabilities.seed:
        body["seed"] = options.seed
    if options.logit_bias and capabilities.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in options.logit_bias}
    fields, always = sampling_fields(dialect), explicit(dialect)
    for name in capabilities.sampling:
        value = getattr(options, name)
        if name in always or value != getattr(DEFAULTS, name):
            body[fields.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return body


def _stops(ask: Ask, dialect: str, capabilities: Capabilities) -> Sequence[str]:
    """The stops that are sent: as many as are taken, none where they would end something else than the text, or be lost although they belong to it."""
    options = ask.sampling
    if (
        ask.tools
        or wrapped(ask, dialect)
        or (options.no_stop_trim and "no_stop_trim" not in capabilities.sampling)
    ):
        return ()
    return options.stop[: capabilities.stops]


def _constraint(constraint: Constraint, api: str, dialect: str) -> dict[str, Any]:
    source: Any = constraint.source
    if dialect == OPENAI:
        made = strict(schema_of(constraint))
        return _format(made.schema, strict=made.strict)
    if constraint.kind == JSON_SCHEMA:
        if dialect == LLAMA_CPP and api == "completions":
            return {"json_schema": schema_of(constraint)}
        return {"json_schema": source} if dialect == OWN else _format(schema_of(constraint), strict=True)
    if constraint.kind == CHOICE:
        source = schema_of(constraint)["properties"]["value"]["enum"]
    return {"structured_outputs": {constraint.kind: source}} if dialect == VLLM else {constraint.kind: source}


def _format(schema: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    wanted = {"name": SCHEMA_NAME, "schema": schema, "strict": strict}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}
