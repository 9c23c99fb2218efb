"""GET /openapi.json, made from the very structs that requests are decoded with."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from sgl_actors.actors.gateway.cache_types import (
    CacheAnswer,
    CacheEvent,
    PinAnswer,
    PinBody,
    PinsAnswer,
    SchedulerAnswer,
    SchedulerBody,
    UnpinAnswer,
)
from sgl_actors.actors.gateway.errors import ErrorBody
from sgl_actors.actors.gateway.models import LoadBody, ModelsAnswer, UnloadBody
from sgl_actors.actors.gateway.native_types import AbortBody, GenerateBody, Generated
from sgl_actors.actors.gateway.openai_types import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ModelCard,
    ModelList,
)
from sgl_actors.actors.gateway.profile import ProfileAnswer, ProfileBody
from sgl_actors.actors.gateway.sse import EventWriter, LineWriter
from sgl_actors.actors.gateway.tenants import OPEN
from sgl_actors.actors.gateway.tokens import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
    TokenizerAnswer,
)
from sgl_actors.actors.gateway.version import VERSION
from sgl_actors.actors.node.client import CachedEdge

Struct = type[msgspec.Struct]

OPERATIONS: list[tuple[str, str, str, Struct | None, Struct | None, Struct | None]] = [
    ("/v1/chat/completions", "post", "Chat completion", ChatRequest, ChatCompletion, ChatChunk),
    ("/v1/completions", "post", "Completion", CompletionRequest, Completion, Completion),
    ("/v1/models", "get", "List models", None, ModelList, None),
    ("/v1/models/{name}", "get", "One model", None, ModelCard, None),
    ("/models/load", "post", "Load a model", LoadBody, ModelsAnswer, None),
    ("/models/unload", "post", "Unload a model", UnloadBody, ModelsAnswer, None),
    ("/generate", "post", "Native generation", GenerateBody, Generated, Generated),
    ("/tokenize", "post", "Text to token ids", TokenizeBody, TokenizeAnswer, None),
    ("/detokenize", "post", "Token ids to text", DetokenizeBody, DetokenizeAnswer, None),
    ("/tokenizer_info", "get", "Special tokens and chat template", None, TokenizerAnswer, None),
    ("/abort_request", "post", "Abort a request", AbortBody, None, None),
    ("/flush_cache", "post", "Empty the prefix cache", None, None, None),
    ("/cache", "get", "Pages, hit rate and pins", None, CacheAnswer, None),
    ("/cache/pins", "get", "List pins", None, PinsAnswer, None),
    ("/cache/pin", "post", "Compute a prefix and keep it for a while", PinBody, PinAnswer, None),
    ("/cache/pin/{name}", "delete", "Let go of a pin", None, UnpinAnswer, None),
    ("/cache/events", "get", "What is stored and removed", None, None, CacheEvent),
    ("/cache/export", "get", "Everything cached, as JSON lines", None, None, CachedEdge),
    ("/scheduler", "get", "How requests are ordered", None, SchedulerAnswer, None),
    ("/scheduler", "post", "Change how requests are ordered", SchedulerBody, SchedulerAnswer, None),
    ("/profile", "post", "Where the node's time goes", ProfileBody, ProfileAnswer, None),
    ("/get_model_info", "get", "The model, for SGLang's clients", None, None, None),
    ("/get_server_info", "get", "The node", None, None, None),
    ("/health", "get", "Readiness", None, None, None),
    ("/health_generate", "get", "Readiness, by generating a token", None, None, None),
    ("/metrics", "get", "Prometheus metrics", None, None, None),
    ("/version", "get", "Release", None, None, None),
]
"""(path, method, summary, request body, answer, event of a stream)."""

PARAMETERS: dict[tuple[str, str], list[tuple[str, str, str]]] = {
    ("/v1/models/{name}", "get"): [("name", "path", "string")],
    ("/cache/pin/{name}", "delete"): [
        ("name", "path", "string"),
        ("cache_salt", "query", "string"),
        ("tenant", "query", "string"),
    ],
    ("/tokenizer_info", "get"): [("model", "query", "string")],
    ("/cache/events", "get"): [("Last-Event-ID", "header", "string")],
    ("/cache/export", "get"): [("tokens", "query", "boolean"), ("cache_salt", "query", "string")],
}
"""(name, where it stands, type) of what is no part of a body."""
LINES = frozenset({"/cache/export"})
"""Whose streams are JSON lines, not server-sent events."""


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 description; made once."""
    structs: list[Struct] = [ErrorBody]
    structs += [
        struct for row in OPERATIONS for struct in row[3:] if struct is not None and struct not in structs
    ]
    schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    refs = dict(zip(structs, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, method, summary, body, answer, event in OPERATIONS:
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
            "responses": {
                "200": {"description": "The answer", "content": _content(refs, path, answer, event)},
                "default": {
                    "description": "An error",
                    "content": {"application/json": {"schema": refs[ErrorBody]}},
                },
            },
        }
        if body is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": refs[body]}},
            }
        if (path, method) in PARAMETERS:
            operation["parameters"] = [
                {"name": name, "in": where, "required": where == "path", "schema": {"type": kind}}
                for name, where, kind in PARAMETERS[path, method]
            ]
        if path in OPEN:
            operation["security"] = []
        paths.setdefault(path, {})[method] = operation
    info = {"title": "sgl-actors", "version": VERSION, "description": "A node of sgl-actors over HTTP."}
    key = {"type": "http", "scheme": "bearer", "description": "Only for nodes with [tenants]."}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": key}},
        "security": [{"key": []}, {}],
    }


def _content(
    refs: dict[Struct, dict[str, Any]], path: str, answer: Struct | None, event: Struct | None
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": refs[answer]}
    if event is not None:
        kind = LineWriter.MEDIA_TYPE if path in LINES else EventWriter.MEDIA_TYPE
        content[kind] = {"schema": refs[event]}
    return content
