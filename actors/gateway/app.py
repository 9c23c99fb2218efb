"""The routes of the gateway as an ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_actors.actors.gateway import admin, cache, info, models, openapi, profile, scheduling, tokens
from sgl_actors.actors.gateway.errors import error_response
from sgl_actors.actors.gateway.exchange import Door
from sgl_actors.actors.gateway.native import generate
from sgl_actors.actors.gateway.openai_chat import chat_completions
from sgl_actors.actors.gateway.openai_completions import completions
from sgl_actors.actors.gateway.service import Service, exchange_of, reply


async def _openapi(request: Request) -> Response:
    del request
    return reply(openapi.document())


async def _no_route(request: Request, error: Exception) -> Response:
    exchange_of(request).fail(error)
    return error_response(error)


ROUTES = [
    Route("/", info.index, methods=["GET"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", info.models, methods=["GET"]),
    Route("/v1/models/{name:path}", info.model, methods=["GET"]),
    Route("/generate", generate, methods=["POST", "PUT"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokens.tokenizer_info, methods=["GET"]),
    Route("/get_model_info", info.model_info, methods=["GET"]),
    Route("/model_info", info.model_info, methods=["GET"]),
    Route("/get_server_info", info.server_info, methods=["GET"]),
    Route("/server_info", info.server_info, methods=["GET"]),
    Route("/flush_cache", admin.flush_cache, methods=["GET", "POST"]),
    Route("/abort_request", admin.abort_request, methods=["POST"]),
    Route("/cache", cache.cache, methods=["GET"]),
    Route("/cache/pins", cache.pins, methods=["GET"]),
    Route("/cache/pin", cache.pin, methods=["POST"]),
    Route("/cache/pin/{name}", cache.unpin, methods=["DELETE"]),
    Route("/cache/events", cache.events, methods=["GET"]),
    Route("/cache/export", cache.export, methods=["GET"]),
    Route("/scheduler", scheduling.show, methods=["GET"]),
    Route("/scheduler", scheduling.switch, methods=["POST"]),
    Route("/models/load", models.load, methods=["POST"]),
    Route("/models/unload", models.unload, methods=["POST"]),
    Route("/profile", profile.profile, methods=["POST"]),
    Route("/health", info.health, methods=["GET"]),
    Route("/health_generate", info.health_generate, methods=["GET"]),
    Route("/metrics", info.metrics, methods=["GET"]),
    Route("/version", info.version, methods=["GET"]),
    Route("/openapi.json", _openapi, methods=["GET"]),
]


def build_app(service: Service) -> Starlette:
    """The application that answers for `service`."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Door, books=service)],
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app
