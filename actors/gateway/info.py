"""Routes that say how the node is: health, metrics, versions, the model."""

from __future__ import annotations

import secrets

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl_actors.actors.gateway.metrics import CONTENT_TYPE
from sgl_actors.actors.gateway.openai_types import ModelCard, ModelList
from sgl_actors.actors.gateway.service import Service, exchange_of, reply, service_of
from sgl_actors.actors.gateway.sse import until_gone
from sgl_actors.actors.gateway.version import VERSION
from sgl_actors.actors.gateway.view import check_model
from sgl_actors.actors.tokenizer.messages import Generate, SamplingOptions
from sgl_actors.actors.worker.messages import ModelInfo

HEALTH_TIMEOUT = 20.0
"""Seconds within which a healthy node generates one token."""


async def health(request: Request) -> Response:
    """200 while every actor is up and the node takes work; 503 with the reason otherwise."""
    await service_of(request).view.check_ready()
    return reply({"status": "ok"})


async def health_generate(request: Request) -> Response:
    """200 if a token can be generated; the node's error otherwise."""
    service, exchange = service_of(request), exchange_of(request)
    await service.view.check_ready()
    probe = Generate(
        f"health-{secrets.token_hex(8)}",
        text="Hi",
        sampling=SamplingOptions(max_tokens=1, temperature=0.0, seed=0),
        tenant=exchange.tenant.name,
    )
    work = service.node.complete(probe, timeout=HEALTH_TIMEOUT, trace=exchange.trace)
    await until_gone(request.receive, work)
    return reply({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    service = service_of(request)
    text = service.metrics.expose(await service.view.actors())
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


async def models(request: Request) -> Response:
    """The models, as the OpenAI API lists them, the default one first."""
    service = service_of(request)
    rows = (await service.view.models())[1:]
    beside = [await service.serving(row.name) for row in rows if row.state == "serving"]
    return reply(ModelList([_card(service, await one.view.model()) for one in (service, *beside)]))


async def model(request: Request) -> Response:
    """A model by name; 404 for one that is not served."""
    service = await service_of(request).serving(request.path_params["name"])
    info = await service.view.model()
    check_model(request.path_params["name"], info)
    return reply(_card(service, info))


async def model_info(request: Request) -> Response:
    """The model as SGLang's clients ask for it."""
    info = await service_of(request).view.model()
    return reply(
        {
            "model_path": info.path,
            "tokenizer_path": info.path,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "served_model_name": info.served_name,
            "architectures": [info.architecture],
            "context_length": info.context,
            "vocab_size": info.vocabulary,
        }
    )


async def server_info(request: Request) -> Response:
    """The model, the memory, the limits and every actor."""
    service = service_of(request)
    info = await service.view.model()
    actors = await service.view.actors()
    return reply(
        {
            "version": VERSION,
            "model_path": info.path,
            "served_model_name": info.served_name,
            "architecture": info.architecture,
            "context_length": info.context,
            "dtype": info.dtype,
            "compute": info.compute,
            "deterministic": info.deterministic,
            "kernels": info.kernels,
            "device": info.device,
            "threads": info.threads,
            "max_total_num_tokens": info.pages * info.page_size,
            "page_size": info.page_size,
            "kv_bytes": info.pages * info.page_size * info.bytes_per_token,
            "max_body": service.options.max_body,
            "max_choices": service.options.max_choices,
            "timeout": service.options.timeout,
            **service.facts,
            "uptime": None if actors is None else actors.uptime,
            "actors": [] if actors is None else msgspec.to_builtins(actors.rows),
        }
    )


async def version(request: Request) -> Response:  # noqa: ARG001 - a route's signature
    """The release."""
    return reply({"version": VERSION})


async def index(request: Request) -> Response:
    """What this is and where to go on."""
    return reply(
        {
            "name": "sgl-actors",
            "version": VERSION,
            "endpoints": sorted({route.path for route in request.app.routes if hasattr(route, "path")}),
            "documentation": "/openapi.json",
        }
    )


def _card(service: Service, info: ModelInfo) -> ModelCard:
    return ModelCard(
        id=info.served_name, created=int(service.started), root=info.path, max_model_len=info.context
    )
